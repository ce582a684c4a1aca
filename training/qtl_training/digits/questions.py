"""Questions about digit scenes: five families, thirteen types, and their answers.

Each type lists what it could ask about a scene; ``Asker`` picks among these so that answers stay
balanced. ``answer`` computes the answer again from the scene and the wording alone, which is the
check that no wording and answer ever disagree.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from qtl_training.digits.scenes import CELL_NAMES, CELLS, COLOURS, GRID

FAMILIES: dict[str, tuple[str, ...]] = {
    "existence": ("exists_digit", "exists_colour", "exists_pair"),
    "counting": ("count_all", "count_colour", "count_digit"),
    "reading": ("read_cell",),
    "attribute": ("colour_cell", "colour_digit"),
    "reasoning": ("sum", "compare", "relation", "locate"),
}
TYPES: tuple[str, ...] = tuple(kind for kinds in FAMILIES.values() for kind in kinds)
FAMILY_OF: dict[str, str] = {kind: family for family, kinds in FAMILIES.items() for kind in kinds}


@dataclass(frozen=True)
class Question:
    """One question about one scene.

    Attributes:
        scene: index of the scene.
        kind: one of ``TYPES``.
        text: the wording.
        answer: the right answer.
    """

    scene: int
    kind: str
    text: str
    answer: str


Row = NDArray[np.int8]
Option = tuple[str, str]  # wording, answer


def _yes(truth: bool) -> str:
    return "yes" if truth else "no"


def _occupied(digits: Row) -> list[int]:
    return [cell for cell in range(CELLS) if digits[cell] >= 0]


def _unique(digits: Row) -> list[int]:
    values = digits.tolist()
    return [cell for cell in range(CELLS) if values[cell] >= 0 and values.count(values[cell]) == 1]


def _exists_digit(digits: Row, colours: Row) -> list[Option]:
    present = set(digits.tolist())
    return [(f"is there a {digit}?", _yes(digit in present)) for digit in range(10)]


def _exists_colour(digits: Row, colours: Row) -> list[Option]:
    present = set(colours.tolist())
    return [(f"is any digit {name}?", _yes(index in present)) for index, name in enumerate(COLOURS)]


def _exists_pair(digits: Row, colours: Row) -> list[Option]:
    pairs = set(zip(digits.tolist(), colours.tolist(), strict=True)) - {(-1, -1)}
    have_digit, have_colour = {digit for digit, _ in pairs}, {colour for _, colour in pairs}
    # The hard negatives only: the digit is there, and so is the colour, but not together.
    absent = [(d, c) for d in have_digit for c in have_colour if (d, c) not in pairs]
    easy = [(d, c) for d in have_digit for c in range(len(COLOURS)) if c not in have_colour][:2]
    return [(f"is there a {COLOURS[c]} {d}?", "yes") for d, c in sorted(pairs)] + [
        (f"is there a {COLOURS[c]} {d}?", "no") for d, c in sorted(absent) + sorted(easy)
    ]


def _count_all(digits: Row, colours: Row) -> list[Option]:
    return [("how many digits are there?", str(len(_occupied(digits))))]


def _count_colour(digits: Row, colours: Row) -> list[Option]:
    values = colours.tolist()
    return [
        (f"how many {name} digits are there?", str(values.count(index))) for index, name in enumerate(COLOURS)
    ]


def _count_digit(digits: Row, colours: Row) -> list[Option]:
    values = digits.tolist()
    return [(f"how many {digit}s are there?", str(values.count(digit))) for digit in range(10)]


def _read_cell(digits: Row, colours: Row) -> list[Option]:
    return [
        (f"which digit is {CELL_NAMES[cell]}?", str(digits[cell]) if digits[cell] >= 0 else "none")
        for cell in range(CELLS)
    ]


def _colour_cell(digits: Row, colours: Row) -> list[Option]:
    return [
        (f"what colour is the digit {CELL_NAMES[cell]}?", COLOURS[colours[cell]])
        for cell in _occupied(digits)
    ]


def _colour_digit(digits: Row, colours: Row) -> list[Option]:
    return [(f"what colour is the {digits[cell]}?", COLOURS[colours[cell]]) for cell in _unique(digits)]


def _sum(digits: Row, colours: Row) -> list[Option]:
    cells = _occupied(digits)
    return [
        (f"what is {CELL_NAMES[a]} plus {CELL_NAMES[b]}?", str(int(digits[a]) + int(digits[b])))
        for a in cells
        for b in cells
        if a != b
    ]


def _compare(digits: Row, colours: Row) -> list[Option]:
    cells = _occupied(digits)
    return [
        (f"is {CELL_NAMES[a]} larger than {CELL_NAMES[b]}?", _yes(bool(digits[a] > digits[b])))
        for a in cells
        for b in cells
        if a != b and digits[a] != digits[b]
    ]


_RELATIONS: dict[str, Callable[[int, int], int]] = {
    "left of": lambda a, b: b % GRID - a % GRID,
    "right of": lambda a, b: a % GRID - b % GRID,
    "above": lambda a, b: b // GRID - a // GRID,
    "below": lambda a, b: a // GRID - b // GRID,
}


def _relation(digits: Row, colours: Row) -> list[Option]:
    cells = _unique(digits)
    return [
        (f"is the {digits[a]} {name} the {digits[b]}?", _yes(ahead(a, b) > 0))
        for a in cells
        for b in cells
        for name, ahead in _RELATIONS.items()
        if a != b and ahead(a, b) != 0
    ]


def _locate(digits: Row, colours: Row) -> list[Option]:
    return [(f"where is the {digits[cell]}?", CELL_NAMES[cell]) for cell in _unique(digits)]


_OPTIONS: dict[str, Callable[[Row, Row], list[Option]]] = {
    "exists_digit": _exists_digit,
    "exists_colour": _exists_colour,
    "exists_pair": _exists_pair,
    "count_all": _count_all,
    "count_colour": _count_colour,
    "count_digit": _count_digit,
    "read_cell": _read_cell,
    "colour_cell": _colour_cell,
    "colour_digit": _colour_digit,
    "sum": _sum,
    "compare": _compare,
    "relation": _relation,
    "locate": _locate,
}


def options(kind: str, digits: Row, colours: Row) -> list[Option]:
    """Everything that ``kind`` could ask about a scene: pairs of wording and answer, maybe none."""
    return _OPTIONS[kind](digits, colours)


class Asker:
    """Asks questions and keeps the answers of each type balanced as it goes.

    Args:
        rng: source of every choice.
        slack: how far the most frequent answer of a type may run ahead of the others before a
            scene that offers nothing rarer is passed over.
    """

    def __init__(self, rng: np.random.Generator, *, slack: float = 1.4) -> None:
        self._rng, self._slack = rng, slack
        self._given: dict[str, dict[str, int]] = defaultdict(lambda: defaultdict(int))

    def ask(self, scene: int, kind: str, digits: Row, colours: Row) -> Question | None:
        """Asks about one scene; None if the scene has nothing of this kind, or nothing rare enough."""
        choices = options(kind, digits, colours)
        if not choices:
            return None
        given = self._given[kind]
        for _, reply in choices:
            given[reply] += 0
        rarest = min(given[reply] for _, reply in choices)
        if rarest > self._slack * (sum(given.values()) / len(given)) + 4:
            return None
        # Every answer weighs the same, however many wordings lead to it; the rarer half is preferred.
        answers = sorted({reply for _, reply in choices}, key=lambda reply: (given[reply], reply))
        kept = [reply for reply in answers if given[reply] <= rarest * 1.1 + 2]
        reply = kept[int(self._rng.integers(len(kept)))]
        wordings = [text for text, candidate in choices if candidate == reply]
        given[reply] += 1
        return Question(scene, kind, wordings[int(self._rng.integers(len(wordings)))], reply)


_CELL_OF = {name: cell for cell, name in enumerate(CELL_NAMES)}
_PLACE = "(" + "|".join(sorted(CELL_NAMES, key=len, reverse=True)) + ")"
_HUE = "(" + "|".join(COLOURS) + ")"


def _at(digits: Row, digit: str) -> int:
    return digits.tolist().index(int(digit))


_PARSERS: Sequence[tuple[str, Callable[[Row, Row, Sequence[str]], str]]] = (
    (r"is there a (\d)\?", lambda d, c, g: _yes(bool((d == int(g[0])).any()))),
    (rf"is any digit {_HUE}\?", lambda d, c, g: _yes(bool((c == COLOURS.index(g[0])).any()))),
    (
        rf"is there a {_HUE} (\d)\?",
        lambda d, c, g: _yes(bool(((c == COLOURS.index(g[0])) & (d == int(g[1]))).any())),
    ),
    (r"how many digits are there\?", lambda d, c, g: str(int((d >= 0).sum()))),
    (rf"how many {_HUE} digits are there\?", lambda d, c, g: str(int((c == COLOURS.index(g[0])).sum()))),
    (r"how many (\d)s are there\?", lambda d, c, g: str(int((d == int(g[0])).sum()))),
    (
        rf"which digit is {_PLACE}\?",
        lambda d, c, g: "none" if d[_CELL_OF[g[0]]] < 0 else str(int(d[_CELL_OF[g[0]]])),
    ),
    (rf"what colour is the digit {_PLACE}\?", lambda d, c, g: COLOURS[c[_CELL_OF[g[0]]]]),
    (r"what colour is the (\d)\?", lambda d, c, g: COLOURS[c[_at(d, g[0])]]),
    (
        rf"what is {_PLACE} plus {_PLACE}\?",
        lambda d, c, g: str(int(d[_CELL_OF[g[0]]]) + int(d[_CELL_OF[g[1]]])),
    ),
    (
        rf"is {_PLACE} larger than {_PLACE}\?",
        lambda d, c, g: _yes(bool(d[_CELL_OF[g[0]]] > d[_CELL_OF[g[1]]])),
    ),
    (
        r"is the (\d) (left of|right of|above|below) the (\d)\?",
        lambda d, c, g: _yes(_RELATIONS[g[1]](_at(d, g[0]), _at(d, g[2])) > 0),
    ),
    (r"where is the (\d)\?", lambda d, c, g: CELL_NAMES[_at(d, g[0])]),
)
_COMPILED = tuple((re.compile(pattern), parse) for pattern, parse in _PARSERS)


def answer(text: str, digits: Row, colours: Row) -> str:
    """Computes an answer from the wording and the scene, by another way than ``options``.

    Raises:
        ValueError: if the wording is none of ours.
    """
    for pattern, parse in _COMPILED:
        match = pattern.fullmatch(text)
        if match:
            return parse(digits, colours, match.groups())
    raise ValueError(f"{text!r} is not a question about digit scenes")


def every_wording() -> list[str]:
    """Every wording there is, with every answer word: what the tokenizer is trained on."""
    texts = [f"is there a {digit}?" for digit in range(10)]
    texts += [f"is any digit {colour}?" for colour in COLOURS]
    texts += [f"is there a {colour} {digit}?" for colour in COLOURS for digit in range(10)]
    texts += ["how many digits are there?"]
    texts += [f"how many {colour} digits are there?" for colour in COLOURS]
    texts += [f"how many {digit}s are there?" for digit in range(10)]
    texts += [f"which digit is {name}?" for name in CELL_NAMES]
    texts += [f"what colour is the digit {name}?" for name in CELL_NAMES]
    texts += [f"what colour is the {digit}?" for digit in range(10)]
    texts += [f"what is {a} plus {b}?" for a in CELL_NAMES for b in CELL_NAMES]
    texts += [f"is {a} larger than {b}?" for a in CELL_NAMES for b in CELL_NAMES]
    texts += [f"is the {a} {name} the {b}?" for a in range(10) for b in range(10) for name in _RELATIONS]
    texts += [f"where is the {digit}?" for digit in range(10)]
    answers = ["yes", "no", "none", *COLOURS, *CELL_NAMES, *(str(number) for number in range(19))]
    return texts + answers * 20
