"""Independent components of features: a rotation after which most codes rest in the middle."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor


def independent(whitened: Tensor, *, seed: int = 0) -> Tensor:
    """The rotation to independent components, by FastICA (Hyvärinen and Oja 2000).

    What a picture shows comes and goes: a direction of its own for each such thing stays near its mean
    most of the time and leaves it far. Its codes have little entropy, and channels say little about each
    other, which is all that a static entropy coder can use.

    Args:
        whitened: float64 [n, rank], zero mean, unit covariance.
        seed: of FastICA's start.

    Returns:
        float64 [rank, rank]; each component is turned so that its rare values are positive.
    """
    from sklearn.decomposition import FastICA
    from sklearn.exceptions import ConvergenceWarning

    with warnings.catch_warnings():
        # Close to independent is good enough to start training from.
        warnings.simplefilter("ignore", ConvergenceWarning)
        found = FastICA(whiten=False, random_state=seed, max_iter=400).fit(whitened.numpy())
    rotation = torch.from_numpy(found.components_)
    skew = ((whitened @ rotation.T) ** 3).mean(0)
    return rotation * torch.where(skew < 0, -1.0, 1.0)[:, None]
