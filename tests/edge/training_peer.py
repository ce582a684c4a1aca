"""A training server without a model: it answers every micro-batch with a gradient drawn from its number."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from edge_runtime.training.client import Done, Link, TrainingClient
from edge_runtime.training.run import DeviceRun
from edge_runtime.transport import Event, FakeClock, FakeTransport, Received
from qtl_core import gradients, tensor_file
from qtl_core import messages as m
from qtl_core.crossing import GRADIENT, TEXTS, VALUES, WEIGHTS, read_texts
from qtl_core.known import Known
from qtl_core.wire import by_name, frame_codes, join, split
from tests.edge import trainable


class Killed(Exception):
    """The client was killed here."""


class TrainingPeer:
    """The server's side of a run.

    Args:
        run: whose codes and gradients are read and made.
        kill: after so many optimizer steps the client is killed; none if negative.
        spoil: changes the bytes of a gradient.

    Attributes:
        points: moments it holds.
        weights: what the client handed over.
        pictures: how many it saw.
    """

    def __init__(
        self, run: DeviceRun, *, kill: int = -1, spoil: Callable[[bytes], bytes] = lambda data: data
    ) -> None:
        self._run, self._kill, self._spoil = run, kill, spoil
        self._now, self._known = m.Point(0, 0), self._nothing_known()
        self.points = [(0, 0)]
        self.weights: dict[str, object] = {}
        self.pictures = 0

    def __call__(self, frames: list[bytes]) -> Iterator[tuple[float, Event]]:
        limits = m.Limits(max_payload=self._run.largest, max_question=0, max_tokens=0, idle_ms=0)
        message, payloads = split(frames, limits)
        reply, data = self._reply(message, payloads, limits)
        if reply is not None:
            yield 0.0, Received(join(reply, data))

    def _reply(
        self, message: m.Message, payloads: dict[str, bytes], limits: m.Limits
    ) -> tuple[m.Message | None, list[bytes]]:
        if isinstance(message, m.Hello):
            assert message.fingerprint == self._run.fingerprint and m.CAN_TRAIN in message.capabilities
            return m.Welcome(m.PROTOCOL, b"training", limits, 8, "peer", False, (m.CAN_TRAIN,)), []
        if isinstance(message, m.Begin):
            self._known = self._nothing_known()
            self._now = m.Point(*max({(one.stage, one.step) for one in message.holds} & set(self.points)))
            return m.Start(message.id, self._now), []
        if isinstance(message, m.Micro):
            return self._grads(message, payloads)
        if isinstance(message, m.Norm):
            return self._total(message), []
        if isinstance(message, m.Weights):
            self.weights = dict(tensor_file.load(payloads[WEIGHTS], "weights"))
            return m.Taken(message.id), []
        return None, []

    def _grads(self, micro: m.Micro, payloads: dict[str, bytes]) -> tuple[m.Message, list[bytes]]:
        assert (micro.step, self._now.stage) == (self._now.step, 0)
        rows = read_texts(payloads[TEXTS], 64)
        pictures = len({place for row in rows for place in row.pictures})
        frame, values = by_name(micro)[VALUES], payloads[VALUES]
        crossed = self._known.read(micro.micro, frame, values, micro.levels, pictures)
        self.pictures += pictures
        found = trainable.gradient(micro.step, micro.micro, crossed.shape)
        random = np.random.default_rng([micro.step, micro.micro])
        data, _ = gradients.encode(found, self._run.stages[0].grad_bits, random)
        data = self._spoil(data)
        turns = sum(len(row.turns) for row in rows)
        frames = (frame_codes(GRADIENT, data),)
        return m.Grads(micro.id, frames, 1.0, 2 * turns, turns, turns), [data]

    def _nothing_known(self) -> Known:
        return Known(self._run.crossing, self._run.stages[0].picture_cache)

    def _total(self, norm: m.Norm) -> m.Total:
        assert np.isfinite(norm.squared)
        if norm.step == self._kill:
            raise Killed
        self._known.commit()
        last = norm.step + 1 == (self._run.stages[0].stop or self._run.stages[0].steps)
        self._now = m.Point(1, 0) if last else m.Point(0, norm.step + 1)
        self.points = [*self.points, (self._now.stage, self._now.step)][-2:]
        return m.Total(norm.id, 2 * norm.squared, True)


class Silent:
    """Watches without a word."""

    def stage(self, number: int, steps: int, first: int) -> None:
        pass

    def step(self, metrics: dict[str, float]) -> None:
        pass


def train(run: DeviceRun, peer: TrainingPeer) -> Done:
    """A run against the peer, without a network."""
    clock = FakeClock()
    client = TrainingClient(
        run,
        Link(server=FakeTransport.endpoint),
        watch=Silent(),
        clock=clock,
        transport=lambda largest: FakeTransport(clock, peer),
    )
    return client.train()
