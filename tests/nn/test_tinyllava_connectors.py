"""TinyLLaVA Factory's further connectors, read from a folder and held against transformers' own modules."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import Blip2QFormerConfig, IdeficsConfig
from transformers.models.blip_2.modeling_blip_2 import Blip2QFormerModel
from transformers.models.idefics.perceiver import IdeficsPerceiverResampler

from qtl_core.nn.checkpoint import Checkpoint, load_checkpoint
from qtl_core.nn.families import tinyllava_connectors as connectors
from tests.nn.test_family_tinyllava import FINISHED, finish, picture_for

TOWER, WIDTH, QUERIES, DEPTH = 48, 64, 5, 3
CLOSE = 1e-5


def noisy(module: nn.Module) -> None:
    torch.manual_seed(2)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)


def with_connector(folder: Path, tensors: dict[str, Tensor], **settings: Any) -> Checkpoint:
    finish(folder, lambda config: config.update(settings))
    kept = load_file(FINISHED / "model.safetensors")
    kept = {name: one for name, one in kept.items() if not name.startswith("connector.")}
    added = {f"connector._connector.{name}": one.detach().contiguous() for name, one in tensors.items()}
    save_file(kept | added, folder / "model.safetensors")
    return load_checkpoint(folder)


def compare(checkpoint: Checkpoint, theirs: Callable[[Tensor], Tensor]) -> None:
    picture = picture_for(checkpoint)
    with torch.no_grad():
        expected = theirs(checkpoint.model.vision.tower_features(picture))
        ours = checkpoint.model.vision(picture)
    assert ours.shape == expected.shape and expected.abs().max() > 0.1
    assert (ours - expected).abs().max() <= CLOSE


def test_a_resampler_is_a_perceiver(tmp_path: Path) -> None:
    # transformers' Perceiver has the same arithmetic but for the activation, and no linear layer in front.
    config = IdeficsConfig(
        vision_config={"embed_dim": WIDTH}, perceiver_config={"qk_layer_norms_perceiver": False}
    )
    theirs: Any = IdeficsPerceiverResampler(config, WIDTH, DEPTH, 8, 64, QUERIES)
    linear = nn.Linear(TOWER, WIDTH)
    noisy(theirs)
    tensors = {"latents": theirs.latents, "norm.weight": theirs.layer_norm.weight}
    tensors |= {
        "norm.bias": theirs.layer_norm.bias,
        "linear.weight": linear.weight,
        "linear.bias": linear.bias,
    }
    for at, (attention, mlp) in enumerate(theirs.blocks):
        mlp.act = nn.GELU()
        for ours, norm in (("norm_media", "context_layer_norm"), ("norm_latents", "latents_layer_norm")):
            for name in ("weight", "bias"):
                tensors[f"layers.{at}.0.{ours}.{name}"] = getattr(getattr(attention, norm), name)
        tensors[f"layers.{at}.0.to_q.weight"] = attention.q_proj.weight
        tensors[f"layers.{at}.0.to_kv.weight"] = torch.cat([attention.k_proj.weight, attention.v_proj.weight])
        tensors[f"layers.{at}.0.to_out.weight"] = attention.output_proj.weight
        tensors[f"layers.{at}.1.0.weight"], tensors[f"layers.{at}.1.0.bias"] = mlp.ln.weight, mlp.ln.bias
        tensors[f"layers.{at}.1.1.weight"] = mlp.fc.weight
        tensors[f"layers.{at}.1.3.weight"] = mlp.c_proj.weight
    checkpoint = with_connector(
        tmp_path / "copy",
        tensors,
        connector_type="resampler",
        num_queries=QUERIES,
        num_resampler_layers=DEPTH,
    )
    compare(checkpoint, lambda seen: theirs(linear(seen)))


def test_a_qformer_is_that_of_blip_2(tmp_path: Path) -> None:
    inner = 128
    config = Blip2QFormerConfig(
        hidden_size=inner,
        num_hidden_layers=DEPTH,
        num_attention_heads=inner // 64,
        intermediate_size=96,
        encoder_hidden_size=TOWER,
        cross_attention_frequency=2,
        layer_norm_eps=1e-12,
        use_qformer_text_input=False,
    )
    theirs: Any = Blip2QFormerModel(config).eval()
    noisy(theirs)
    nn.init.ones_(theirs.layernorm.weight)
    nn.init.zeros_(theirs.layernorm.bias)
    queries, projector = torch.randn(1, QUERIES, inner), nn.Linear(inner, WIDTH)
    tensors = {
        f"bert.{name.replace('attention.attention.', 'attention.self.')}": tensor
        for name, tensor in theirs.state_dict().items()
        if not name.startswith("layernorm.")
    }
    tensors |= {
        "query_tokens": queries,
        "projector.weight": projector.weight,
        "projector.bias": projector.bias,
    }
    # That project's files hold a buffer, too.
    tensors["bert.embeddings.position_ids"] = torch.arange(512)[None]
    checkpoint = with_connector(tmp_path / "copy", tensors, connector_type="qformer", num_queries=QUERIES)
    compare(
        checkpoint,
        lambda seen: projector(theirs(query_embeds=queries, encoder_hidden_states=seen).last_hidden_state),
    )


@pytest.mark.parametrize("depth", [1, 3])
def test_mlps_of_other_depths(tmp_path: Path, depth: int) -> None:
    layers: list[nn.Module] = [nn.Linear(TOWER, WIDTH)]
    for _ in range(1, depth):
        layers += [nn.GELU(), nn.Linear(WIDTH, WIDTH)]
    theirs = nn.Sequential(*layers)
    noisy(theirs)
    checkpoint = with_connector(tmp_path / "copy", theirs.state_dict(), connector_type=f"mlp{depth}x_gelu")
    compare(checkpoint, theirs)


def test_an_identity_passes_the_tower_on() -> None:
    seen = torch.randn(1, 3, 8)
    assert torch.equal(connectors.build({"connector_type": "identity"}, 8, 8, lambda name: None)(seen), seen)


@pytest.mark.parametrize(("kind", "tokens"), [("resampler", 5), ("linear", 15)])
def test_tokens_after_a_connector(kind: str, tokens: int) -> None:
    config = {"connector_type": kind, "num_queries": QUERIES, "num_resampler_layers": 1}
    connector = connectors.build(config, TOWER, WIDTH, lambda name: None)
    assert connectors.tokens_after(connector, 15) == tokens
    assert connector(torch.randn(2, 15, TOWER)).shape == (2, tokens, WIDTH)
