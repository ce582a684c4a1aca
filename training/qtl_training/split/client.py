"""``qtl-train client``: the side that has the pictures."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import torch
from safetensors.torch import save
from torch import Tensor
from tqdm import tqdm

from edge_runtime.dealer import Dealer
from edge_runtime.session import Session, Traffic
from edge_runtime.transport import Transport
from qtl_core import __version__
from qtl_core.gradients import decode
from qtl_core.keys import KeyPair
from qtl_core.messages import (
    CAN_TRAIN,
    PROTOCOL,
    Begin,
    Grads,
    Hello,
    Limits,
    Micro,
    Norm,
    Point,
    Start,
    Taken,
    Total,
    Weights,
)
from qtl_core.wire import frame_codes
from qtl_training.features import tower_features
from qtl_training.local import begun, stage_seed
from qtl_training.recipe import Recipe
from qtl_training.run_folder import RunFolder, write
from qtl_training.split.agreement import crossing_of, fingerprint, largest_payload
from qtl_training.split.client_side import ClientSide
from qtl_training.split.crossing import GRADIENT, WEIGHTS, texts_up
from qtl_training.split.partition import client_tensors
from qtl_training.split.requests import NewServer, Requests
from qtl_training.split.samples import DigitSamples
from qtl_training.split.stages import stages_of

_AGENT: Final = f"qtl-train/{__version__}"


@dataclass(frozen=True, kw_only=True)
class Link:
    """How a client reaches its server.

    Attributes:
        server: the address.
        keys: this client's CURVE pair; None for plaintext.
        server_key: the server's public key, with ``keys``.
        timeout: seconds to wait for a connection.
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
        folder: this side's checkpoint.
    """

    steps: int = 0
    pictures: int = 0
    traffic: Traffic = field(default_factory=Traffic)
    seconds: float = 0.0
    folder: Path = Path()


class TrainingClient:
    """One training run on the client's side.

    Args:
        recipe: what is trained; the server's has the same stages.
        folder: the run's folder.
        link: how to reach the server.
        progress: whether to show bars.
        clock: seconds that only grow.
        transport: makes the connection from the largest payload; a ZeroMQ DEALER if not given.
    """

    def __init__(
        self,
        recipe: Recipe,
        folder: Path,
        link: Link,
        *,
        progress: bool = True,
        clock: Callable[[], float] = time.monotonic,
        transport: Callable[[int], Transport] | None = None,
    ) -> None:
        self._recipe, self._stages, self._link = recipe, stages_of(recipe), link
        self._run = RunFolder(folder, recipe)
        self._progress, self._clock = progress, clock
        checkpoint = begun(self._run, recipe).checkpoint
        self._crossing = crossing_of(recipe, checkpoint)
        largest = largest_payload(self._stages, self._crossing, checkpoint)
        limits = Limits(max_payload=largest, max_question=0, max_tokens=0, idle_ms=0)
        hello = Hello(
            protocol=PROTOCOL,
            fingerprint=fingerprint(recipe),
            codecs=(),
            text="train",
            agent=_AGENT,
            capabilities=(CAN_TRAIN,),
        )
        self._session = Session(
            (transport or self._dealer)(largest), hello, timeout=link.timeout, clock=clock
        )
        self._requests = Requests(self._session, limits, comeback=link.comeback)
        self._traffic = Traffic()
        self._features: dict[int, Tensor] = {}

    def train(self) -> Done:
        """Trains to the end of the recipe, through whatever happens to the connection or the server.

        Raises:
            LinkError: the server is not there, or did not come back.
            RefusedError: it refused the run, or a step.
            StorageError: a snapshot cannot be written.
        """
        done = Done()
        started = self._clock()
        try:
            with self._session.billed_to(self._traffic):
                self._session.open()
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
        done.folder = self._run.finished
        return done

    def _dealer(self, largest: int) -> Transport:
        link = self._link
        return Dealer(link.server, keys=link.keys, server_key=link.server_key, max_payload=largest)

    # ---------------------------------------------------------------------------------- the run

    def _begin(self) -> Point:
        holds = tuple(Point(stage, step) for stage, step in self._run.points())
        begin = Begin(self._requests.next_id(), holds)
        start, _ = self._requests.reply(self._requests.send(begin), Start)
        return start.point

    def _follow(self, point: Point, done: Done) -> None:
        """Trains from this moment to the end."""
        snapshot = self._run.back_to(point.stage, point.step)
        checkpoint, state, first = snapshot.checkpoint, snapshot.state, point.step
        for number in range(point.stage, len(self._stages)):
            stage, seed = self._stages[number], stage_seed(self._recipe, number)
            torch.manual_seed(seed)
            samples = DigitSamples(stage, seed)
            if number not in self._features:
                vision = checkpoint.model.vision
                self._features[number] = tower_features(vision, samples.scenes, progress=self._progress)
            checkpoint.model.train()
            checkpoint.model.vision.tower.eval()
            side = ClientSide(checkpoint.model, stage)
            side.load({k.removeprefix("client."): v for k, v in state.items() if k.startswith("client.")})
            steps = stage.stop or stage.steps
            label = f"{self._recipe.name} stage {number + 1}/{len(self._stages)}"
            with tqdm(total=steps, initial=first, desc=label, disable=not self._progress or None) as bar:
                for step in range(first, steps):
                    save_now, metrics = self._step(side, samples, number, step)
                    done.steps += 1
                    done.pictures += stage.micro_batches * stage.pictures
                    bar.set_postfix({k: f"{v:.3g}" for k, v in metrics.items()}, refresh=False)
                    bar.update()
                    if step % self._recipe.log_every == 0 or step + 1 == steps:
                        self._run.log({"stage": number, "step": step, **metrics})
                    if save_now and step + 1 < steps:
                        held = {f"client.{name}": value for name, value in side.state().items()}
                        self._run.save(checkpoint, number, step + 1, held)
            checkpoint.model.eval()
            self._run.save(checkpoint, number + 1, 0, {})
            state, first = {}, 0
        data = save({name: value.contiguous() for name, value in client_tensors(checkpoint.model).items()})
        frame = frame_codes(WEIGHTS, data)
        weights = Weights(self._requests.next_id(), (frame,))
        self._requests.reply(self._requests.send(weights, [data]), Taken)
        shutil.rmtree(self._run.finished, ignore_errors=True)
        write(self._run.finished, checkpoint)

    def _step(
        self, side: ClientSide, samples: DigitSamples, number: int, step: int
    ) -> tuple[bool, dict[str, float]]:
        levels = samples.levels(step)
        grads = list(self._micro_batches(side, samples, number, step, levels))
        tokens = sum(one.tokens for one in grads)
        own = side.squared_norm(tokens)
        norm = Norm(self._requests.next_id(), step, own)
        total, _ = self._requests.reply(self._requests.send(norm), Total)
        side.apply(step, total.squared)
        turns = sum(one.turns for one in grads)
        return total.save, {
            "loss": sum(one.loss for one in grads) / tokens,
            "right": 100 * sum(one.right for one in grads) / turns,
            "norm": total.squared**0.5,
            "levels": float(levels),
        }

    def _micro_batches(
        self, side: ClientSide, samples: DigitSamples, number: int, step: int, levels: int
    ) -> Iterator[Grads]:
        """Sends the step's micro-batches, each while the server works on the ones before, and takes their
        gradients in order.
        """
        stage, features = self._stages[number], self._features[number]
        sent = []
        for index, micro in enumerate(samples.micro_batches(step)):
            crossed = side.forward(index, features[list(micro.pictures)], levels)
            values, texts = self._crossing.up(crossed, levels), texts_up(micro.turns)
            message = Micro(self._requests.next_id(), (values[0], texts[0]), step, index, levels)
            sent.append(self._requests.send(message, [values[1], texts[1]]))
        shape = (stage.pictures, *self._crossing.shape(levels))
        for index, about in enumerate(sent):
            grads, data = self._requests.reply(about, Grads)
            side.backward(index, decode(data[GRADIENT], stage.grad_bits, shape))
            yield grads
