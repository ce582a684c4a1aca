"""The training server's conversation with its client: every message in, its replies out; no sockets.

A step's micro-batches are computed in their order, whatever order they arrive in; what was computed is kept
until the step after it is done, so that whoever asks again is told the same, and nothing is done twice.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from qtl_core.crossing import GRADIENT, OUTPUTS, TEXTS, VALUES, WEIGHTS, Crossed, Row, read_texts
from qtl_core.errors import InputError, MalformedMessage, ProtocolError, RecipeError, RequestRefused
from qtl_core.gradients import decode
from qtl_core.known import Known
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
from qtl_core.nn.checkpoint import Checkpoint
from qtl_core.rows import pictures_of
from qtl_core.split_stage import SplitStage, levels_of
from qtl_core.wire import by_name, frame_codes
from qtl_training.local import begun, stage_seed
from qtl_training.recipe import Recipe
from qtl_training.run_folder import RunFolder
from qtl_training.split.agreement import crossing_of, largest_payload
from qtl_training.split.gradients import GradientCoder
from qtl_training.split.outputs import crossed_outputs
from qtl_training.split.partition import client_tensors, server_tensors, take
from qtl_training.split.private import HEAD, PrivateServerSide, head_of, put_head, scored_tokens
from qtl_training.split.ranks import Ranks
from qtl_training.split.server_side import MicroResult, ServerSide, Work
from qtl_training.split.spread import SpreadSide
from qtl_training.split.stages import stages_of

_log = logging.getLogger(__name__)

Reply = tuple[Message, list[bytes]]
SideOf = Callable[[Checkpoint, SplitStage, int, str], ServerSide]
"""Makes a stage's server partition from the model, the settings, the seed and the device."""


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
        side: makes the server partition of a stage.
        device: where to compute: "cpu" or "cuda".
        ranks: the process group, where there is one; this process is its rank 0.

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
        device: str = "cpu",
        ranks: Ranks | None = None,
        side: SideOf | None = None,
    ) -> None:
        self.recipe, self.stages = recipe, stages_of(recipe)
        if ranks is not None and any(stage.private for stage in self.stages):
            raise RecipeError(
                f"recipe {recipe.name!r} keeps labels private, which several ranks cannot do yet: start "
                "qtl-train serve without torchrun"
            )
        self._run = RunFolder(folder, recipe)
        self._clock, self._log, self._device = clock, log, device
        self._ranks, self._new_side = ranks, side or _side_of
        snapshot = begun(self._run, recipe)
        self._checkpoint = snapshot.checkpoint
        self.crossing = crossing_of(recipe, snapshot.checkpoint)
        self.largest = largest_payload(self.stages, self.crossing, snapshot.checkpoint)
        self.finished = False
        self._point: Point | None = None
        self._kept: dict[int, Reply] = {}
        self._before: set[int] = set()
        self._floor = 0
        self._forget()

    @property
    def path(self) -> Path:
        """Where the finished checkpoint is, or will be."""
        return self._run.finished

    def limits(self) -> Limits:
        """What a session may send."""
        return Limits(max_payload=self.largest, max_question=0, max_tokens=0, idle_ms=0)

    def opened(self) -> None:
        """A new session begins, with ids of its own: nothing goes on but from a BEGIN."""
        self._kept, self._before, self._floor, self._point = {}, set(), 0, None
        self._forget()

    def hear(self, message: Message, payloads: Mapping[str, bytes]) -> list[Reply]:
        """What is said back to a message; an error reply where it cannot be taken."""
        about = int(getattr(message, "id", 0))
        if about in self._kept:
            return [self._kept[about]]
        if 0 < about <= self._floor:
            return []  # an echo of what was answered long ago
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
            return [self._score(message, payloads)] if message.score else self._micro(message, payloads)
        if isinstance(message, Judge):
            return self._judge(message, payloads)
        if isinstance(message, Norm):
            return [self._keep(about, self._step(message))]
        if isinstance(message, Weights):
            return [self._keep(about, self._weights(message, payloads))]
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
        self._fitted = step > 0 or not settings.fit_quantizer
        torch.manual_seed(stage_seed(self.recipe, stage))
        self._checkpoint.model.train()
        self._known = Known(self.crossing, settings.picture_cache)
        seed = stage_seed(self.recipe, stage)
        self._side = (
            self._new_side(self._checkpoint, settings, seed, self._device)
            if self._ranks is None
            else SpreadSide(self._ranks, self._checkpoint, self.recipe, stage)
        )
        self._coder = GradientCoder(stage_seed(self.recipe, stage), settings.grad_bits)
        self._side.load({k.removeprefix("server."): v for k, v in state.items() if k.startswith("server.")})
        self._coder.load(dict(state))

    def _micro(self, micro: Micro, payloads: Mapping[str, bytes]) -> list[Reply]:
        settings = self._settings(micro.step)
        if not self._fitted:
            raise RequestRefused("order", "this stage begins with a fit of the quantizer: send WEIGHTS first")
        if micro.micro >= settings.micro_batches:
            raise RequestRefused(
                "order", f"micro-batch {micro.micro} of {settings.micro_batches}: the recipes differ"
            )
        before = self._waiting.get(micro.micro, (micro,))[0]
        if micro.micro < self._next or before.id != micro.id:
            raise RequestRefused("duplicate", f"micro-batch {micro.micro} has come under another id")
        # Checked before it takes its place: what is refused leaves no trace, and keeps nothing else out.
        crossed, rows = self._checked(micro, payloads, settings)
        self._waiting[micro.micro] = (micro, crossed, rows)
        replies: list[Reply] = []
        while group := self._group(settings):
            works = [Work(one, sent.levels, rows, (sent.step, sent.micro)) for sent, one, rows in group]
            private = self._side if isinstance(self._side, PrivateServerSide) else None
            try:
                results = [] if private is not None else self._side.run_many(works)
            except RequestRefused as error:
                del self._waiting[self._next]
                return [*replies, self._refused(group[0][0].id, error)]
            for place, (sent, crossed, rows) in enumerate(group):
                del self._waiting[sent.micro]
                try:
                    reply = (
                        self._computed(sent, results[place])
                        if private is None
                        else self._outputs(private, sent, crossed, rows, settings)
                    )
                except (RequestRefused, ProtocolError) as error:
                    return [*replies, self._refused(sent.id, error)]
                replies.append(self._keep(sent.id, reply))
                self._next += 1
        return replies

    def _group(self, settings: SplitStage) -> list[tuple[Micro, Crossed, tuple[Row, ...]]]:
        """The micro-batches that come next and are computed side by side, once all of them are there."""
        last = min(self._next + self._side.width, settings.micro_batches)
        due = range(self._next, last)
        return [self._waiting[number] for number in due] if all(n in self._waiting for n in due) else []

    def _checked(
        self, micro: Micro, payloads: Mapping[str, bytes], settings: SplitStage
    ) -> tuple[Crossed, tuple[Row, ...]]:
        if set(payloads) != {VALUES, TEXTS}:
            raise MalformedMessage(f"a micro-batch has the frames v and t, this one {sorted(payloads)}")
        levels = levels_of(settings, stage_seed(self.recipe, self._now.stage), micro.step)
        if micro.levels != levels:
            raise RequestRefused("order", f"step {micro.step} has {levels} levels, not {micro.levels}")
        rows = read_texts(payloads[TEXTS], settings.most_pictures, private=settings.private)
        pictures = pictures_of(rows, settings)
        if self._side.width > 1:
            self._side.check(rows, self.crossing.shape(0)[0])
        frame, data = by_name(micro)[VALUES], payloads[VALUES]
        return self._known.read(micro.micro, frame, data, micro.levels, pictures), rows

    def _computed(self, micro: Micro, result: MicroResult) -> Reply:
        if not math.isfinite(result.loss):
            raise self._diverged(micro.step, f"the loss is {result.loss}")
        reply = self._grads(micro, result)
        self._done += 1
        return reply

    def _grads(self, about: Micro | Judge, result: MicroResult) -> Reply:
        if not np.isfinite(result.gradient).all():
            raise self._diverged(about.step, "a gradient is not finite")
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
            raise self._diverged(micro.step, "the model's outputs are not finite")
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
                    raise self._diverged(waiting.step, "its gradients leave what numbers can hold")
                # Loss and right answers are the client's to know.
                result = MicroResult(0.0, shape[0], 0, shape[0], gradient)
                replies.append(self._keep(waiting.id, self._grads(waiting, result)))
            except (RequestRefused, ProtocolError) as error:
                replies.append(self._refused(waiting.id, error))
                break
            self._done += 1
        return replies

    def _score(self, micro: Micro, payloads: Mapping[str, bytes]) -> Reply:
        side: ServerSide | None = getattr(self, "_side", None)
        if side is None or set(payloads) != {VALUES, TEXTS}:
            raise RequestRefused("order", "held-out data has the frames v and t, and belongs to a stage")
        if micro.levels == 1 or micro.levels > 256:
            raise RequestRefused("order", f"{micro.levels} levels are not 0 or between 2 and 256")
        rows = read_texts(payloads[TEXTS], max(stage.most_pictures for stage in self.stages))
        pictures = 1 + max((place for row in rows for place in row.pictures), default=-1)
        crossed = self.crossing.read(by_name(micro)[VALUES], payloads[VALUES], micro.levels, pictures)
        result = side.score(crossed, micro.levels, rows)
        return Grads(micro.id, (), result.loss, result.tokens, result.right, result.turns), []

    def _step(self, norm: Norm) -> Reply:
        settings = self._settings(norm.step)
        if self._done != settings.micro_batches:
            raise RequestRefused(
                "order", f"step {norm.step} has {self._done} of its {settings.micro_batches} micro-batches"
            )
        if not math.isfinite(norm.squared) or norm.squared < 0:
            raise self._diverged(norm.step, f"the squared norm of the client's gradients is {norm.squared}")
        squared = norm.squared + self._side.squared_norm(self._sums.tokens)
        if not math.isfinite(squared):
            raise self._diverged(norm.step, f"the squared norm of all gradients is {squared}")
        self._side.apply(norm.step, squared)
        self._known.commit()
        told = {"stage": self._now.stage, "step": norm.step, "norm": math.sqrt(squared)}
        if not settings.private:
            told["loss"] = self._sums.loss / self._sums.tokens
            told["right"] = 100 * self._sums.right / self._sums.turns
        if self._log is not None:
            self._log(told)
        if norm.step % self.recipe.log_every == 0:
            self._run.log(told)
        stage, step = self._now.stage, norm.step + 1
        last = step == (settings.stop or settings.steps)
        save = last or self._clock() - self._saved > self.recipe.checkpoint_every
        state: dict[str, Tensor] = {}
        if last:
            stage, step = stage + 1, 0
            self._side.finish()
            self._checkpoint.model.eval()
        elif save:
            state = {f"server.{k}": v for k, v in self._side.state().items()} | self._coder.state()
        if save:
            try:
                self._run.save(self._checkpoint, stage, step, state)
            except InputError as error:
                _log.warning("%s", error)
                raise RequestRefused("diverged", str(error)) from error
        self._forget()
        if last:
            self._enter(stage, step, {})
        self._point = Point(stage, step)
        if save:
            self._saved = self._clock()
        return Total(norm.id, squared, save), []

    def _weights(self, weights: Weights, payloads: Mapping[str, bytes]) -> Reply:
        data = payloads.get(WEIGHTS, b"")
        if self._now.stage == len(self.stages):
            self._take_over(data)
            self._run.finish(self._checkpoint)
            self.finished = True
        elif self._settings(0).fit_quantizer and not self._next:
            take(data, server_tensors(self._checkpoint.model))
            if self._ranks is not None:
                self._enter(self._now.stage, 0, {})  # the other ranks need them too
            self._fitted = True
        else:
            raise RequestRefused("order", "no weights are due: the run is neither at its end nor at a fit")
        return Taken(weights.id), []

    def _take_over(self, data: bytes) -> None:
        own, last = client_tensors(self._checkpoint.model), self.stages[-1]
        if not last.return_head:
            take(data, own)
            return
        tokens = scored_tokens(last, self._checkpoint)
        own[HEAD] = torch.from_numpy(head_of(self._checkpoint, tokens))
        take(data, own)
        put_head(self._checkpoint, tokens, own[HEAD].numpy())

    def _diverged(self, step: int, what: str) -> RequestRefused:
        stage, saved = self._run.points()[-1]
        message = (
            f"training diverged at stage {self._now.stage}, step {step}: {what}; lower the learning rate; "
            f"the last good snapshot is of stage {stage}, step {saved}, and nothing was learnt after it"
        )
        _log.warning("%s", message)
        return RequestRefused("diverged", message)

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
        # A client's ids grow: what comes with one below those kept was answered before.
        self._floor = max(self._before, default=self._floor)
        self._kept = {about: reply for about, reply in self._kept.items() if about not in self._before}
        self._before = set(self._kept)
        self._waiting: dict[int, tuple[Micro, Crossed, tuple[Row, ...]]] = {}
        self._judged: dict[int, tuple[Judge, Mapping[str, bytes]]] = {}
        self._next = 0
        self._done = 0
        self._sums = _Sums()


def _side_of(checkpoint: Checkpoint, stage: SplitStage, seed: int, device: str) -> ServerSide:
    return (PrivateServerSide if stage.private else ServerSide)(checkpoint, stage, seed, device)
