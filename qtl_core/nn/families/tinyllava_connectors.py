"""The connectors of TinyLLaVA Factory: what stands between tower and decoder.

Submodules carry the names under which that project saves their tensors, so a file fills them as it is.

- ``mlpNx_gelu``: N linear layers with GELU between them
- ``linear``, ``identity``
- ``resampler``: a Perceiver resampler (arXiv 2204.14198), learnt latents that attend to picture and latents
- ``qformer``: the querying half of a Q-Former (arXiv 2301.12597), learnt queries that attend to each other
  and, in every other layer, to the picture
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

KNOWN = ("mlpNx_gelu", "linear", "identity", "resampler", "qformer")
_MLP = re.compile(r"mlp([1-9]\d?)x_gelu")
_RESAMPLER_HEADS, _RESAMPLER_HEAD_WIDTH = 8, 64
_QFORMER_HEAD_WIDTH = 64
_QFORMER_EPS = 1e-12

ShapeOf = Callable[[str], "tuple[int, ...] | None"]
"""Shape of one of the connector's tensors in the file; None if it is not there."""


def build(config: Mapping[str, Any], width_in: int, width: int, shape_of: ShapeOf) -> nn.Module:
    """The connector a configuration names.

    Args:
        config: ``connector_type``, and for some ``num_queries`` and ``num_resampler_layers``.
        width_in: of the tower.
        width: of the decoder.
        shape_of: what the file has, for a Q-Former's size, which no configuration tells.

    Raises:
        ValueError: a kind that is not known, or settings that do not fit together.
    """
    kind = str(config.get("connector_type"))
    mlp = _MLP.fullmatch(kind)
    if mlp:
        layers: list[nn.Module] = [nn.Linear(width_in, width)]
        for _ in range(1, int(mlp[1])):
            layers += [nn.GELU(), nn.Linear(width, width)]
        return nn.Sequential(*layers)
    if kind == "linear":
        return nn.Linear(width_in, width)
    if kind == "identity":
        if width_in != width:
            raise ValueError(
                f"connector_type 'identity', but the tower is {width_in} wide and the decoder {width}"
            )
        return nn.Identity()
    if kind == "resampler":
        return Resampler(
            width_in, width, _count(config, "num_queries"), _count(config, "num_resampler_layers")
        )
    if kind == "qformer":
        queries, layers_, mlp_width = _qformer_size(shape_of)
        return QFormer(width_in, width, queries[1], queries[2], layers_, mlp_width)
    raise ValueError(f"connector_type {kind!r} is not supported; known here: {', '.join(KNOWN)}")


def tokens_after(connector: nn.Module, tokens: int) -> int:
    """How many tokens a picture of ``tokens`` tokens has after the connector."""
    if isinstance(connector, Resampler):
        return len(connector.latents)
    return connector.query_tokens.shape[1] if isinstance(connector, QFormer) else tokens


class Resampler(nn.Module):
    """A picture's tokens as a fixed number of latents: [batch, tokens, width_in] -> [batch, queries, width].

    Args:
        width_in: of the tower.
        width: of the decoder, and of the latents.
        queries: how many latents.
        depth: how many layers.
    """

    def __init__(self, width_in: int, width: int, queries: int, depth: int) -> None:
        super().__init__()
        self.latents = nn.Parameter(torch.randn(queries, width))
        self.linear = nn.Linear(width_in, width)
        self.layers = nn.ModuleList(
            nn.ModuleList([_LatentAttention(width), _latent_mlp(width)]) for _ in range(depth)
        )
        self.norm = nn.LayerNorm(width)

    def forward(self, features: Tensor) -> Tensor:
        features = self.linear(features)
        latents = self.latents.expand(features.shape[0], -1, -1)
        for layer in self.layers:
            attention, mlp = layer.children()
            latents = latents + attention(features, latents)
            latents = latents + mlp(latents)
        out: Tensor = self.norm(latents)
        return out


class _LatentAttention(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        inner = _RESAMPLER_HEADS * _RESAMPLER_HEAD_WIDTH
        self.norm_media = nn.LayerNorm(width)
        self.norm_latents = nn.LayerNorm(width)
        self.to_q = nn.Linear(width, inner, bias=False)
        self.to_kv = nn.Linear(width, 2 * inner, bias=False)
        self.to_out = nn.Linear(inner, width, bias=False)

    def forward(self, features: Tensor, latents: Tensor) -> Tensor:
        latents = self.norm_latents(latents)
        seen = torch.cat([self.norm_media(features), latents], dim=1)
        key, value = self.to_kv(seen).chunk(2, dim=-1)
        out: Tensor = self.to_out(_attend(self.to_q(latents), key, value, _RESAMPLER_HEADS))
        return out


def _latent_mlp(width: int) -> nn.Sequential:
    return nn.Sequential(
        nn.LayerNorm(width),
        nn.Linear(width, 4 * width, bias=False),
        nn.GELU(),
        nn.Linear(4 * width, width, bias=False),
    )


class QFormer(nn.Module):
    """Learnt queries that look at a picture: [batch, tokens, width_in] -> [batch, queries, width].

    Args:
        width_in: of the tower.
        width: of the decoder.
        queries: how many.
        inner: width of the queries; their heads are 64 wide.
        depth: how many layers; every other one, the first included, attends to the picture.
        mlp: width between the two linear layers of each.
    """

    def __init__(self, width_in: int, width: int, queries: int, inner: int, depth: int, mlp: int) -> None:
        super().__init__()
        self.query_tokens = nn.Parameter(torch.zeros(1, queries, inner))
        layers = nn.ModuleList(
            _QueryLayer(inner, width_in if at % 2 == 0 else None, mlp) for at in range(depth)
        )
        self.bert = nn.ModuleDict({"encoder": nn.ModuleDict({"layer": layers})})
        self.projector = nn.Linear(inner, width)
        self._layers = (layers,)  # a tuple, so that they are registered once

    def forward(self, features: Tensor) -> Tensor:
        queries = self.query_tokens.expand(features.shape[0], -1, -1)
        # That project drops weight and bias of this norm.
        queries = functional.layer_norm(queries, queries.shape[-1:], eps=_QFORMER_EPS)
        for layer in self._layers[0]:
            queries = layer(queries, features)
        out: Tensor = self.projector(queries)
        return out


class _QueryLayer(nn.Module):
    def __init__(self, width: int, picture_width: int | None, mlp: int) -> None:
        super().__init__()
        self.attention = _QueryAttention(width, width)
        self.crossattention = None if picture_width is None else _QueryAttention(width, picture_width)
        self.intermediate_query = nn.ModuleDict({"dense": nn.Linear(width, mlp)})
        self.output_query = _AddNorm(mlp, width)

    def forward(self, queries: Tensor, features: Tensor) -> Tensor:
        queries = self.attention(queries, queries)
        if self.crossattention is not None:
            queries = self.crossattention(queries, features)
        inner = functional.gelu(self.intermediate_query["dense"](queries))
        out: Tensor = self.output_query(inner, queries)
        return out


class _QueryAttention(nn.Module):
    def __init__(self, width: int, seen_width: int) -> None:
        super().__init__()
        linears = {"query": nn.Linear(width, width)}
        linears |= {name: nn.Linear(seen_width, width) for name in ("key", "value")}
        self.self = nn.ModuleDict(linears)
        self.output = _AddNorm(width, width)

    def forward(self, queries: Tensor, seen: Tensor) -> Tensor:
        query, key, value = self.self["query"](queries), self.self["key"](seen), self.self["value"](seen)
        heads = query.shape[-1] // _QFORMER_HEAD_WIDTH
        out: Tensor = self.output(_attend(query, key, value, heads), queries)
        return out


class _AddNorm(nn.Module):
    def __init__(self, width_in: int, width: int) -> None:
        super().__init__()
        self.dense = nn.Linear(width_in, width)
        self.LayerNorm = nn.LayerNorm(width, eps=_QFORMER_EPS)

    def forward(self, x: Tensor, residual: Tensor) -> Tensor:
        out: Tensor = self.LayerNorm(self.dense(x) + residual)
        return out


def _attend(query: Tensor, key: Tensor, value: Tensor, heads: int) -> Tensor:
    """Attention of [batch, n, width] over [batch, m, width], heads side by side in the width."""
    query, key, value = (one.unflatten(-1, (heads, -1)).transpose(1, 2) for one in (query, key, value))
    return functional.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)


def _count(config: Mapping[str, Any], name: str) -> int:
    value = config.get(name)
    if not isinstance(value, int) or value < 1:
        raise ValueError(
            f"connector_type {config.get('connector_type')!r} needs {name}, and that is {value!r}"
        )
    return value


def _qformer_size(shape_of: ShapeOf) -> tuple[tuple[int, ...], int, int]:
    """Shape of the queries, number of layers and width of their MLPs, from the tensors that are there."""
    layer = "bert.encoder.layer.{}.intermediate_query.dense.weight"
    queries, mlp = shape_of("query_tokens"), shape_of(layer.format(0))
    if queries is None or len(queries) != 3 or mlp is None or queries[2] % _QFORMER_HEAD_WIDTH:
        raise ValueError("connector_type 'qformer', but the weights hold no queries and layers of one")
    depth = 1
    while shape_of(layer.format(depth)) is not None:
        depth += 1
    return queries, depth, mlp[0]
