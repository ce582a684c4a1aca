"""The processes of a training server under ``torchrun``, and what they say to each other.

Rank 0 has the sockets and decides; the others do as they are told. What travels is headers of numbers and
the bytes of arrays, over ``torch.distributed``: nothing is pickled.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from enum import IntEnum
from typing import Final

import msgspec
import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from qtl_core.crossing import Row
from qtl_core.errors import HostError
from qtl_training.split.server_side import MicroResult, Work

# A rank waits as long as clients stay away; one that dies is noticed by its connections.
_PATIENCE: Final = timedelta(days=7)
_ITEMS: Final = 4
_SHAPE: Final = 3
_DTYPES: Final = (np.uint8, np.float16)
_ROWS: Final = msgspec.msgpack.Decoder(tuple[Row, ...])


class Op(IntEnum):
    """What rank 0 tells the others to do."""

    END = 0
    ENTER = 1
    LOAD = 2
    RUN = 3
    NORM = 4
    APPLY = 5
    FINISH = 6


class Ranks:
    """The process group of a ``torchrun``; made once in each process, and closed by :meth:`close`.

    Args:
        device: "cpu" or "cuda"; each process of a machine takes the GPU of its own number.

    Attributes:
        rank: of this process.
        size: how many there are.
        device: where this one computes.

    Raises:
        HostError: the processes do not find each other.
    """

    def __init__(self, device: str) -> None:
        self.device = device
        if device == "cuda":
            self.device = f"cuda:{os.environ.get('LOCAL_RANK', '0')}"
            torch.cuda.set_device(self.device)
        with _heard():
            dist.init_process_group("cpu:gloo,cuda:nccl" if device == "cuda" else "gloo", timeout=_PATIENCE)
        self.rank, self.size = dist.get_rank(), dist.get_world_size()

    def close(self) -> None:
        """Leaves the group."""
        dist.destroy_process_group()

    def tell(self, op: Op, *numbers: float) -> None:
        """Rank 0: the next thing to do, with up to three numbers, exact to 2^53."""
        self._broadcast(torch.tensor([op, *numbers, *[0] * (_ITEMS - 1 - len(numbers))], dtype=torch.float64))

    def told(self) -> tuple[Op, list[float]]:
        """The other ranks: waits for it."""
        op, *numbers = self._broadcast(torch.empty(_ITEMS, dtype=torch.float64)).tolist()
        return Op(int(op)), numbers

    def same(self, modules: Sequence[nn.Module]) -> None:
        """Makes all ranks' weights and buffers those of rank 0."""
        for module in modules:
            for tensor in module.state_dict().values():
                self._broadcast(tensor)

    def blob(self, data: bytes) -> bytes:
        """Rank 0's bytes, at every rank."""
        size = int(self._broadcast(torch.tensor([len(data)])))
        held = torch.empty(size, dtype=torch.uint8)
        if self.rank == 0 and size:
            held.copy_(torch.frombuffer(bytearray(data), dtype=torch.uint8))
        return self._broadcast(held).numpy().tobytes() if size else b""

    def summed(self, parameters: Sequence[nn.Parameter]) -> None:
        """Adds up all ranks' gradients, parameter by parameter; those that no rank has stay away."""
        has = torch.tensor([parameter.grad is not None for parameter in parameters], dtype=torch.int32)
        with _heard():
            dist.all_reduce(has)
            for parameter, ranks in zip(parameters, has.tolist(), strict=True):
                if ranks:
                    if parameter.grad is None:
                        parameter.grad = torch.zeros_like(parameter)
                    dist.all_reduce(parameter.grad)

    def hand(self, work: Work, rank: int) -> None:
        """Rank 0: gives a micro-batch to another rank."""
        rows = msgspec.msgpack.encode(work.rows)
        kind = _DTYPES.index(work.crossed.dtype.type)
        header = [work.levels, *work.place, kind, len(rows), *work.crossed.shape]
        self._send(torch.tensor(header), rank)
        self._send(torch.from_numpy(np.ascontiguousarray(work.crossed)).view(torch.uint8).reshape(-1), rank)
        self._send(torch.frombuffer(bytearray(rows), dtype=torch.uint8), rank)

    def take(self) -> Work:
        """The other ranks: the micro-batch that ``hand`` gives."""
        header = self._receive(torch.empty(5 + _SHAPE, dtype=torch.int64), 0).tolist()
        levels, step, micro, kind, length = header[:5]
        dtype, shape = np.dtype(_DTYPES[kind]), tuple(header[5:])
        size = dtype.itemsize * int(np.prod(shape))
        crossed = self._receive(torch.empty(size, dtype=torch.uint8), 0).numpy().view(dtype).reshape(shape)
        rows = self._receive(torch.empty(length, dtype=torch.uint8), 0).numpy().tobytes()
        return Work(crossed, levels, _ROWS.decode(rows), (step, micro))

    def give(self, result: MicroResult) -> None:
        """The other ranks: what the micro-batch came to."""
        numbers = [result.loss, result.tokens, result.right, result.turns]
        self._send(torch.tensor(numbers, dtype=torch.float64), 0)
        self._send(torch.from_numpy(np.ascontiguousarray(result.gradient)), 0)

    def collect(self, shape: Sequence[int], rank: int) -> MicroResult:
        """Rank 0: what ``give`` gives, of a micro-batch whose codes or features have that shape."""
        loss, *counts = self._receive(torch.empty(4, dtype=torch.float64), rank).tolist()
        tokens, right, turns = map(int, counts)
        gradient = self._receive(torch.empty(*shape, dtype=torch.float32), rank)
        return MicroResult(loss, tokens, right, turns, gradient.numpy())

    def _broadcast(self, tensor: Tensor) -> Tensor:
        with _heard():
            dist.broadcast(tensor, 0)
        return tensor

    def _send(self, tensor: Tensor, rank: int) -> None:
        with _heard():
            dist.send(tensor, rank)

    def _receive(self, tensor: Tensor, rank: int) -> Tensor:
        with _heard():
            dist.recv(tensor, rank)
        return tensor


def ranks_wanted() -> bool:
    """Whether ``torchrun`` started this process as one of several."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def is_follower() -> bool:
    """Whether this process is one of several, and not rank 0."""
    return ranks_wanted() and os.environ.get("RANK", "0") != "0"


@contextmanager
def _heard() -> Iterator[None]:
    try:
        yield
    except (RuntimeError, ValueError) as error:
        raise HostError(
            f"rank {os.environ.get('RANK', '?')} of the training server lost another one; give the same "
            "torchrun command again: the run goes on from its newest snapshot"
        ) from error
