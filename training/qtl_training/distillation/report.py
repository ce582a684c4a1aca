"""What a fitted and fine-tuned quantizer came to."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np

from qtl_core.codes import bits_of


class Divergence(msgspec.Struct, frozen=True, kw_only=True):
    """How far the decoder's next tokens move, over pictures aside, in nats.

    Attributes:
        mean, median, p95: of the pictures' divergences.
        same_tokens: share of the tokens of the model's own greedy answers that stay the likeliest.
    """

    mean: float
    median: float
    p95: float
    same_tokens: float

    @classmethod
    def of(cls, each: Sequence[float], same_tokens: float) -> Divergence:
        """From the divergence of each picture."""
        return cls(
            mean=float(np.mean(each)),
            median=float(np.median(each)),
            p95=float(np.quantile(each, 0.95)),
            same_tokens=same_tokens,
        )


class Measured(msgspec.Struct, frozen=True, kw_only=True):
    """A quantizer on pictures that it has not seen.

    Attributes:
        k: half the range in standard deviations.
        snr_db: signal-to-noise ratio of the restored features, in dB.
        kl: how far the decoder moves.
        accuracy: share of the user's questions answered right; None without any.
    """

    k: float
    snr_db: float
    kl: Divergence
    accuracy: float | None = None


class Trained(msgspec.Struct, frozen=True, kw_only=True):
    """What ``qtl-train quantizer`` made; ``card.json`` beside the quantizer.

    Attributes:
        output: its folder.
        checkpoint: what it is for, as the user named it.
        family: of that.
        levels: L.
        code_dim: codes a token.
        tokens: of a picture at the cut.
        width: of the features there.
        pictures: trained on.
        pictures_aside: measured on.
        steps: of fine-tuning.
        prompts: how many there are.
        tables: whether the entropy coder's tables came with it, or why not.
        fitted: as the closed form left it.
        tuned: after fine-tuning.
        questions: of the user's file; 0 without one.
        asked: SHA-256 that tells these from other questions; "" without any.
        questions_about_known: how many of these are about pictures it was trained on.
        accuracy_16bit: share of them that the unquantized model answers right.
        settings: the others it was made with.
    """

    output: str
    checkpoint: str
    family: str
    levels: int
    code_dim: int
    tokens: int
    width: int
    pictures: int
    pictures_aside: int
    steps: int
    prompts: int
    tables: str
    fitted: Measured
    tuned: Measured
    questions: int = 0
    asked: str = ""
    questions_about_known: int = 0
    accuracy_16bit: float | None = None
    settings: dict[str, Any] = {}

    def as_text(self) -> str:
        """A table for a terminal."""
        rows = [
            ("", "fitted", "fine-tuned"),
            ("features over noise, dB", *(f"{one.snr_db:.2f}" for one in self._both)),
            ("divergence, mean nats", *(f"{one.kl.mean:.4f}" for one in self._both)),
            ("  median picture", *(f"{one.kl.median:.4f}" for one in self._both)),
            ("  95 % of pictures below", *(f"{one.kl.p95:.4f}" for one in self._both)),
            ("same greedy tokens", *(f"{one.kl.same_tokens:.2%}" for one in self._both)),
            ("k", *(f"{one.k:.3g}" for one in self._both)),
        ]
        if self.accuracy_16bit is not None:
            rows += [
                ("right answers", *(f"{one.accuracy:.2%}" for one in self._both)),
                ("  beside 16 bit", *(f"{self._lost(one):+.2f} points" for one in self._both)),
            ]
        wide = [max(len(row[column]) for row in rows) for column in range(3)]
        lines = [
            f"{self.output}: {self.tokens} x {self.code_dim} codes of {self.levels} levels "
            f"({bits_of(self.levels)} bits) for {self.checkpoint}",
            f"  {self.pictures} pictures, {self.steps} steps, {self.prompts} prompts; measured on "
            f"{self.pictures_aside} other pictures",
            *(f"    {a:<{wide[0]}}  {b:>{wide[1]}}  {c:>{wide[2]}}".rstrip() for a, b, c in rows),
        ]
        if self.accuracy_16bit is not None:
            known = self.questions_about_known
            seen = f", {known:,} of them about pictures it was trained on" if known else ""
            lines.append(f"  {self.questions:,} questions{seen}; 16 bit: {self.accuracy_16bit:.2%} right")
        lines.append(f"  entropy coder's tables: {self.tables}")
        chosen = f"--bits {bits_of(self.levels)}"
        if self.levels != 1 << bits_of(self.levels):
            chosen = f"--levels {self.levels}"
        return "\n".join([*lines, f"  export it with: qtl-export {chosen} {self.output}"])

    @property
    def _both(self) -> tuple[Measured, Measured]:
        return self.fitted, self.tuned

    def _lost(self, one: Measured) -> float:
        return 100 * ((one.accuracy or 0.0) - (self.accuracy_16bit or 0.0))
