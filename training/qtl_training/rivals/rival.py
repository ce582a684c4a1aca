"""What every rival is: features in, bytes between, features out, with gradients where the bytes have none."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from qtl_core.errors import CodeError
from qtl_training.rivals.coding import Coder
from qtl_training.rivals.projection import Basis, projection

Array = NDArray[np.float32]


class Rival(nn.Module, ABC):
    """A way for picture features to cross the cut, with the interface of our quantizer.

    ``levels`` is a rival's rate knob: whatever it can vary under the same weights. It is a number of
    levels where a rival has levels, and what the rival's own page says elsewhere. As with our codes,
    both ends know it beforehand: it is no part of a payload.

    Args:
        width: width of the features.
        tokens: picture tokens.
        levels: the knob where a call names none.
        basis: what stands before it: "none", "spread" (our projection) or "principal".
        code_dim: channels after the projection.
        merge: side of the square of tokens that share a vector.

    Attributes:
        coded: whether its payload holds codes, which then travel at fixed length (as published) or under
            our entropy coder.
        packed: keeps codes to their fixed length.
    """

    coded: ClassVar[bool] = False

    def __init__(
        self,
        width: int,
        tokens: int,
        levels: int,
        *,
        basis: Basis = "none",
        code_dim: int = 0,
        merge: int = 1,
    ) -> None:
        super().__init__()
        self.width, self.levels, self.merge = width, levels, merge
        self.packed = False
        self.projection = projection(width, basis, code_dim, merge)
        self.channels = self.projection.channels
        self.coded_tokens = tokens // merge**2

    def forward(self, x: Tensor, levels: int | None = None) -> tuple[Tensor, Tensor]:
        """Passes ``x`` through.

        Args:
            x: float [pictures, tokens, width].
            levels: the knob for this call.

        Returns:
            What the server has, shaped like ``x``, and the rival's own loss (0 where it has none). In
            evaluation mode it is what ``restore`` makes of ``payloads``.
        """
        v, loss = self.quantize(self.projection(x), self.levels if levels is None else levels)
        return self.projection.back(v), loss

    @torch.no_grad()
    def fit(self, x: Tensor, *, seed: int = 0) -> None:
        """Initialises the projection from features [pictures, tokens, width], without gradients.

        The map back starts as the best linear one from what the rival makes of features at its own knob.
        """
        self.projection.fit(x, seed=seed)
        self.initialise(self.projection(x), seed)
        was_training = self.training
        v, _ = self.eval().quantize(self.projection(x), self.levels)
        self.projection.fit_back(v, x)
        self.train(was_training)

    def initialise(self, z: Tensor, seed: int) -> None:
        """Initialises what a rival has beside the projection, from projected features."""

    @torch.no_grad()
    def calibrate(self, x: Tensor, knobs: Sequence[int]) -> None:
        """Measures on training features what both ends share beside the weights, such as code tables.

        Args:
            x: float [pictures, tokens, width], after training.
            knobs: the knobs that will be used.
        """
        z = self.projection(x)
        for levels in knobs:
            self.measure(z, levels)

    @torch.no_grad()
    def payloads(self, x: Tensor, levels: int | None = None) -> list[bytes]:
        """What each picture of ``x`` [pictures, tokens, width] sends.

        Raises:
            ValueError: in training mode, in which a rival may be random or still moving.
        """
        if self.training:
            raise ValueError("payloads are made in evaluation mode: call eval() first")
        return self.encode(self.projection(x).numpy(), self.levels if levels is None else levels)

    def restore(self, payload: bytes, levels: int | None = None) -> Tensor:
        """The features [tokens, width] of one payload, from nothing else than its bytes.

        Raises:
            CodeError: if the bytes are no payload at this knob.
        """
        return self.restore_all([payload], levels)[0]

    @torch.no_grad()
    def restore_all(self, payloads: Sequence[bytes], levels: int | None = None) -> Tensor:
        """The features [pictures, tokens, width] of payloads.

        Raises:
            CodeError: if the bytes of one are no payload at this knob.
        """
        v = self.decode(payloads, self.levels if levels is None else levels)
        return self.projection.back(torch.from_numpy(v))

    def measure(self, z: Tensor, levels: int) -> None:
        """Measures what both ends share at one knob, from projected training features."""

    @abstractmethod
    def quantize(self, z: Tensor, levels: int) -> tuple[Tensor, Tensor]:
        """Projected features as the server has them, with a gradient, and the rival's loss."""

    @abstractmethod
    def encode(self, z: Array, levels: int) -> list[bytes]:
        """The payload of each picture, from projected features [pictures, coded tokens, channels]."""

    @abstractmethod
    def decode(self, payloads: Sequence[bytes], levels: int) -> Array:
        """Projected features [pictures, coded tokens, channels] of payloads."""


class ByteRival(Rival):
    """A rival without trained parts of its own: its forward pass goes through the bytes."""

    def quantize(self, z: Tensor, levels: int) -> tuple[Tensor, Tensor]:
        """Straight-through around ``restored``."""
        v = torch.from_numpy(self.restored(z.detach().numpy(), levels))
        return z + (v - z).detach() if self.training else v, z.new_zeros(())

    def restored(self, z: Array, levels: int) -> Array:
        """What is decoded of what is encoded, for ``z`` [pictures, coded tokens, channels]."""
        return self.decode(self.encode(z, levels), levels)


class OneByOne(ByteRival):
    """A ``ByteRival`` that works on one picture at a time."""

    def encode(self, z: Array, levels: int) -> list[bytes]:
        """``encode_one`` of each picture."""
        return [self.encode_one(one, levels) for one in z]

    def decode(self, payloads: Sequence[bytes], levels: int) -> Array:
        """``decode_one`` of each payload."""
        return np.stack([self.decode_one(payload, levels) for payload in payloads])

    @abstractmethod
    def encode_one(self, z: Array, levels: int) -> bytes:
        """One picture's payload, from projected features [coded tokens, channels]."""

    @abstractmethod
    def decode_one(self, payload: bytes, levels: int) -> Array:
        """Projected features [coded tokens, channels] of one payload."""


class CodedRival(Rival):
    """A rival whose payload is an array of codes, at fixed length or entropy coded where that is shorter."""

    coded = True

    def __init__(
        self,
        width: int,
        tokens: int,
        levels: int,
        *,
        basis: Basis = "none",
        code_dim: int = 0,
        merge: int = 1,
    ) -> None:
        super().__init__(width, tokens, levels, basis=basis, code_dim=code_dim, merge=merge)
        self._coders: dict[int, Coder] = {}

    @abstractmethod
    def level_counts(self, levels: int) -> tuple[int, ...]:
        """How many levels each column of ``codes`` has."""

    @abstractmethod
    def codes(self, z: Tensor, levels: int) -> Tensor:
        """Codes of projected features: integers [..., coded tokens, columns]."""

    @abstractmethod
    def values(self, codes: Tensor, levels: int) -> Tensor:
        """What codes stand for: float32 [..., coded tokens, channels]."""

    def quantize(self, z: Tensor, levels: int) -> tuple[Tensor, Tensor]:
        """Straight-through around ``values(codes(z))``, without a loss."""
        v = self.values(self.codes(z.detach(), levels), levels)
        return z + (v - z).detach() if self.training else v, z.new_zeros(())

    def coder(self, levels: int) -> Coder:
        """The coder at one knob."""
        if levels not in self._coders:
            self._coders[levels] = Coder(self.level_counts(levels), self.coded_tokens)
        return self._coders[levels]

    def measure(self, z: Tensor, levels: int) -> None:
        """Fits the code tables."""
        self.coder(levels).calibrate(self.codes(z, levels).numpy().astype(np.uint8))

    def encode(self, z: Array, levels: int) -> list[bytes]:
        """The codes as bytes."""
        codes = self.codes(torch.from_numpy(z), levels).numpy().astype(np.uint8)
        return self.coder(levels).encode(codes, packed=self.packed)

    def decode(self, payloads: Sequence[bytes], levels: int) -> Array:
        """The values of the codes in payloads."""
        codes = self.coder(levels).decode(payloads)
        return self.values(torch.from_numpy(codes), levels).numpy()


def exactly(payload: bytes, size: int) -> bytes:
    """The payload, which must have ``size`` bytes.

    Raises:
        CodeError: if it has not.
    """
    if len(payload) != size:
        raise CodeError(f"a payload of {len(payload)} bytes; it takes {size}")
    return payload
