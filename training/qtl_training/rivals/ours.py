"""Our own quantizer behind the rivals' interface, so that its bytes are counted the same way."""

from __future__ import annotations

from torch import Tensor

from qtl_core.nn.quantizer import Quantizer
from qtl_training.rivals.coding import Coder
from qtl_training.rivals.rival import CodedRival


class Ours(CodedRival):
    """A trained ``Quantizer`` and the two forms its codes travel in; the knob is the number of levels.

    Args:
        quantizer: of the model.
        tokens: picture tokens.
    """

    def __init__(self, quantizer: Quantizer, tokens: int) -> None:
        super().__init__(quantizer.width, tokens, quantizer.levels)
        self.quantizer = quantizer
        self.coded_tokens = tokens // quantizer.merge**2

    def level_counts(self, levels: int) -> tuple[int, ...]:
        """The knob, for every channel."""
        return (levels,) * self.quantizer.code_dim

    def codes(self, z: Tensor, levels: int) -> Tensor:
        """The quantizer's codes."""
        return self.quantizer.encode(z, levels)

    def values(self, codes: Tensor, levels: int) -> Tensor:
        """The features the server makes of codes."""
        return self.quantizer.decode(codes, levels)

    def quantize(self, z: Tensor, levels: int) -> tuple[Tensor, Tensor]:
        """The quantizer's own forward pass in training; what codes stand for otherwise."""
        if self.training:
            restored, loss = self.quantizer(z, levels)
            return restored, loss
        return self.values(self.codes(z, levels), levels), z.new_zeros(())

    def fit(self, x: Tensor, *, seed: int = 0) -> None:
        """The quantizer's own initialisation."""
        self.quantizer.fit(x, seed=seed)

    def coder(self, levels: int) -> Coder:
        """The coder at one level count; three levels and the like pack at whole bits, as on our wire."""
        if levels not in self._coders:
            self._coders[levels] = Coder(self.level_counts(levels), self.coded_tokens, whole_bits=True)
        return self._coders[levels]
