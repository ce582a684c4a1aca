"""Which parameters a stage trains, and at what rates."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn

from qtl_core.nn.model import SplitModel
from qtl_core.split_stage import SplitStage
from qtl_training.recipe import LanguageStage
from qtl_training.split.adapters import is_adapter
from qtl_training.stages.optimizing import Group

_OF_CLIENT = ("in_proj", "k")


def groups(model: SplitModel, stage: LanguageStage) -> list[Group]:
    """Both partitions'; parameters that a stage does not train are frozen."""
    parts: dict[str, nn.Module] = {
        "connector": model.vision.connector,
        "decoder": model.decoder,
        "vision_quantizer": model.vision_quantizer,
        "language_quantizer": model.language_quantizer,
    }
    if "tower" in stage.train:
        parts["tower"] = model.vision.tower
    return _groups(((name, part.named_parameters(prefix=name)) for name, part in parts.items()), stage)


def client_groups(model: SplitModel, stage: SplitStage) -> list[Group]:
    """The client partition's: connector, and the quantizer's ``in_proj`` and k."""
    return _groups(
        [
            ("connector", model.vision.connector.named_parameters(prefix="connector")),
            ("vision_quantizer", _quantizer(model, client=True)),
        ],
        stage,
    )


def server_groups(model: SplitModel, stage: SplitStage) -> list[Group]:
    """The server partition's: decoder or its adapters, and the quantizer's ``out_proj``."""
    decoder = list(model.decoder.named_parameters(prefix="decoder"))
    if stage.lora is not None:
        for _, parameter in decoder:
            parameter.requires_grad_(False)
        decoder = [(name, parameter) for name, parameter in decoder if is_adapter(name)]
    return _groups(
        [
            ("decoder", decoder),
            ("vision_quantizer", _quantizer(model, client=False)),
        ],
        stage,
    )


Named = Iterable[tuple[str, nn.Parameter]]


def _quantizer(model: SplitModel, *, client: bool) -> Named:
    if not model.quantized:
        return []
    return [
        (f"vision_quantizer.{name}", parameter)
        for name, parameter in model.vision_quantizer.named_parameters()
        if (name.partition(".")[0] in _OF_CLIENT) == client
    ]


def _groups(parts: Iterable[tuple[str, Named]], stage: LanguageStage | SplitStage) -> list[Group]:
    in_proj_lr = stage.quantizer_lr if stage.in_proj_lr is None else stage.in_proj_lr
    rates = {".k": stage.k_lr, ".in_proj.weight": in_proj_lr, ".in_proj.bias": in_proj_lr}
    found: list[Group] = []
    for part, parameters in parts:
        named = list(parameters)
        for _, parameter in named:
            parameter.requires_grad_(part in stage.train)
        if part not in stage.train:
            continue
        if not part.endswith("quantizer"):
            found.append((named, stage.optimizer.lr))
            continue
        for name, parameter in named:
            lr = next((lr for end, lr in rates.items() if name.endswith(end)), stage.quantizer_lr)
            found.append(([(name, parameter)], lr))
    return found
