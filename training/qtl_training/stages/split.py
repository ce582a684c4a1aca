"""Both sides of split training in one process, with all that crosses made and read as if it did."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from qtl_core.crossing import Crossed, Row, questions_of
from qtl_core.errors import InputError
from qtl_core.nn.checkpoint import Checkpoint
from qtl_core.split_stage import SplitStage, levels_of
from qtl_training.features import Features
from qtl_training.split.client_side import ClientSide
from qtl_training.split.data import stage_data
from qtl_training.split.gradients import GradientCoder
from qtl_training.split.held_out import HeldOut
from qtl_training.split.outputs import crossed_outputs
from qtl_training.split.private import HeldLabels, PrivateServerSide, check_answers
from qtl_training.split.server_side import MicroResult, ServerSide


class SplitTraining:
    """The stage as a sequence of steps; what ``qtl-train serve`` and ``client`` do, without a wire.

    Args:
        checkpoint: its model is trained in place; the tower stays as it is.
        stage: the recipe's settings.
        seed: of scenes, questions, level counts and the gradients' rounding.
        resumed: whether the model has been trained in this stage before.
        progress: whether to show a bar while features are computed.
        features: the tower's features of the stage's digit scenes; computed here otherwise.
        record: file that holds which data the stage was begun with.
        held: the client's labels, where they are private.

    Raises:
        SampleError, RecipeError, StorageError: as ``stage_data``.
        InputError: an answer that cannot stay private.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        stage: SplitStage,
        seed: int,
        *,
        resumed: bool = False,
        progress: bool = True,
        features: Features | None = None,
        record: Path | None = None,
        held: HeldLabels | None = None,
    ) -> None:
        self.steps = stage.stop or stage.steps
        self._model = checkpoint.model
        self._stage, self._seed = stage, seed
        self._data = stage_data(checkpoint, stage, seed, record=record, progress=progress, features=features)
        self._client: ClientSide = ClientSide(checkpoint.model, stage)
        if stage.fit_quantizer and not resumed:
            self._client.fit(self._data.to_fit(), seed)
        self._held = held
        if held is not None:
            check_answers(stage, held.labels, self._data.samples)
        kind = ServerSide if held is None else PrivateServerSide
        self._server: ServerSide = kind(checkpoint, stage, seed)
        self._coder = GradientCoder(seed, stage.grad_bits)

    def run_step(self, step: int) -> dict[str, float]:
        """Trains on the step's micro-batches."""
        self._model.vision.tower.eval()
        levels = levels_of(self._stage, self._seed, step)
        loss, tokens, right, turns = 0.0, 0, 0, 0
        for number, micro in enumerate(self._data.samples.micro_batches(step)):
            crossed = self._client.forward(number, self._data.features[list(micro.pictures)], levels)
            result = self._result(step, number, crossed, levels, micro.rows)
            if not np.isfinite(result.loss) or not np.isfinite(result.gradient).all():
                raise InputError(
                    f"training diverged at step {step} (loss {result.loss}): lower the learning rate; the "
                    "last good snapshot stays"
                )
            _, gradient = self._coder.encode(step, number, result.gradient)
            self._client.backward(number, gradient)
            loss, tokens = loss + result.loss, tokens + result.tokens
            right, turns = right + result.right, turns + result.turns
        # In this order on either side of a wire too: sums of floats depend on it.
        own = self._client.squared_norm(tokens)
        if self._held is not None:
            own += self._held.labels.squared_norm(tokens)
        squared = own + self._server.squared_norm(tokens)
        self._client.apply(step, squared)
        if self._held is not None:
            self._held.labels.apply(step, squared)
        self._server.apply(step, squared)
        if step + 1 == self.steps:
            self._server.finish()
        return {
            "loss": loss / tokens,
            "right": 100 * right / turns,
            "norm": float(np.sqrt(squared)),
            "levels": float(levels),
        }

    def _result(
        self, step: int, number: int, crossed: Crossed, levels: int, rows: Sequence[Row]
    ) -> MicroResult:
        """Loss and gradient of a micro-batch, made where the labels are."""
        if self._held is None or not isinstance(self._server, PrivateServerSide):
            return self._server.run(crossed, levels, rows, (step, number))
        outputs = self._server.forward(number, crossed, levels, questions_of(rows))
        judged = self._held.labels.judge(step, number, crossed_outputs(outputs, self._stage)[1], rows)
        gradient = self._server.backward(number, judged.gradient)
        return MicroResult(judged.loss, judged.turns, judged.right, judged.turns, gradient)

    def evaluate(self, data: HeldOut, number: int) -> list[dict[str, Any]]:
        """How well held-out questions are answered now, at each of the stage's level counts.

        Args:
            data: the questions.
            number: of the stage.
        """
        return data.evaluate(number, self._model, self._client, self._server)

    def finish(self) -> None:
        """Puts the client's head, where it has one, into the model."""
        if self._held is not None:
            self._held.store()

    def state(self) -> dict[str, Tensor]:
        """Everything beyond the model's own weights that the next step depends on."""
        sides = {"client": self._client.state(), "server": self._server.state()}
        named = {f"{side}.{name}": value for side, state in sides.items() for name, value in state.items()}
        labels = {} if self._held is None else self._held.state()
        return {**named, **self._coder.state(), **labels}

    def load(self, state: dict[str, Tensor]) -> None:
        """Takes up a saved state."""
        for name, side in (("client.", self._client), ("server.", self._server)):
            side.load({k.removeprefix(name): v for k, v in state.items() if k.startswith(name)})
        self._coder.load(state)
        if self._held is not None:
            self._held.load(state)
