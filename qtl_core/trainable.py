"""What ``qtl-export --trainable`` adds to a client half: the training step as graphs, and what it is for.

    train/training.json          this, listed in the manifest like every file
    train/features.onnx          picture uint8 [batch, height, width, 3] -> float16 [batch, tokens, n]
    train/forward.onnx           features, tensors, level count -> codes uint8, and statistics as they moved
    train/backward.onnx          the same, and the codes' gradient -> gradients of every tensor
    train/forward-16-bit.onnx    features, connector's tensors -> float16 features at the cut
    train/backward-16-bit.onnx   the same, and their gradient -> gradients of the connector's tensors
    train/adamw.onnx             one tensor, its gradient and moments -> after one step
    train/start.safetensors      the tensors that training starts from
    train/entropy-*-levels.npz   the entropy coder's tables, where the checkpoint brings them

docs/training.md names the inputs and outputs.
"""

from __future__ import annotations

from typing import Annotated, Final, Literal

import msgspec
from msgspec import Meta

from qtl_core.bundle import Half, Hex, Size
from qtl_core.errors import BundleError
from qtl_core.split_stage import SplitStage

SCHEMA: Final = 1
"""Version of ``training.json``; new optional fields do not change it."""
FOLDER: Final = "train"
FILE: Final = f"{FOLDER}/training.json"
FEATURES: Final = f"{FOLDER}/features.onnx"
FORWARD: Final = f"{FOLDER}/forward.onnx"
BACKWARD: Final = f"{FOLDER}/backward.onnx"
FORWARD_16: Final = f"{FOLDER}/forward-16-bit.onnx"
BACKWARD_16: Final = f"{FOLDER}/backward-16-bit.onnx"
ADAMW: Final = f"{FOLDER}/adamw.onnx"
START: Final = f"{FOLDER}/start.safetensors"

CONNECTOR: Final = "connector."
QUANTIZER: Final = "vision_quantizer."
K: Final = "vision_quantizer.k"
MEAN: Final = "vision_quantizer.mean"
STD: Final = "vision_quantizer.std"

NO_FIT: Final = (
    "`fit_quantizer` needs PyTorch where the pictures are: run that stage with qtl-train, and start from its "
    "checkpoint"
)
"""Why a stage is not for a client without PyTorch."""
_REMEDY: Final = "export it with: qtl-export --trainable RECIPE CHECKPOINT"


class Training(msgspec.Struct, frozen=True, kw_only=True):
    """``training.json``.

    Attributes:
        name: of the recipe.
        fingerprint: what the training server must have too, 32 hex digits.
        stages: what is trained, in order.
        seeds: of each stage.
        log_every: steps between lines of the log.
        codes: coded tokens and code_dim of a picture.
        features: tokens and width at the cut of a picture.
        tower: tokens and width of the tower's features of a picture.
        k_levels: level counts that have a k of their own; empty for one k.
        scaling: with "frozen", mean and deviation of every channel follow the batches.
        betas, eps: AdamW's.
        schema: version of this layout.
    """

    name: str
    fingerprint: Hex
    stages: tuple[SplitStage, ...]
    seeds: tuple[int, ...]
    log_every: Annotated[int, Meta(ge=1)]
    codes: tuple[Size, Size]
    features: tuple[Size, Size]
    tower: tuple[Size, Size]
    k_levels: tuple[int, ...]
    scaling: Literal["image", "frozen"]
    betas: tuple[float, float]
    eps: float
    schema: int = SCHEMA


class _Version(msgspec.Struct):
    schema: int


def read_training(half: Half) -> Training:
    """What a client half can be trained with.

    Raises:
        BundleError: nothing, or in a layout of another version.
    """
    if FILE not in half.manifest.files:
        raise BundleError(f"the client half at {half.path} has no training graphs; {_REMEDY}")
    path = half.file(FILE)
    try:
        data = path.read_bytes()
        schema = msgspec.json.decode(data, type=_Version).schema
        if schema != SCHEMA:
            remedy = "install a newer qtl-edge" if schema > SCHEMA else _REMEDY
            raise BundleError(f"{path} has schema {schema}, this version reads {SCHEMA}; {remedy}")
        return msgspec.json.decode(data, type=Training)
    except OSError as error:
        raise BundleError(f"cannot read {path}: {error.strerror}") from error
    except (msgspec.MsgspecError, UnicodeError) as error:
        raise BundleError(f"{path} cannot be read: {error}; {_REMEDY}") from error
