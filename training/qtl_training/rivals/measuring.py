"""What a trained variant reaches on a split: accuracy from what its bytes hold, and those bytes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor

from qtl_core.nn.checkpoint import Checkpoint
from qtl_training.answering import right_given
from qtl_training.digits.dataset import QuestionSet, share_right
from qtl_training.rivals import traffic
from qtl_training.rivals.methods import CODED, Knob, Setting, Variant, described
from qtl_training.rivals.ours import Ours
from qtl_training.rivals.pictures import Format, PictureCodec, features_of
from qtl_training.rivals.rival import Rival
from qtl_training.rivals.trial import Conditions, connected, tokens_of


def carrier(variant: Variant, checkpoint: Checkpoint) -> Rival:
    """What makes the bytes of a trained model whose features cross."""
    quantizer: Any = checkpoint.model.vision_quantizer
    if isinstance(quantizer, Rival):
        return quantizer
    return Ours(quantizer, tokens_of(checkpoint)).eval()


def knobs_of(variant: Variant, checkpoint: Checkpoint) -> tuple[Knob, ...]:
    """The variant's knobs, or its quantizer's own level count."""
    return variant.knobs or (carrier(variant, checkpoint).levels,)


def measure(
    variant: Variant,
    checkpoint: Checkpoint,
    data: QuestionSet,
    features: Tensor,
    training_features: Tensor,
    knobs: Sequence[Knob],
    conditions: Conditions,
) -> list[dict[str, Any]]:
    """Accuracy and bytes at each knob where features cross; the model answers from what the bytes hold.

    Codes of a rival, and of the paper's setting, are measured in two forms: at fixed length, as
    published, and ("coded") under our entropy coder where that is shorter. Ours travel in the second.

    Args:
        variant: what was trained.
        checkpoint: the trained model.
        data: the questions.
        features: tower features of their scenes.
        training_features: tower features of the training scenes, to fit tables to.
        knobs: which points.
        conditions: how many training pictures the tables see.
    """
    rival = carrier(variant, checkpoint)
    counts = [cast(int, knob) for knob in knobs]
    rival.calibrate(connected(checkpoint, training_features[: conditions.calibration_pictures]), counts)
    asked = sorted({question.scene for question in data.questions})
    crossing = connected(checkpoint, features[asked])
    rows = []
    for levels in counts:
        sent = rival.payloads(crossing, levels)
        restored = torch.zeros(len(features), *crossing.shape[1:])
        restored[asked] = rival.restore_all(sent, levels)
        right = right_given(checkpoint, restored.__getitem__, data.questions)
        payloads = dict(zip(asked, sent, strict=True))
        rival.packed = rival.coded
        # At fixed length one picture's payload is as long as any other's.
        fixed = dict.fromkeys(asked, rival.payloads(crossing[:1], levels)[0])
        rival.packed = False
        if not rival.coded:
            rows.append(_row(variant, levels, data, right, payloads))
        elif variant.kind == "rival" or variant.settings.get("fixed"):
            rows.append(_row(variant, levels, data, right, fixed))
            rows.append(_row(variant, levels, data, right, payloads, form=CODED))
        else:
            rows.append({**_row(variant, levels, data, right, payloads), "fixed_bytes": len(fixed[asked[0]])})
    return rows


def measure_pictures(
    variant: Variant,
    checkpoint: Checkpoint,
    data: QuestionSet,
    files: Iterator[tuple[Setting, list[bytes]]],
    *,
    fast: bool,
) -> list[dict[str, Any]]:
    """Accuracy and bytes at each setting of a codec.

    Args:
        variant: the codec's.
        checkpoint: the model fine-tuned on it.
        data: the questions.
        files: each setting and the file of every scene at it.
        fast: whether they were encoded at the codec's fast settings.
    """
    codec = PictureCodec(cast(Format, variant.method))
    rows = []
    for setting, encoded in files:
        crossing = connected(checkpoint, features_of(checkpoint.model.vision, codec, encoded))
        right = right_given(checkpoint, crossing.__getitem__, data.questions)
        row = _row(variant, setting, data, right, dict(enumerate(encoded)))
        header = codec.header(setting, fast=fast)
        row |= {"header_bytes": header, "net_bytes_mean": row["payload_bytes_mean"] - header}
        rows.append(row)
    return rows


def _row(
    variant: Variant,
    knob: Knob,
    data: QuestionSet,
    right: Sequence[bool],
    payloads: Mapping[int, bytes],
    *,
    form: str = "",
) -> dict[str, Any]:
    by_family, by_type = share_right(data.questions, right)
    return {
        "row": "-".join(part for part in (variant.row(knob), form) if part),
        "family": "-".join(part for part in (variant.method, form) if part),
        "knob": described(knob),
        "accuracy": by_family,
        "types": by_type,
        **traffic.sizes(payloads, data),
    }
