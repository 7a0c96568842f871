"""From phones to mouth curves: closures close, rounding leads, shares stay shares."""

from __future__ import annotations

import numpy as np
import pytest

from tools.train.speech.visemes import (
    ARPABET_VISEMES,
    IPA_VISEMES,
    NUM_VISEMES,
    RUSSIAN_VISEMES,
    VISEMES,
    Phone,
    closure_spans,
    frame_classes,
    jaw_opening,
    rounding,
    viseme_curves,
    viseme_of_arpabet,
    viseme_of_ipa,
)

pytestmark = pytest.mark.unit

PP, FF, AA, U = (VISEMES.index(name) for name in ("PP", "FF", "aa", "U"))


def _phones(*items: tuple[str, float], start_s: float = 0.5) -> list[Phone]:
    phones = []
    for viseme, duration_s in items:
        phones.append(Phone(start_s, start_s + duration_s, viseme))
        start_s += duration_s
    return phones


def _random_phones(seed: int) -> list[Phone]:
    rng = np.random.default_rng(seed)
    return _phones(*[(VISEMES[rng.integers(NUM_VISEMES)], rng.uniform(0.03, 0.2)) for _ in range(60)])


@pytest.mark.parametrize("seed", range(5))
def test_weights_are_shares_of_one(seed: int) -> None:
    weights = viseme_curves(_random_phones(seed), 200)
    assert weights.min() >= 0.0
    np.testing.assert_allclose(weights.sum(axis=1), 1.0, atol=1e-5)


@pytest.mark.parametrize("seed", range(5))
def test_every_p_b_and_m_closes_the_lips_for_at_least_one_frame(seed: int) -> None:
    phones = _random_phones(seed)
    weights = viseme_curves(phones, 200)
    spans = closure_spans(phones, 200)
    assert len(spans) == sum(phone.viseme == "PP" for phone in phones)
    for first, last in spans:
        assert weights[first : last + 1, PP].min() > 0.95


@pytest.mark.parametrize("offset_s", [0.0, 0.01, 0.02, 0.03])
def test_a_short_closure_between_open_vowels_is_complete_wherever_it_falls_between_frames(offset_s: float) -> None:
    phones = _phones(("aa", 0.15), ("PP", 0.04), ("aa", 0.15), start_s=0.5 + offset_s)
    weights = viseme_curves(phones, 40)
    assert weights[:, PP].max() > 0.95
    assert weights[:, AA].max() > 0.8
    jaw = jaw_opening(weights, np.ones(40, np.float32))
    assert jaw.min() == pytest.approx(0.0, abs=0.01)


def test_a_long_m_is_held_closed_for_its_middle() -> None:
    assert closure_spans(_phones(("aa", 0.1), ("PP", 0.3), ("aa", 0.1)), 40) == [(16, 19)]


def test_the_lip_meets_the_teeth_on_f() -> None:
    assert viseme_curves(_phones(("aa", 0.1), ("FF", 0.07), ("aa", 0.1)), 40)[:, FF].max() >= 0.84


def test_closures_beyond_the_clip_are_left_out() -> None:
    assert closure_spans(_phones(("PP", 0.1), start_s=5.0), 40) == []


def test_rounding_begins_before_its_vowel_and_leads_more_than_an_open_vowel() -> None:
    def onset(viseme: str) -> int:
        weights = viseme_curves(_phones(("DD", 0.2), (viseme, 0.2)), 40)
        return int(np.argmax(weights[:, VISEMES.index(viseme)] > 0.25))

    assert onset("U") / 25 < 0.7
    assert onset("U") < onset("aa")


def test_the_mouth_leads_the_sound() -> None:
    phones = _phones(("sil", 0.3), ("aa", 0.2), ("sil", 0.3), start_s=0.0)
    weights = viseme_curves(phones, 20)[:, AA]
    middle_s = float(np.sum(weights * (np.arange(20) + 0.5) / 25) / weights.sum())
    assert middle_s == pytest.approx(0.4 - 0.03, abs=0.012)


def test_silence_rests() -> None:
    weights = viseme_curves([], 10)
    np.testing.assert_allclose(weights[:, 0], 1.0)
    assert jaw_opening(weights, np.zeros(10, np.float32)).max() == 0.0


def test_a_short_pause_does_not_close_the_mouth_as_a_long_one_does() -> None:
    def rest(pause_s: float) -> float:
        weights = viseme_curves(_phones(("aa", 0.2), ("sil", pause_s), ("aa", 0.2)), 60)
        return float(weights[int((0.7 + pause_s / 2 - 0.03) * 25), 0])

    short, long = rest(0.06), rest(0.4)
    assert short < 0.5 < 0.9 < long


def test_loud_speech_opens_wider() -> None:
    weights = viseme_curves(_phones(("aa", 0.3)), 30)
    assert (
        jaw_opening(weights, np.full(30, 1.5, np.float32)).max() > jaw_opening(weights, np.zeros(30, np.float32)).max()
    )


def test_o_and_u_are_round_and_e_and_i_are_not() -> None:
    eye = np.eye(NUM_VISEMES, dtype=np.float32)
    roundness = dict(zip(VISEMES, rounding(eye).tolist(), strict=True))
    assert min(roundness["O"], roundness["U"]) > 0.7
    assert max(roundness["E"], roundness["I"], roundness["aa"]) == 0.0


def test_frame_classes_name_what_sounds_without_lead() -> None:
    classes = frame_classes(_phones(("aa", 0.2), ("PP", 0.2), start_s=0.2), 20)
    assert [VISEMES[index] for index in classes[[0, 5, 9, 10, 14, 15]]] == ["sil", "aa", "aa", "PP", "PP", "sil"]


@pytest.mark.parametrize(
    ("symbol", "viseme"),
    [("p", "PP"), ("ˈɑː", "aa"), ("ˌiː", "I"), ("oʊ", "O"), ("dʒ", "CH"), ("ŋ", "kk"), ("ɹ", "RR"), ("", "sil")],
)
def test_ipa_symbols_have_the_viseme_of_their_lips(symbol: str, viseme: str) -> None:
    assert viseme_of_ipa(symbol) == viseme


@pytest.mark.parametrize(
    ("name", "viseme"), [("AH0", "aa"), ("M", "PP"), ("SIL", "sil"), ("+NSN+", "sil"), ("uw", "U")]
)
def test_arpabet_phones_have_the_viseme_of_their_lips(name: str, viseme: str) -> None:
    assert viseme_of_arpabet(name) == viseme


def test_the_tables_hold_only_known_visemes() -> None:
    for table in (IPA_VISEMES, ARPABET_VISEMES, RUSSIAN_VISEMES):
        assert set(table.values()) <= set(VISEMES)
