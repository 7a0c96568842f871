"""Sound and movie files: decoding any of them as it goes, writing H.264 + AAC with sound and picture aligned.

Media time is counted in samples from the first decoded sample and in frames of 40 ms; both start at 0. Nothing here
holds more than a moment of a file in memory. All calls block: keep them off the event loop.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import math
import os
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self

import av
import numpy as np
import soxr
from av.audio.fifo import AudioFifo
from av.audio.frame import AudioFrame
from av.audio.resampler import AudioResampler
from av.container import InputContainer, OutputContainer
from av.video.frame import VideoFrame
from numpy.typing import NDArray

from pipeline.errors import MediaError
from pipeline.geometry import FPS, SAMPLE_RATE_HZ

__all__ = ["AudioFile", "EngineResampler", "MovieWriter", "VideoFile", "decode_audio"]

# Rates that both AAC and every player know; others are resampled to the last one.
AAC_RATES_HZ = (16_000, 22_050, 24_000, 32_000, 44_100, 48_000)
AAC_BPS_PER_CHANNEL = 96_000
AAC_FRAME_SAMPLES = 1024
X264_OPTIONS = {"crf": "18", "preset": "medium"}
# ITU-T H.273 code points: BT.601 (525 lines), limited range.
BT601, LIMITED_RANGE = 6, 1
# What the channels of a file mean that only tells their number.
DEFAULT_LAYOUTS = {1: "mono", 2: "stereo", 3: "2.1", 4: "4.0", 5: "5.0", 6: "5.1", 7: "6.1", 8: "7.1"}
PCM = np.iinfo(np.int16)
# Samples per chunk that decoding gives, about.
CHUNK_SAMPLES = SAMPLE_RATE_HZ // 2


class AudioFile:
    """A file with sound, of any format, rate and layout; a film's sound too. Close it, or use it in a `with`.

    Args:
        path: The file.

    Raises:
        MediaError: It cannot be read, is no media file, or holds no sound.
    """

    def __init__(self, path: Path) -> None:
        self._what = f"audio file {path}"
        self._container = _open(self._what, path)
        if not self._container.streams.audio:
            self._container.close()
            raise MediaError(self._what, "without an audio stream", "it has to contain sound")
        self._stream = self._container.streams.audio[0]
        self.rate_hz = int(self._stream.rate or 0)
        self.num_channels = int(self._stream.codec_context.channels)

    @property
    def duration_s(self) -> float | None:
        """Length as the file declares it, in seconds; None if it does not. For progress only: it may be wrong."""
        if self._stream.duration is not None and self._stream.time_base is not None:
            return float(self._stream.duration * self._stream.time_base)
        return self._container.duration / 1e6 if self._container.duration else None

    def frames(self) -> Iterator[AudioFrame]:
        """Decode, once, from the beginning.

        Yields:
            Frames in the file's own format, without gaps.

        Raises:
            MediaError: The file is damaged or holds no sample.
        """
        num_samples, is_damaged = 0, False
        packets = self._container.demux(self._stream)
        while True:
            try:
                packet = next(packets, None)
                if packet is None:
                    break
                for frame in self._stream.decode(packet):
                    num_samples += frame.samples
                    yield self._with_layout(frame)
            except av.FFmpegError as exc:
                # Many files begin with a broken packet (cut from a stream, tags in odd places); later ones are damage.
                if num_samples > 0:
                    raise self._damaged(num_samples, exc) from exc
                is_damaged = True
        if num_samples == 0 and is_damaged:
            raise MediaError(self._what, "damaged from the first sample", "it has to decode completely")
        if num_samples == 0:
            raise MediaError(self._what, "0 samples long", "it has to contain sound")

    def close(self) -> None:
        """Close the file; a second call does nothing."""
        self._container.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def _with_layout(self, frame: AudioFrame) -> AudioFrame:
        """Return the frame with a named channel layout: two filters cannot both take one without."""
        if not frame.layout.name.endswith(" channels"):
            return frame
        layout = DEFAULT_LAYOUTS.get(frame.layout.nb_channels)
        if layout is None:
            raise MediaError(self._what, f"sound of {frame.layout.nb_channels} channels", "at most 8 are understood")
        named = AudioFrame.from_ndarray(frame.to_ndarray(), format=frame.format.name, layout=layout)
        named.sample_rate = frame.sample_rate
        return named

    def _damaged(self, num_samples: int, exc: av.FFmpegError) -> MediaError:
        place_s = num_samples / self.rate_hz
        reason = (exc.strerror or type(exc).__name__).lower()
        return MediaError(self._what, f"damaged after {place_s:.2f} s ({reason})", "it has to decode completely")


class VideoFile:
    """The pictures of a film, of any format and rate. Close it, or use it in a `with`.

    Args:
        path: The file.

    Raises:
        MediaError: It cannot be read, is no media file, or holds no pictures.
    """

    def __init__(self, path: Path) -> None:
        self._what = f"video file {path}"
        self._container = _open(self._what, path)
        if not self._container.streams.video:
            self._container.close()
            raise MediaError(self._what, "without a video stream", "it has to contain pictures")
        self._stream = self._container.streams.video[0]

    def counted_pictures(self) -> Iterator[NDArray[np.uint8]]:
        """Decode, once, from the beginning, as the published code does: every n-th picture, whatever its time.

        n is the film's mean rate over the engine's, rounded: a film of 30 or 24 pictures per second is taken as one of
        25, and plays slower or faster. (Where n would be 0, at 12.5 or less, the published code fails; here it is 1.)

        Yields:
            Upright RGB, (height_px, width_px, 3).

        Raises:
            MediaError: The file is damaged or holds no picture.
        """
        interval = max(1, round((self._stream.average_rate or FPS) / FPS))
        for timed in itertools.islice(self._timed_frames(), 0, None, interval):
            yield _upright(timed.frame)

    def pictures(self) -> Iterator[NDArray[np.uint8]]:
        """Decode, once, from the beginning, at the engine's rate.

        Every 40 ms shows the picture whose own time is nearest, the earlier of two; the last one stays for as long as
        the file says. The times count from the first picture.

        Yields:
            Upright RGB, (height_px, width_px, 3). The same array comes again where a picture is repeated.

        Raises:
            MediaError: The file is damaged or holds no picture.
        """
        num_pictures = 0
        for frame, stop in self._spans():
            if stop > num_pictures:
                yield from itertools.repeat(_upright(frame), stop - num_pictures)
                num_pictures = stop

    def close(self) -> None:
        """Close the file; a second call does nothing."""
        self._container.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def _spans(self) -> Iterator[tuple[VideoFrame, int]]:
        """Give every frame with the index of the picture at which it is no longer shown."""
        last: _TimedFrame | None = None
        for timed in self._timed_frames():
            if last is not None:
                yield last.frame, math.floor(FPS * (last.start_s + timed.start_s) / 2) + 1
            last = timed
        assert last is not None, "there is one, or an error"
        # Not every file says how long its last frame lasts; it is shown in any case.
        yield last.frame, max(math.ceil(FPS * last.end_s), math.floor(FPS * last.start_s) + 1)

    def _timed_frames(self) -> Iterator[_TimedFrame]:
        """Decode frames with their times, from 0 on; there is at least one."""
        begin_s: Fraction | None = None
        next_s = Fraction(0)
        try:
            for frame in self._container.decode(self._stream):
                tick_s = frame.time_base or Fraction(0)
                given_s = next_s if frame.pts is None else frame.pts * tick_s
                begin_s = given_s if begin_s is None else begin_s
                next_s = given_s + (frame.duration or 0) * tick_s
                yield _TimedFrame(given_s - begin_s, next_s - begin_s, frame)
        except av.FFmpegError as exc:
            place_s = float(next_s - (begin_s or 0))
            shown = f"damaged after {place_s:.2f} s ({(exc.strerror or type(exc).__name__).lower()})"
            raise MediaError(self._what, shown, "it has to decode completely") from exc
        if begin_s is None:
            raise MediaError(self._what, "0 pictures long", "it has to contain pictures")


class _TimedFrame(NamedTuple):
    start_s: Fraction
    end_s: Fraction
    frame: VideoFrame


def _upright(frame: VideoFrame) -> NDArray[np.uint8]:
    """Convert a frame to RGB, turned as the file says: telephones film sideways."""
    return np.ascontiguousarray(np.rot90(frame.to_ndarray(format="rgb24"), round(frame.rotation / 90)), np.uint8)


class _Converter:
    """FFmpeg's resampler for sound whose format, layout or rate may change on the way, which it refuses by itself.

    Joined files change so, and HE-AAC v2, which begins in mono. All samples of the old sound come out before the new.

    Args:
        sample_format: Of the samples that come out.
        layout: Their channels.
        rate_hz: Their rate; None: that of what comes in.
    """

    def __init__(self, *, sample_format: str, layout: str, rate_hz: int | None = None) -> None:
        self._new_resampler = functools.partial(AudioResampler, format=sample_format, layout=layout, rate=rate_hz)
        self._source: tuple[str, str, int] | None = None
        self._resampler: AudioResampler | None = None

    def push(self, frame: AudioFrame | None) -> list[AudioFrame]:
        """Convert a frame; its pts is lost.

        Args:
            frame: The next frame, or None at the end to get what the filter still holds.

        Returns:
            What is ready.
        """
        parts: list[AudioFrame | None] = []
        source = None if frame is None else (frame.format.name, frame.layout.name, frame.sample_rate)
        if self._resampler is not None and source != self._source:
            parts += self._resampler.resample(None)
            self._resampler = None
        if frame is not None:
            # The filter would take a jump of the pts for lost sound; sound is counted in samples here.
            frame.pts = None
            self._source = source
            self._resampler = self._resampler or self._new_resampler()
            parts += self._resampler.resample(frame)
        # Where there is nothing to convert, the end comes back as None.
        return [part for part in parts if part is not None]


class EngineResampler:
    """Turns decoded frames into the engine's sound: 16 kHz, mono, int16, aligned to the first sample.

    The rate is changed by soxr in high quality, as the published code does it; the resampler of FFmpeg weakens the
    highest sounds of speech.
    """

    def __init__(self) -> None:
        # Mixes channels down. Integers of 32 bits lose nothing, and unlike floats are not made louder by it.
        self._mixer = _Converter(sample_format="s32", layout="mono")
        self._rate_hz = SAMPLE_RATE_HZ
        self._resampler: soxr.ResampleStream | None = None

    def push(self, frame: AudioFrame | None) -> NDArray[np.int16]:
        """Convert a frame.

        Args:
            frame: The next frame, or None at the end to get what the filter still holds.

        Returns:
            As many samples as are ready, (num_samples,). All that were returned are the length of the sound, rounded
            (once per stretch of one rate).
        """
        parts = [np.zeros(0, np.float32)]
        for part in self._mixer.push(frame):
            if part.sample_rate != self._rate_hz:
                parts.append(self._flush())
                self._rate_hz = part.sample_rate
            parts.append(self._to_rate(part))
        if frame is None:
            parts.append(self._flush())
        sound = np.concatenate(parts) * -float(PCM.min)
        return sound.round().clip(PCM.min, PCM.max).astype(np.int16)

    def _to_rate(self, part: AudioFrame) -> NDArray[np.float32]:
        sound = np.asarray(part.to_ndarray().reshape(-1), np.float32) / np.float32(2**31)
        if self._rate_hz == SAMPLE_RATE_HZ:
            return sound
        if self._resampler is None:
            self._resampler = soxr.ResampleStream(self._rate_hz, SAMPLE_RATE_HZ, 1, quality="HQ")
        return np.asarray(self._resampler.resample_chunk(sound), np.float32)

    def _flush(self) -> NDArray[np.float32]:
        """Get what the filter of the rate so far still holds."""
        resampler, self._resampler = self._resampler, None
        end = np.zeros(0, np.float32)
        return end if resampler is None else np.asarray(resampler.resample_chunk(end, last=True), np.float32)


def decode_audio(path: Path) -> Iterator[NDArray[np.int16]]:
    """Decode a file into the engine's sound.

    Args:
        path: Any file with sound.

    Yields:
        16 kHz mono samples, (num_samples,), in chunks of about half a second.

    Raises:
        MediaError: The file cannot be used.
    """
    with AudioFile(path) as file:
        resampler = EngineResampler()
        waiting: list[NDArray[np.int16]] = []
        for frame in file.frames():
            waiting.append(resampler.push(frame))
            if sum(len(part) for part in waiting) >= CHUNK_SAMPLES:
                yield np.concatenate(waiting)
                waiting.clear()
        waiting.append(resampler.push(None))
        last = np.concatenate(waiting)
        if len(last) > 0:
            yield last


class MovieWriter:
    """Writes an MP4: pictures at 25 per second from media time 0, and a sound that starts at media time 0.

    Writes beside the target under a temporary name; `finish` gives it its name. Leaving the `with` block in any other
    way removes it, so a half file is never left behind.

    Args:
        path: The file to write; an existing one is replaced by `finish`.
        height_px: Height of the pictures, even.
        width_px: Width of the pictures, even.
        rate_hz: Rate of the sound that comes.
        num_channels: Channels of the sound that comes; more than two are mixed down to two.
        longest_sound_s: Sound after so many seconds is left out.

    Raises:
        OSError: The file cannot be written.
    """

    def __init__(
        self,
        path: Path,
        *,
        height_px: int,
        width_px: int,
        rate_hz: int,
        num_channels: int,
        longest_sound_s: float = math.inf,
    ) -> None:
        self._path = path
        self._part = path.with_name(f".{path.name}.part")
        # Fails at once, and with the system's words, where the muxer would fail later.
        self._part.open("wb").close()
        self._container: OutputContainer = av.open(
            str(self._part), "w", format="mp4", options={"movflags": "+faststart+write_colr"}
        )
        self._video = self._container.add_stream("libx264", rate=FPS, options=X264_OPTIONS)
        context = self._video.codec_context
        context.height, context.width, context.pix_fmt = height_px, width_px, "yuv420p"
        context.time_base = Fraction(1, FPS)
        context.colorspace, context.color_range = BT601, LIMITED_RANGE
        context.color_primaries, context.color_trc = BT601, BT601
        rate_hz = rate_hz if rate_hz in AAC_RATES_HZ else AAC_RATES_HZ[-1]
        layout = "mono" if num_channels == 1 else "stereo"
        self._audio = self._container.add_stream("aac", rate=rate_hz, layout=layout)
        self._audio.codec_context.bit_rate = AAC_BPS_PER_CHANNEL * (1 if num_channels == 1 else 2)
        self._converter = _Converter(sample_format="fltp", layout=layout, rate_hz=rate_hz)
        self._fifo = AudioFifo()
        self._most_samples = longest_sound_s * rate_hz
        self._num_samples = 0
        self.num_frames = 0
        self._is_open = True

    def add_sound(self, frame: AudioFrame | None) -> None:
        """Append sound.

        Args:
            frame: A decoded frame, or None after the last.
        """
        for part in self._converter.push(frame):
            part.pts = None
            # What needed no conversion still counts time as its file does; the fifo refuses another count.
            part.time_base = Fraction(1, part.sample_rate)
            self._fifo.write(part)
        # The encoder takes a shorter frame for the last one.
        for part in self._fifo.read_many(AAC_FRAME_SAMPLES, partial=frame is None):
            left = self._most_samples - self._num_samples
            if part.samples > left:
                part = _beginning(part, round(left))
            if part.samples == 0:
                break
            part.pts = self._num_samples
            part.time_base = Fraction(1, part.sample_rate)
            self._num_samples += part.samples
            self._container.mux(self._audio.encode(part))

    def add_pictures(self, pictures: NDArray[np.uint8]) -> None:
        """Append pictures.

        Args:
            pictures: I420 (BT.601, limited range), (num_frames, height_px * 3 // 2, width_px).
        """
        for picture in pictures:
            frame = av.VideoFrame.from_ndarray(picture, format="yuv420p")
            frame.pts = self.num_frames
            frame.time_base = Fraction(1, FPS)
            frame.colorspace, frame.color_range = BT601, LIMITED_RANGE
            self.num_frames += 1
            self._container.mux(self._video.encode(frame))

    def finish(self) -> None:
        """Write what the encoders still hold and give the file its name."""
        self._container.mux(self._video.encode(None))
        self._container.mux(self._audio.encode(None))
        self._is_open = False
        self._container.close()
        os.replace(self._part, self._path)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        if self._is_open:
            self._is_open = False
            # The file goes away: an error about its end (a full disk again) would hide the first one.
            with contextlib.suppress(av.FFmpegError):
                self._container.close()
        self._part.unlink(missing_ok=True)


def _beginning(frame: AudioFrame, num_samples: int) -> AudioFrame:
    """Return the first samples of a frame in planar floats."""
    samples = np.ascontiguousarray(frame.to_ndarray()[:, :num_samples], np.float32)
    beginning = AudioFrame.from_ndarray(samples, format=frame.format.name, layout=frame.layout.name)
    beginning.sample_rate = frame.sample_rate
    return beginning


def _open(what: str, path: Path) -> InputContainer:
    """Open a local file, and nothing else: no URL, no playlist that names one."""
    rule = "it has to be a sound or video file"
    try:
        with path.open("rb") as file:
            is_empty = not file.read(1)
    except OSError as exc:
        raise MediaError(what, f"unreadable ({(exc.strerror or type(exc).__name__).lower()})", rule) from exc
    if is_empty:
        raise MediaError(what, "0 bytes long", rule)
    try:
        return av.open(f"file:{path}", options={"protocol_whitelist": "file"})
    except av.FFmpegError as exc:
        reason = (exc.strerror or type(exc).__name__).lower()
        raise MediaError(what, f"not a media file ({reason})", rule) from exc
