"""Both sides of split training in one process, with all that crosses made and read as if it did."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import Tensor

from qtl_core.nn.checkpoint import Checkpoint
from qtl_core.split_stage import SplitStage, levels_of
from qtl_training.features import Features, tower_features
from qtl_training.split.client_side import ClientSide
from qtl_training.split.gradients import GradientCoder
from qtl_training.split.held_out import HeldOut
from qtl_training.split.samples import DigitSamples
from qtl_training.split.server_side import ServerSide


class SplitTraining:
    """The stage as a sequence of steps; what ``qtl-train serve`` and ``client`` do, without a wire.

    Args:
        checkpoint: its model is trained in place; the tower stays as it is.
        stage: the recipe's settings.
        seed: of scenes, questions, level counts and the gradients' rounding.
        progress: whether to show a bar while features are computed.
        features: the tower's features of the stage's scenes; computed here otherwise.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        stage: SplitStage,
        seed: int,
        *,
        progress: bool = True,
        features: Features | None = None,
    ) -> None:
        self.steps = stage.stop or stage.steps
        self._model = checkpoint.model
        self._stage, self._seed = stage, seed
        self._samples = DigitSamples(stage, seed)
        if features is None:
            features = tower_features(checkpoint.model.vision, self._samples.scenes, progress=progress)
        self._features: Features = features
        self._client: ClientSide = ClientSide(checkpoint.model, stage)
        self._server: ServerSide = ServerSide(checkpoint, stage, seed)
        self._coder = GradientCoder(seed, stage.grad_bits)

    def run_step(self, step: int) -> dict[str, float]:
        """Trains on the step's micro-batches."""
        self._model.vision.tower.eval()
        levels = levels_of(self._stage, self._seed, step)
        loss, tokens, right, turns = 0.0, 0, 0, 0
        for number, micro in enumerate(self._samples.micro_batches(step)):
            crossed = self._client.forward(number, self._features[list(micro.pictures)], levels)
            result = self._server.run(crossed, levels, micro.rows, (step, number))
            _, gradient = self._coder.encode(step, number, result.gradient)
            self._client.backward(number, gradient)
            loss, tokens = loss + result.loss, tokens + result.tokens
            right, turns = right + result.right, turns + result.turns
        # In this order on either side of a wire too: sums of floats depend on it.
        squared = self._client.squared_norm(tokens) + self._server.squared_norm(tokens)
        self._client.apply(step, squared)
        self._server.apply(step, squared)
        if step + 1 == self.steps:
            self._server.finish()
        return {
            "loss": loss / tokens,
            "right": 100 * right / turns,
            "norm": float(np.sqrt(squared)),
            "levels": float(levels),
        }

    def evaluate(self, data: HeldOut, number: int) -> list[dict[str, Any]]:
        """How well held-out questions are answered now, at each of the stage's level counts.

        Args:
            data: the questions.
            number: of the stage.
        """
        return data.evaluate(number, self._model, self._client, self._server)

    def finish(self) -> None:
        """Nothing is left to do after the last step."""

    def state(self) -> dict[str, Tensor]:
        """Everything beyond the model's own weights that the next step depends on."""
        sides = {"client": self._client.state(), "server": self._server.state()}
        named = {f"{side}.{name}": value for side, state in sides.items() for name, value in state.items()}
        return {**named, **self._coder.state()}

    def load(self, state: dict[str, Tensor]) -> None:
        """Takes up a saved state."""
        for name, side in (("client.", self._client), ("server.", self._server)):
            side.load({k.removeprefix(name): v for k, v in state.items() if k.startswith(name)})
        self._coder.load(state)
