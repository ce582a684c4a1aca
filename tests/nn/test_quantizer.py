"""The quantizer in PyTorch: the authors' vectors, the numpy reference, gradients, initialisation."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from qtl_core import codes as packing
from qtl_core import quantizer as reference
from qtl_core.nn import Quantizer
from qtl_core.nn.quantizer import COMMITMENT_WEIGHT, Dequantizer, distortion, merge_tokens, split_tokens

GOLDEN = Path(__file__).parent.parent / "golden"


@pytest.fixture(params=[4, 8, 16])
def vectors(request: pytest.FixtureRequest) -> tuple[int, dict[str, np.ndarray]]:
    with np.load(GOLDEN / f"fsq_levels{request.param}.npz", allow_pickle=False) as file:
        return request.param, {name: file[name] for name in file.files}


def authors_quantizer(levels: int, golden: dict[str, np.ndarray]) -> Quantizer:
    quantizer = Quantizer(24, 24, levels)
    for layer in ("in_proj", "out_proj"):
        for part in ("weight", "bias"):
            getattr(getattr(quantizer, layer), part).data = torch.from_numpy(golden[f"{layer}_{part}"])
    return quantizer


def test_the_authors_vectors_come_out(vectors: tuple[int, dict[str, np.ndarray]]) -> None:
    levels, golden = vectors
    quantizer = authors_quantizer(levels, golden)
    x = torch.from_numpy(golden["x"]).reshape(18, 24)  # both samples are scaled together
    codes = quantizer.encode(x).numpy()
    assert np.array_equal(codes, golden["codes"].reshape(18, 24))
    assert packing.pack(codes, levels) == golden["packed"].tobytes()
    s = quantizer.scale(quantizer.project(x))
    assert np.allclose(s.detach().numpy(), golden["scaled"].reshape(18, 24), atol=1e-6)
    restored, loss = quantizer(x)
    assert np.allclose(restored.detach().numpy(), golden["features"].reshape(18, 24), atol=1e-5)
    assert loss.item() == pytest.approx(COMMITMENT_WEIGHT * float(golden["distortion_loss"]), rel=1e-5)
    decoded = quantizer.decode(torch.from_numpy(codes))
    assert np.allclose(decoded.detach().numpy(), golden["features"].reshape(18, 24), atol=1e-5)


def test_same_codes_as_the_numpy_reference_for_every_level_count() -> None:
    generator = torch.Generator().manual_seed(5)
    s = torch.rand(64, 64, generator=generator) * 2 - 1
    quantizer = Quantizer(4, 4, 2)
    for levels in range(2, 257):
        half = (levels - 1) / 2
        # Values on and next to every boundary, where two roundings would part.
        edges = torch.tensor([(q + 0.5 - half) / half for q in range(levels - 1)], dtype=torch.float32)
        tough = torch.cat(
            [s.flatten(), edges, torch.nextafter(edges, torch.tensor(2.0)), torch.tensor([-1.0, 1.0])]
        )
        ours = quantizer.to_codes(tough, levels).to(torch.uint8).numpy()
        theirs = reference.levels_of(tough.numpy(), levels)
        assert np.array_equal(ours, theirs), levels
        assert ours.max() == levels - 1 and ours.min() == 0


@pytest.mark.parametrize("scaling", ["image", "frozen"])
@pytest.mark.parametrize("merge", [1, 2, 3])
def test_module_equals_reference_end_to_end(scaling: str, merge: int) -> None:
    torch.manual_seed(merge)
    quantizer = Quantizer(8, 6, 4, scaling, [1.5 + 0.1 * i for i in range(6)], merge=merge)  # type: ignore[arg-type]
    x = torch.randn(3, 36, 8)
    quantizer.fit(x)
    quantizer.eval()
    for levels in (2, 3, 4, 7, 16, 100, 256):
        codes = quantizer.encode(x, levels).numpy()
        theirs = reference.encode(x.numpy(), quantizer.params(levels))
        assert codes.shape == (3, 36 // merge**2, 6)
        assert (codes != theirs).mean() < 1e-2  # sums run in another order; a step at most
        assert np.abs(codes.astype(int) - theirs).max() <= 1
        restored = quantizer.decode(torch.from_numpy(theirs), levels).detach().numpy()
        assert np.allclose(restored, reference.decode(theirs, quantizer.params(levels)), atol=1e-4)


def test_one_picture_is_scaled_without_the_others() -> None:
    quantizer = Quantizer(8, 8, 4)
    x = torch.randn(2, 9, 8)
    x[1] *= 50
    assert torch.equal(quantizer.encode(x)[0], quantizer.encode(x[0]))


def test_gradient_passes_straight_through_inside_the_clip_only() -> None:
    quantizer = Quantizer(2, 2, 4, "frozen", 1.0)
    with torch.no_grad():
        quantizer.in_proj.weight.copy_(torch.eye(2))
        quantizer.out_proj.weight.copy_(torch.eye(2))
        quantizer.in_proj.bias.zero_()
        quantizer.out_proj.bias.zero_()
    quantizer.eval()
    x = torch.tensor([[0.3, 1.7], [-0.9, -2.5]], requires_grad=True)
    restored, _ = quantizer(x)
    restored.sum().backward()
    assert x.grad is not None
    assert torch.equal(x.grad, torch.tensor([[1.0, 0.0], [1.0, 0.0]]))


def test_distortion_does_not_pull_the_codes() -> None:
    s = torch.tensor([[0.4, -0.2]], requires_grad=True)
    v = torch.tensor([[1 / 3, -1 / 3]])
    distortion(s, v).backward()
    assert s.grad is not None and s.grad.abs().sum() > 0


@pytest.mark.parametrize("merge", [1, 2, 3])
def test_split_undoes_merge(merge: int) -> None:
    x = torch.arange(2 * 36 * 5.0).reshape(2, 36, 5)
    assert torch.equal(split_tokens(merge_tokens(x, merge), merge), x)


def test_merge_joins_neighbours_row_by_row() -> None:
    x = torch.arange(16.0)[:, None]
    assert merge_tokens(x, 2)[0].tolist() == [0, 1, 4, 5]


def test_merge_refuses_a_grid_it_does_not_divide() -> None:
    with pytest.raises(ValueError, match="25 tokens are not a square grid that merges 2 x 2"):
        merge_tokens(torch.zeros(1, 25, 3), 2)


def test_fit_beats_a_random_start() -> None:
    torch.manual_seed(0)
    x = torch.randn(64, 16, 4) @ torch.randn(4, 12) + 3
    fitted, random = Quantizer(12, 6, 16, "frozen"), Quantizer(12, 6, 16, "frozen")
    fitted.fit(x)
    random.eval()
    fitted.eval()
    error = (fitted(x)[0] - x).pow(2).mean() / x.var()
    assert error < 0.02
    assert error < (random(x)[0] - x).pow(2).mean() / x.var()


def test_k_is_interpolated_over_log2_levels() -> None:
    quantizer = Quantizer(4, 4, 4, k={2: 1.0, 8: 3.0})
    assert quantizer.k_for(2).item() == 1.0
    assert quantizer.k_for(4).item() == pytest.approx(2.0)
    assert quantizer.k_for(256).item() == 3.0


def test_frozen_statistics_follow_training_and_stand_still_after() -> None:
    quantizer = Quantizer(4, 4, 4, "frozen")
    quantizer(torch.randn(32, 4) + 5)
    moved = quantizer.mean.clone()
    assert moved.abs().sum() > 0
    quantizer.eval()
    quantizer(torch.randn(32, 4) - 5)
    assert torch.equal(quantizer.mean, moved)


def test_dequantizer_is_the_decode_of_the_quantizer() -> None:
    quantizer = Quantizer(8, 6, 7, merge=2)
    half = Dequantizer(8, 6, 7, merge=2)
    half.out_proj.load_state_dict(quantizer.out_proj.state_dict())
    codes = torch.randint(0, 7, (2, 4, 6), dtype=torch.uint8)
    assert torch.equal(half(codes), quantizer.decode(codes))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"levels": 1}, "levels 1 is not between 2 and 256"),
        ({"levels": 257}, "levels 257"),
        ({"scaling": "none"}, "scaling 'none' is not one of image, frozen"),
        ({"k": 0.0}, "k must be positive"),
        ({"k": [1.0, 2.0]}, "k has 2 values"),
        ({"merge": 0}, "merge 0"),
    ],
)
def test_settings_out_of_range_are_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Quantizer(**{"width": 4, "code_dim": 4, "levels": 4, **settings})  # type: ignore[arg-type]


def test_k_for_each_channel_at_each_level_count() -> None:
    quantizer = Quantizer(4, 3, 4, "frozen", {2: [1.0, 2.0, 3.0], 8: [3.0, 4.0, 5.0]})
    assert quantizer.k.shape == (2, 3)
    assert quantizer.k_for(2).tolist() == [1.0, 2.0, 3.0]
    assert quantizer.k_for(4).tolist() == pytest.approx([2.0, 3.0, 4.0])  # half way on the log scale
    z = torch.randn(1, 9, 3, generator=torch.Generator().manual_seed(1))
    s = quantizer.scale(z, 2)
    assert torch.allclose(s, torch.clamp(z / torch.tensor([1.0, 2.0, 3.0]), -1, 1))
    x = torch.randn(9, 4, generator=torch.Generator().manual_seed(2))
    quantizer.eval()
    ours = quantizer.encode(x, 2).numpy()
    assert np.array_equal(reference.encode(x.numpy(), quantizer.params(2)), ours)
    with pytest.raises(ValueError, match="2 values"):
        Quantizer(4, 3, 4, "frozen", {2: [1.0, 2.0]})


def test_the_rate_of_values_that_are_codes_is_their_entropy() -> None:
    quantizer = Quantizer(4, 2, 5)
    codes = torch.tensor([[0, 2], [0, 2], [1, 2], [4, 2]]).repeat(8, 1)
    s = quantizer.values(codes).requires_grad_()
    assert quantizer.rate(s).item() == pytest.approx(1.5, abs=1e-5)  # 1/2, 1/4, 1/4; the other never varies


def test_the_rate_pulls_features_towards_frequent_codes() -> None:
    quantizer = Quantizer(4, 1, 3)
    s = torch.tensor([0.0] * 30 + [0.6, -0.4])[:, None].requires_grad_()
    quantizer.rate(s).backward()
    assert s.grad is not None
    assert s.grad[30] > 0 > s.grad[31]  # descent moves both towards the code in the middle


def test_the_rate_weight_adds_to_the_loss() -> None:
    quantizer = Quantizer(8, 4, 4, "frozen")
    x = torch.randn(2, 9, 8, generator=torch.Generator().manual_seed(2))
    quantizer.eval()
    _, plain = quantizer(x)
    quantizer.rate_weight = 0.1
    _, with_rate = quantizer(x)
    bits = quantizer.rate(quantizer.scale(quantizer.project(x)))
    assert 0 < bits.item() <= 4 * 2
    assert with_rate.item() == pytest.approx(plain.item() + 0.1 * bits.item(), rel=1e-5)
