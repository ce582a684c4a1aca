"""Answers of the VQA family: how they are normalised before they are compared, and the ten-people accuracy.

The rules are those of the VQA challenge in the form TextVQA's evaluator gives them. One of its quirks is
kept, since scores must be comparable: ``somebody'd`` loses its apostrophe where all others gain one.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

PEOPLE: Final = 10
"""Every question of TextVQA was answered by so many people."""

_NUMBERS: Final = {
    word: str(number)
    for number, word in enumerate(
        ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
    )
} | {"none": "0"}
_ARTICLES: Final = frozenset({"a", "an", "the"})
# Taken out where they touch a space, a gap between two words otherwise. Commas and question marks go before.
_MARKS: Final = ';/[]"{}()=+\\_-><@`!'
_FULL_STOP: Final = re.compile(r"\.(?!\d)")

_CONTRACTED: Final = """
ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd
he'd've he's how'd how'll how's isn't it'd it'd've it'll ma'am mightn't mightn't've might've mustn't
must've needn't not've o'clock oughtn't 'ow's'at shan't she'd've should've shouldn't shouldn't've
somebody'd've somebody'll somebody's someone'd someone'd've someone'll someone's something'd
something'd've something'll that's there'd there'd've there're there's they'd they'd've they'll they're
they've 'twas wasn't we'd've we've weren't what'll what're what's what've when's where'd where's where've
who'd who'd've who'll who's who've why'll why're why's won't would've wouldn't wouldn't've y'all y'all'll
y'all'd've you'd you'd've you'll you're you've
"""


def _without_one_apostrophe(word: str) -> list[str]:
    places = [place for place, letter in enumerate(word) if letter == "'"]
    return [word[:place] + word[place + 1 :] for place in places]


_CONTRACTIONS: Final = {
    short: word for word in _CONTRACTED.split() for short in _without_one_apostrophe(word)
} | {"somebody'd": "somebodyd"}


def normalise(answer: str) -> str:
    """An answer as it is compared: lower case, no articles and marks, digits for number words.

    The order matters and is the evaluator's: commas, question marks and the genitive first, then marks, then
    full stops that are not within a number, then words.
    """
    text = answer.lower().replace(",", "").replace("?", "").replace("'s", " 's")
    before = text = " ".join(text.split())
    for mark in _MARKS:
        touches = f"{mark} " in before or f" {mark}" in before
        text = text.replace(mark, "" if touches else " ")
    words = (_NUMBERS.get(word, word) for word in _FULL_STOP.sub("", text).split())
    return " ".join(_CONTRACTIONS.get(word, word) for word in words if word not in _ARTICLES)


def vqa_accuracy(answer: str, people: Sequence[str]) -> float:
    """How far ten people agree with an answer, 0 to 1.

    The mean over the ten sets of nine people of min(1, matches / 3). With m matches among the ten that is
    min(1, 0.3 m): m of the sets have m - 1 matches, the others m.

    Args:
        answer: the model's.
        people: the ten answers of people.
    """
    wanted = normalise(answer)
    matches = sum(normalise(other) == wanted for other in people)
    return min(1.0, 3 * matches / PEOPLE)
