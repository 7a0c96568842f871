"""Tests of server/sound.py: the ring by media time and the stream for the engine."""

import numpy as np
import pytest

from server.sound import Downsampler, SoundRing, level_dbfs

pytestmark = pytest.mark.unit


def ramp(start: int, num_samples: int) -> np.ndarray:
    values = np.arange(start, start + num_samples, dtype=np.int16)
    return np.stack([values, -values], axis=1)


def test_what_was_written_is_read_at_its_place() -> None:
    ring = SoundRing(100)
    ring.write(10, ramp(10, 50))
    np.testing.assert_array_equal(ring.read(20, 30), ramp(20, 30))


def test_what_was_never_written_is_silence() -> None:
    ring = SoundRing(100)
    ring.write(10, ramp(10, 5))
    ring.write(20, ramp(20, 5))
    out = ring.read(-5, 40)
    assert not out[:15].any()
    np.testing.assert_array_equal(out[15:20], ramp(10, 5))
    assert not out[20:25].any()
    np.testing.assert_array_equal(out[25:30], ramp(20, 5))
    assert not out[30:].any()


def test_a_gap_is_silence_even_where_older_sound_lay() -> None:
    ring = SoundRing(100)
    ring.write(0, ramp(1, 100))
    ring.write(150, ramp(150, 10))
    assert not ring.read(100, 50).any()
    np.testing.assert_array_equal(ring.read(150, 10), ramp(150, 10))


def test_sound_that_was_overwritten_is_silence() -> None:
    ring = SoundRing(100)
    ring.write(0, ramp(1, 100))
    ring.write(100, ramp(101, 100))
    assert not ring.read(0, 100).any()
    np.testing.assert_array_equal(ring.read(100, 100), ramp(101, 100))


def test_reordered_sound_fills_its_gap() -> None:
    ring = SoundRing(100)
    ring.write(0, ramp(1, 10))
    ring.write(20, ramp(21, 10))
    ring.write(10, ramp(11, 10))
    np.testing.assert_array_equal(ring.read(0, 30), ramp(1, 30))


def test_sound_older_than_the_ring_does_not_overwrite_newer() -> None:
    ring = SoundRing(100)
    ring.write(0, ramp(1, 200)[-100:])
    ring.write(150, ramp(151, 50))
    ring.write(40, ramp(1, 20))
    np.testing.assert_array_equal(ring.read(150, 50), ramp(151, 50))
    assert not ring.read(40, 60)[:10].any()


@pytest.mark.parametrize("num_in", [960, 48, 9600])
def test_every_push_gives_a_third_of_its_samples(num_in: int) -> None:
    downsampler = Downsampler()
    assert [len(downsampler.push(ramp(0, num_in))) for _ in range(5)] == [num_in // 3] * 5


def test_the_engine_hears_the_same_tone_a_millisecond_later() -> None:
    def tone(rate_hz: int, num_samples: int) -> np.ndarray:
        return 8000 * np.sin(2 * np.pi * 440 * np.arange(num_samples) / rate_hz)

    stereo = np.repeat(tone(48_000, 48_000).astype(np.int16)[:, None], 2, axis=1)
    downsampler = Downsampler()
    out = np.concatenate([downsampler.push(stereo[i : i + 960]) for i in range(0, 48_000, 960)]).astype(float)
    expected = tone(16_000, 16_000)
    assert not out[:16].any()
    assert np.abs(out[116:15_000] - expected[100:14_984]).max() < 20


def test_a_level_is_relative_to_full_scale() -> None:
    square = np.tile(np.array([32767, -32768], np.int16), 100)
    assert level_dbfs(square) == pytest.approx(0.0, abs=0.01)
    assert level_dbfs(square // 10) == pytest.approx(-20.0, abs=0.1)


def test_silence_and_nothing_have_the_lowest_level() -> None:
    assert level_dbfs(np.zeros(100, np.int16)) == -100.0
    assert level_dbfs(np.zeros((0, 2), np.int16)) == -100.0
