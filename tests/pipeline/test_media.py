"""Sound files of every kind, good and bad, and movies whose sound and picture agree."""

from __future__ import annotations

import struct
import wave
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import soxr

from pipeline.errors import MediaError
from pipeline.media import AudioFile, EngineResampler, MovieWriter, VideoFile, decode_audio
from tests.fakes.film import damage_film, write_film

pytestmark = pytest.mark.unit

MATRICES = ((1, 0, 0, 0, 1, 0), (0, 1, 0, -1, 0, 0))
"""Of a film that is upright, and of one that was taken with the camera on its side: a b u, c d v."""


def clicks(rate_hz: int, seconds: float, *, every_s: float = 0.5) -> np.ndarray:
    """Silence with a 4 ms burst that starts at every multiple of `every_s`."""
    time_s = np.arange(round(rate_hz * seconds)) / rate_hz
    return np.where(time_s % every_s < 0.004, 0.5 * np.sin(2 * np.pi * 1000 * time_s), 0)


def write_sound(
    path: Path, sound: np.ndarray, *, rate_hz: int, codec: str, layout: str = "mono", form: str | None = None
) -> None:
    """Encode a mono sound into a file, the same in all channels."""
    with av.open(str(path), "w", format=form) as container:
        stream = container.add_stream(codec, rate=rate_hz, layout=layout)
        context = stream.codec_context
        num_channels = context.channels
        pcm = np.repeat((sound * 32767).astype(np.int16)[:, None], num_channels, 1).reshape(1, -1)
        frame = av.AudioFrame.from_ndarray(pcm, format="s16", layout=layout)
        frame.sample_rate, frame.pts, frame.time_base = rate_hz, 0, Fraction(1, rate_hz)
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def write_wav(path: Path, pcm: np.ndarray, rate_hz: int = 16_000) -> None:
    with wave.open(str(path), "wb") as file:
        file.setparams((1, 2, rate_hz, 0, "NONE", ""))
        file.writeframes(pcm.astype("<i2").tobytes())


def onsets_s(pcm: np.ndarray, rate_hz: int) -> list[float]:
    """Times at which a sound begins after silence."""
    loud = np.flatnonzero(np.abs(pcm.astype(float)) > 0.15 * np.abs(pcm).max())
    starts = loud[np.flatnonzero(np.diff(loud, prepend=-(10**9)) > 0.1 * rate_hz)]
    return [float(start) / rate_hz for start in starts]


@pytest.mark.parametrize(
    ("name", "codec", "rate_hz", "layout"),
    [
        ("a.wav", "pcm_s16le", 16_000, "mono"),
        ("a.wav", "pcm_s16le", 8_000, "mono"),
        ("a.wav", "pcm_f32le", 44_100, "stereo"),
        ("a.wav", "pcm_s24le", 96_000, "5.1"),
        ("a.flac", "flac", 48_000, "stereo"),
        ("a.ogg", "libopus", 48_000, "stereo"),
        ("a.mp3", "libmp3lame", 22_050, "mono"),
        ("a.m4a", "aac", 44_100, "stereo"),
        ("a.mkv", "libopus", 48_000, "mono"),
    ],
)
def test_any_format_comes_out_in_16_khz_at_its_own_time(
    tmp_path: Path, name: str, codec: str, rate_hz: int, layout: str
) -> None:
    path = tmp_path / name
    write_sound(path, clicks(rate_hz, 2.25), rate_hz=rate_hz, codec=codec, layout=layout)
    pcm = np.concatenate(list(decode_audio(path)))
    assert pcm.dtype == np.int16
    assert len(pcm) / 16_000 == pytest.approx(2.25, abs=0.08)
    assert onsets_s(pcm, 16_000) == pytest.approx([0, 0.5, 1, 1.5, 2], abs=0.003)


def test_a_sound_in_the_engine_s_own_format_is_not_changed(tmp_path: Path) -> None:
    pcm = np.random.default_rng(0).integers(-20_000, 20_000, 50_001, np.int16)
    write_wav(tmp_path / "a.wav", pcm)
    assert np.array_equal(np.concatenate(list(decode_audio(tmp_path / "a.wav"))), pcm)


def test_decoding_goes_in_small_chunks(tmp_path: Path) -> None:
    write_wav(tmp_path / "a.wav", np.zeros(16_000 * 60))
    sizes = [len(chunk) for chunk in decode_audio(tmp_path / "a.wav")]
    assert sum(sizes) == 16_000 * 60
    assert max(sizes) <= 16_000


def pieces(sound: np.ndarray, rate_hz: int) -> Iterator[av.AudioFrame]:
    """Cut float32 sound, (num_channels, num_samples), into frames."""
    for start in range(0, sound.shape[1], 1000):
        piece = np.ascontiguousarray(sound[:, start : start + 1000], np.float32)
        frame = av.AudioFrame.from_ndarray(piece, format="fltp", layout={1: "mono", 2: "stereo"}[len(sound)])
        frame.sample_rate = rate_hz
        yield frame


def resampled(*stretches: tuple[np.ndarray, int]) -> np.ndarray:
    """Resample stretches of sound, each with its rate, in pieces and one after another."""
    resampler = EngineResampler()
    frames = [frame for sound, rate_hz in stretches for frame in pieces(sound, rate_hz)]
    return np.concatenate([resampler.push(frame) for frame in [*frames, None]])


@pytest.mark.parametrize("rate_hz", [8_000, 11_025, 16_000, 44_100, 48_000, 192_000])
@pytest.mark.parametrize("num_more", [0, 1, 777])
def test_resampling_keeps_the_length_to_the_sample(rate_hz: int, num_more: int) -> None:
    num_samples = 3 * rate_hz + num_more
    assert len(resampled((np.zeros((1, num_samples)), rate_hz))) == round(num_samples * 16_000 / rate_hz)


@pytest.mark.parametrize("rate_hz", [8_000, 22_050, 44_100, 48_000])
def test_files_are_resampled_as_the_published_code_does_it(rate_hz: int) -> None:
    """The mean of the channels through soxr in high quality, all at once; rounded to 16 bits here."""
    sound = np.random.default_rng(0).normal(0, 0.1, (2, 2 * rate_hz + 5)).astype(np.float32)
    expected = soxr.resample(sound.mean(0), rate_hz, 16_000, quality="HQ") * 32_768
    assert np.abs(resampled((sound, rate_hz)) - expected).max() < 0.51


@pytest.mark.parametrize("tone_hz", [300, 6_900, 7_200])
def test_high_sounds_are_kept_as_low_ones_are(tone_hz: int) -> None:
    """Where the consonants are; below a sixteenth of an octave under half the rate."""
    tone = 0.5 * np.sin(2 * np.pi * tone_hz * np.arange(48_000) / 48_000)
    middle = resampled((tone[None], 48_000))[4_000:-4_000].astype(float) / 32_768
    assert np.sqrt(2 * np.mean(middle**2)) == pytest.approx(0.5, rel=0.003)


def test_what_is_too_loud_is_cut_off_and_does_not_turn_over() -> None:
    loud = resampled((np.full((1, 48_000), 1.5), 48_000))
    assert loud.min() >= 0
    assert (loud[1000:-1000] == 32_767).all()


def test_a_change_of_channels_leaves_no_mark() -> None:
    """The same in one channel, then in two: one sound for the filter of the rate."""
    sound = np.random.default_rng(0).normal(0, 0.1, (1, 30_000)).astype(np.float32)
    parts = (sound[:, :10_000], np.repeat(sound[:, 10_000:20_000], 2, 0), sound[:, 20_000:])
    whole, changing = resampled((sound, 44_100)), resampled(*((part, 44_100) for part in parts))
    assert np.array_equal(whole, changing)


def test_a_change_of_the_rate_loses_no_sample() -> None:
    """Each stretch sounds as it does alone."""
    rng = np.random.default_rng(0)
    stretches = [
        (rng.normal(0, 0.1, (num_channels, 2 * rate_hz + 7)).astype(np.float32), rate_hz)
        for num_channels, rate_hz in ((1, 22_050), (2, 44_100), (1, 16_000), (1, 48_000))
    ]
    assert np.array_equal(resampled(*stretches), np.concatenate([resampled(stretch) for stretch in stretches]))


@pytest.mark.parametrize("second", [("stereo", 44_100), ("mono", 22_050), ("stereo", 22_050)])
def test_joined_files_of_different_kinds_are_one_sound(tmp_path: Path, second: tuple[str, int]) -> None:
    """One behind the other, as broadcasters join them; the encoder puts up to 80 ms of silence round each."""
    data = b""
    for layout, rate_hz in (("mono", 44_100), second):
        write_sound(tmp_path / "a.mp2", clicks(rate_hz, 2), rate_hz=rate_hz, codec="mp2", layout=layout)
        data += (tmp_path / "a.mp2").read_bytes()
    (tmp_path / "a.mp2").write_bytes(data)
    pcm = np.concatenate(list(decode_audio(tmp_path / "a.mp2")))
    assert len(pcm) / 16_000 == pytest.approx(4, abs=0.25)
    assert np.diff(onsets_s(pcm, 16_000)) == pytest.approx([0.5] * 7, abs=0.2)


def test_no_sound_at_all_has_an_end() -> None:
    assert len(EngineResampler().push(None)) == 0


def test_a_file_without_sound_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "silent.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p"
        for _ in range(3):
            frame = av.VideoFrame.from_ndarray(np.zeros((96, 64), np.uint8), format="yuv420p")
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    with pytest.raises(MediaError, match=r"silent.mp4 is without an audio stream, but it has to contain sound"):
        list(decode_audio(path))


def test_a_sound_of_no_length_is_refused(tmp_path: Path) -> None:
    write_wav(tmp_path / "a.wav", np.zeros(0))
    with pytest.raises(MediaError, match=r"a.wav is (0 samples long|not a media file)"):
        list(decode_audio(tmp_path / "a.wav"))


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "0 bytes long"),
        (b"just some text, nothing to hear\n" * 50, "not a media file"),
        (bytes(5000), "not a media file"),
        (b"#EXTM3U\n#EXTINF:10,\nhttp://127.0.0.1:1/a.ts\n", "not a media file"),
    ],
)
def test_what_is_no_media_file_is_refused(tmp_path: Path, content: bytes, problem: str) -> None:
    path = tmp_path / "a.wav"
    path.write_bytes(content)
    with pytest.raises(MediaError, match=f"a.wav is {problem}.*but it has to be a sound or video file"):
        AudioFile(path)


def test_a_missing_file_and_a_folder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(MediaError, match=r"unreadable \(no such file or directory\)"):
        AudioFile(tmp_path / "none.wav")
    with pytest.raises(MediaError, match=r"unreadable \(is a directory\)"):
        AudioFile(tmp_path)


def test_damage_in_the_middle_is_reported_with_its_place(tmp_path: Path) -> None:
    path = tmp_path / "a.m4a"
    rng = np.random.default_rng(0)
    write_sound(path, rng.normal(0, 0.1, 48_000 * 4), rate_hz=48_000, codec="aac")
    data = bytearray(path.read_bytes())
    data[len(data) // 2 : len(data) // 2 + 3000] = rng.bytes(3000)
    path.write_bytes(bytes(data))
    with pytest.raises(MediaError, match=r"damaged after [12]\.\d\d s"):
        list(decode_audio(path))


def movie(path: Path, *, rate_hz: int, num_channels: int, num_frames: int = 60) -> None:
    """Write a movie that is white, and clicks, at every 12th frame."""
    sound = clicks(rate_hz, num_frames / 25, every_s=0.48)
    layout = {1: "mono", 2: "stereo"}[num_channels]
    with MovieWriter(path, height_px=96, width_px=64, rate_hz=rate_hz, num_channels=num_channels) as writer:
        pcm = np.repeat((sound * 32767).astype(np.int16)[:, None], num_channels, 1).reshape(1, -1)
        frame = av.AudioFrame.from_ndarray(pcm, format="s16", layout=layout)
        frame.sample_rate = rate_hz
        writer.add_sound(frame)
        writer.add_sound(None)
        pictures = np.full((num_frames, 144, 64), 128, np.uint8)
        pictures[:, :96] = np.where(np.arange(num_frames) % 12 == 0, 235, 16)[:, None, None]
        writer.add_pictures(pictures)
        writer.finish()


@pytest.mark.parametrize(("rate_hz", "num_channels"), [(16_000, 1), (44_100, 2), (48_000, 2), (11_025, 1)])
def test_sound_and_picture_of_a_movie_start_together(tmp_path: Path, rate_hz: int, num_channels: int) -> None:
    """Flashes and clicks are decoded again by their time stamps: they fall together to 3 ms."""
    path = tmp_path / "a.mp4"
    movie(path, rate_hz=rate_hz, num_channels=num_channels)
    with av.open(str(path)) as container:
        pictures = [(frame.time, frame.to_ndarray(format="gray").mean()) for frame in container.decode(video=0)]
    with av.open(str(path)) as container:
        parts = list(container.decode(audio=0))
    assert [time for time, _ in pictures] == pytest.approx([i / 25 for i in range(60)])
    flashes = [time for time, brightness in pictures if brightness > 128]
    start_s = parts[0].time
    pcm = np.concatenate([part.to_ndarray()[0] for part in parts])
    heard = [start_s + onset for onset in onsets_s(pcm * 32767, parts[0].sample_rate)]
    assert len(heard) == 5
    assert heard == pytest.approx(flashes, abs=0.003)


def test_the_sound_of_a_movie_may_change_its_kind_on_the_way(tmp_path: Path) -> None:
    """Clicks half a second apart stay so, and nothing is missing at the end; the file counts time as it likes."""
    path = tmp_path / "a.mp4"
    kinds = ((1, 44_100), (2, 44_100), (2, 22_050), (1, 48_000))
    with MovieWriter(path, height_px=96, width_px=64, rate_hz=44_100, num_channels=1) as writer:
        for num_channels, rate_hz in kinds:
            for frame in pieces(np.repeat(clicks(rate_hz, 1)[None], num_channels, 0), rate_hz):
                frame.time_base = Fraction(1, 14_112_000)
                writer.add_sound(frame)
        writer.add_sound(None)
        writer.add_pictures(np.zeros((100, 144, 64), np.uint8))
        writer.finish()
    with av.open(str(path)) as container:
        parts = list(container.decode(audio=0))
    pcm = np.concatenate([part.to_ndarray()[0] for part in parts])
    assert parts[0].time + len(pcm) / 44_100 == pytest.approx(4, abs=0.03)
    assert np.array(onsets_s(pcm, 44_100)) + parts[0].time == pytest.approx(np.arange(8) / 2, abs=0.003)


def test_a_movie_without_any_sound_has_only_pictures(tmp_path: Path) -> None:
    with MovieWriter(tmp_path / "a.mp4", height_px=96, width_px=64, rate_hz=44_100, num_channels=1) as writer:
        writer.add_sound(None)
        writer.add_pictures(np.zeros((3, 144, 64), np.uint8))
        writer.finish()
    assert len(levels(tmp_path / "a.mp4")) == 3


def test_a_movie_says_what_its_colours_are_and_starts_fast(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    movie(path, rate_hz=16_000, num_channels=1)
    with av.open(str(path)) as container:
        context = container.streams.video[0].codec_context
        assert (context.colorspace, context.color_range, context.pix_fmt) == (6, 1, "yuv420p")
        assert container.streams.video[0].average_rate == 25
    data = path.read_bytes()
    assert data.index(b"moov") < data.index(b"mdat")


def test_a_movie_that_is_not_finished_leaves_nothing_and_keeps_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    path.write_bytes(b"the old one")

    def interrupted() -> None:
        with MovieWriter(path, height_px=96, width_px=64, rate_hz=16_000, num_channels=1) as writer:
            writer.add_pictures(np.zeros((30, 144, 64), np.uint8))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert [file.name for file in tmp_path.iterdir()] == ["a.mp4"]
    assert path.read_bytes() == b"the old one"


def test_a_path_that_cannot_be_written_fails_at_once(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        MovieWriter(tmp_path / "nowhere" / "a.mp4", height_px=96, width_px=64, rate_hz=16_000, num_channels=1)


def levels(path: Path) -> list[int]:
    """Which of the steps of grey in `steps` each picture shows."""
    with VideoFile(path) as file:
        return [round(float(picture.mean()) / 4) for picture in file.pictures()]


def steps(num_pictures: int) -> list[int]:
    return [4 * index for index in range(num_pictures)]


@pytest.mark.parametrize("rate", ["25", "30", "50", "24", "10", "12.5", "30000/1001", "60", "7"])
@pytest.mark.parametrize("suffix", ["mp4", "avi"])  # AVI tells no times, only the rate
def test_a_film_of_any_rate_shows_the_nearest_picture_every_40_ms(tmp_path: Path, rate: str, suffix: str) -> None:
    path = write_film(tmp_path / f"a.{suffix}", steps(40), rate=Fraction(rate))
    num_pictures = -(-40 * 25 // Fraction(rate))
    nearest = [-((1 - 2 * index * Fraction(rate) / 25) // 2) for index in range(num_pictures)]
    assert levels(path) == [min(index, 39) for index in nearest]


@pytest.mark.parametrize(
    ("rate", "interval"),
    [("25", 1), ("30", 1), ("24", 1), ("30000/1001", 1), ("50", 2), ("60", 2), ("120", 5), ("7", 1)],
)
def test_pictures_may_be_counted_whatever_their_times(tmp_path: Path, rate: str, interval: int) -> None:
    path = write_film(tmp_path / "a.mp4", steps(40), rate=Fraction(rate))
    with VideoFile(path) as file:
        assert [round(float(picture.mean()) / 4) for picture in file.counted_pictures()] == [*range(0, 40, interval)]


def test_a_film_may_jump_and_begin_late(tmp_path: Path) -> None:
    """Times count from the first picture, and are those of the pictures, not their number times a rate."""
    path = write_film(tmp_path / "a.mkv", steps(4), rate=Fraction(25), ticks=[100, 101, 108, 109])
    assert levels(path) == [0] + 4 * [1] + 4 * [2] + [3]


def test_films_that_tell_less_are_shown_as_well(tmp_path: Path) -> None:
    """A bare H.264 stream has no times; a recording of a browser does not say how long its pictures last."""
    assert levels(write_film(tmp_path / "a.h264", steps(20))) == list(range(20))
    path = write_film(tmp_path / "a.mkv", steps(5))
    data = bytearray(path.read_bytes())
    default_duration, void = b"\x23\xe3\x83\x84", b"\xec\x86"
    place = data.index(default_duration)
    data[place : place + 2] = void
    path.write_bytes(bytes(data))
    assert levels(path) == list(range(5))


def test_a_picture_is_upright_as_the_file_says(tmp_path: Path) -> None:
    """The matrix in the track's header turns the picture by a quarter, clockwise."""
    path = tmp_path / "a.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25, options={"crf": "0"})
        stream.height, stream.width, stream.pix_fmt = 48, 64, "yuv420p"
        picture = np.zeros((48, 64, 3), np.uint8)
        picture[:16] = 255
        container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))
    data = path.read_bytes()
    upright, turned = (struct.pack(">9i", *(0x10000 * cell for cell in cells), 0, 0, 0x40000000) for cells in MATRICES)
    header = data.index(b"tkhd")
    place = data.index(upright, header)
    for written, edge in ((data, picture), (data[:place] + turned + data[place + 36 :], np.rot90(picture, -1))):
        path.write_bytes(written)
        with VideoFile(path) as file:
            (shown,) = file.pictures()
        assert shown.flags.c_contiguous
        assert shown.shape == edge.shape
        assert np.abs(shown.astype(int) - edge).max() < 16


def test_films_without_pictures_are_refused(tmp_path: Path) -> None:
    write_wav(tmp_path / "a.wav", np.zeros(1000))
    with pytest.raises(MediaError, match=r"video file .*a.wav is without a video stream, but it has to contain pict"):
        VideoFile(tmp_path / "a.wav")
    with pytest.raises(MediaError, match=r"video file .*none.mp4 is unreadable"):
        VideoFile(tmp_path / "none.mp4")
    path = write_film(tmp_path / "a.avi", steps(5))
    data = path.read_bytes()
    path.write_bytes(data[: data.index(b"movi") + 4])
    with pytest.raises(MediaError, match=r"video file .*a.avi is 0 pictures long, but it has to contain pictures"):
        levels(path)
    with VideoFile(path) as file, pytest.raises(MediaError, match="0 pictures long"):
        next(file.counted_pictures())


def test_a_damaged_film_is_reported_with_its_place(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    write_film(path, np.random.default_rng(0).integers(0, 255, 100).tolist())
    damage_film(path)
    with pytest.raises(MediaError, match=r"video file .*a.mp4 is damaged after [12]\.\d\d s"):
        levels(path)
