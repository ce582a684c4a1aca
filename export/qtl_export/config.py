"""What one export is told: one frozen value, checked when it is built."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal

from qtl_core.bundle import UNQUANTIZED_BITS
from qtl_core.codes import bits_of
from qtl_core.errors import InputError
from qtl_core.shipped import BUNDLE
from qtl_export.variants import checked

if TYPE_CHECKING:
    from qtl_export.trainable.recipe import SplitRecipe

QUANTIZED_BITS: Final = tuple(range(1, 9))
BITS: Final = (*QUANTIZED_BITS, UNQUANTIZED_BITS)
"""Bit widths there are; 16 is the unquantized baseline."""


@dataclass(frozen=True, kw_only=True)
class ExportConfig:
    """Settings of one export.

    Attributes:
        checkpoint: the checkpoint's folder.
        levels: L of the quantizer, 2 to 256; 0 exports unquantized half-precision features; None takes
            the quantizer's own, or with ``auto`` what the entropy of the features asks for.
        auto: choose the levels from the entropy of the features of ``pictures``.
        output: the bundle's folder; a bundle that is there is replaced, nothing else is.
        quantizer: which of the checkpoint's further vision quantizers to export; "" for its own.
        text: "plain" sends questions as text, "codes" as quantized embeddings.
        pictures: a folder of pictures to validate and to measure the entropy coder's tables on; None takes
            the checkpoint's held-out ones, and ``calibrate``'s for the tables and where it has none.
        calibrate: a folder of pictures to fit a quantizer to, in place of the checkpoint's own.
        code_dim: codes a token of a quantizer that is fitted; None for the features' width.
        questions: a file of questions with known answers (``qtl_core.question_file``), to be answered from
            16-bit features and from codes; its pictures are looked for in ``calibrate``, else in
            ``pictures``, else beside the file.
        validate: how many pictures to validate on; None chooses, 0 does not validate.
        validate_answers: whether validation loads the language model and compares answers too; None does
            where that takes no more memory than the rest of the export.
        force: put the bundle in place although validation found it over the bounds.
        variants: further graphs for particular devices, by name (``qtl_export.variants``).
        recipe: what the client half can be trained with, by devices without PyTorch; None for nothing.

    Raises:
        InputError: a number out of range.
        CodeError: ``levels`` is neither 0 nor from 2 to 256.
    """

    checkpoint: Path
    levels: int | None
    auto: bool = False
    output: Path = Path(BUNDLE)
    quantizer: str = ""
    text: Literal["plain", "codes"] = "plain"
    pictures: Path | None = None
    calibrate: Path | None = None
    code_dim: int | None = None
    questions: Path | None = None
    validate: int | None = None
    validate_answers: bool | None = None
    force: bool = False
    variants: tuple[str, ...] = ()
    recipe: SplitRecipe | None = None

    def __post_init__(self) -> None:
        if self.levels:
            bits_of(self.levels)
        if self.auto and self.levels is not None:
            raise InputError(f"levels cannot be {self.levels} and chosen automatically; give one of the two")
        if self.calibrate is not None and (self.levels == 0 or self.quantizer):
            raise InputError("a quantizer is fitted in place of every other; give levels, and name no other")
        if self.recipe is not None and (self.calibrate is not None or self.quantizer):
            raise InputError("a recipe says which quantizer is trained; fit none, and name no other")
        if self.calibrate is None and self.code_dim is not None:
            raise InputError(
                "the number of codes a token is free only where a quantizer is fitted to pictures"
            )
        if self.questions is not None and (self.levels == 0 or self.validate == 0):
            raise InputError(
                "questions compare codes with 16-bit features, and are part of validation; they go with "
                "neither an unquantized export nor one that is not validated"
            )
        if self.validate is not None and self.validate < 0:
            raise InputError(f"cannot validate on {self.validate} pictures; give 0 (do not) or more")
        checked(self.variants)
        if self.variants and self.validate == 0:
            raise InputError(
                f"variant {self.variants[0]!r} is only worth what validation says of it; validate on one "
                "picture or more"
            )


def levels_of_bits(bits: int) -> int:
    """L = 2^bits; 0 for 16, which means no quantizer.

    Raises:
        InputError: another number of bits.
    """
    if bits not in BITS:
        raise InputError(f"there is no export at {bits} bits; choose 1 to 8, or 16 for unquantized features")
    return 0 if bits == UNQUANTIZED_BITS else 1 << bits
