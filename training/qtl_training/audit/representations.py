"""What can cross the wire: 16-bit features, codes of each level count, codes of named quantizers."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from qtl_core.codes import bits_of, packed_size
from qtl_core.errors import CheckpointError
from qtl_core.nn.checkpoint import Checkpoint
from qtl_core.nn.quantizer import Quantizer

FEATURES = "16-bit"
_BATCH = 256


@dataclass(frozen=True, kw_only=True)
class Representation:
    """One way for a picture to cross.

    Attributes:
        name: "16-bit", "2-bit", "L=6", or a quantizer's name.
        levels: L; 0 for half-precision features.
        quantizer: one of the checkpoint's further quantizers; "" for its own.
        packed_bytes: bytes of a picture at fixed length.
    """

    name: str
    levels: int
    quantizer: str = ""
    packed_bytes: int


def name_of(levels: int) -> str:
    """What a level count of the checkpoint's own quantizer is called: "2-bit", or "L=6"."""
    if not levels:
        return FEATURES
    bits = bits_of(levels)
    return f"{bits}-bit" if levels == 1 << bits else f"L={levels}"


class Cut:
    """A checkpoint's client side, whose knowledge is the server's too: what it makes of tower features.

    Args:
        checkpoint: as loaded, with its own quantizer.
    """

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._checkpoint = checkpoint
        self.tokens = checkpoint.llava.config.image_seq_length

    def representations(
        self, levels: tuple[int, ...], quantizers: tuple[str, ...] | None
    ) -> tuple[Representation, ...]:
        """16-bit features, then each level count, then each named quantizer (None: all of them).

        Raises:
            CheckpointError: if there is no quantizer of a name.
        """
        names = self._checkpoint.quantizers if quantizers is None else quantizers
        found = [self._representation(FEATURES, 0, "")]
        found += [self._representation(name_of(count), count, "") for count in dict.fromkeys(levels)]
        for name in dict.fromkeys(names):
            self._quantizer(name)
            found.append(self._representation(name, self._checkpoint.further[name].settings.levels, name))
        return tuple(found)

    @torch.no_grad()
    def codes(self, representation: Representation, features: Tensor) -> Tensor:
        """Codes of tower features [n, tokens, width]: uint8 [n, coded tokens, code_dim].

        Raises:
            ValueError: for 16-bit features, which have none.
        """
        if not representation.levels:
            raise ValueError("16-bit features have no codes")
        quantizer = self._quantizer(representation.quantizer)
        parts = [quantizer.encode(part, representation.levels) for part in self._connected(features)]
        return torch.cat(parts)

    @torch.no_grad()
    def seen(self, representation: Representation, features: Tensor) -> Tensor:
        """What the server has of each picture before it computes anything.

        Args:
            representation: how the pictures crossed.
            features: tower features, float16 [n, tokens, width].

        Returns:
            float32 [n, coded tokens, code_dim], the values of the codes in [-1, 1]; at 16 bits
            [n, tokens, width], the features as half precision holds them.
        """
        if not representation.levels:
            return torch.cat([part.half().float() for part in self._connected(features)])
        quantizer = self._quantizer(representation.quantizer)
        return quantizer.values(self.codes(representation, features), representation.levels)

    def _connected(self, features: Tensor) -> list[Tensor]:
        connector = self._checkpoint.model.vision.connector
        return [connector(part.float()) for part in features.split(_BATCH)]

    def _representation(self, name: str, levels: int, quantizer: str) -> Representation:
        coder = self._quantizer(quantizer)
        if levels:
            size = packed_size(self.tokens // coder.merge**2 * coder.code_dim, levels)
        else:
            size = 2 * self.tokens * coder.width
        return Representation(name=name, levels=levels, quantizer=quantizer, packed_bytes=size)

    def _quantizer(self, name: str) -> Quantizer:
        if not name:
            return self._checkpoint.model.vision_quantizer
        if name not in self._checkpoint.further:
            known = ", ".join(self._checkpoint.quantizers) or "none beside its own"
            raise CheckpointError(
                f"checkpoint {self._checkpoint.path} has no quantizer {name!r}; it has {known}"
            )
        return self._checkpoint.further[name].module
