import fractions

import av
import numpy as np
import pytest
from numpy.typing import NDArray

from pipeline.api import StreamParams
from pipeline.config import EngineConfig, PatternConfig
from pipeline.geometry import FRAMES_PER_BLOCK, SAMPLES_PER_FRAME, WINDOW_SAMPLES
from pipeline.worker.model import StageMarks, WarmTimes
from pipeline.worker.pattern import (
    NUM_FRAME_INDICES,
    PatternModel,
    PatternStream,
    frame_level,
    read_clap,
    read_frame_index,
    read_level,
    read_liveliness,
)

pytestmark = pytest.mark.unit

CONTEXT = 1280
HEIGHT_PX = 384


def sound(levels_dbfs: list[float]) -> NDArray[np.int16]:
    """A window whose frames have these RMS levels, and silence as right context."""
    wave = np.sqrt(2) * np.sin(2 * np.pi * 1000 * np.arange(SAMPLES_PER_FRAME) / 16_000)
    frames = [wave * 10 ** (level / 20) * 32767 for level in levels_dbfs]
    return np.concatenate([*frames, np.zeros(CONTEXT)]).round().astype(np.int16)


def make(window: int, pcm: NDArray[np.int16], config: PatternConfig | None = None) -> NDArray[np.uint8]:
    stream = PatternStream(config or PatternConfig(), num_steps=4)
    return np.concatenate(list(stream.generate(pcm, StageMarks(window=window), 4)))


@pytest.mark.parametrize("window", [0, 1, 41, 5_461, NUM_FRAME_INDICES // FRAMES_PER_BLOCK, 10**6])
def test_every_frame_shows_its_index(window: int) -> None:
    frames = make(window, sound([-60.0] * 12))
    assert frames.shape == (12, HEIGHT_PX * 3 // 2, 256)
    first = window * FRAMES_PER_BLOCK
    shown = [read_frame_index(frame, HEIGHT_PX) for frame in frames]
    assert shown == [(first + offset) % NUM_FRAME_INDICES for offset in range(12)]


def test_the_bar_is_as_high_as_the_level_of_the_same_40_ms() -> None:
    levels_dbfs = [-60.0, -50, -40, -30, -20, -10, -5, -15, -25, -35, -45, -55]
    pcm = sound(levels_dbfs)
    for index, frame in enumerate(make(0, pcm)):
        measured = frame_level(pcm[index * SAMPLES_PER_FRAME : (index + 1) * SAMPLES_PER_FRAME])
        assert read_level(frame, HEIGHT_PX) == pytest.approx(measured, abs=0.5 / 128 + 1e-6)
        assert measured == pytest.approx(1 + levels_dbfs[index] / 60, abs=0.02)


def test_a_window_after_a_skipped_one_is_as_any_other() -> None:
    pcm, stream = sound([-20.0] * 12), PatternStream(PatternConfig(), num_steps=4)
    stream.skip(pcm)
    after = np.concatenate(list(stream.generate(pcm, StageMarks(window=1), 4)))
    np.testing.assert_array_equal(after, make(1, pcm))


def test_silence_has_the_level_0() -> None:
    assert frame_level(np.zeros(640, np.int16)) == 0


def test_the_clap_patch_is_white_exactly_in_frames_above_the_threshold() -> None:
    levels_dbfs = [-60.0, -19, -60, -21, -10, -60, -60, -20.5, -19.5, -60, -60, -3]
    shown = [read_clap(frame, HEIGHT_PX) for frame in make(3, sound(levels_dbfs))]
    assert shown == [level > -20 for level in levels_dbfs]


@pytest.mark.parametrize("codec_name", ["libvpx", "libx264"])
def test_index_clap_and_level_survive_a_codec_at_half_a_megabit(codec_name: str) -> None:
    rng = np.random.default_rng(1)
    levels_dbfs = [float(level) for level in rng.choice([-50, -35, -10], 36)]
    frames = np.concatenate([make(100 + n, sound(levels_dbfs[12 * n : 12 * n + 12])) for n in range(3)])
    decoded = through_codec(frames, codec_name)
    assert [read_frame_index(picture, HEIGHT_PX) for picture in decoded] == list(range(1200, 1236))
    assert [read_clap(picture, HEIGHT_PX) for picture in decoded] == [level > -20 for level in levels_dbfs]
    shown = [read_level(picture, HEIGHT_PX) for picture in decoded]
    assert shown == pytest.approx([1 + level / 60 for level in levels_dbfs], abs=0.05)


def test_the_picture_is_read_at_another_size_too() -> None:
    frame = make(7, sound([-12.0] * 12))[5]
    small = frame[:HEIGHT_PX:2, ::2]
    assert read_frame_index(small, HEIGHT_PX // 2) == 7 * 12 + 5
    assert read_level(small, HEIGHT_PX // 2) == pytest.approx(0.8, abs=0.02)


@pytest.mark.parametrize("luma", [0, 16, 126, 235, 255])
def test_a_plain_picture_has_no_index(luma: int) -> None:
    assert read_frame_index(np.full((HEIGHT_PX, 256), luma, np.uint8), HEIGHT_PX) is None


def test_one_wrong_cell_is_noticed() -> None:
    frame = make(7, sound([-60.0] * 12))[0]
    frame[:42, 32:64] = 251 - frame[:42, 32:64]
    assert read_frame_index(frame, HEIGHT_PX) is None


def test_parameters_and_portrait_are_shown() -> None:
    red = np.zeros((HEIGHT_PX, 256, 3), np.uint8)
    red[..., 0] = 255
    config = PatternConfig()
    stream = PatternStream(config, num_steps=4, portrait=red, params=StreamParams(liveliness=0.5))
    frame = next(stream.generate(sound([-60.0] * 12), StageMarks(window=0), 4))[0]
    assert read_liveliness(frame, HEIGHT_PX) == pytest.approx(0.5, abs=0.01)
    shown = av.VideoFrame.from_ndarray(frame, format="yuv420p").to_ndarray(format="rgb24")[350, 60]
    assert shown.tolist() == pytest.approx([255, 0, 0], abs=4)
    stream.update(StreamParams(liveliness=2.0))
    stream.set_portrait(255 - red)
    frame = next(stream.generate(sound([-60.0] * 12), StageMarks(window=1), 4))[0]
    assert read_liveliness(frame, HEIGHT_PX) == pytest.approx(2.0, abs=0.01)
    shown = av.VideoFrame.from_ndarray(frame, format="yuv420p").to_ndarray(format="rgb24")[350, 60]
    assert shown.tolist() == pytest.approx([0, 255, 255], abs=4)


def test_each_stage_is_marked_and_steps_are_as_many_as_allowed() -> None:
    ticks = iter(range(100))
    marks = StageMarks(window=0, now_s=lambda: float(next(ticks)))
    stream = PatternStream(PatternConfig(), num_steps=4)
    batches = [len(batch) for batch in stream.generate(sound([-60.0] * 12), marks, 3)]
    assert batches == [4, 4, 4]
    assert (marks.features_s, marks.steps_s, marks.decoded_s) == (0, [1, 2, 3], 4)


def test_the_model_says_what_it_is_and_opens_streams() -> None:
    model = PatternModel(EngineConfig(name="pattern", num_steps=3, pattern=PatternConfig(height_px=96, width_px=64)))
    assert model.warm_up() == WarmTimes(window_s=0.0, start_s=0.0)
    assert (model.height_px, model.width_px, model.num_steps, model.right_context_samples) == (96, 64, 3, CONTEXT)
    stream = model.open_stream(portrait=None, prompt=None, seed=0, params=StreamParams())
    pcm = np.zeros(WINDOW_SAMPLES + CONTEXT, np.int16)
    (first, *_) = stream.generate(pcm, StageMarks(window=2), 3)
    assert read_frame_index(first[1], 96) == 25
    stream.interrupt()
    stream.close()


def test_a_configured_error_is_raised_at_its_window_only() -> None:
    config = PatternConfig(fault="raise", fault_window=3)
    assert len(make(2, sound([-60.0] * 12), config)) == 12
    with pytest.raises(RuntimeError, match="as the configuration asks for"):
        make(3, sound([-60.0] * 12), config)
    model = PatternModel(EngineConfig(pattern=PatternConfig(fault="raise", fault_at_warm_up=True)))
    with pytest.raises(RuntimeError, match="as the configuration asks for"):
        model.warm_up()


def through_codec(frames: NDArray[np.uint8], codec_name: str) -> list[NDArray[np.uint8]]:
    encoder = av.CodecContext.create(codec_name, "w")
    assert isinstance(encoder, av.VideoCodecContext)
    encoder.width, encoder.height, encoder.pix_fmt = frames.shape[2], HEIGHT_PX, "yuv420p"
    encoder.bit_rate, encoder.framerate, encoder.time_base = 500_000, fractions.Fraction(25), fractions.Fraction(1, 25)
    encoder.options = {"deadline": "realtime", "cpu-used": "8"} if codec_name == "libvpx" else {"tune": "zerolatency"}
    packets = []
    for pts, frame in enumerate(frames):
        picture = av.VideoFrame.from_ndarray(frame, format="yuv420p")
        picture.pts = pts
        packets += encoder.encode(picture)
    packets += encoder.encode(None)
    decoder = av.CodecContext.create("vp8" if codec_name == "libvpx" else "h264", "r")
    assert isinstance(decoder, av.VideoCodecContext)
    pictures = [picture for packet in [*packets, None] for picture in decoder.decode(packet)]
    return [picture.to_ndarray(format="yuv420p") for picture in pictures]
