"""Sentences for the synthetic speakers: a small grammar of our own over everyday words, rich in lip shapes.

The words were chosen so that closed, rounded, spread and open lips follow each other in many orders. Nothing is quoted.
"""

from __future__ import annotations

import numpy as np

__all__ = ["sentence"]

_LISTS = {
    "noun": (
        "mother father brother baby boy woman man people neighbour farmer painter pilot baker doctor captain teacher "
        "house room door window table lamp book map paper picture camera bottle spoon cup plate apple pear plum "
        "lemon bread butter soup milk water coffee bee bird puppy cow wolf mouse frog fish moon sun star rain snow "
        "storm wind river bridge boat ship train bus wheel road garden tree flower leaf wood stone hill mountain "
        "beach field farm market shop church school office bank museum theatre movie music piano drum song voice "
        "story problem answer question number letter promise moment minute hour morning evening summer winter week "
        "month year thumb mouth tooth hand arm foot shoe coat hat button pocket box bag key phone film game ball"
    ),
    "adjective": (
        "big blue warm open new old young happy proud brave calm wet brown black white yellow purple smooth rough soft "
        "loud quiet cold cool deep wide small simple beautiful wonderful possible early late slow "
        "quick very-good broken "
        "empty full heavy light bright dark fresh sweet bitter round narrow hopeful famous favourite humble marvellous"
    ),
    "verb": (
        "move open push pull show choose use lose find keep leave give love believe remember forget follow watch "
        "throw blow grow know cook book brush wash fix borrow bring buy build paint plant pick drop fill empty "
        "measure teach reach touch catch carry hide make shape rub bump jump over stop at walk "
        "past talk about think about"
    ),
    "adverb": (
        "today tomorrow maybe probably usually often always never again soon slowly quickly quietly together at-home "
        "above below before-long by-noon for-now in-public on-purpose of-course all-day most-of-the-time"
    ),
    "name": "Bob Emma Paul Phoebe Maya Sophie Hugo Victor Ruth Wolfgang Julia Thomas Betty Milo Pam Philip Eve Joe",
    "number": (
        "one two three four five six seven eight nine ten eleven twelve fourteen fifteen twenty-two forty-five "
        "sixty-six eighty-one a-hundred five-thousand"
    ),
    "opening": "well so now look please however perhaps meanwhile honestly frankly oh-no good-morning for-example",
}
_WORDS = {kind: words.split() for kind, words in _LISTS.items()}
_PATTERNS = (
    "the {adjective} {noun} will {verb} the {noun} {adverb}",
    "{name} and {name} {verb} {number} {noun}s {adverb}",
    "{opening}, I would {verb} my {adjective} {noun}, but you {verb} the {noun}",
    "could you {verb} the {noun} by the {adjective} {noun}?",
    "what a {adjective} {noun}! Who put it above the {noun}?",
    "we both {verb} from {number} to {number}, and {name} will {verb} {adverb}",
    "my {noun}, your {noun} and the {adjective} {noun}",
    "{number}, {number}, {number}, {number}, {number}",
    "if you {verb} the {noun}, I may {verb} a {adjective} {noun}",
    "there was a {adjective}, {adjective} {noun} in front of the {noun}",
    "{name} was as {adjective} as a {noun}, and more {adjective} than {name}",
    "why do people {verb} {noun}s {adverb}? Because {noun}s {verb} them",
    "{opening}, {name}, where is the {noun} of the {noun}?",
    "please {verb} me, {name}, and show me how to {verb} the {adjective} {noun}",
    "oh, you {verb} too {adjective} a {noun} for me",
    "{adjective} {noun}s, {adjective} {noun}s",
)


def sentence(rng: np.random.Generator) -> str:
    """Make up one sentence.

    Args:
        rng: Source of chance.

    Returns:
        English text, about 4 to 16 words, with a capital letter and an end mark.
    """
    text = _PATTERNS[rng.integers(len(_PATTERNS))]
    for kind, words in _WORDS.items():
        while f"{{{kind}}}" in text:
            text = text.replace(f"{{{kind}}}", words[rng.integers(len(words))].replace("-", " "), 1)
    return text[0].upper() + text[1:] + ("" if text[-1] in "?!" else ".")
