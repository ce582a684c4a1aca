"""What one audit does: the attacks, what they attack, and how much they may spend."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from qtl_core.errors import InputError
from qtl_core.wire import MAX_MULTIPLE

ATTACKS: Final = ("inversion", "attributes", "lengths", "text")
BITS: Final = (1, 2, 3, 4, 5, 8)
"""Bit widths that are audited beside 16 where nobody names others."""
PADS: Final = (32, 64, 128, 256)
VERSION: Final = 1
"""Goes up when an attack changes, so that results of older code are not taken up."""


@dataclass(frozen=True, kw_only=True)
class Effort:
    """What every attacker gets, the same for each representation and seed.

    Attributes:
        scenes: training-split scenes an attacker learns from.
        test_scenes: test-split scenes it is scored on.
        reader_scenes: further training-split scenes the reader learns from.
        empty_scenes: scenes without digits, for the lengths, in each split.
        batch: scenes a step.
        inversion_steps, attribute_steps, reader_steps: optimizer steps.
        table_scenes: of the training scenes, how many the entropy coder's tables are measured on.
        sized_scenes: further ones whose payload sizes the eavesdropper learns from.
        questions: questions whose tokens are inverted.
        shuffles: permutations behind each "could be chance".
    """

    scenes: int = 3000
    test_scenes: int = 500
    reader_scenes: int = 3000
    empty_scenes: int = 400
    table_scenes: int = 1000
    sized_scenes: int = 2000
    batch: int = 32
    inversion_steps: int = 300
    attribute_steps: int = 250
    reader_steps: int = 900
    questions: int = 400
    shuffles: int = 200

    def __post_init__(self) -> None:
        least = {"scenes": self.batch, "reader_scenes": self.batch, "test_scenes": 2, "empty_scenes": 2,
                 "table_scenes": 1, "sized_scenes": 2, "batch": 2, "questions": 1, "shuffles": 1}  # fmt: skip
        for name, bound in least.items():
            if getattr(self, name) < bound:
                raise InputError(f"{name} is {getattr(self, name)}; an audit needs at least {bound}")
        if self.table_scenes + self.sized_scenes > self.scenes:
            raise InputError(
                f"{self.table_scenes} scenes for tables and {self.sized_scenes} for sizes are more than the "
                f"{self.scenes} scenes an attacker has"
            )
        for name in ("inversion_steps", "attribute_steps", "reader_steps"):
            if getattr(self, name) < 0:
                raise InputError(f"{name} is {getattr(self, name)}; it cannot be negative")


FULL: Final = Effort()
QUICK: Final = Effort(
    scenes=2000,
    test_scenes=300,
    reader_scenes=1500,
    empty_scenes=150,
    table_scenes=700,
    sized_scenes=1000,
    inversion_steps=110,
    attribute_steps=120,
    reader_steps=300,
    questions=300,
    shuffles=100,
)


@dataclass(frozen=True, kw_only=True)
class AuditSettings:
    """One audit.

    Attributes:
        checkpoint: the folder.
        shipped: whether it is the checkpoint that comes with the package.
        work: where finished pieces are kept; a killed audit goes on from them.
        attacks: some of ``ATTACKS``.
        levels: level counts of the checkpoint's own quantizer; 16-bit features are always audited
            beside them.
        quantizers: names of further quantizers, at their own level counts; None: all there are.
        seeds: attackers trained for each representation, with seeds 1 to ``seeds``.
        pads: multiples, in bytes, that both frames of a question are padded to.
        effort: what each attacker gets.
        quick: whether the effort is a shortened one.
    """

    checkpoint: Path
    work: Path
    shipped: bool = False
    attacks: tuple[str, ...] = ATTACKS
    levels: tuple[int, ...] = tuple(2**bits for bits in BITS)
    quantizers: tuple[str, ...] | None = None
    seeds: int = 3
    pads: tuple[int, ...] = PADS
    effort: Effort = FULL
    quick: bool = False

    def __post_init__(self) -> None:
        for name in self.attacks:
            if name not in ATTACKS:
                raise InputError(f"unknown attack {name!r}; there are {', '.join(ATTACKS)}")
        for count in self.levels:
            if not 2 <= count <= 256:
                raise InputError(f"levels {count} is not between 2 and 256")
        for pad in self.pads:
            if not 1 <= pad <= MAX_MULTIPLE:
                raise InputError(f"messages can be padded to multiples of 1 to {MAX_MULTIPLE}, not of {pad}")
        if self.seeds < 1:
            raise InputError(f"{self.seeds} seeds; an audit needs at least 1")

    def public(self) -> dict[str, Any]:
        """The effort as the JSON shows it."""
        return {name: getattr(self.effort, name) for name in self.effort.__dataclass_fields__}
