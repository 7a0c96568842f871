import inspect

import pytest

from pipeline import errors

pytestmark = pytest.mark.unit


def drawing(cls: type[BaseException], prefix: str = "") -> list[str]:
    """Draw the tree below a class as the module's docstring does, in the docstring's order."""
    lines = []
    children = [child for child in cls.__subclasses__() if child.__module__ == errors.__name__]
    for index, child in enumerate(children):
        is_last = index == len(children) - 1
        also = [base.__name__ for base in child.__bases__ if base is not cls]
        note = f" (also {', '.join(also)})" if also else ""
        lines.append(f"{prefix}{'└── ' if is_last else '├── '}{child.__name__}{note}")
        lines += drawing(child, prefix + ("    " if is_last else "│   "))
    return lines


def test_the_drawing_in_the_docstring_is_the_tree() -> None:
    document = inspect.getdoc(errors) or ""
    drawn = [line.removeprefix("    ") for line in document.splitlines() if line.startswith("    ")]
    assert drawn == ["AvatarError", *drawing(errors.AvatarError)]


def test_all_errors_are_exported_in_order() -> None:
    classes = [name for name, value in vars(errors).items() if inspect.isclass(value)]
    assert errors.__all__ == sorted(classes)


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (errors.ConfigError("threads", 0, "it has to be positive"), "threads is 0, but it has to be positive"),
        (errors.MediaError("portrait", "2x2 px", "it has to be larger"), "portrait is 2x2 px, but it has to be larger"),
        (errors.WeightsError("a.safetensors", "it is damaged"), "weights a.safetensors: it is damaged"),
        (errors.StreamLimitReached(2), "all 2 streams of the engine are taken"),
        (errors.WorkerStartTimeout(30.0), "the worker was not ready after 30 s"),
        (errors.WorkerCrashed(0, -9), "worker 0 ended with exit code -9"),
        (errors.WorkerStalled(1, 10.04), "worker 1 has been silent for 10.0 s"),
    ],
)
def test_each_error_is_a_sentence_with_its_facts(error: errors.AvatarError, sentence: str) -> None:
    assert str(error) == sentence


def test_errors_about_input_are_value_errors() -> None:
    assert issubclass(errors.ConfigError, ValueError)
    assert issubclass(errors.MediaError, ValueError)
