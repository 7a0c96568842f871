"""From phones with times to the mouth: 15 viseme weights per video frame, jaw opening, rounding and lip closures.

The curves follow the dominance idea of Cohen and Massaro (1993): every phone pulls the mouth with a strength that falls
off on both sides of its middle, and a frame's weights are the shares of those pulls. Three rules come on top, because
viewers notice when they are broken: lips that have to close do close, fully, for at least one frame; rounding begins
before its sound; and the whole mouth leads the sound by `LEAD_S`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.geometry import FPS

__all__ = [
    "ARPABET_VISEMES",
    "IPA_VISEMES",
    "JAW_OPENING",
    "NUM_VISEMES",
    "ROUNDING",
    "RUSSIAN_VISEMES",
    "VISEMES",
    "Phone",
    "closure_spans",
    "frame_classes",
    "jaw_opening",
    "rounding",
    "viseme_curves",
    "viseme_of_arpabet",
    "viseme_of_ipa",
]

FloatArray = NDArray[np.float32]

VISEMES = ("sil", "PP", "FF", "TH", "DD", "kk", "CH", "SS", "nn", "RR", "aa", "E", "I", "O", "U")
"""The 15 visemes of the Oculus set, in the order of every array's last axis."""
NUM_VISEMES = len(VISEMES)
LEAD_S = 0.03
"""How much earlier the mouth moves than its sound is heard."""
_INDEX = {name: index for index, name in enumerate(VISEMES)}

JAW_OPENING = dict(
    zip(VISEMES, (0.0, 0.0, 0.08, 0.2, 0.2, 0.25, 0.22, 0.1, 0.2, 0.25, 1.0, 0.62, 0.36, 0.7, 0.3), strict=True)
)
"""How far each viseme opens the jaw, 0 to 1."""
ROUNDING = dict(zip(VISEMES, (0.0,) * 6 + (0.55,) + (0.0, 0.0, 0.3, 0.0, 0.0, 0.0, 0.8, 1.0), strict=True))
"""How far each viseme rounds the lips, 0 to 1."""


def _table(groups: dict[str, str]) -> dict[str, str]:
    return {phone: viseme for viseme, phones in groups.items() for phone in phones.split()}


IPA_VISEMES = _table(
    {
        "PP": "p b m pf",
        "FF": "f v ɱ",
        "TH": "θ ð",
        "DD": "t d ɾ ʈ ɖ",
        "kk": "k ɡ g ŋ h x ɣ q ʔ ç ɦ",
        "CH": "ʃ ʒ tʃ dʒ ɕ ʑ tɕ",
        "SS": "s z ts dz",
        "nn": "n l ɫ ɬ ɲ ʎ n̩ l̩",
        "RR": "ɹ r ɚ ɜ ɜː ʀ ʁ ɻ",
        "aa": "a ɑ ɑː aː aɪ aʊ ʌ æ ɐ ɒ aɪə aɪɚ ɑːɹ",
        "E": "ə e ɛ eɪ eː ɛɹ ɛː eə əl ᵊ",
        "I": "ɪ i iː ᵻ j ɨ iə ɪɹ iːː",
        "O": "ɔ ɔː o oʊ oː əʊ ɔɪ oːɹ ɔːɹ œ ø øː",
        "U": "u uː ʊ w y yː ʏ ʊɹ ʊə ɥ ɯ",
    }
)
"""Visemes of IPA symbols as espeak-ng writes them."""
ARPABET_VISEMES = _table(
    {
        "PP": "p b m em",
        "FF": "f v",
        "TH": "th dh",
        "DD": "t d dx",
        "kk": "k g ng hh",
        "CH": "ch jh sh zh",
        "SS": "s z",
        "nn": "n l en el",
        "RR": "r er axr",
        "aa": "aa ae ah aw ay",
        "E": "ax eh ey",
        "I": "ih ix iy y",
        "O": "ao ow oy",
        "U": "uh uw w",
        "sil": "pau sil sp h#",
    }
)
"""Visemes of ARPABET phones as flite and pocketsphinx write them, in lower case, without stress marks."""
RUSSIAN_VISEMES = _table(
    {
        "PP": "p pp b bb m mm",
        "FF": "f ff v vv",
        "DD": "t tt d dd",
        "kk": "k kk g gg h hh",
        "CH": "ch sch sh zh",
        "SS": "s ss z zz c",
        "nn": "n nn l ll",
        "RR": "r rr",
        "aa": "aa a",
        "E": "ay ae e ee",
        "I": "i ii y yy j",
        "O": "oo o",
        "U": "u uu ur",
        "sil": "pau",
    }
)
"""Visemes of the labels of the Russian voice `msu_ru_nsh`; doubled consonants are soft, doubled vowels stressed."""


@dataclass(frozen=True, slots=True)
class Phone:
    """One phone of an utterance."""

    start_s: float
    end_s: float
    viseme: str
    """One of `VISEMES`."""


def viseme_of_ipa(symbol: str) -> str:
    """Find the viseme of an IPA symbol, stress and length marks allowed; "sil" for what is no phone."""
    bare = symbol.strip("ˈˌ_ \u0329")
    for candidate in (bare, bare.rstrip("ː"), bare[:2], bare[:1]):
        if candidate in IPA_VISEMES:
            return IPA_VISEMES[candidate]
    return "sil"


def viseme_of_arpabet(name: str) -> str:
    """Find the viseme of an ARPABET phone, in any case, stress digits allowed; "sil" for noises and fillers."""
    return ARPABET_VISEMES.get(name.lower().rstrip("012"), "sil")


# Strength of the pull, and how slowly it grows before and fades after the middle of the phone, in seconds.
_STRENGTH = {"PP": 2.4, "FF": 1.9, "U": 1.5, "O": 1.3, "CH": 1.4, "aa": 1.15, "nn": 0.8, "kk": 0.7, "DD": 0.8}
_GROWTH_S = {"U": 0.085, "O": 0.07, "CH": 0.06, "PP": 0.03, "FF": 0.035}
_FADE_S = {"U": 0.06, "O": 0.055, "CH": 0.05, "PP": 0.03, "FF": 0.035}
_USUAL_SLOPE_S = 0.045
_SHORT_PAUSE_S = 0.12
_MIN_PHONE_S = 0.005
_REST_STRENGTH = 0.02
# Above 1, the strongest pull wins more than its share: plain shares make speech look mumbled at 25 frames per second.
_SHARPNESS = 1.3


def viseme_curves(phones: Sequence[Phone], num_frames: int) -> FloatArray:
    """Blend phones into viseme weights.

    Args:
        phones: The phones in order of time; what no phone covers is silence.
        num_frames: How many video frames to make; frame i shows the time (i + 0.5) / 25 s.

    Returns:
        Weights in [0, 1] that sum to 1 over the visemes, (num_frames, NUM_VISEMES).
    """
    times_s = (np.arange(num_frames) + 0.5) / FPS
    pulls = np.zeros((num_frames, NUM_VISEMES))
    pulls[:, _INDEX["sil"]] = _REST_STRENGTH
    for phone in phones:
        duration_s = phone.end_s - phone.start_s
        if duration_s < _MIN_PHONE_S:
            continue
        strength = _STRENGTH.get(phone.viseme, 1.0)
        if phone.viseme == "sil":
            strength = 1.2 if duration_s >= _SHORT_PAUSE_S else 0.3
        middle_s = (phone.start_s + phone.end_s) / 2 - LEAD_S
        outside_s = np.maximum(0.0, np.abs(times_s - middle_s) - 0.25 * duration_s)
        slope_s = np.where(
            times_s < middle_s, _GROWTH_S.get(phone.viseme, _USUAL_SLOPE_S), _FADE_S.get(phone.viseme, _USUAL_SLOPE_S)
        )
        pulls[:, _INDEX[phone.viseme]] += strength * np.exp(-outside_s / slope_s)
    pulls **= _SHARPNESS
    weights: FloatArray = (pulls / pulls.sum(axis=1, keepdims=True)).astype(np.float32)
    for viseme, share in (("FF", 0.85), ("PP", 0.97)):
        for first, last in closure_spans(phones, num_frames, viseme):
            rows = weights[first : last + 1]
            other = rows.sum(axis=1) - rows[:, _INDEX[viseme]]
            scale = np.where(other > 1 - share, (1 - share) / np.maximum(other, 1e-6), 1.0)
            kept = rows[:, _INDEX[viseme]].copy()
            rows *= scale[:, None]
            rows[:, _INDEX[viseme]] = np.maximum(kept, share)
    weights /= weights.sum(axis=1, keepdims=True)
    return weights


def closure_spans(phones: Sequence[Phone], num_frames: int, viseme: str = "PP") -> list[tuple[int, int]]:
    """List the frames in which a contact has to be complete: one span for each phone of the viseme.

    Args:
        phones: The phones in order of time.
        num_frames: Length of the clip; contacts outside it are left out.
        viseme: "PP" for closed lips, "FF" for the lip at the teeth.

    Returns:
        First and last frame of each contact, both included. A span holds the frame nearest to the (led) middle of the
        phone and all frames inside the middle six tenths of it.
    """
    spans = []
    for phone in phones:
        if phone.viseme != viseme or phone.end_s - phone.start_s < _MIN_PHONE_S:
            continue
        middle_s = (phone.start_s + phone.end_s) / 2 - LEAD_S
        half_s = 0.3 * (phone.end_s - phone.start_s)
        nearest = int(np.floor(middle_s * FPS))
        first = min(nearest, int(np.ceil((middle_s - half_s) * FPS - 0.5)))
        last = max(nearest, int(np.floor((middle_s + half_s) * FPS - 0.5)))
        if last >= 0 and first < num_frames:
            spans.append((max(0, first), min(num_frames - 1, last)))
    return spans


def frame_classes(phones: Sequence[Phone], num_frames: int) -> NDArray[np.uint8]:
    """Name the viseme that sounds at the middle of each frame, without blending and without lead.

    Args:
        phones: The phones in order of time.
        num_frames: How many video frames to label.

    Returns:
        Index into `VISEMES`, (num_frames,).
    """
    times_s = (np.arange(num_frames) + 0.5) / FPS
    classes = np.zeros(num_frames, np.uint8)
    for phone in phones:
        classes[(times_s >= phone.start_s) & (times_s < phone.end_s)] = _INDEX[phone.viseme]
    return classes


def jaw_opening(weights: FloatArray, loudness: FloatArray) -> FloatArray:
    """Estimate how far the jaw is open: the visemes decide, loud speech opens wider.

    Args:
        weights: Viseme weights, (..., NUM_VISEMES).
        loudness: Level of each frame, 1 at the usual speech level, (...).

    Returns:
        Opening, 0 closed, about 1 wide open, (...).
    """
    opening = weights @ np.array([JAW_OPENING[name] for name in VISEMES], np.float32)
    result: FloatArray = (opening * (0.7 + 0.3 * np.clip(loudness, 0.0, 1.5))).astype(np.float32)
    return result


def rounding(weights: FloatArray) -> FloatArray:
    """Estimate how far the lips are rounded, 0 to 1: (..., NUM_VISEMES) in, (...) out."""
    result: FloatArray = weights @ np.array([ROUNDING[name] for name in VISEMES], np.float32)
    return result
