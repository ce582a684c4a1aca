"""LLaVA-OneVision, Idefics3 and SmolVLM: features, logits and answers are those of transformers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from edge_runtime.tiles import cut
from qtl_core.nn.checkpoint import Checkpoint, load_checkpoint
from qtl_core.nn.server_partition import ServerPartition
from tests.nn import tiled
from tests.nn.test_family_llava import served

QUESTION = "how many digits are there?"
CLOSE = 1e-4
SIZES = [(28, 28), (61, 40), (40, 61), (13, 9), (200, 30), (30, 200)]
ONEVISION: dict[str, dict[str, Any]] = {
    "siglip-qwen2": {},
    "pooled-tied": {"ratio": "anyres_max_1", "tied": True},
    "clip-llama-layers": {
        "tower": "clip_vision_model",
        "decoder": "llama",
        "vision_feature_layer": [-2, -1],
        "vision_feature_select_strategy": "default",
    },
    "one-grid": {"grids": ((1, 1),)},
}
IDEFICS3: dict[str, dict[str, Any]] = {
    "idefics3": {},
    "idefics3-whole": {"split": False},
    "smolvlm-tied": {"kind": "smolvlm", "tied": True, "longest": 90},
    "smolvlm-one-tile": {"kind": "smolvlm", "longest": tiled.SIDE},
    "markers-as-text": {"markers": False},
    # 25 patches a row: some places are others than one would think.
    "odd-places": {"side": 50, "patch": 2, "scale": 5, "longest": 100},
}
Inputs = Callable[..., Any]


@pytest.mark.parametrize("case", ONEVISION.values(), ids=ONEVISION.keys())
def test_onevision(tmp_path: Path, case: dict[str, Any]) -> None:
    theirs = tiled.make_onevision(tmp_path / "theirs", **case)
    compare(tmp_path, theirs, "llava-onevision", tiled.onevision_inputs)


@pytest.mark.parametrize("case", IDEFICS3.values(), ids=IDEFICS3.keys())
def test_idefics3(tmp_path: Path, case: dict[str, Any]) -> None:
    theirs = tiled.make_idefics3(tmp_path / "theirs", **case)
    compare(tmp_path, theirs, case.get("kind", "idefics3"), tiled.idefics3_inputs)


def compare(tmp_path: Path, theirs: Any, family: str, inputs: Inputs) -> None:
    ours = load_checkpoint(tmp_path / "theirs")
    assert ours.family == family and not ours.model.quantized
    part = served(tmp_path / "server", ours, tokens_of(ours))
    counts = set()
    for width, height in SIZES:
        picture = tiled.image(width, height)
        given = inputs(theirs, tmp_path / "theirs", picture, QUESTION)
        with torch.no_grad():
            expected = theirs(**given).logits[0, -1]
            answer = theirs.generate(**given, do_sample=False, max_new_tokens=12)
        assert expected.abs().max() > 0.1
        told, said = answered(ours, part, picture)
        assert (told - expected).abs().max() <= CLOSE, (width, height)
        wanted: Any = ours.tokenizer.decode(
            answer[0, given["input_ids"].shape[1] :], skip_special_tokens=True
        )
        # Bytes of a character that the answer ends within are not shown.
        assert said.rstrip("\ufffd") == wanted.rstrip("\ufffd")
        counts.add(given["input_ids"].shape[1])
    # Otherwise nothing would depend on the size.
    assert len(counts) > 1 or ours.picture.most_tiles <= 2


def answered(ours: Checkpoint, part: ServerPartition, picture: Any) -> tuple[torch.Tensor, str]:
    """Logits behind the prompt, and the answer, through both sides of the cut."""
    seen = cut(picture, ours.picture)
    with torch.no_grad():
        features = ours.model.vision(torch.from_numpy(seen.tiles)).numpy()
    size = seen.size if ours.picture.tiled else None
    with torch.inference_mode():
        embeddings, before, tokens = part.prompt(features, QUESTION, size=size)
        n = embeddings.shape[1]
        assert n <= ours.settings.max_answer_tokens + 4096
        mask = part.decoder.prompt_mask(before, tokens, n - before - tokens)[None]
        hidden, _ = part.decoder(embeddings, mask, torch.arange(n)[None])
        logits = part.decoder.logits(hidden[0, -1])
    return logits, "".join(part.generate(features, QUESTION, max_tokens=12, size=size))


def tokens_of(ours: Checkpoint) -> int:
    with torch.no_grad():
        return int(ours.model.vision(torch.zeros(1, ours.picture.height, ours.picture.width, 3)).shape[1])
