"""Rivals: what is restored from a payload's bytes is what the forward pass says, and gradients pass."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("vector_quantize_pytorch", reason="rivals need the extra [bench]")
pytest.importorskip("zstandard", reason="rivals need the extra [bench]")

from qtl_core.codes import packed_size
from qtl_core.errors import CodeError
from qtl_core.nn.quantizer import Quantizer
from qtl_training.rivals.fsq import TanhFsq
from qtl_training.rivals.half import HalfPrecision
from qtl_training.rivals.int8_zstd import Int8Zstd
from qtl_training.rivals.methods import VARIANTS, Variant, variants_of
from qtl_training.rivals.normal_float import NormalFloat
from qtl_training.rivals.one_bit import OneBit
from qtl_training.rivals.ours import Ours
from qtl_training.rivals.rand_topk import RandTopk
from qtl_training.rivals.rival import CodedRival, Rival
from qtl_training.rivals.split_fc import AdaptiveFeatureWise
from qtl_training.rivals.trial import build
from qtl_training.rivals.vector_codes import VectorCodes

WIDTH, TOKENS, PICTURES = 16, 36, 24
SPREAD: dict[str, Any] = {"basis": "spread", "code_dim": 8, "merge": 2}
PRINCIPAL: dict[str, Any] = {"basis": "principal", "code_dim": 8}


def features(seed: int = 0) -> Tensor:
    """Features of low rank with a mean, as a connector's are."""
    generator = torch.Generator().manual_seed(seed)
    low = torch.randn(PICTURES, TOKENS, 5, generator=generator)
    mixed = low @ torch.randn(5, WIDTH, generator=torch.Generator().manual_seed(9))
    return mixed + 0.05 * torch.randn(PICTURES, TOKENS, WIDTH, generator=generator) + 0.3


def ours(levels: int = 5) -> Rival:
    return Ours(Quantizer(WIDTH, 8, levels, "frozen", merge=2), TOKENS)


CASES: dict[str, tuple[Any, tuple[int, ...]]] = {
    "fp16": (lambda: HalfPrecision(WIDTH, TOKENS), (16,)),
    "fsq": (lambda: TanhFsq(WIDTH, TOKENS, 5, **SPREAD), (2, 3, 5, 8, 16)),
    "fsq-counts": (lambda: TanhFsq(WIDTH, TOKENS, 8, code_dim=3, counts=(8, 5, 5)), (8,)),
    "nf": (lambda: NormalFloat(WIDTH, TOKENS, 16, block=32), (4, 8, 16)),
    "nf-range": (lambda: NormalFloat(WIDTH, TOKENS, 16, block=32, ends="range"), (4, 16)),
    "nf-spread": (lambda: NormalFloat(WIDTH, TOKENS, 4, block=8, **SPREAD), (4, 8)),
    "randtopk": (lambda: RandTopk(WIDTH, TOKENS, 20), (1, 20, 300, WIDTH * TOKENS)),
    "randtopk-principal": (lambda: RandTopk(WIDTH, TOKENS, 20, **PRINCIPAL), (5, 20)),
    "splitfc": (lambda: AdaptiveFeatureWise(WIDTH, TOKENS, 64), (16, 64, 256)),
    "splitfc-principal": (lambda: AdaptiveFeatureWise(WIDTH, TOKENS, 64, **PRINCIPAL), (24, 96)),
    "onebit": (lambda: OneBit(WIDTH, TOKENS, **SPREAD), (2,)),
    "vq": (lambda: VectorCodes(WIDTH, TOKENS, code_dim=4), (4096,)),
    "vq-merged": (lambda: VectorCodes(WIDTH, TOKENS, code_dim=4, merge=2), (4096,)),
    "int8-tensor": (lambda: Int8Zstd(WIDTH, TOKENS, scale="tensor"), (256,)),
    "int8-channel": (lambda: Int8Zstd(WIDTH, TOKENS, scale="channel"), (256,)),
    "int8-spread": (lambda: Int8Zstd(WIDTH, TOKENS, scale="channel", **SPREAD), (256,)),
    "ours": (ours, (2, 5, 256)),
}


def fitted(name: str) -> tuple[Rival, tuple[int, ...]]:
    make, knobs = CASES[name]
    torch.manual_seed(0)
    rival: Rival = make()
    rival.eval().fit(features(), seed=1)
    rival.calibrate(features(), knobs)
    return rival, knobs


@pytest.mark.parametrize("name", CASES)
def test_what_the_bytes_hold_is_what_the_forward_pass_says(name: str) -> None:
    rival, knobs = fitted(name)
    unseen = features(seed=1)[:6]
    for levels in knobs:
        with torch.no_grad():
            passed, loss = rival(unseen, levels)
        payloads = rival.payloads(unseen, levels)
        assert [type(payload) for payload in payloads] == [bytes] * len(unseen)
        assert torch.equal(rival.restore_all(payloads, levels), passed)
        alone = rival.payloads(unseen[:1], levels)
        with torch.no_grad():
            assert torch.equal(rival.restore(alone[0], levels), rival(unseen[:1], levels)[0][0])
        assert passed.shape == unseen.shape and torch.isfinite(passed).all() and torch.isfinite(loss).all()


@pytest.mark.parametrize("name", CASES)
def test_gradients_reach_the_encoder(name: str) -> None:
    rival, knobs = fitted(name)
    rival.train()
    for levels in knobs:
        x = features(seed=2)[:4].requires_grad_()
        restored, loss = rival(x, levels)
        (restored.square().mean() + loss).backward()
        assert x.grad is not None and torch.isfinite(x.grad).all()
        assert x.grad.abs().sum() > 0


@pytest.mark.parametrize("name", CASES)
def test_payloads_are_made_in_evaluation_mode_only(name: str) -> None:
    rival, knobs = fitted(name)
    rival.train()
    with pytest.raises(ValueError, match="call eval"):
        rival.payloads(features()[:1], knobs[0])


@pytest.mark.parametrize("name", ["fsq", "fsq-counts", "nf", "nf-range", "onebit", "vq", "vq-merged", "ours"])
def test_both_forms_of_codes_hold_the_same(name: str) -> None:
    rival, knobs = fitted(name)
    assert rival.coded
    x = features(seed=3)[:5]
    for levels in knobs:
        shorter = rival.payloads(x, levels)
        rival.packed = True
        fixed = rival.payloads(x, levels)
        rival.packed = False
        assert len({len(payload) for payload in fixed}) == 1
        assert all(len(one) <= len(other) for one, other in zip(shorter, fixed, strict=True))
        assert torch.equal(rival.restore_all(shorter, levels), rival.restore_all(fixed, levels))


def sizes(name: str, levels: int) -> set[int]:
    rival, _ = fitted(name)
    rival.packed = True
    return {len(payload) for payload in rival.payloads(features(seed=4)[:8], levels)}


def test_sizes_are_what_the_published_forms_take() -> None:
    assert sizes("fp16", 16) == {2 * WIDTH * TOKENS}
    assert sizes("fsq", 5) == {math.ceil(9 * 8 * math.log2(5) / 8)}
    assert sizes("fsq-counts", 8) == {math.ceil(36 * math.log2(8 * 5 * 5) / 8)}
    assert sizes("onebit", 2) == {9 * 8 // 8}
    assert sizes("vq", 4096) == {36 * 12 // 8}
    assert sizes("vq-merged", 4096) == {math.ceil(9 * 12 / 8)}
    assert sizes("nf", 4) == {8 + WIDTH * TOKENS // 32 + packed_size(WIDTH * TOKENS, 4)}
    assert sizes("nf-range", 4) == {8 + 3 * (WIDTH * TOKENS // 32) + packed_size(WIDTH * TOKENS, 4)}
    assert sizes("randtopk", 20) == {math.ceil(math.log2(math.comb(WIDTH * TOKENS, 20)) / 8) + 2 * 20}
    assert sizes("ours", 5) == {packed_size(9 * 8, 5)}
    for budget in (16, 64, 256):
        assert max(sizes("splitfc", budget)) <= budget
    assert max(sizes("int8-tensor", 256)) <= 4 + WIDTH * TOKENS + 16


@pytest.mark.parametrize("name", CASES)
def test_payloads_of_another_length_are_refused(name: str) -> None:
    rival, knobs = fitted(name)
    rival.packed = True
    (payload,) = rival.payloads(features(seed=5)[:1], knobs[0])
    if isinstance(rival, CodedRival | NormalFloat):
        rival._coders.clear()  # without tables, shorter is no other form
    for wrong in (b"", payload[:-1], payload + b"\x01"):
        with pytest.raises(CodeError):
            rival.restore(wrong, knobs[0])


def test_more_bytes_say_more() -> None:
    x = features(seed=6)[:8]
    for name in ("fsq", "nf", "randtopk-principal", "splitfc-principal"):
        rival, knobs = fitted(name)
        few, many = (rival.restore_all(rival.payloads(x, levels), levels) for levels in (knobs[0], knobs[-1]))
        assert (many - x).square().mean() < (few - x).square().mean(), name


def test_random_places_are_drawn_in_training_only() -> None:
    rival, _ = fitted("randtopk")
    assert isinstance(rival, RandTopk)
    x = features(seed=7)[:4]
    crossed = rival.eval()(x, 50)[0] != 0
    assert crossed.flatten(1).sum(1).tolist() == [50] * 4
    torch.manual_seed(1)
    drawn = rival.train()(x, 50)[0] != 0
    assert drawn.flatten(1).sum(1).tolist() == [50] * 4
    missing = (crossed & ~drawn).flatten(1).sum(1)
    assert missing.sum() > 0 and (missing < 25).all()


def test_levels_follow_the_ranges() -> None:
    rival, _ = fitted("splitfc")
    assert isinstance(rival, AdaptiveFeatureWise)
    wide = features(seed=8)[0].numpy().copy()
    wide[:, 3] *= 20
    plan = rival._plan(wide, 128)
    levels = dict(zip(plan.chosen, rival._levels(plan), strict=True))
    assert levels[3] == max(levels.values()) > 2 * sorted(levels.values())[-2]


def test_the_fit_is_the_same_for_the_same_seed_and_leaves_the_global_seed_alone() -> None:
    torch.manual_seed(5)
    first = fitted("vq")[0].state_dict()
    second = fitted("vq")[0].state_dict()
    assert all(torch.equal(first[key], second[key]) for key in first)
    torch.manual_seed(6)
    rival = VectorCodes(WIDTH, TOKENS, code_dim=4).eval()
    state = torch.get_rng_state()
    rival.fit(features(), seed=1)
    assert torch.equal(torch.get_rng_state(), state)


def test_every_variant_can_be_built() -> None:
    for variant in VARIANTS:
        if variant.kind == "rival":
            assert build(variant, 128, 36).coded_tokens in (9, 36)


def test_names_of_methods_and_rows() -> None:
    rows = [variant.row(knob) for variant in VARIANTS for knob in variant.knobs]
    assert len(rows) == len(set(rows))
    assert {"fp16", "default-2bit", "fsq-d16-L5", "nf-largest-4bit", "jpeg-40", "webp-40@48"} <= set(rows)
    assert [variant.label for variant in variants_of(["small", "vq"], quick=True)] == ["small", "vq-36-d32"]
    assert all(len(variant.knobs) <= 2 for variant in variants_of(["jpeg", "fsq"], quick=True))
    with pytest.raises(ValueError, match="no method 'gzip'"):
        variants_of(["gzip"])
    assert isinstance(hash(Variant(method="x", settings={"a": 1})), int)
