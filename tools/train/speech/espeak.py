"""Speech with phone times from espeak-ng, through its C library (Debian package libespeak-ng1)."""

from __future__ import annotations

import ctypes

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import ConfigError
from tools.train.speech.visemes import Phone, viseme_of_ipa

__all__ = ["ACCENTS", "VARIANTS", "Espeak"]

ACCENTS = ("en-us", "en-us", "en", "en-gb-scotland", "en-gb-x-rp", "en-gb-x-gbclan", "en-029")
"""Accents of English; the first appears twice because it is the one most heard."""
_VARIANT_LIST = (
    "f1 f2 f3 f4 f5 m1 m2 m3 m4 m5 m6 m7 m8 croak klatt klatt2 klatt3 klatt4 Andy Annie Gene Mario Michael Alicia "
    "Denis Hugo Jacky Lee Mike Tweaky belinda adam benjamin edward iven quincy rob sandro steph travis victor zac "
    "boris caleb david ed grandma grandpa john linda marcelo max michel miguel pablo paul pedro robert shelby "
    "aunty Alex Diogo Henrique Marco Nguyen"
)
VARIANTS = tuple(_VARIANT_LIST.split())
"""Voice variants that sound like somebody (robots and whispers left out)."""

_SYNCHRONOUS = 2
_PHONEME_EVENTS_IN_IPA = 0x0001 | 0x0002
_RATE_PARAMETER, _PITCH_PARAMETER, _RANGE_PARAMETER = 1, 3, 4
_UTF8 = 1
_EVENT_END_OF_LIST, _EVENT_PHONEME = 0, 7
_EVENT_SENTENCE_END, _EVENT_CLAUSE_END, _EVENT_ALL_END = 2, 5, 6


class _Event(ctypes.Structure):
    _fields_ = (
        ("type", ctypes.c_int),
        ("unique_identifier", ctypes.c_uint),
        ("text_position", ctypes.c_int),
        ("length", ctypes.c_int),
        ("audio_position", ctypes.c_int),
        ("sample", ctypes.c_int),
        ("user_data", ctypes.c_void_p),
        ("phoneme", ctypes.c_char * 8),
    )


_CALLBACK = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.POINTER(_Event))


class Espeak:
    """The synthesiser. The library keeps global state, so a process uses one object, from one thread.

    Raises:
        OSError: The library is not installed.
    """

    def __init__(self) -> None:
        self._library = ctypes.CDLL("libespeak-ng.so.1")
        self._sound: list[NDArray[np.int16]] = []
        self._events: list[tuple[float, str]] = []
        # Kept here because ctypes does not keep a callback alive.
        self._callback = _CALLBACK(self._on_sound)
        self.sample_rate_hz = int(self._library.espeak_Initialize(_SYNCHRONOUS, 0, None, _PHONEME_EVENTS_IN_IPA))
        self._library.espeak_SetSynthCallback(self._callback)

    def _on_sound(self, samples: ctypes._Pointer[ctypes.c_short], num_samples: int, events: object) -> int:
        if samples and num_samples > 0:
            self._sound.append(np.ctypeslib.as_array(samples, (num_samples,)).copy())
        index = 0
        while (event := events[index]).type != _EVENT_END_OF_LIST:  # type: ignore[index]
            if event.type == _EVENT_PHONEME:
                self._events.append((event.audio_position / 1000, event.phoneme.decode("utf-8", "replace")))
            elif event.type in (_EVENT_SENTENCE_END, _EVENT_CLAUSE_END, _EVENT_ALL_END):
                self._events.append((event.audio_position / 1000, "_"))
            index += 1
        return 0

    def synthesise(
        self, text: str, *, voice: str, rate_wpm: int = 165, pitch: int = 50, pitch_range: int = 50
    ) -> tuple[NDArray[np.float32], list[Phone]]:
        """Speak a text.

        Args:
            text: What to say.
            voice: Accent and variant, as in "en-us+f3".
            rate_wpm: Words per minute.
            pitch: Height of the voice, 0 to 100.
            pitch_range: Liveliness of the intonation, 0 to 100.

        Returns:
            Samples in [-1, 1] at `sample_rate_hz`, (num_samples,), and the phones in order of time.

        Raises:
            ConfigError: There is no such voice.
        """
        if self._library.espeak_SetVoiceByName(voice.encode()) != 0:
            raise ConfigError("voice", voice, "espeak-ng has to know it")
        for parameter, value in (
            (_RATE_PARAMETER, rate_wpm),
            (_PITCH_PARAMETER, pitch),
            (_RANGE_PARAMETER, pitch_range),
        ):
            self._library.espeak_SetParameter(parameter, value, 0)
        self._sound.clear()
        self._events.clear()
        encoded = text.encode()
        self._library.espeak_Synth(encoded, len(encoded) + 1, 0, 1, 0, _UTF8, None, None)
        self._library.espeak_Synchronize()
        sound = np.concatenate(self._sound).astype(np.float32) / np.float32(32768.0)
        ends_s = [time_s for time_s, _ in self._events[1:]] + [len(sound) / self.sample_rate_hz]
        phones = [
            Phone(start_s, end_s, viseme_of_ipa(symbol))
            for (start_s, symbol), end_s in zip(self._events, ends_s, strict=True)
        ]
        return sound, phones
