"""Phone times of any English recording whose text is known, by forced alignment with pocketsphinx (BSD licence)."""

from __future__ import annotations

import re

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import MediaError
from tools.train.speech.visemes import Phone, viseme_of_arpabet

__all__ = ["Aligner"]

_TICKS_PER_S = 100


class Aligner:
    """Aligns text to speech. Holds one acoustic model; not safe to share between threads.

    Raises:
        ImportError: pocketsphinx is not installed (it belongs to the `train` extra).
    """

    def __init__(self) -> None:
        from pocketsphinx import Decoder

        self._decoder = Decoder(loglevel="FATAL", bestpath=False)

    def align(self, pcm: NDArray[np.int16], text: str) -> list[Phone]:
        """Find when each phone of a text is spoken.

        Args:
            pcm: 16 kHz mono samples, (num_samples,).
            text: What is said; punctuation is ignored.

        Returns:
            The phones in order of time, to 10 ms.

        Raises:
            MediaError: The text cannot be found in the sound, or holds a word that the dictionary lacks.
        """
        words = " ".join(re.findall(r"[a-z']+", text.lower()))
        sound = pcm.astype("<i2").tobytes()
        try:
            self._decoder.set_align_text(words)
            self._pass(sound)
            self._decoder.set_alignment()
            self._pass(sound)
            alignment = self._decoder.get_alignment()
        except RuntimeError as exc:
            raise MediaError("recording", f"{words!r} over {len(pcm)} samples", "text and sound have to match") from exc
        if alignment is None:
            raise MediaError("recording", f"{words!r} over {len(pcm)} samples", "text and sound have to match")
        return [
            Phone(
                start_s=phone.start / _TICKS_PER_S,
                end_s=(phone.start + phone.duration) / _TICKS_PER_S,
                viseme=viseme_of_arpabet(phone.name),
            )
            for word in alignment
            for phone in word
        ]

    def _pass(self, sound: bytes) -> None:
        self._decoder.start_utt()
        self._decoder.process_raw(sound, full_utt=True)
        self._decoder.end_utt()
