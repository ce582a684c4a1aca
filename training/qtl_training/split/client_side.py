"""The client's side of a training step: features to codes, gradients of their values back to the weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from qtl_core.nn.model import SplitModel
from qtl_core.nn.quantizer import COMMITMENT_WEIGHT, distortion
from qtl_core.split_stage import SplitStage
from qtl_training.stages.optimizing import ScheduledAdamW
from qtl_training.stages.parts import client_groups


@dataclass(frozen=True)
class _Sent:
    """What of a micro-batch waits for its gradient: values that crossed, and the loss that stays here."""

    values: Tensor
    loss: Tensor


class ClientSide:
    """Connector and the encoder half of the quantizer; the tower before them does not learn.

    Args:
        model: trained in place.
        stage: the recipe's settings.
    """

    def __init__(self, model: SplitModel, stage: SplitStage) -> None:
        self._model, self._stage = model, stage
        self._optimizer = ScheduledAdamW(stage.optimizer, stage.steps, client_groups(model, stage))
        self._sent: dict[int, _Sent] = {}
        self._own: list[Tensor | None] = [None for _ in self._optimizer.parameters]

    def forward(self, micro: int, features: Tensor, levels: int) -> NDArray[np.uint8] | NDArray[np.float16]:
        """What crosses for one micro-batch.

        Args:
            micro: its number in the step; ``backward`` names it again.
            features: the tower's, [pictures, tokens, tower width].
            levels: L; 0 for unquantized features.

        Returns:
            Codes uint8 [pictures, coded tokens, code_dim], or float16 [pictures, tokens, width].
        """
        at_cut = self._model.vision.connector(features.float())
        if not levels:
            self._sent[micro] = _Sent(at_cut, at_cut.new_zeros(()))
            half: NDArray[np.float16] = at_cut.detach().to(torch.float16).numpy()
            return half
        quantizer = self._model.vision_quantizer
        # Of a frozen partition the running statistics are frozen too: a picture keeps its codes.
        if not self._optimizer.parameters:
            quantizer.eval()
        scaled = quantizer.scale(quantizer.project(at_cut), levels)
        codes = quantizer.to_codes(scaled, levels)
        loss = COMMITMENT_WEIGHT * distortion(scaled, quantizer.values(codes, levels))
        self._sent[micro] = _Sent(scaled, loss)
        sent: NDArray[np.uint8] = codes.to(torch.uint8).numpy()
        return sent

    def backward(self, micro: int, gradient: NDArray[np.float32]) -> None:
        """Takes the gradient of the micro-batch's summed answer loss with respect to what crossed.

        Rounding is passed straight through (dv/ds = 1). Micro-batches must come in order: sums of floats
        depend on it.
        """
        sent = self._sent.pop(micro)
        if not sent.values.requires_grad:
            return
        parameters = self._optimizer.parameters
        learns = sent.loss.requires_grad
        sent.values.backward(torch.from_numpy(gradient), retain_graph=learns)
        if not learns:
            return
        # Apart from the answers' gradients, which are divided by another number in the end.
        found: Sequence[Tensor | None] = torch.autograd.grad(sent.loss, parameters, allow_unused=True)
        self._own = [
            new if old is None else old if new is None else old + new
            for old, new in zip(self._own, found, strict=True)
        ]

    def squared_norm(self, answer_tokens: int) -> float:
        """Ends the sums over the step's micro-batches and returns their squared norm.

        Args:
            answer_tokens: of the whole step; the answer loss is a mean over them, the distortion one over
                micro-batches.
        """
        with torch.no_grad():
            for parameter, own in zip(self._optimizer.parameters, self._own, strict=True):
                if parameter.grad is not None:
                    parameter.grad.div_(answer_tokens)
                if own is not None:
                    own = own / self._stage.micro_batches
                    parameter.grad = own if parameter.grad is None else parameter.grad.add_(own)
        self._own = [None for _ in self._own]
        return self._optimizer.squared_norm()

    def apply(self, step: int, squared_norm: float) -> None:
        """Takes the optimizer step, clipped by the squared norm of both partitions' gradients."""
        self._optimizer.apply(step, squared_norm)

    def state(self) -> dict[str, Tensor]:
        """The optimizer's."""
        return self._optimizer.state()

    def load(self, state: dict[str, Tensor]) -> None:
        """Takes up a saved state."""
        self._optimizer.load(state)
