"""Low-rank adapters of the decoder (LoRA, arXiv 2106.09685), through peft."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn

from qtl_core.errors import MissingExtra, RecipeError
from qtl_core.nn.decoder import PictureDecoder
from qtl_core.split_stage import Lora


class Adapters:
    """Adapters put into a decoder's linear layers; from then on only they learn in it.

    Args:
        decoder: changed in place.
        lora: the recipe's settings.
        seed: of the first weights.

    Raises:
        MissingExtra: peft is not installed.
        RecipeError: no layer has one of the names in ``targets``.
    """

    def __init__(self, decoder: PictureDecoder, lora: Lora, seed: int) -> None:
        if find_spec("peft") is None:
            raise MissingExtra.of("train", "peft")
        from peft import LoraConfig, inject_adapter_in_model

        self._decoder = decoder
        # Any number will do for alpha; peft's annotation says whole ones.
        scaled: dict[str, Any] = {"lora_alpha": lora.alpha}
        config = LoraConfig(
            r=lora.rank, lora_dropout=lora.dropout, target_modules=_targets(decoder, lora), **scaled
        )
        # A seed of its own: what was drawn before differs between one process and two.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            inject_adapter_in_model(config, decoder.language_model)
        for _, _, layer in _layers(decoder):
            layer.train(decoder.training)

    def state(self) -> dict[str, Tensor]:
        """The adapters' weights, by name."""
        return {
            f"lora.{name}": parameter.detach().clone()
            for name, parameter in self._decoder.named_parameters()
            if is_adapter(name)
        }

    def load(self, state: dict[str, Tensor]) -> None:
        """Takes up saved weights, where there are any."""
        with torch.no_grad():
            for name, parameter in self._decoder.named_parameters():
                if f"lora.{name}" in state:
                    parameter.copy_(state[f"lora.{name}"])

    def merge(self) -> None:
        """Adds what was learnt to the layers' own weights, and takes the adapters out."""
        for parent, name, layer in _layers(self._decoder):
            layer.merge()
            setattr(parent, name, layer.get_base_layer())
        if hasattr(self._decoder.language_model, "peft_config"):
            del self._decoder.language_model.peft_config


def is_adapter(name: str) -> bool:
    """Whether a parameter of that name is an adapter's."""
    return ".lora_" in name


@contextmanager
def without_adapters(decoder: nn.Module) -> Iterator[None]:
    """The decoder's own layers, as they are without adapters, for a ``with`` block."""
    layers = _layers(decoder)
    try:
        for parent, name, layer in layers:
            setattr(parent, name, layer.get_base_layer())
        yield
    finally:
        for parent, name, layer in layers:
            setattr(parent, name, layer)


def _layers(decoder: nn.Module) -> list[tuple[nn.Module, str, Any]]:
    """Layers with adapters, each with its parent and its name there."""
    return [
        (parent, name, child)
        for parent in list(decoder.modules())
        for name, child in parent.named_children()
        if hasattr(child, "lora_A") and hasattr(child, "get_base_layer")
    ]


def _targets(decoder: PictureDecoder, lora: Lora) -> list[str]:
    """Names of the layers to adapt: the linear ones of all decoder layers, or those of the given names."""
    scores = decoder.language_model.get_output_embeddings()
    linear = [
        name
        for name, module in decoder.language_model.named_modules()
        if isinstance(module, nn.Linear) and module is not scores
    ]
    if not lora.targets:
        return linear
    last = sorted({name.rpartition(".")[2] for name in linear})
    unknown = sorted(set(lora.targets) - set(last))
    if unknown:
        raise RecipeError(
            f"lora: the decoder has no linear layer named {', '.join(unknown)}; there are {', '.join(last)}"
        )
    return [name for name in linear if name.rpartition(".")[2] in lora.targets]
