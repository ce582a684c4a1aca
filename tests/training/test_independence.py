"""The rotation to independent components: what comes and goes by itself gets a channel of its own."""

from __future__ import annotations

import pytest
import torch

from qtl_core.nn import Quantizer
from qtl_core.nn.quantizer import Centre
from qtl_training.stages.independence import independent


def sparse_features(n: int = 4000, sources: int = 6, width: int = 12) -> tuple[torch.Tensor, torch.Tensor]:
    """Features in which each of several things is there now and then, mixed into all channels."""
    generator = torch.Generator().manual_seed(3)
    there = (torch.rand(n, sources, generator=generator) < 0.12).double()
    mixing = torch.randn(sources, width, generator=generator, dtype=torch.float64)
    noise = 0.02 * torch.randn(n, width, generator=generator, dtype=torch.float64)
    return there, there @ mixing + noise


def test_each_source_gets_a_component_of_its_own() -> None:
    there, features = sparse_features()
    centred = features - features.mean(0)
    _, deviation, directions = torch.linalg.svd(centred, full_matrices=False)
    whitened = centred @ (directions[:6] / deviation[:6, None] * len(centred) ** 0.5).T
    rotation = independent(whitened)
    assert torch.allclose(rotation @ rotation.T, torch.eye(6, dtype=torch.float64), atol=1e-6)
    found = whitened @ rotation.T
    correlation = torch.corrcoef(torch.cat([there, found], 1).T)[:6, 6:]
    assert bool((correlation.max(1).values > 0.98).all())  # and positive: present is up, not down
    assert len(set(correlation.argmax(1).tolist())) == 6


def test_independent_codes_restore_better_for_fewer_bits_than_rotated_at_random() -> None:
    _, features = sparse_features()
    x = features.float()[None]

    def fitted(**how: object) -> tuple[float, float]:
        quantizer = Quantizer(12, 6, 3, "frozen", 2.6).eval()
        quantizer.fit(x, **how)  # type: ignore[arg-type]
        with torch.no_grad():
            restored, _ = quantizer(x)
            bits = quantizer.rate(quantizer.values(quantizer.encode(x)))
        return float(((restored - x) ** 2).mean() / x.var()), float(bits)

    error, bits = fitted(rotate=independent)
    random_error, random_bits = fitted()
    assert error < 0.2 * random_error
    assert bits < 0.7 * random_bits


@pytest.mark.parametrize(("levels", "centre", "k"), [(3, "median", 3.0), (2, "rare", 1.0)])
def test_codes_say_what_is_there(levels: int, centre: Centre, k: float) -> None:
    there, features = sparse_features()
    quantizer = Quantizer(12, 6, levels, "frozen", k, centre=centre).eval()
    quantizer.fit(features.float()[None], rotate=independent)
    codes = quantizer.encode(features.float()[None])[0]
    for source in there.T.bool():
        # One channel says when the source is there, without a miss or a false alarm in a hundred.
        agree = ((codes == levels - 1) == source[:, None]).float().mean(0)
        assert float(agree.max()) > 0.99
