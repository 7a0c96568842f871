import os
from pathlib import Path

import pytest
from pydantic import ValidationError

from pipeline.config import EngineConfig, LargeConfig, PatternConfig

pytestmark = pytest.mark.unit


def test_a_configuration_survives_the_way_to_the_worker() -> None:
    config = EngineConfig(name="pattern", max_streams=3, pattern=PatternConfig(fault="crash", fault_window=7))
    assert EngineConfig.model_validate_json(config.model_dump_json()) == config


@pytest.mark.parametrize("model", [EngineConfig, LargeConfig, PatternConfig])
def test_every_setting_has_a_sentence(model: type[EngineConfig | LargeConfig | PatternConfig]) -> None:
    undocumented = [key for key, field in model.model_fields.items() if not (field.description or "").endswith(".")]
    assert undocumented == []


@pytest.mark.parametrize(
    ("settings", "key"),
    [
        ({"name": "huge"}, "name"),
        ({"threads": 0}, "threads"),
        ({"num_steps": 2}, "num_steps"),
        ({"max_streams": 0}, "max_streams"),
        ({"frame_slots": 23}, "frame_slots"),
        ({"ready_timeout_s": float("inf")}, "ready_timeout_s"),
        ({"hello_timeout_s": 0}, "hello_timeout_s"),
        ({"speed": 3}, "speed"),
        ({"pattern": {"width_px": 100}}, "pattern.width_px"),
        ({"pattern": {"fault": "explode"}}, "pattern.fault"),
        ({"large": {"device": "gpu"}}, "large.device"),
        ({"large": {"width_px": 720}}, "large.width_px"),
        ({"large": {"memory_gb": 0}}, "large.memory_gb"),
        ({"large": {"reference_distance": 3}}, "large.reference_distance"),
        ({"large": {"right_context_ms": 4}}, "large"),
    ],
)
def test_a_wrong_setting_is_refused_by_name(settings: dict[str, object], key: str) -> None:
    with pytest.raises(ValidationError) as caught:
        EngineConfig.model_validate(settings)
    assert [".".join(map(str, error["loc"])) for error in caught.value.errors()] == [key]


def test_deadlines_that_contradict_each_other_are_refused_with_both_values() -> None:
    with pytest.raises(ValidationError, match=r"stall_timeout_s is 0.9, but .* heartbeat_s \(0.5\)"):
        EngineConfig(stall_timeout_s=0.9)
    with pytest.raises(ValidationError, match=r"restart_delay_max_s is 1.0, but .* restart_delay_s \(2.0\)"):
        EngineConfig(restart_delay_s=2, restart_delay_max_s=1)


def test_a_configuration_cannot_be_changed() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        EngineConfig().threads = 4  # type: ignore[misc]


def test_the_right_context_is_counted_in_samples() -> None:
    assert PatternConfig(right_context_ms=80).right_context_samples == 1280


def test_threads_are_half_of_the_cores_within_bounds_unless_set() -> None:
    num_cores = len(os.sched_getaffinity(0))
    assert EngineConfig().num_threads == max(1, min(6, num_cores // 2))
    assert EngineConfig().most_threads == min(6, num_cores)
    assert EngineConfig(threads=3).num_threads == EngineConfig(threads=3).most_threads == 3


@pytest.mark.parametrize("settings", [{}, {"weights_dir": "/w", "large": {"random_weights": True}}])
def test_the_large_engine_takes_either_files_or_random_weights(settings: dict[str, object]) -> None:
    with pytest.raises(ValidationError, match=r"weights_dir is (None|'/w'), but the large engine takes either it or"):
        EngineConfig.model_validate({"name": "large", **settings})
    assert EngineConfig(name="large", weights_dir=Path("/w")).large.random_weights is False


def test_more_steps_than_the_embedded_engine_was_trained_for_are_refused() -> None:
    with pytest.raises(ValidationError, match="num_steps is 5, but the embedded engine was trained for 4 at most"):
        EngineConfig(num_steps=5)
    assert EngineConfig(num_steps=4).num_steps == 4
    assert EngineConfig(name="pattern", num_steps=5).num_steps == 5


def test_the_large_engine_is_waited_for_longer_unless_something_is_said() -> None:
    large, embedded = EngineConfig(name="large", weights_dir=Path("/w")), EngineConfig()
    assert (large.ready_timeout_s, embedded.ready_timeout_s) == (3600, 120)
    assert (large.stall_timeout_s, embedded.stall_timeout_s) == (180, 10)
    assert EngineConfig(name="large", weights_dir=Path("/w"), ready_timeout_s=5).ready_timeout_s == 5


@pytest.mark.parametrize("large", [{"device": "cpu"}, LargeConfig(device="cpu")])
def test_the_large_engine_is_waited_for_much_longer_on_a_cpu(large: dict[str, object] | LargeConfig) -> None:
    config = EngineConfig.model_validate({"name": "large", "weights_dir": "/w", "large": large, "open_timeout_s": 7})
    assert (config.ready_timeout_s, config.stall_timeout_s, config.open_timeout_s) == (14400, 3600, 7)
    assert EngineConfig.model_validate_json(config.model_dump_json()) == config


def test_a_weights_folder_is_one_of_the_directory_in_which_visavis_was_started() -> None:
    assert EngineConfig(weights_dir=Path("ckpt")).weights_dir == Path.cwd() / "ckpt"
    assert EngineConfig(weights_dir=Path("~/ckpt")).weights_dir == Path.home() / "ckpt"


def test_the_context_is_that_of_the_settings() -> None:
    context = LargeConfig(left_context_ms=1000, right_context_ms=200).audio_context
    assert (context.left_samples, context.right_samples) == (16_000, 3200)
