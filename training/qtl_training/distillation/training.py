"""The steps of fine-tuning: the quantizer learns, tower, connector and decoder hold still.

Two losses, neither of which needs a label. Features: what comes back should be what went in, by squared
distance in units of the features' own variance, and by direction. Logits: after what comes back the decoder
should think likely what it thinks likely after what went in, at each place of its own greedy answer.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from qtl_core.nn.quantizer import Quantizer
from qtl_core.split_stage import Optimizer
from qtl_training.distillation.feature_cache import FeatureCache
from qtl_training.distillation.rows import Asking, divergence
from qtl_training.distillation.settings import DistillSettings
from qtl_training.stages.optimizing import ScheduledAdamW


class Distilling:
    """Fine-tuning as a sequence of steps; step i depends on i, the quantizer and the optimizer only.

    Args:
        quantizer: fitted, on the decoder's device; trained in place.
        features: of the pictures.
        chosen: places of the pictures to train on.
        asking: the decoder.
        prompts: the ids of each prompt.
        variance: of the features.
        settings: steps, rates and weights.
    """

    def __init__(
        self,
        quantizer: Quantizer,
        features: FeatureCache,
        chosen: Sequence[int],
        asking: Asking,
        prompts: Sequence[tuple[int, ...]],
        variance: float,
        settings: DistillSettings,
    ) -> None:
        self.steps = settings.steps
        self._quantizer, self._features, self._asking = quantizer, features, asking
        self._chosen, self._prompts = np.array(chosen), prompts
        self._variance, self._settings = variance, settings
        # In evaluation mode: the statistics that scale are the fit's, and in_proj can move what they scale.
        quantizer.eval().k.requires_grad_()
        self._optimizer = ScheduledAdamW(
            Optimizer(lr=settings.lr, weight_decay=0.0),
            settings.steps,
            [
                ([(name, one)], settings.lr * size)
                for name, one, size in _sizes(quantizer, math.sqrt(variance))
            ],
        )

    def run_step(self, step: int) -> dict[str, float]:
        """Trains on ``batch`` pictures, each with one prompt."""
        settings = self._settings
        rng = np.random.default_rng([settings.seed, step])
        size = min(settings.batch, len(self._chosen))
        pictures = np.sort(rng.choice(self._chosen, size, replace=False)).tolist()
        asked = rng.integers(len(self._prompts), size=size).tolist()
        original = self._features.cut(pictures)
        restored, commitment = self._quantizer(original)
        distance = functional.mse_loss(restored, original) / self._variance
        direction = (1 - functional.cosine_similarity(restored, original, dim=-1)).mean()
        loss = commitment + settings.feature_weight * (distance + direction)
        metrics = {"distance": distance.item(), "direction": direction.item()}
        if settings.logit_weight:
            kl = self._kl(original, restored, [self._prompts[one] for one in asked])
            loss = loss + settings.logit_weight * kl
            metrics["kl"] = kl.item()
        self._optimizer.step(loss, step)
        return {"loss": loss.item(), **metrics}

    def _kl(self, original: Tensor, restored: Tensor, prompts: Sequence[tuple[int, ...]]) -> Tensor:
        rows = self._asking.rows(prompts, original.shape[1])
        answers, likely = self._asking.greedy(original, rows)
        return divergence(likely, self._asking.likelihoods(restored, rows, answers), answers).mean()

    def finish(self) -> None:
        """Nothing is left to do after the last step."""

    def state(self) -> dict[str, Tensor]:
        """The quantizer and everything else that the next step depends on."""
        quantizer = {f"quantizer.{name}": value for name, value in self._quantizer.state_dict().items()}
        return {
            **quantizer,
            **{f"optimizer.{name}": value for name, value in self._optimizer.state().items()},
        }

    def load(self, state: dict[str, Tensor]) -> None:
        """Takes up a saved state."""
        device = self._quantizer.mean.device
        parts: dict[str, dict[str, Tensor]] = {"quantizer": {}, "optimizer": {}}
        for name, value in state.items():
            part, _, rest = name.partition(".")
            # AdamW counts its steps on the CPU.
            parts[part][rest] = value if rest.endswith("/step") else value.to(device)
        self._quantizer.load_state_dict(parts["quantizer"])
        self._optimizer.load(parts["optimizer"])


def _sizes(quantizer: Quantizer, deviation: float) -> list[tuple[str, nn.Parameter, float]]:
    """Parameters of a fitted quantizer and how large each is where it counts.

    Features may be a hundredth or ten wide, and so in_proj far from out_proj: AdamW, whose steps are of one
    size, would wear down the one and hardly move the other.
    """

    def rms(tensor: Tensor) -> float:
        return float(tensor.detach().pow(2).mean().sqrt())

    sizes = {
        "k": rms(quantizer.k),
        "in_proj.weight": rms(quantizer.in_proj.weight),
        "in_proj.bias": rms(quantizer.std),
        "out_proj.weight": rms(quantizer.out_proj.weight),
        "out_proj.bias": deviation,
    }
    return [(name, one, sizes[name]) for name, one in quantizer.named_parameters()]


@torch.no_grad()
def compare(
    asking: Asking,
    features: FeatureCache,
    pictures: Sequence[int],
    prompts: Sequence[tuple[int, ...]],
    quantizer: Quantizer,
    batch: int,
) -> tuple[list[float], float]:
    """How far a quantizer moves the decoder on pictures that it was not trained on.

    Args:
        asking: the decoder.
        features: of the pictures.
        pictures: their places; picture i is asked about with prompt i, beginning again after the last.
        prompts: the ids of each prompt.
        quantizer: in evaluation mode.
        batch: pictures at a time.

    Returns:
        The divergence of the next tokens in nats for each picture, a mean over the model's own greedy
        answer; and the share of that answer's tokens which stay the likeliest.
    """
    found: list[float] = []
    same = counted = 0
    for start in range(0, len(pictures), batch):
        some = range(start, min(start + batch, len(pictures)))
        original = features.cut([pictures[i] for i in some])
        rows = asking.rows([prompts[i % len(prompts)] for i in some], original.shape[1])
        answers, likely = asking.greedy(original, rows)
        other = asking.likelihoods(quantizer.decode(quantizer.encode(original)), rows, answers)
        found += divergence(likely, other, answers).tolist()
        there = answers >= 0
        same += int((other.argmax(-1) == answers)[there].sum())
        counted += int(there.sum())
    return found, same / counted
