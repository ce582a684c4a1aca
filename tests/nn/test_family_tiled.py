"""LLaVA-OneVision, Idefics3 and SmolVLM: features, logits and answers are those of transformers."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from edge_runtime.tiles import cut
from qtl_core.errors import CheckpointError
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


def edited(folder: Path, file: str, change: Callable[[dict[str, Any]], None]) -> None:
    """Rewrites a JSON file of a checkpoint."""
    values = json.loads((folder / file).read_text())
    change(values)
    (folder / file).write_text(json.dumps(values))


def test_tensors_under_the_names_of_published_files(tmp_path: Path) -> None:
    """LLaVA-OneVision as it was saved by the transformers of its day."""
    tiled.make_onevision(tmp_path)
    now = load_checkpoint(tmp_path)
    before = {
        "model.vision_tower.": "vision_tower.vision_model.",
        "model.language_model.": "language_model.model.",
        "lm_head.": "language_model.lm_head.",
        "model.": "",
    }
    tensors = {}
    for name, tensor in load_file(tmp_path / "model.safetensors").items():
        old = next(start for start in before if name.startswith(start) or start == "model.")
        tensors[before[old] + name.removeprefix(old).removeprefix("vision_model.")] = tensor
    assert "image_newline" in tensors and "language_model.lm_head.weight" in tensors
    save_file(tensors, tmp_path / "model.safetensors")
    then = load_checkpoint(tmp_path)
    for part, other in ((now.model, then.model), (now.assembly, then.assembly)):
        assert part is not None and other is not None
        for name, tensor in part.state_dict().items():
            assert torch.equal(tensor, other.state_dict()[name]), name


def test_a_configuration_as_smolvlm_was_published_with(tmp_path: Path) -> None:
    tiled.make_idefics3(tmp_path)
    now = load_checkpoint(tmp_path)

    def as_published(config: dict[str, Any]) -> None:
        config["vision_config"] |= {"model_type": "idefics3", "max_image_size": {"longest_edge": tiled.SIDE}}
        config["vision_config"] |= {"size": {"longest_edge": 84}, "use_base_siglip": False}
        config["text_config"] |= {"architectures": ["VLlama3ForCausalLM"], "pixel_shuffle_factor": 2}
        config["text_config"] |= {"is_llama_config": True, "use_resampler": False, "perceiver_config": {}}

    edited(tmp_path, "config.json", as_published)
    then = load_checkpoint(tmp_path)
    assert then.picture == now.picture
    picture = torch.from_numpy(cut(tiled.image(50, 40), then.picture).tiles)
    with torch.no_grad():
        assert torch.equal(now.model.vision(picture), then.model.vision(picture))


def _set(**values: Any) -> Callable[[dict[str, Any]], None]:
    return lambda settings: settings.update(values)


@pytest.mark.parametrize(
    ("make", "file", "values", "said"),
    [
        ("onevision", "config.json", {"vision_aspect_ratio": "pad"}, "'pad' is not anyres_max_N"),
        ("onevision", "config.json", {"image_grid_pinpoints": [[28, 56]]}, "make them the same"),
        (
            "onevision",
            "config.json",
            {"vision_feature_select_strategy": "default"},
            "15 tokens, which are no",
        ),
        ("onevision", "config.json", {"vision_config": {"model_type": "dinov2"}}, "known here: clip_vision"),
        ("idefics3", "config.json", {"scale_factor": 3}, "does not divide 4 patches"),
        ("idefics3", "config.json", {"image_token_id": 1}, "is not the tokenizer's <image>"),
        (
            "idefics3",
            "config.json",
            {"vision_config": {"model_type": "clip_vision_model"}},
            "'clip_vision_mo",
        ),
        (
            "idefics3",
            "preprocessor_config.json",
            {"size": {"height": 9, "width": 9}},
            "must have a longest_edge",
        ),
        (
            "idefics3",
            "preprocessor_config.json",
            {"size": {"longest_edge": 9000}},
            "9000 pixels is more than",
        ),
        ("idefics3", "preprocessor_config.json", {"max_image_size": {"longest_edge": 14}}, "takes 28 x 28"),
        ("idefics3", "preprocessor_config.json", {"do_resize": False}, "do_resize"),
    ],
)
def test_what_is_not_supported_is_named(
    tmp_path: Path, make: str, file: str, values: dict[str, Any], said: str
) -> None:
    {"onevision": tiled.make_onevision, "idefics3": tiled.make_idefics3}[make](tmp_path)
    edited(tmp_path, file, _set(**values))
    with pytest.raises(CheckpointError, match=said):
        load_checkpoint(tmp_path)


@pytest.mark.parametrize("pinpoints", [[[28, 30]], [[14, 14]], [28], [["a", "b"]], []])
def test_grids_that_are_none_are_named(tmp_path: Path, pinpoints: Any) -> None:
    tiled.make_onevision(tmp_path)
    edited(tmp_path, "preprocessor_config.json", _set(image_grid_pinpoints=pinpoints))
    edited(tmp_path, "config.json", _set(image_grid_pinpoints=pinpoints))
    with pytest.raises(CheckpointError, match="image_grid_pinpoints"):
        load_checkpoint(tmp_path)


def test_a_missing_newline_is_named(tmp_path: Path) -> None:
    tiled.make_onevision(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    tensors = {name: tensor for name, tensor in tensors.items() if "newline" not in name}
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"lacks assembly\.newline"):
        load_checkpoint(tmp_path)
