"""Tests of server/config.py: where settings come from, and what is refused."""

from pathlib import Path

import pytest

from pipeline.errors import ConfigError
from server.config import AppConfig, load_config

pytestmark = pytest.mark.unit


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "preset.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_without_anything_the_defaults_hold() -> None:
    assert load_config(environment={}) == AppConfig()


def test_each_source_wins_over_the_one_before(tmp_path: Path) -> None:
    preset = write(tmp_path, "server: {port: 1001, host: a.example, retry_after_s: 7}")
    environment = {"AVATAR__SERVER__PORT": "1002", "AVATAR__SERVER__HOST": "b.example", "OTHER": "x"}
    config = load_config(preset, environment=environment, assignments=["server.port=1003", "server.port=1004"])
    assert (config.server.port, config.server.host, config.server.retry_after_s) == (1004, "b.example", 7)


def test_nested_settings_are_reached_by_all_sources() -> None:
    config = load_config(
        environment={"AVATAR__SERVER__SESSION__MARGIN_S": "0.2"}, assignments=["engine.pattern.compute_ms=50"]
    )
    assert config.server.session.margin_s == 0.2
    assert config.engine.pattern.compute_ms == 50.0


def test_an_empty_preset_changes_nothing(tmp_path: Path) -> None:
    assert load_config(write(tmp_path, ""), environment={}) == AppConfig()


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("server.prot=1", "server.prot is 1, but there is no such setting"),
        ("engine.name=large", "engine.weights_dir is None, but the large engine takes either it or large.random_weig"),
        ("engine.large.left_context_ms=7", "engine.large.left_context_ms is 7, but it has to be a positive multiple"),
        ("server.port=x", "server.port is 'x', but input should be a valid integer"),
        ("server.port=70000", "server.port is 70000, but input should be less than or equal to 65535"),
        ("server.session.margin_s=.nan", "server.session.margin_s is nan"),
        ("server.port", "--set is 'server.port', but it has to look like section.key=value"),
        ("server.port=[", "server.port is '[', but it has to be a valid YAML value"),
        ("server.max_sessions=3", "server.max_sessions is 3, but it has to be at most engine.max_streams"),
        ('server.allowed_hosts=["https://a.example"]', "'https://a.example' has to be a name without scheme and port"),
        ('server.ice_servers=[{urls: ["turn:t.example:x"]}]', "'turn:t.example:x' has to look like stun:host:port"),
        ('server.ice_servers=[{urls: ["turn:t.example:70000"]}]', "'turn:t.example:70000' has to look like"),
        ('server.ice_servers=[{urls: ["stun:t.example?transport=udp"]}]', "'stun:t.example?transport=udp' has to look"),
        ('server.ice_servers=[{urls: ["turns:t.example?transport=udp"]}]', "'turns:t.example?transport=udp' has to"),
        ("server.session.video_max_bps=100000", "video_min_bps is 400000, but it has to be at most video_max_bps"),
    ],
)
def test_a_wrong_setting_is_refused_with_key_value_and_rule(assignment: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(environment={}, assignments=[assignment])
    assert message in str(caught.value)


def test_a_value_is_not_a_section() -> None:
    with pytest.raises(ConfigError, match="port is a value and not a section"):
        load_config(environment={}, assignments=["server.port=1", "server.port.x=2"])


@pytest.mark.parametrize(
    ("content", "message"),
    [("a: [", "valid YAML"), ("- 1", "mapping of sections"), ("sever: {}", "there is no such setting")],
)
def test_a_wrong_preset_is_refused(tmp_path: Path, content: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config(write(tmp_path, content), environment={})


def test_a_missing_preset_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="nowhere.yaml"):
        load_config(tmp_path / "nowhere.yaml", environment={})


def test_a_password_does_not_show() -> None:
    servers = 'server.ice_servers=[{urls: ["turn:t.example"], username: u, credential: hunter2}]'
    config = load_config(environment={}, assignments=[servers])
    assert "hunter2" not in config.model_dump_json() + repr(config)
