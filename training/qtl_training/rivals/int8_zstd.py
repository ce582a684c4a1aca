"""Eight-bit features under a general-purpose compressor: int8 and zstd."""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
import zstandard
from torch import Tensor

from qtl_core.errors import CodeError
from qtl_training.rivals.projection import Basis
from qtl_training.rivals.rival import Array, OneByOne

Scale = Literal["tensor", "channel"]
_LARGEST = 127
_LEVEL = 22
_DICTIONARY_BYTES = 16_384
_DICTIONARY_PICTURES = 1024


class Int8Zstd(OneByOne):
    """Symmetric int8, then zstd at its highest level with a dictionary made from training pictures.

    Frames carry no magic number, size, checksum or dictionary id. The knob has no effect.

    Args:
        width, tokens, levels, basis, code_dim, merge: as for every rival.
        scale: "tensor" scales by the picture's largest magnitude, sent as 4 bytes; "channel" by each
            channel's largest magnitude on training pictures, which both ends know.
    """

    limit: Tensor

    def __init__(
        self,
        width: int,
        tokens: int,
        levels: int = 256,
        *,
        scale: Scale = "tensor",
        basis: Basis = "none",
        code_dim: int = 0,
        merge: int = 1,
    ) -> None:
        super().__init__(width, tokens, levels, basis=basis, code_dim=code_dim, merge=merge)
        self.scale = scale
        self.register_buffer("limit", torch.ones(self.channels))
        self._dictionary: zstandard.ZstdCompressionDict | None = None

    def initialise(self, z: Tensor, seed: int) -> None:
        """Takes each channel's largest magnitude."""
        self._take_limit(z)

    def measure(self, z: Tensor, levels: int) -> None:
        """Takes each channel's largest magnitude again, after training, and trains the dictionary."""
        self._take_limit(z)
        samples: list[bytes | bytearray | memoryview] = [
            self._codes(one)[1].tobytes() for one in z[:_DICTIONARY_PICTURES].numpy()
        ]
        try:
            self._dictionary = zstandard.train_dictionary(_DICTIONARY_BYTES, samples)
        except zstandard.ZstdError:  # too few or too short pictures for one: go without
            self._dictionary = None

    def encode_one(self, z: Array, levels: int) -> bytes:
        """The scale if it is the picture's own, and a zstd frame."""
        scale, codes = self._codes(z)
        parameters = zstandard.ZstdCompressionParameters.from_level(
            _LEVEL,
            format=zstandard.FORMAT_ZSTD1_MAGICLESS,
            write_content_size=False,
            write_checksum=False,
            write_dict_id=False,
        )
        frame = zstandard.ZstdCompressor(dict_data=self._dictionary, compression_params=parameters).compress(
            codes.tobytes()
        )
        return scale.astype("<f4").tobytes() + frame if self.scale == "tensor" else frame

    def decode_one(self, payload: bytes, levels: int) -> Array:
        """The features again.

        Raises:
            CodeError: if the bytes are no such frame.
        """
        own = 4 if self.scale == "tensor" else 0
        size = self.coded_tokens * self.channels
        reader = zstandard.ZstdDecompressor(
            dict_data=self._dictionary, format=zstandard.FORMAT_ZSTD1_MAGICLESS
        ).decompressobj()
        try:
            raw = reader.decompress(payload[own:])
        except zstandard.ZstdError as error:
            raise CodeError(f"no zstd frame of {size} codes: {error}") from error
        if len(raw) != size or not reader.eof or reader.unused_data:
            raise CodeError(f"no zstd frame of {size} codes and nothing else: {len(raw)} came out")
        scale = np.frombuffer(payload[:own], "<f4") if own else self._channel_scale()
        return self._values(np.frombuffer(raw, np.int8).reshape(self.coded_tokens, self.channels), scale)

    def restored(self, z: Array, levels: int) -> Array:
        """Without zstd, which changes nothing."""
        pairs = [self._codes(one) for one in z]
        return np.stack([self._values(codes, scale) for scale, codes in pairs])

    def _take_limit(self, z: Tensor) -> None:
        self.limit.copy_(z.abs().amax((0, 1)).clamp_min(1e-6))

    def _channel_scale(self) -> Array:
        return np.asarray(self.limit.numpy() / np.float32(_LARGEST), np.float32)

    def _codes(self, z: Array) -> tuple[Array, np.ndarray[tuple[int, ...], np.dtype[np.int8]]]:
        if self.scale == "channel":
            scale = self._channel_scale()
        else:
            scale = np.maximum(np.abs(z).max(), np.float32(1e-6)).reshape(1) / np.float32(_LARGEST)
        return scale, np.clip(np.rint(z / scale), -_LARGEST, _LARGEST).astype(np.int8)

    @staticmethod
    def _values(codes: np.ndarray[tuple[int, ...], np.dtype[np.int8]], scale: Array) -> Array:
        return codes.astype(np.float32) * scale
