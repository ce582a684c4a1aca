"""Split training's client: steps through a run with a server, and through whatever happens to either."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Protocol

import msgspec
import numpy as np

from edge_runtime.dealer import Dealer
from edge_runtime.session import Lost, Session, Traffic
from edge_runtime.training.evaluation import Evaluation, evaluate
from edge_runtime.training.labels import Judged, PrivateLabels
from edge_runtime.training.partition import ClientRun, StageSide
from edge_runtime.training.requests import NewServer, Requests
from edge_runtime.transport import Transport
from qtl_core import __version__
from qtl_core.crossing import GRADIENT, OUTPUTS, WEIGHTS, MicroBatch, questions_of, texts_up
from qtl_core.errors import HandshakeRefused, InputError
from qtl_core.gradients import decode
from qtl_core.keys import KeyPair
from qtl_core.known import Known
from qtl_core.messages import (
    CAN_TRAIN,
    PROTOCOL,
    Begin,
    Grads,
    Hello,
    Judge,
    Limits,
    Micro,
    Norm,
    Outputs,
    Part,
    Point,
    Start,
    Taken,
    Total,
    Weights,
)
from qtl_core.split_stage import levels_of
from qtl_core.wire import frame_codes

_TRY_AGAIN_S: Final = 1.0
_AGENT: Final = f"qtl-train/{__version__}"


@dataclass(frozen=True, kw_only=True)
class Link:
    """How a client reaches its server.

    Attributes:
        server: the address.
        keys: this client's CURVE pair; None for plaintext.
        server_key: the server's public key, with ``keys``.
        timeout: seconds to wait for a connection, and for a place that another client has.
        comeback: seconds that a lost server has to come back.
    """

    server: str
    keys: KeyPair | None = None
    server_key: bytes | None = None
    timeout: float = 30.0
    comeback: float = 600.0


@dataclass
class Done:
    """What a finished run came to.

    Attributes:
        steps: optimizer steps taken here, replayed ones too.
        pictures: sent.
        traffic: bytes on the wire, framing included, handshakes too.
        seconds: from the first step on.
        folder: this side's weights.
        evaluating: bytes that evaluation on held-out data took, not counted in ``traffic``.
        last: what the last step measured.
        evaluation: the last one.
    """

    steps: int = 0
    pictures: int = 0
    traffic: Traffic = field(default_factory=Traffic)
    seconds: float = 0.0
    folder: Path = Path()
    evaluating: Traffic = field(default_factory=Traffic)
    last: dict[str, float] = field(default_factory=dict)
    evaluation: list[dict[str, Any]] = field(default_factory=list)

    def summary(self) -> dict[str, Any]:
        """What the commands print at the end: steps, bytes, seconds, and the last numbers."""
        pictures = max(self.pictures, 1)
        return {
            "steps": self.steps,
            "pictures": self.pictures,
            "bytes_up": self.traffic.up,
            "bytes_down": self.traffic.down,
            "bytes_up_per_picture": self.traffic.up / pictures,
            "bytes_down_per_picture": self.traffic.down / pictures,
            "bytes_of_evaluation": self.evaluating.up + self.evaluating.down,
            "seconds": self.seconds,
            "steps_per_s": self.steps / max(self.seconds, 1e-9),
            "last_step": self.last,
            "evaluation": self.evaluation,
        }


class Watch(Protocol):
    """Told how a run goes; a progress bar is one."""

    def stage(self, number: int, steps: int, first: int) -> None:
        """A stage begins at its step ``first``."""
        ...

    def step(self, metrics: dict[str, float]) -> None:
        """A step is done."""
        ...


class TrainingClient:
    """One training run on the client's side.

    Args:
        run: what is trained here.
        link: how to reach the server.
        watch: told of every step.
        parts: what goes into the run's fingerprint, so that the server can say what differs.
        evaluation: held-out data for a stage that was entered, if there is to be any.
        clock: seconds that only grow.
        transport: makes the connection from the largest payload; a ZeroMQ DEALER if not given.
    """

    def __init__(
        self,
        run: ClientRun,
        link: Link,
        *,
        watch: Watch,
        parts: Sequence[Part] = (),
        evaluation: Callable[[StageSide], Evaluation | None] = lambda side: None,
        clock: Callable[[], float] = time.monotonic,
        transport: Callable[[int], Transport] | None = None,
    ) -> None:
        self._run, self._link, self._watch, self._clock = run, link, watch, clock
        self._evaluation = evaluation
        limits = Limits(max_payload=run.largest, max_question=0, max_tokens=0, idle_ms=0)
        hello = Hello(
            protocol=PROTOCOL,
            fingerprint=run.fingerprint,
            codecs=(),
            text="train",
            agent=_AGENT,
            capabilities=(CAN_TRAIN,),
            parts=tuple(parts),
        )
        self._session = Session(
            (transport or self._dealer)(run.largest), hello, timeout=link.timeout, clock=clock
        )
        self._requests = Requests(self._session, limits, comeback=link.comeback)
        self._traffic = Traffic()
        self._known = Known(run.crossing, 0)
        self._ahead: tuple[int, Sequence[MicroBatch]] = -1, ()

    def train(self) -> Done:
        """Trains to the end of the run, through whatever happens to the connection or the server.

        Raises:
            LinkError: the server is not there, or did not come back.
            RefusedError: it refused the run, or a step.
            InputError: training diverged.
            StorageError: a snapshot cannot be written.
        """
        done = Done()
        started = self._clock()
        try:
            with self._session.billed_to(self._traffic):
                self._come_in()
                while True:
                    try:
                        self._follow(self._begin(), done)
                        break
                    except NewServer:
                        continue
        finally:
            self._session.close()
        done.seconds = self._clock() - started
        done.traffic = Traffic(
            self._traffic.up + self._session.handshakes.up, self._traffic.down + self._session.handshakes.down
        )
        return done

    def _dealer(self, largest: int) -> Transport:
        link = self._link
        return Dealer(link.server, keys=link.keys, server_key=link.server_key, max_payload=largest)

    def _come_in(self) -> None:
        """Opens the session; a place that is taken may become free, as that of a client cut off before."""
        deadline = self._clock() + self._link.timeout
        while True:
            try:
                self._session.open()
                return
            except HandshakeRefused as error:
                if error.reason != "full" or self._clock() >= deadline:
                    raise
            with suppress(Lost):
                self._session.hear(min(deadline, self._clock() + _TRY_AGAIN_S))

    def _begin(self) -> Point:
        holds = tuple(Point(stage, step) for stage, step in self._run.points())
        begin = Begin(self._requests.next_id(), holds)
        start, _ = self._requests.reply(self._requests.send(begin), Start)
        return start.point

    def _follow(self, point: Point, done: Done) -> None:
        """Trains from this moment to the end."""
        run = self._run
        run.back_to(point.stage, point.step)
        first = point.step
        for number in range(point.stage, len(run.stages)):
            stage = run.stages[number]
            side = run.enter(number)
            if stage.fit_quantizer and not first:
                self._hand_over(side.fit())
            self._known = Known(run.crossing, stage.picture_cache)
            held_out = self._evaluation(side)
            self._ahead = -1, ()
            steps = stage.stop or stage.steps
            self._watch.stage(number, steps, first)
            for step in range(first, steps):
                save_now, metrics = self._step(side, number, step, done)
                done.steps += 1
                self._watch.step(metrics)
                if step % run.log_every == 0 or step + 1 == steps:
                    run.log({"stage": number, "step": step, **metrics})
                if save_now and step + 1 < steps:
                    run.save(number, step + 1)
                done.last = metrics
                self._evaluate(held_out, number, step, done)
            run.save(number + 1, 0)
            first = 0
        self._hand_over(run.weights())
        done.folder = run.finish()

    def _hand_over(self, tensors: bytes) -> None:
        weights = Weights(self._requests.next_id(), (frame_codes(WEIGHTS, tensors),))
        self._requests.reply(self._requests.send(weights, [tensors]), Taken)

    def _evaluate(self, held_out: Evaluation | None, number: int, step: int, done: Done) -> None:
        if held_out is None or not held_out.due(number, step + 1):
            return
        with self._session.billed_to(done.evaluating):
            done.evaluation = evaluate(
                held_out, number, self._run.stages[number], self._run.crossing, self._requests
            )
        for found in done.evaluation:
            self._run.log({"stage": number, "step": step, "evaluation": found})

    def _step(self, side: StageSide, number: int, step: int, done: Done) -> tuple[bool, dict[str, float]]:
        levels = levels_of(self._run.stages[number], self._run.seeds[number], step)
        grads = list(self._micro_batches(side, number, step, levels, done))
        tokens = sum(one.tokens for one in grads)
        own = side.squared_norm(tokens)
        if side.labels is not None:
            own += side.labels.squared_norm(tokens)
        norm = Norm(self._requests.next_id(), step, own)
        about, stage = self._requests.send(norm), self._run.stages[number]
        if step + 1 < (stage.stop or stage.steps):
            # While the server takes the step: what the next one is about does not depend on it.
            self._ahead = step + 1, side.micro_batches(step + 1)
        total, _ = self._requests.reply(about, Total)
        side.apply(step, total.squared)
        self._known.commit()
        if side.labels is not None:
            side.labels.apply(step, total.squared)
        turns = sum(one.turns for one in grads)
        return total.save, {
            "loss": sum(one.loss for one in grads) / tokens,
            "right": 100 * sum(one.right for one in grads) / turns,
            "norm": total.squared**0.5,
            "levels": float(levels),
        }

    def _micro_batches(
        self, side: StageSide, number: int, step: int, levels: int, done: Done
    ) -> Iterator[Grads]:
        """Sends the step's micro-batches, each while the server works on the ones before, and takes their
        gradients in order.
        """
        sent, labels, judged = [], side.labels, []
        prepared, ahead = self._ahead
        micro_batches = ahead if prepared == step else side.micro_batches(step)
        for index, micro in enumerate(micro_batches):
            crossed = side.forward(index, micro.pictures, levels)
            if not levels and not np.isfinite(crossed).all():
                raise InputError(
                    f"training diverged at stage {number}, step {step}: a feature is beyond half precision; "
                    "lower the learning rate; the last good snapshot stays"
                )
            rows = micro.rows if labels is None else questions_of(micro.rows)
            values, texts = self._known.up(index, micro.pictures, crossed, levels), texts_up(rows)
            message = Micro(self._requests.next_id(), (values[0], texts[0]), step, index, levels)
            sent.append((self._requests.send(message, [values[1], texts[1]]), crossed.shape))
            done.pictures += len(micro.pictures)
        if labels is not None:
            outputs = [about for about, _ in sent]
            found = list(self._judged(labels, number, step, micro_batches, outputs))
            judged = [one for one, _ in found]
            sent = [(about, shape) for (_, about), (_, shape) in zip(found, sent, strict=True)]
        for index, (about, shape) in enumerate(sent):
            grads, data = self._requests.reply(about, Grads)
            side.backward(index, decode(data[GRADIENT], self._run.stages[number].grad_bits, shape))
            if judged:
                one = judged[index]
                grads = msgspec.structs.replace(
                    grads, loss=one.loss, tokens=one.turns, right=one.right, turns=one.turns
                )
            yield grads

    def _judged(
        self,
        labels: PrivateLabels,
        number: int,
        step: int,
        micro_batches: Sequence[MicroBatch],
        outputs: Sequence[int],
    ) -> Iterator[tuple[Judged, int]]:
        """Takes each micro-batch's outputs in order and sends back the gradient of its loss; with the ids of
        what was sent.
        """
        bits = self._run.stages[number].output_bits
        for index, (micro, about) in enumerate(zip(micro_batches, outputs, strict=True)):
            _, data = self._requests.reply(about, Outputs)
            turns = sum(len(row.turns) for row in micro.rows)
            found = labels.judge(
                step, index, decode(data[OUTPUTS], bits, (turns, labels.columns)), micro.rows
            )
            frame = frame_codes(GRADIENT, found.data)
            judge = Judge(self._requests.next_id(), (frame,), step, index)
            yield found, self._requests.send(judge, [found.data])
