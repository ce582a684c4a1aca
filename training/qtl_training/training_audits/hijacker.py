"""A server that steers its client: feature-space hijacking (arXiv 2012.02670), with gradients made for it.

The server has a *pilot*, a client partition of its own that it trains on its own pictures together with a
decoder, so that the pilot's codes can be drawn as pictures. A discriminator learns to tell the client's codes
from the pilot's, and what the client gets back is the gradient that makes them alike. The pilot begins as the
client does: a server knows what its client starts from.
"""

from __future__ import annotations

import copy
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from qtl_core.nn.model import SplitModel
from qtl_core.split_stage import Optimizer
from qtl_training.audit.fitting import fit
from qtl_training.audit.networks import Decoder
from qtl_training.audit.reader import as_input
from qtl_training.stages.optimizing import ScheduledAdamW

_LR: Final = 1e-3
_WIDTH: Final = 128


class Pilot(nn.Module):
    """The server's own connector and quantizer.

    Args:
        model: copied from.
        levels: L.
    """

    def __init__(self, model: SplitModel, levels: int) -> None:
        super().__init__()
        self.connector = copy.deepcopy(model.vision.connector)
        self.quantizer = copy.deepcopy(model.vision_quantizer)
        self._levels = levels
        for parameter in self.parameters():
            parameter.requires_grad_(True)

    def forward(self, features: Tensor) -> Tensor:
        """Values of the codes of tower features [n, tokens, width], rounding passed straight through."""
        quantizer = self.quantizer
        scaled: Tensor = quantizer.scale(quantizer.project(self.connector(features.float())), self._levels)
        values = quantizer.values(quantizer.to_codes(scaled, self._levels), self._levels)
        return scaled + (values - scaled).detach()


class _Both(nn.Module):
    def __init__(self, pilot: Pilot, decoder: Decoder) -> None:
        super().__init__()
        self.pilot, self.decoder = pilot, decoder


class _Discriminator(nn.Module):
    def __init__(self, tokens: int, channels: int) -> None:
        super().__init__()
        self.places = nn.Parameter(0.02 * torch.randn(tokens, _WIDTH))
        self.inward = nn.Linear(channels, _WIDTH)
        self.layer = nn.TransformerEncoderLayer(
            _WIDTH, 4, 2 * _WIDTH, 0.0, functional.gelu, batch_first=True, norm_first=True
        )
        self.outward = nn.Linear(_WIDTH, 1)

    def forward(self, values: Tensor) -> Tensor:
        """Above 0 where values [n, tokens, channels] are taken for the pilot's; [n]."""
        score: Tensor = self.outward(self.layer(self.inward(values) + self.places).mean(1))
        return score[:, 0]


def trained_pilot(
    model: SplitModel,
    levels: int,
    features: Tensor,
    pixels: NDArray[np.uint8],
    *,
    tokens: int,
    steps: int,
    batch: int,
    seed: int,
    progress: bool,
) -> Pilot:
    """A pilot whose codes can be drawn as pictures.

    Args:
        model: where the client begins; not changed.
        levels: L of the codes.
        features: the tower's, of the server's own pictures, [n, tokens, width].
        pixels: those pictures, uint8 [n, 96, 96, 3].
        tokens: of a picture before they are merged, a square number.
        steps: optimizer steps.
        batch: pictures a step.
        seed: of weights and order.
        progress: whether to show a bar.
    """
    torch.manual_seed(seed)
    pilot = Pilot(model, levels)
    with torch.no_grad():
        seen = torch.cat([pilot(part) for part in features.split(256)])
    mean = torch.from_numpy(pixels.mean(0, dtype=np.float64).astype(np.float32)).permute(2, 0, 1) / 255
    both = _Both(pilot, Decoder(seen, mean, round(tokens**0.5)))

    def loss(chosen: NDArray[np.int64], generator: torch.Generator) -> Tensor:
        drawn = both.decoder(both.pilot(features[torch.from_numpy(chosen)]))
        return functional.mse_loss(drawn, as_input(pixels[chosen]))

    fit(
        both, loss, examples=len(features), steps=steps, batch=batch, lr=_LR, seed=seed, what="pilot",
        progress=progress,
    )  # fmt: skip
    return pilot.requires_grad_(False)


class Hijacker:
    """Makes gradients that draw a client's codes to the pilot's.

    Args:
        pilot: trained.
        features: of the server's own pictures.
        steps: of the run, for the discriminator's rates.
        seed: of its weights and of the pictures drawn.
    """

    def __init__(self, pilot: Pilot, features: Tensor, *, steps: int, seed: int) -> None:
        self._pilot, self._features = pilot, features
        with torch.no_grad():
            shape = pilot(features[:1]).shape
        torch.manual_seed(seed)
        self._judge = _Discriminator(*shape[1:])
        self._random = np.random.default_rng([seed, 61])
        named = list(self._judge.named_parameters())
        self._optimizer = ScheduledAdamW(Optimizer(lr=_LR), steps, [(named, _LR)])

    def gradient(self, step: int, values: Tensor) -> Tensor:
        """What goes back for values [n, tokens, channels]; the discriminator learns from them."""
        chosen = self._random.choice(len(self._features), len(values), replace=False)
        with torch.no_grad():
            own = self._pilot(self._features[torch.from_numpy(chosen)])
        scores = self._judge(torch.cat([own, values]))
        truth = torch.cat([torch.ones(len(own)), torch.zeros(len(values))])
        self._optimizer.step(functional.binary_cross_entropy_with_logits(scores, truth), step)
        return self.pull(values)

    def pull(self, values: Tensor) -> Tensor:
        """The gradient that makes values look like the pilot's; nothing learns from it."""
        wanted = values.detach().requires_grad_()
        loss = functional.softplus(-self._judge(wanted)).sum()
        (found,) = torch.autograd.grad(loss, wanted)
        return found
