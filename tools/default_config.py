"""Writes configs/default.yaml from the configuration classes: every setting, its meaning and its default.

python -m tools.default_config
"""

import json
import textwrap
from pathlib import Path

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from server.config import AppConfig

__all__ = ["main", "render_default"]

TARGET = Path(__file__).resolve().parent.parent / "configs" / "default.yaml"
_HEAD = """\
Every setting of visavis with its default. Written by `python -m tools.default_config`; a test keeps it up to date.
A preset holds only what differs from this file: `visavis serve --config FILE`. Single settings are changed by
`--set server.port=9000` or by the environment, AVATAR__SERVER__PORT=9000; the later one of these wins.
"""
_WIDTH = 118


def render_default() -> str:
    """The content of configs/default.yaml."""
    return "\n".join([*_comment(_HEAD, 0), *_section(AppConfig(), 0)]) + "\n"


def main() -> None:
    """Write the file."""
    TARGET.parent.mkdir(exist_ok=True)
    TARGET.write_text(render_default(), encoding="utf-8")
    print(f"wrote {TARGET.relative_to(TARGET.parent.parent)}")


def _section(values: BaseModel, indent: int) -> list[str]:
    lines: list[str] = []
    for name, field in type(values).model_fields.items():
        value = getattr(values, name)
        if indent == 0:
            lines.append("")
        lines += _comment(_meaning(field), indent)
        if isinstance(value, BaseModel):
            lines += [f"{' ' * indent}{name}:", *_section(value, indent + 2)]
        else:
            plain = values.model_dump(mode="json")[name]
            lines.append(f"{' ' * indent}{name}: {json.dumps(plain, ensure_ascii=False)}")
    return lines


def _meaning(field: FieldInfo) -> str:
    return " ".join((field.description or "").split())


def _comment(text: str, indent: int) -> list[str]:
    start = f"{' ' * indent}# "
    return textwrap.wrap(" ".join(text.split()), _WIDTH, initial_indent=start, subsequent_indent=start)


if __name__ == "__main__":
    main()
