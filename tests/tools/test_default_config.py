"""Tests of tools/default_config.py: the reference file of all settings."""

from pathlib import Path

import pytest
import yaml
from pydantic import BaseModel

from server.config import AppConfig, load_config
from tools.default_config import TARGET, render_default

pytestmark = pytest.mark.unit


def test_the_file_is_what_the_classes_say() -> None:
    assert TARGET.read_text(encoding="utf-8") == render_default(), "run python -m tools.default_config"


def test_the_file_loads_as_the_defaults_and_names_every_setting() -> None:
    assert load_config(TARGET, environment={}) == AppConfig()
    assert yaml.safe_load(TARGET.read_text(encoding="utf-8")) == AppConfig().model_dump(mode="json")


def test_every_setting_has_its_meaning() -> None:
    def check(model: type[BaseModel]) -> None:
        for name, field in model.model_fields.items():
            assert field.description, f"{model.__name__}.{name} has no docstring"
            if isinstance(field.default, BaseModel):
                check(type(field.default))

    check(AppConfig)


@pytest.mark.parametrize("preset", sorted(TARGET.parent.glob("*.yaml")), ids=lambda path: path.name)
def test_every_preset_loads(preset: Path) -> None:
    load_config(preset, environment={})
