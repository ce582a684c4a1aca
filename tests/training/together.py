"""Both sides of a split run in one process, message by message and without sockets."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from edge_runtime.training.client import Done, Link, TrainingClient
from edge_runtime.transport import Event, Received, Up
from qtl_core.messages import CAN_TRAIN, PROTOCOL, Bye, Hello, Message, Welcome
from qtl_core.wire import join, split
from qtl_training.recipe import Recipe
from qtl_training.split.client import TorchRun
from qtl_training.split.serving import Serving

Listening = Callable[[Message, Mapping[str, bytes]], Message | None]


class Direct:
    """A transport that hands every message to a run's server side, and its replies back.

    Args:
        serving: the server side.
        before: sees each of the client's messages before the server does, and may put another in its place.
    """

    endpoint, encrypted, hint = "tcp://127.0.0.1:1", False, ""

    def __init__(self, serving: Serving, before: Listening | None = None) -> None:
        self._serving, self._before = serving, before
        self._events: deque[Event] = deque([Up()])
        self.sent: list[list[bytes]] = []

    def send(self, frames: Sequence[bytes]) -> bool:
        limits = self._serving.limits()
        self.sent.append(list(frames))
        message, payloads = split(list(frames), limits)
        if isinstance(message, Hello):
            self._serving.opened()
            self._say(Welcome(PROTOCOL, b"12345678", limits, 8, "test", False, (CAN_TRAIN,)), [])
        elif not isinstance(message, Bye):
            if self._before is not None:
                message = self._before(message, payloads) or message
            for reply, data in self._serving.hear(message, payloads):
                self._say(reply, data)
        return True

    def receive(self, timeout: float) -> Event | None:
        if not self._events and timeout > 0:
            raise AssertionError("the client waits, and nothing will come")
        return self._events.popleft() if self._events else None

    def close(self) -> None:
        self._events.clear()

    def _say(self, reply: Message, data: list[bytes]) -> None:
        self._events.append(Received(join(reply, data)))


class Quiet:
    """Watches and says nothing; calls ``then`` after every step."""

    def __init__(self, then: Callable[[int], None] | None = None) -> None:
        self._then, self.steps = then, 0

    def stage(self, number: int, steps: int, first: int) -> None:
        pass

    def step(self, metrics: dict[str, float]) -> None:
        self.steps += 1
        if self._then is not None:
            self._then(self.steps)


def train(
    recipe: Recipe,
    folder: Path,
    *,
    before: Listening | None = None,
    then: Callable[[int], None] | None = None,
    client: Path | None = None,
) -> Done:
    """Trains, or goes on; the finished checkpoint is the one in ``folder / "serve"``.

    Args:
        recipe: what is trained.
        folder: for the run's folders.
        before: sees each of the client's messages before the server does.
        then: called after every step with the number of steps so far.
        client: the client's folder, if not beside the server's.
    """
    serving = Serving(recipe, folder / "serve")
    run = TorchRun(recipe, client or folder / "client", progress=False)
    direct = Direct(serving, before)
    link = Link(server="tcp://127.0.0.1:1")
    return TrainingClient(run, link, watch=Quiet(then), transport=lambda largest: direct).train()
