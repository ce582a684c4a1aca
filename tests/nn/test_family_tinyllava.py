"""TinyLLaVA Factory and Quantized-TinyLLaVA: the figures those projects' own code computed, to the letter."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from edge_runtime.picture import prepare
from qtl_core import codes as packing
from qtl_core.errors import CheckpointError
from qtl_core.nn.checkpoint import Checkpoint, load_checkpoint
from qtl_core.nn.decoder import PictureDecoder

GOLDEN = Path(__file__).resolve().parents[1] / "golden"
FINISHED = GOLDEN / "tinyllava" / "tinyllava-tiny"
QUANTIZED = GOLDEN / "quantized_tinyllava"
CLOSE = 1e-4
PREFIXES = {
    "language_model": "language_model.",
    "vision_tower": "vision_tower._vision_tower.",
    "connector": "connector.",
}


def expected(folder: Path) -> Mapping[str, npt.NDArray[Any]]:
    with np.load(folder / "expected.npz", allow_pickle=False) as file:
        return {name: file[name] for name in file.files}


def stage(folder: Path, change: Callable[[dict[str, Any]], object] = lambda config: None) -> Path:
    """The finished golden folder's weights as a staged folder."""
    folder.mkdir(parents=True)
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "config.json"):
        shutil.copy(FINISHED / name, folder)
    tensors = load_file(FINISHED / "model.safetensors")
    for part, prefix in PREFIXES.items():
        (folder / part).mkdir()
        chosen = {name.removeprefix(prefix): one for name, one in tensors.items() if name.startswith(prefix)}
        torch.save(chosen, folder / part / "pytorch_model.bin")
    configure(folder, change)
    return folder


def stage_quantized(folder: Path, change: Callable[[dict[str, Any]], object] = lambda config: None) -> Path:
    """The golden folder of Quantized-TinyLLaVA, laid out as that project does."""
    stage(folder)
    shutil.copy(QUANTIZED / "config.json", folder)
    shutil.copytree(QUANTIZED / "VQ_VAE", folder / "VQ_VAE")
    configure(folder, change)
    return folder


def finish(folder: Path, change: Callable[[dict[str, Any]], object] = lambda config: None) -> Path:
    """A copy of the finished golden folder."""
    shutil.copytree(FINISHED, folder)
    configure(folder, change)
    return folder


def configure(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    config = json.loads((folder / "config.json").read_text())
    change(config)
    (folder / "config.json").write_text(json.dumps(config))


def picture_for(checkpoint: Checkpoint) -> Tensor:
    pixels = prepare(GOLDEN / "tinyllava" / "image.png", checkpoint.picture)
    return torch.from_numpy(pixels.copy())[None]


def logits_of(decoder: PictureDecoder, pieces: list[Tensor]) -> npt.NDArray[np.float32]:
    embedded = torch.cat(pieces)[None]
    n = embedded.shape[1]
    hidden, _ = decoder(embedded, decoder.prompt_mask(0, 0, n)[None], torch.arange(n)[None])
    scores: npt.NDArray[np.float32] = decoder.logits(hidden).numpy()
    return scores


@pytest.mark.parametrize("layout", ["finished", "staged"])
def test_features_and_logits_are_those_of_tinyllava_factory(tmp_path: Path, layout: str) -> None:
    theirs = expected(GOLDEN / "tinyllava")
    checkpoint = load_checkpoint(FINISHED if layout == "finished" else stage(tmp_path / "staged"))
    assert checkpoint.family == "tinyllava" and not checkpoint.model.quantized
    picture = picture_for(checkpoint)
    pixels = (picture.permute(0, 3, 1, 2) / 255 - 0.5) / 0.5
    assert np.abs(pixels.numpy() - theirs["pixel_values"]).max() < 1e-6
    ids = torch.from_numpy(theirs["input_ids"][0])
    at = int((ids < 0).nonzero())
    decoder = checkpoint.model.decoder
    with torch.no_grad():
        features = checkpoint.model.vision(picture)
        pieces = [decoder.embed(ids[:at]), features[0], decoder.embed(ids[at + 1 :])]
        logits = logits_of(decoder, pieces)
    # The first of 16 tokens is dropped, although a SigLIP has no class token.
    assert features.shape == (1, 15, 64)
    assert np.abs(features.numpy() - theirs["image_features"]).max() <= CLOSE
    assert np.abs(logits - theirs["logits"]).max() <= CLOSE


def test_codes_and_logits_are_those_of_quantized_tinyllava(tmp_path: Path) -> None:
    theirs = expected(QUANTIZED)
    checkpoint = load_checkpoint(stage_quantized(tmp_path / "staged"))
    assert checkpoint.family == "quantized-tinyllava" and checkpoint.settings.vision.levels == 4
    model = checkpoint.model
    ids = torch.from_numpy(theirs["input_ids"][0])
    at = int((ids < 0).nonzero())
    with torch.no_grad():
        features = model.vision(picture_for(checkpoint))
        codes = model.vision_quantizer.encode(features)
        text_codes = model.language_quantizer.encode(model.decoder.embed(ids[ids >= 0])[None])
        restored = model.vision_quantizer.decode(codes)
        text = model.language_quantizer.decode(text_codes)
        logits = logits_of(model.decoder, [text[0, :at], restored[0], text[0, at:]])
    assert np.abs(features.numpy() - theirs["image_features"]).max() <= CLOSE
    assert packing.pack(codes[0].numpy(), 4) == theirs["image_packed"].tobytes()
    assert packing.pack(text_codes[0].numpy(), 4) == theirs["text_packed"].tobytes()
    assert np.abs(restored.numpy() - theirs["image_restored"]).max() <= CLOSE
    assert np.abs(text.numpy() - theirs["text_restored"]).max() <= CLOSE
    assert np.abs(logits - theirs["logits"]).max() <= CLOSE


def test_the_template_is_the_conversation_that_project_trains_on() -> None:
    checkpoint = load_checkpoint(FINISHED)
    template = checkpoint.template
    assert template.before_image.startswith("A chat between") and template.before_image.endswith(" USER: ")
    # What is behind the picture, with a question in it, is the prompt the reference was computed on.
    ids = expected(GOLDEN / "tinyllava")["input_ids"][0].tolist()
    prompt = f"{template.between}what is in the picture?{template.after_question}"
    assert checkpoint.tokenizer(prompt).input_ids == ids[ids.index(-200) + 1 :]
    assert checkpoint.end_tokens == (checkpoint.tokenizer.get_vocab()["<|endoftext|>"],)


def test_padded_pictures_lie_on_the_mean_cut_off_to_whole_numbers(tmp_path: Path) -> None:
    folder = finish(tmp_path / "padded", lambda config: config.update(image_aspect_ratio="pad"))
    picture = load_checkpoint(folder).picture
    assert picture.fit == "pad" and picture.pad_colour == (127, 127, 127)
    wide = prepare(np.zeros((28, 56, 3), dtype=np.uint8), picture)
    assert wide[0, 0].tolist() == [127, 127, 127] and wide[28, 28].tolist() == [0, 0, 0]


def test_the_whole_tower_output_is_kept_where_the_strategy_says_so(tmp_path: Path) -> None:
    folder = finish(
        tmp_path / "whole", lambda config: config.update(vision_feature_select_strategy="cls_patch")
    )
    checkpoint, dropped = load_checkpoint(folder), load_checkpoint(FINISHED)
    with torch.no_grad():
        features = checkpoint.model.vision(picture_for(checkpoint))
        assert torch.equal(features[:, 1:], dropped.model.vision(picture_for(dropped)))


def refused(folder: Path, named: str) -> None:
    with pytest.raises(CheckpointError, match=named) as caught:
        load_checkpoint(folder)
    assert caught.value.exit_code == 4 and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"connector_type": "honeybee"}, "'honeybee' is not supported; known here: mlpNx_gelu, linear"),
        ({"connector_type": "mlp0x_gelu"}, "'mlp0x_gelu' is not supported"),
        ({"connector_type": "identity"}, "the tower is 48 wide and the decoder 64"),
        ({"connector_type": "resampler"}, "needs num_queries, and that is None"),
        ({"connector_type": "qformer"}, "hold no queries"),
        ({"connector_type": "mlp3x_gelu"}, r"lacks connector\.4\.bias, connector\.4\.weight"),
        ({"connector_type": "linear"}, r"lacks connector\.bias"),
        ({"image_aspect_ratio": "anyres"}, "'anyres' is not one of square, pad"),
        ({"vision_feature_select_strategy": "cls"}, "'cls' is not one of patch, cls_patch"),
        ({"vision_feature_layer": [1, 2]}, r"\[1, 2\] is no number"),
        ({"vision_config": {"model_type": "mof"}}, "tower of the kind 'mof'"),
    ],
)
def test_settings_that_are_not_supported_are_named(
    tmp_path: Path, change: dict[str, Any], named: str
) -> None:
    refused(finish(tmp_path / "copy", lambda config: config.update(change)), named)


@pytest.mark.parametrize("part", [*PREFIXES, "VQ_VAE"])
def test_a_missing_stage_is_named(tmp_path: Path, part: str) -> None:
    folder = stage_quantized(tmp_path / "copy")
    (folder / part / "pytorch_model.bin").unlink()
    refused(folder, rf"{part} has no model\.safetensors")
    (folder / part).rmdir()
    # Without its decoder's folder it is taken for a finished one.
    refused(folder, f"has no {part}/" if part != "language_model" else "has no model.safetensors")


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"vq_type": "NF4"}, "vq_type 'NF4' is not supported; known here: FSQ"),
        ({"discrete_size": 1}, "discrete_size 1 is no number of levels from 2 to 256"),
        ({"discrete_size": None}, "discrete_size None"),
    ],
)
def test_quantizers_that_are_not_supported_are_named(
    tmp_path: Path, change: dict[str, Any], named: str
) -> None:
    refused(stage_quantized(tmp_path / "copy", lambda config: config.update(change)), named)


def test_a_quantizer_that_is_incomplete_is_named(tmp_path: Path) -> None:
    folder = stage_quantized(tmp_path / "copy")
    file = folder / "VQ_VAE" / "pytorch_model.bin"
    tensors = torch.load(file, weights_only=True)
    for name, named in (
        ("out_proj.bias", "lacks language.out_proj.bias"),
        ("in_proj.weight", "lacks quantizer_t"),
    ):
        less = {key: one for key, one in tensors.items() if key != f"quantizer_text.quantizer.{name}"}
        torch.save(less, file)
        refused(folder, named)


def test_a_linear_connector_is_filled(tmp_path: Path) -> None:
    tensors = load_file(FINISHED / "model.safetensors")
    rest = {name: one for name, one in tensors.items() if not name.startswith("connector.")}
    weight, bias = torch.randn(64, 48), torch.randn(64)
    linear = finish(tmp_path / "linear", lambda config: config.update(connector_type="linear"))
    save_file(
        {**rest, "connector._connector.weight": weight, "connector._connector.bias": bias},
        linear / "model.safetensors",
    )
    checkpoint = load_checkpoint(linear)
    picture = picture_for(checkpoint)
    with torch.no_grad():
        seen = checkpoint.model.vision.tower_features(picture)
        assert torch.allclose(checkpoint.model.vision(picture), seen @ weight.T + bias, atol=1e-5)
