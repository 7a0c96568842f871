import pytest

from pipeline.config import EngineConfig
from pipeline.worker.model import AvatarModel, StageMarks, load_model
from pipeline.worker.pattern import PatternModel

pytestmark = pytest.mark.unit


def test_the_configuration_names_the_model() -> None:
    model: AvatarModel = load_model(EngineConfig(name="pattern"))
    assert isinstance(model, PatternModel)


def test_marks_keep_the_time_of_each_stage() -> None:
    ticks = iter((1.0, 2.0, 3.0, 4.0))
    marks = StageMarks(window=9, now_s=lambda: next(ticks))
    marks.features_done()
    marks.step_done()
    marks.step_done()
    marks.decode_done()
    assert (marks.window, marks.features_s, marks.steps_s, marks.decoded_s) == (9, 1.0, [2.0, 3.0], 4.0)
