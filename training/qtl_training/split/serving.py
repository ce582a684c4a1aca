"""The training server's conversation with its client: every message in, its replies out; no sockets.

A step's micro-batches are computed in their order, whatever order they arrive in; what was computed is kept
until the step after it is done, so that whoever asks again is told the same, and nothing is done twice.
"""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor

from qtl_core.crossing import GRADIENT, OUTPUTS, TEXTS, VALUES, WEIGHTS, Crossed, Row, read_texts
from qtl_core.errors import MalformedMessage, ProtocolError, RequestRefused
from qtl_core.gradients import decode
from qtl_core.messages import (
    Begin,
    Error,
    Grads,
    Judge,
    Limits,
    Message,
    Micro,
    Norm,
    Outputs,
    Ping,
    Point,
    Pong,
    Start,
    Taken,
    Total,
    Weights,
    kind,
    line,
)
from qtl_core.split_stage import SplitStage
from qtl_core.wire import by_name, frame_codes
from qtl_training.local import begun, stage_seed
from qtl_training.recipe import Recipe
from qtl_training.run_folder import RunFolder, write
from qtl_training.split.agreement import crossing_of, largest_payload
from qtl_training.split.gradients import GradientCoder
from qtl_training.split.outputs import crossed_outputs
from qtl_training.split.partition import client_tensors
from qtl_training.split.private import HEAD, PrivateServerSide, head_of, put_head, scored_tokens
from qtl_training.split.server_side import MicroResult, ServerSide
from qtl_training.split.stages import stages_of

Reply = tuple[Message, list[bytes]]


@dataclass
class _Sums:
    """What the micro-batches of a step came to so far."""

    loss: float = 0.0
    tokens: int = 0
    right: int = 0
    turns: int = 0

    def add(self, result: MicroResult) -> None:
        self.loss += result.loss
        self.tokens += result.tokens
        self.right += result.right
        self.turns += result.turns


class Serving:
    """One training run on the server's side.

    Args:
        recipe: what is trained.
        folder: the run's folder.
        clock: seconds that only grow, for the time between snapshots.
        log: told of every finished step.

    Attributes:
        crossing: how what crosses is coded.
        largest: bytes of the largest payload, either way.
        finished: the client partition has come and the finished checkpoint is written.

    Raises:
        RecipeError: a stage that is no split stage, or a folder that was begun with other settings.
        CheckpointError: the checkpoint to start from.
        StorageError: the folder cannot be written.
    """

    def __init__(
        self,
        recipe: Recipe,
        folder: Path,
        *,
        clock: Callable[[], float] = time.monotonic,
        log: Callable[[dict[str, float]], None] | None = None,
    ) -> None:
        self.recipe, self.stages = recipe, stages_of(recipe)
        self._run = RunFolder(folder, recipe)
        self._clock, self._log = clock, log
        snapshot = begun(self._run, recipe)
        self._checkpoint = snapshot.checkpoint
        self.crossing = crossing_of(recipe, snapshot.checkpoint)
        self.largest = largest_payload(self.stages, self.crossing, snapshot.checkpoint)
        self.finished = False
        self._point: Point | None = None
        self._forget()

    @property
    def path(self) -> Path:
        """Where the finished checkpoint is, or will be."""
        return self._run.finished

    def limits(self) -> Limits:
        """What a session may send."""
        return Limits(max_payload=self.largest, max_question=0, max_tokens=0, idle_ms=0)

    def hear(self, message: Message, payloads: Mapping[str, bytes]) -> list[Reply]:
        """What is said back to a message; an error reply where it cannot be taken."""
        about = int(getattr(message, "id", 0))
        if about in self._kept:
            return [self._kept[about]]
        try:
            return self._replies(message, payloads, about)
        except (RequestRefused, ProtocolError) as error:
            return [self._refused(about, error)]

    def _refused(self, about: int, error: RequestRefused | ProtocolError) -> Reply:
        if isinstance(error, ProtocolError):
            return Error(about, error.wire_code, line(str(error))), []
        if error.reason == "diverged":
            self._point = None  # the sums of this step are spoilt: only a BEGIN goes on from here
        return Error(about, error.reason, line(error.message)), []

    def _replies(self, message: Message, payloads: Mapping[str, bytes], about: int) -> list[Reply]:
        if isinstance(message, Ping):
            return [(Pong(message.id), [])]
        if isinstance(message, Begin):
            return [self._keep(about, self._begin(message))]
        if self._point is None:
            raise RequestRefused("order", "send BEGIN first: the run stands at no step")
        if isinstance(message, Micro):
            return self._micro(message, payloads)
        if isinstance(message, Judge):
            return self._judge(message, payloads)
        if isinstance(message, Norm):
            return [self._keep(about, self._step(message))]
        if isinstance(message, Weights):
            return [self._keep(about, self._finish(message, payloads))]
        raise MalformedMessage(f"a training client does not send {kind(message)}")

    def _begin(self, begin: Begin) -> Reply:
        held = self._run.points()
        common = [(point.stage, point.step) for point in begin.holds if (point.stage, point.step) in held]
        if not common:
            ours = ", ".join(f"{stage}/{step}" for stage, step in held)
            raise RequestRefused(
                "order",
                "client and server share no moment of this run (the server has snapshots of stage/step "
                f"{ours}): begin anew on both sides with --fresh",
            )
        stage, step = max(common)
        snapshot = self._run.back_to(stage, step)
        self._forget()
        self._checkpoint = snapshot.checkpoint
        self._enter(stage, step, snapshot.state)
        return Start(begin.id, Point(stage, step)), []

    def _enter(self, stage: int, step: int, state: Mapping[str, Tensor]) -> None:
        self._point = Point(stage, step)
        self._saved = self._clock()
        if stage == len(self.stages):
            return
        settings = self.stages[stage]
        torch.manual_seed(stage_seed(self.recipe, stage))
        self._checkpoint.model.train()
        self._side = (PrivateServerSide if settings.private else ServerSide)(self._checkpoint, settings)
        self._coder = GradientCoder(stage_seed(self.recipe, stage), settings.grad_bits)
        self._side.load({k.removeprefix("server."): v for k, v in state.items() if k.startswith("server.")})
        self._coder.load(dict(state))

    def _micro(self, micro: Micro, payloads: Mapping[str, bytes]) -> list[Reply]:
        settings = self._settings(micro.step)
        if micro.micro >= settings.micro_batches:
            raise RequestRefused(
                "order", f"micro-batch {micro.micro} of {settings.micro_batches}: the recipes differ"
            )
        self._waiting[micro.micro] = (micro, payloads)
        replies = []
        while self._next in self._waiting:
            waiting, data = self._waiting.pop(self._next)
            try:
                replies.append(self._keep(waiting.id, self._computed(waiting, data, settings)))
            except (RequestRefused, ProtocolError) as error:
                replies.append(self._refused(waiting.id, error))
                break
            self._next += 1
        return replies

    def _computed(self, micro: Micro, payloads: Mapping[str, bytes], settings: SplitStage) -> Reply:
        if set(payloads) != {VALUES, TEXTS}:
            raise MalformedMessage(f"a micro-batch has the frames v and t, this one {sorted(payloads)}")
        if micro.levels not in settings.levels:
            raise RequestRefused("order", f"{micro.levels} levels are not in the recipe's {settings.levels}")
        rows = read_texts(payloads[TEXTS], settings.pictures, private=settings.private)
        if [row.pictures for row in rows] != [(place,) for place in range(settings.pictures)]:
            raise RequestRefused("order", f"a micro-batch has a row for each of {settings.pictures} pictures")
        frame = by_name(micro)[VALUES]
        crossed = self.crossing.read(frame, payloads[VALUES], micro.levels, settings.pictures)
        if isinstance(self._side, PrivateServerSide):
            return self._outputs(self._side, micro, crossed, rows, settings)
        result = self._side.run(crossed, micro.levels, rows)
        if not math.isfinite(result.loss):
            raise RequestRefused(
                "diverged",
                f"the loss of stage {self._now.stage}, step {micro.step} is {result.loss}: lower the "
                f"learning rate; the last good snapshot is of step {self._run.points()[-1][1]}",
            )
        self._done += 1
        return self._grads(micro, result)

    def _grads(self, about: Micro | Judge, result: MicroResult) -> Reply:
        data, _ = self._coder.encode(about.step, about.micro, result.gradient)
        self._sums.add(result)
        grads = Grads(
            id=about.id,
            frames=(frame_codes(GRADIENT, data),),
            loss=result.loss,
            tokens=result.tokens,
            right=result.right,
            turns=result.turns,
        )
        return grads, [data]

    def _outputs(
        self,
        side: PrivateServerSide,
        micro: Micro,
        crossed: Crossed,
        rows: Sequence[Row],
        settings: SplitStage,
    ) -> Reply:
        """The first half of a micro-batch whose labels stay with the client."""
        outputs: NDArray[np.float32] = side.forward(micro.micro, crossed, micro.levels, rows)
        if not np.isfinite(outputs).all():
            raise RequestRefused(
                "diverged",
                f"the outputs of stage {self._now.stage}, step {micro.step} are not finite: lower the "
                f"learning rate; the last good snapshot is of step {self._run.points()[-1][1]}",
            )
        data, _ = crossed_outputs(outputs, settings)
        return Outputs(micro.id, (frame_codes(OUTPUTS, data),)), [data]

    def _judge(self, judge: Judge, payloads: Mapping[str, bytes]) -> list[Reply]:
        """The second half, in the order of the first."""
        settings = self._settings(judge.step)
        side = self._side
        if not isinstance(side, PrivateServerSide) or not self._done <= judge.micro < self._next:
            raise RequestRefused("order", f"no outputs of micro-batch {judge.micro} wait for a gradient")
        self._judged[judge.micro] = (judge, payloads)
        replies = []
        while self._done in self._judged:
            waiting, data = self._judged.pop(self._done)
            try:
                if set(data) != {GRADIENT}:
                    raise MalformedMessage(f"JUDGE has the frame g, this one {sorted(data)}")
                shape = side.shape(waiting.micro)
                gradient = side.backward(waiting.micro, decode(data[GRADIENT], settings.grad_bits, shape))
                if not np.isfinite(gradient).all():
                    raise self._too_large(waiting.step)
                # Loss and right answers are the client's to know.
                result = MicroResult(0.0, shape[0], 0, shape[0], gradient)
                replies.append(self._keep(waiting.id, self._grads(waiting, result)))
            except (RequestRefused, ProtocolError) as error:
                replies.append(self._refused(waiting.id, error))
                break
            self._done += 1
        return replies

    def _too_large(self, step: int) -> RequestRefused:
        return RequestRefused(
            "diverged",
            f"the gradients of stage {self._now.stage}, step {step} leave what numbers can hold: nothing "
            f"was learnt from it; the last good snapshot is of step {self._run.points()[-1][1]}",
        )

    def _step(self, norm: Norm) -> Reply:
        settings = self._settings(norm.step)
        if self._done != settings.micro_batches:
            raise RequestRefused(
                "order", f"step {norm.step} has {self._done} of its {settings.micro_batches} micro-batches"
            )
        if not math.isfinite(norm.squared) or norm.squared < 0:
            raise RequestRefused(
                "diverged", f"the client's gradients of step {norm.step} have the squared norm {norm.squared}"
            )
        squared = norm.squared + self._side.squared_norm(self._sums.tokens)
        if not math.isfinite(squared):
            raise self._too_large(norm.step)
        self._side.apply(norm.step, squared)
        if self._log is not None:
            told = {"stage": self._now.stage, "step": norm.step, "norm": math.sqrt(squared)}
            if not settings.private:
                told["loss"] = self._sums.loss / self._sums.tokens
                told["right"] = 100 * self._sums.right / self._sums.turns
            self._log(told)
        stage, step = self._now.stage, norm.step + 1
        last = step == (settings.stop or settings.steps)
        save = last or self._clock() - self._saved > self.recipe.checkpoint_every
        state: dict[str, Tensor] = {}
        if last:
            stage, step = stage + 1, 0
            self._checkpoint.model.eval()
        elif save:
            state = {f"server.{k}": v for k, v in self._side.state().items()} | self._coder.state()
        if save:
            self._run.save(self._checkpoint, stage, step, state)
        self._forget()
        if last:
            self._enter(stage, step, {})
        self._point = Point(stage, step)
        if save:
            self._saved = self._clock()
        return Total(norm.id, squared, save), []

    def _finish(self, weights: Weights, payloads: Mapping[str, bytes]) -> Reply:
        if self._now.stage != len(self.stages):
            raise RequestRefused("order", "the run is not at its end yet")
        try:
            tensors = load(payloads.get(WEIGHTS, b""))
        except SafetensorError as error:
            raise MalformedMessage(f"the client's weights are no safetensors: {error}") from error
        own, last = client_tensors(self._checkpoint.model), self.stages[-1]
        if last.return_head:
            tokens = scored_tokens(last, self._checkpoint)
            own[HEAD] = torch.from_numpy(head_of(self._checkpoint, tokens))
        wrong = [
            name
            for name in sorted({*own, *tensors})
            if name not in own or name not in tensors or own[name].shape != tensors[name].shape
        ]
        if wrong or not all(torch.isfinite(value).all() for value in tensors.values()):
            raise MalformedMessage(
                f"the client's weights do not fit this model: {', '.join(wrong[:5]) or 'not finite'}"
            )
        with torch.no_grad():
            for name, tensor in own.items():
                tensor.copy_(tensors[name])
        if last.return_head:
            put_head(self._checkpoint, tokens, own[HEAD].numpy())
        shutil.rmtree(self._run.finished, ignore_errors=True)
        write(self._run.finished, self._checkpoint)
        self.finished = True
        return Taken(weights.id), []

    @property
    def _now(self) -> Point:
        if self._point is None:
            raise RuntimeError("no step before BEGIN")
        return self._point

    def _settings(self, step: int) -> SplitStage:
        now = self._now
        if now.stage == len(self.stages) or step != now.step:
            raise RequestRefused(
                "order", f"step {step} came while the server stands at stage {now.stage}, step {now.step}"
            )
        return self.stages[now.stage]

    def _keep(self, about: int, reply: Reply) -> Reply:
        self._kept[about] = reply
        return reply

    def _forget(self) -> None:
        """Clears what belongs to one step; replies are kept for one step more."""
        kept: dict[int, Reply] = getattr(self, "_kept", {})
        before: set[int] = getattr(self, "_before", set())
        self._kept = {about: reply for about, reply in kept.items() if about not in before}
        self._before = set(self._kept)
        self._waiting: dict[int, tuple[Micro, Mapping[str, bytes]]] = {}
        self._judged: dict[int, tuple[Judge, Mapping[str, bytes]]] = {}
        self._next = 0
        self._done = 0
        self._sums = _Sums()
