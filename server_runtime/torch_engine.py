"""The default engine: the server partition in this process, in PyTorch.

PyTorch is imported when the engine is built and not before: the front, the fake engine and ``--help`` do
without.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import TYPE_CHECKING

from qtl_core.bundle import Half, Manifest
from qtl_core.errors import HostError, MissingExtra
from server_runtime.config import ServerConfig
from server_runtime.engine import Prompt

if TYPE_CHECKING:
    from qtl_core.nn.server_partition import ServerPartition

_log = logging.getLogger(__name__)

# What the extra [server] brings; a module missing that is not among them is a mistake and not a missing
# extra.
_EXTRA = frozenset({"torch", "transformers", "safetensors", "tokenizers"})


class TorchEngine:
    """An engine over :class:`qtl_core.nn.server_partition.ServerPartition`.

    Args:
        half: A checked server half.
        config: Device and dtype.

    Raises:
        MissingExtra: PyTorch or its companions are not installed.
        HostError: The device is not there, or has no room.
        BundleError: The half's weights and settings do not fit together.
    """

    def __init__(self, half: Half, config: ServerConfig) -> None:
        try:
            import torch

            from qtl_core.nn.server_partition import ServerPartition
        except ModuleNotFoundError as error:
            missing = (error.name or "").partition(".")[0]
            if missing not in _EXTRA:
                raise
            raise MissingExtra.of("server", missing) from error
        self.device = pick_device(config.device, cuda=torch.cuda.is_available())
        try:
            self._partition: ServerPartition | None = ServerPartition.load(
                half.path, half.manifest, device=self.device, dtype=config.dtype
            )
        except torch.OutOfMemoryError as error:
            raise HostError(
                f"the model does not fit into the memory of {self.device!r}: use --dtype bfloat16, or "
                "another device"
            ) from error
        self._manifest = half.manifest

    @property
    def manifest(self) -> Manifest:
        """The manifest of the half it loaded."""
        return self._manifest

    @property
    def longest_answer(self) -> int:
        """The model's own limit."""
        return self._open().config.max_answer_tokens

    def question_tokens(self, question: str) -> int:
        """How many tokens the question has, without the template."""
        return self._open().question_tokens(question)

    def generate(self, prompt: Prompt, max_tokens: int) -> Iterator[str]:
        """Generate the answer, one item per token."""
        return self._open().generate(
            prompt.vision,
            prompt.question,
            text_codes=prompt.text_codes,
            max_tokens=max_tokens,
            size=prompt.size,
        )

    def close(self) -> None:
        """Let go of the weights."""
        self._partition = None

    def _open(self) -> ServerPartition:
        if self._partition is None:
            raise HostError("the engine is closed")
        return self._partition


def pick_device(wanted: str, *, cuda: bool) -> str:
    """The device to compute on.

    Args:
        wanted: "auto", "cpu" or "cuda".
        cuda: Whether there is a CUDA device.

    Raises:
        HostError: CUDA was asked for and is not there.
    """
    if wanted == "auto":
        return "cuda" if cuda else "cpu"
    if wanted == "cuda" and not cuda:
        raise HostError(
            "no CUDA device is visible to PyTorch: use --device cpu, or install a CUDA build of PyTorch"
        )
    return wanted
