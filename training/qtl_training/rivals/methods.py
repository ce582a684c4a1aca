"""What is compared: every method, its small grid of settings, and the knobs that share one fine-tune.

A ``Variant`` is one fine-tune. Its knobs are served by the same weights, as ours serve every number of
levels. Nothing heavy is imported here, so that command lines can list the methods.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

Kind = Literal["ours", "rival", "picture", "shipped"]
FULL_SIDE = 96


@dataclass(frozen=True, order=True, kw_only=True)
class Setting:
    """One point of a picture codec's curve.

    Attributes:
        side: pixels along the side of what is encoded; the server scales it up again.
        quality: the codec's quality, 0 to 100.
        chroma: "4:2:0", or "4:4:4" (JPEG and AVIF only).
    """

    side: int
    quality: int
    chroma: Literal["4:2:0", "4:4:4"] = "4:2:0"

    @property
    def label(self) -> str:
        """Quality, side if the picture is scaled down, chroma if it is not halved: ``40@64-444``."""
        side = "" if self.side == FULL_SIDE else f"@{self.side}"
        return f"{self.quality}{side}{'-444' if self.chroma == '4:4:4' else ''}"


Knob = int | Setting
FP16: tuple[Knob, ...] = (16,)
PACE_RECIPE = "digits-quantizer.toml"
"""Our default quantizer's; its steps are every fine-tune's where nobody says otherwise."""
RIVAL_RECIPE = "paper-2bit.toml"
"""The paper's quantizer's: connector, decoder and quantizer learn; every rival learns by it too."""
RATES = (1e-4, 4e-4)
"""Learning rates that every rival is tried at: gentle for one that keeps features well, or further."""
PICTURE_RATE = 2e-4
"""For pictures, whose tower learns too, one between: their fine-tunes take as long as all others together."""
CODED = "coded"
"""Ends the names of rows whose codes travel under our entropy coder instead of as published."""


def described(knob: Knob) -> int | dict[str, Any]:
    """A knob as JSON holds it."""
    return asdict(knob) if isinstance(knob, Setting) else knob


@dataclass(frozen=True, kw_only=True)
class Variant:
    """One fine-tune of a method.

    Attributes:
        method: the method's name; rows of the table begin with it.
        name: tells its variants apart; "" where there is one.
        kind: "ours" (a recipe), "rival" (features cross), "picture" (a file crosses) or "shipped" (the
            start checkpoint as it is, without training).
        settings: arguments of the rival's class; of ours, the recipe, and whether codes are also shown at
            fixed length; of "shipped", the quantizer's name.
        knobs: what one set of weights serves; empty: the quantizer's own level count.
        unit: how a knob is written in a row's name, such as ``{}bit``; "" leaves it out.
        lr: highest learning rate of what learns beside the quantizer; 0: the recipe's.
    """

    method: str
    name: str = ""
    kind: Kind = "rival"
    settings: Mapping[str, Any] = field(default_factory=dict, hash=False)
    knobs: tuple[Knob, ...] = ()
    unit: str = ""
    lr: float = 0.0

    @property
    def label(self) -> str:
        """The variant's name without its learning rate: ``fsq-d16``."""
        return "-".join(part for part in (self.method, self.name) if part)

    def row(self, knob: Knob) -> str:
        """The name of a row of the table: ``fsq-d16-L5``, ``jpeg-40@64``."""
        if isinstance(knob, Setting):
            return f"{self.label}-{knob.label}"
        if not self.unit:
            return self.label
        return f"{self.label}-{self.unit.format((knob - 1).bit_length() if 'bit' in self.unit else knob)}"


def _settings(*grid: tuple[int, Sequence[int]], full: Sequence[tuple[int, int]] = ()) -> tuple[Setting, ...]:
    halved = [Setting(side=side, quality=quality) for side, qualities in grid for quality in qualities]
    return (*halved, *(Setting(side=side, quality=quality, chroma="4:4:4") for side, quality in full))


_JPEG = _settings((48, (40, 85)), (64, (10, 20, 40, 65)), (96, (10, 20, 40)), full=((64, 40), (96, 20)))
_WEBP = _settings((48, (40, 90)), (64, (10, 30, 60)), (96, (1, 10, 30, 60)))
_AVIF = _settings((48, (50, 65)), (64, (25, 40, 55)), (96, (20, 35, 50)), full=((64, 40),))

_SPREAD_9 = {"basis": "spread", "merge": 2}

VARIANTS: tuple[Variant, ...] = (
    Variant(method="paper-2bit", kind="ours", settings={"recipe": RIVAL_RECIPE, "fixed": True}),
    Variant(method="small", kind="ours", settings={"recipe": "small.toml"}),
    Variant(method="tiny", kind="ours", settings={"recipe": "tiny.toml"}),
    Variant(
        method="default",
        kind="ours",
        settings={"recipe": PACE_RECIPE},
        knobs=(2, 4, 8, 16, 32),
        unit="{}bit",
    ),
    Variant(method="shipped", name="fp16", kind="shipped", knobs=FP16),
    Variant(method="shipped", name="small", kind="shipped", settings={"quantizer": "small"}),
    Variant(method="shipped", name="tiny", kind="shipped", settings={"quantizer": "tiny"}),
    Variant(method="fp16", knobs=FP16),
    Variant(method="fsq", name="d8", settings={**_SPREAD_9, "code_dim": 8}, knobs=(5, 8, 16), unit="L{}"),
    Variant(method="fsq", name="d16", settings={**_SPREAD_9, "code_dim": 16}, knobs=(3, 5, 8), unit="L{}"),
    Variant(method="nf", name="largest", settings={"ends": "largest"}, knobs=(4, 8, 16), unit="{}bit"),
    Variant(
        method="nf",
        name="d32",
        settings={**_SPREAD_9, "code_dim": 32, "block": 32},
        knobs=(4, 8, 16),
        unit="{}bit",
    ),
    Variant(method="randtopk", name="features", knobs=(32, 64, 128, 256, 512), unit="k{}"),
    Variant(
        method="randtopk",
        name="principal",
        settings={"basis": "principal", "code_dim": 64, "merge": 2},
        knobs=(16, 32, 64, 128, 256),
        unit="k{}",
    ),
    Variant(method="splitfc", name="features", knobs=(128, 256, 512, 1024), unit="{}B"),
    Variant(
        method="splitfc",
        name="principal",
        settings={"basis": "principal", "code_dim": 32},
        knobs=(48, 64, 96, 128, 192, 256),
        unit="{}B",
    ),
    Variant(method="onebit", name="d16", settings={**_SPREAD_9, "code_dim": 16}, knobs=(2,)),
    Variant(method="onebit", name="d64", settings={**_SPREAD_9, "code_dim": 64}, knobs=(2,)),
    Variant(method="vq", name="36-d32", settings={"code_dim": 32}, knobs=(4096,)),
    Variant(method="vq", name="9-d32", settings={"code_dim": 32, "merge": 2}, knobs=(4096,)),
    Variant(method="int8-zstd", name="tensor", settings={"scale": "tensor"}, knobs=(256,)),
    Variant(
        method="int8-zstd",
        name="d32",
        settings={**_SPREAD_9, "code_dim": 32, "scale": "channel"},
        knobs=(256,),
    ),
    Variant(method="jpeg", kind="picture", knobs=_JPEG),
    Variant(method="webp", kind="picture", knobs=_WEBP),
    Variant(method="avif", kind="picture", knobs=_AVIF),
)

METHODS: tuple[str, ...] = tuple(dict.fromkeys(variant.method for variant in VARIANTS))
PICTURES: tuple[str, ...] = tuple(v.method for v in VARIANTS if v.kind == "picture")


def at_rates(variant: Variant, rates: Sequence[float] = RATES) -> list[Variant]:
    """The fine-tunes a variant's learning rate is chosen from; ours and the shipped have theirs already."""
    if variant.kind == "picture":
        return [replace(variant, lr=PICTURE_RATE)]
    tuned = variant.kind == "rival" or bool(variant.settings.get("fixed"))
    return [replace(variant, lr=rate) for rate in rates] if tuned else [variant]


def variants_of(methods: Sequence[str], *, quick: bool = False) -> list[Variant]:
    """The variants of some methods; ``quick``: the first of each, with at most two of its knobs.

    Raises:
        ValueError: for a method that does not exist.
    """
    unknown = [name for name in methods if name not in METHODS]
    if unknown:
        raise ValueError(f"no method {', '.join(map(repr, unknown))}; there are {', '.join(METHODS)}")
    chosen = [variant for variant in VARIANTS if variant.method in methods]
    if not quick:
        return chosen
    return [_shortened(chosen, method) for method in dict.fromkeys(v.method for v in chosen)]


def _shortened(variants: Sequence[Variant], method: str) -> Variant:
    first = next(variant for variant in variants if variant.method == method)
    middle = len(first.knobs) // 2
    knobs = first.knobs if len(first.knobs) < 3 else (first.knobs[middle], first.knobs[-1])
    return replace(first, knobs=knobs)
