"""What an answer to a question of MMMU says: which choice it names, or which values it could mean.

The rules are those of MMMU's evaluator, with one difference: where an answer names no choice, its evaluator
draws one at random on every run; here the draw depends on the question's name alone, so that scores repeat.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Final, TypeAlias

Value: TypeAlias = "str | float"

_ENDS: Final = ",.!?;:'"
# Fewer words than this cannot quote a choice.
_QUOTING: Final = 6
_LEADS: Final = ("could be ", "so ", "is ", "thus ", "therefore ", "final ", "answer ", "result ")
_TRIVIAL: Final = frozenset(":,.!?;'")
_NUMBERS: Final = (
    re.compile(r"-?\b\d{1,3}(?:,\d{3})+\b"),  # 12,345
    re.compile(r"-?\d+(?:\.\d+)?[eE][+-]?\d+"),  # 1.5e-3
    re.compile(r"-?(?:\d+\.\d+|\.\d+|\d+\b)(?![eE][+-]?\d+)(?![,\d])"),  # 12, 1.5, .5
)


def named_choice(reply: str, choices: Mapping[str, str]) -> str | None:
    """The letter of the choice an answer names last, or None if it names none.

    First letters in brackets are looked for, then letters that stand alone, then, in an answer of more than
    five words, the choices' own texts.

    Args:
        reply: the answer.
        choices: the text of each choice by its letter.
    """
    for mark in _ENDS:
        reply = reply.strip(mark)
    text = f" {reply} "
    lowered = text.lower()
    ways = [{letter: text.rfind(f"({letter})") for letter in choices}]
    ways.append({letter: text.rfind(f" {letter} ") for letter in choices})
    if len(text.split()) >= _QUOTING:
        ways.append({letter: lowered.rfind(choice.lower()) for letter, choice in choices.items()})
    for places in ways:
        last = max(places, key=lambda letter: places[letter])
        if places[last] >= 0:
            return last
    return None


def drawn_choice(name: str, letters: Sequence[str]) -> str:
    """A choice drawn for the question ``name``: the same one every time."""
    return random.Random(name).choice(letters)


def meant_values(reply: str) -> set[Value]:
    """The texts and numbers that a free answer could mean: what follows its leading words, line by line."""
    text = reply.strip().strip(".").lower()
    lines = text.split("\n")
    tails = []
    for number, line in enumerate(lines, 1):
        # An equation only at the end.
        leads = (*_LEADS, "=") if number == len(lines) else _LEADS
        tail = ""
        for found in (line.split(lead)[-1].strip() for lead in leads if lead in line):
            if not tail or len(found) < len(tail):
                tail = found
        if tail and tail not in _TRIVIAL:
            tails.append(tail)
    tails = tails or [text]
    numbers = [number for tail in tails for form in _NUMBERS for number in form.findall(tail)]
    return set(_values([*tails, *numbers]))


def agrees(reply: str, gold: Sequence[str]) -> bool:
    """Whether a free answer means one of the right ones: the same number, or a text that holds it."""
    wanted = _values(gold)
    texts = [value for value in wanted if isinstance(value, str)]
    return any(
        any(text in value for text in texts) if isinstance(value, str) else value in wanted
        for value in meant_values(reply)
    )


def _values(texts: Iterable[str]) -> list[Value]:
    values: list[Value] = []
    for text in map(str.strip, texts):
        try:
            values.append(round(float(text.replace(",", "")), 2))
        except ValueError:
            # One letter alone would be found in nearly any text.
            values += [f" {text.lower()}", f"{text.lower()} "] if len(text) == 1 else [text.lower()]
    return values
