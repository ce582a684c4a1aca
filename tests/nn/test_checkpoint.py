"""Checkpoints: what is written is what is read, and what is broken is named."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from transformers import LlavaForConditionalGeneration

from qtl_core.errors import CheckpointError
from qtl_core.nn import Quantizer, stem
from qtl_core.nn.checkpoint import (
    Checkpoint,
    FurtherQuantizer,
    QuantizerSettings,
    load_checkpoint,
    save_quantizer,
)
from qtl_training.run_folder import write


def test_round_trip_keeps_every_weight(tiny: Checkpoint, tmp_path: Path) -> None:
    write(tmp_path / "again", tiny)
    again = load_checkpoint(tmp_path / "again")
    ours, theirs = tiny.model.state_dict(), again.model.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert again.settings == tiny.settings and again.template == tiny.template


def test_transformers_reads_the_folder_by_itself(tiny_folder: Path, tiny: Checkpoint) -> None:
    stem.register()
    llava = LlavaForConditionalGeneration.from_pretrained(tiny_folder)
    picture = torch.randint(0, 256, (1, 96, 96, 3), dtype=torch.uint8)
    pixels = (picture.permute(0, 3, 1, 2) / 255 - 0.5) / 0.5
    with torch.no_grad():
        ours = tiny.model.vision(picture)[0]
        theirs = llava.eval().get_image_features(pixel_values=pixels).pooler_output[0]
    assert torch.allclose(ours, theirs, atol=1e-5)


def test_the_template_is_split_round_picture_and_question(tiny: Checkpoint) -> None:
    assert tiny.template.before_image == "" and tiny.template.after_question == "\n"


@pytest.mark.parametrize(
    "name",
    [
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "preprocessor_config.json",
        "qtl.json",
        "qtl.safetensors",
    ],
)
def test_a_missing_file_is_named(tiny_folder: Path, tmp_path: Path, name: str) -> None:
    shutil.copytree(tiny_folder, tmp_path / "copy")
    (tmp_path / "copy" / name).unlink()
    with pytest.raises(CheckpointError, match=name):
        load_checkpoint(tmp_path / "copy")


@pytest.mark.parametrize(
    "name", ["config.json", "model.safetensors", "preprocessor_config.json", "qtl.json", "qtl.safetensors"]
)
def test_a_broken_file_is_named(tiny_folder: Path, tmp_path: Path, name: str) -> None:
    shutil.copytree(tiny_folder, tmp_path / "copy")
    (tmp_path / "copy" / name).write_bytes(b"\x00broken")
    with pytest.raises(CheckpointError, match="cannot be read"):
        load_checkpoint(tmp_path / "copy")


def test_another_family_is_refused_by_name(tiny_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_folder, tmp_path / "copy")
    config = json.loads((tmp_path / "copy" / "config.json").read_text())
    config["model_type"] = "mamba"
    (tmp_path / "copy" / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="'mamba'; known here: 'llava'"):
        load_checkpoint(tmp_path / "copy")


def test_settings_that_do_not_fit_the_weights(tiny_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_folder, tmp_path / "copy")
    settings = json.loads((tmp_path / "copy" / "qtl.json").read_text())
    settings["vision"]["code_dim"] = 12
    (tmp_path / "copy" / "qtl.json").write_text(json.dumps(settings))
    with pytest.raises(CheckpointError, match=r"vision_quantizer\.\w+"):
        load_checkpoint(tmp_path / "copy")


def test_no_folder(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no checkpoint at"):
        load_checkpoint(tmp_path / "nowhere")


def test_the_stem_says_which_patch_size_it_needs() -> None:
    with pytest.raises(ValueError, match="it must be 16"):
        stem.SiglipStemEmbeddings(stem.SiglipStemVisionConfig(patch_size=14, image_size=56))


def test_a_further_quantizer_takes_the_place_of_the_checkpoints_own(
    tiny_folder: Path, tiny: Checkpoint, tmp_path: Path
) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(tiny_folder, folder)
    settings = QuantizerSettings(
        code_dim=5, levels=3, scaling="frozen", merge=3, k_levels=(3,), k_channels=True
    )
    quantizer = settings.build(16)
    save_quantizer(folder, "small", FurtherQuantizer(settings, quantizer))
    chosen = load_checkpoint(folder, quantizer="small")
    assert chosen.quantizers == ("small",) and chosen.quantizer == "small"
    assert chosen.settings.vision == settings and chosen.settings.language == tiny.settings.language
    assert torch.equal(chosen.model.vision_quantizer.in_proj.weight, quantizer.in_proj.weight)
    own = load_checkpoint(folder)
    assert own.quantizers == ("small",) and own.quantizer == ""
    assert own.settings == tiny.settings


def test_a_quantizer_that_is_not_there_is_named(tiny_folder: Path) -> None:
    with pytest.raises(CheckpointError, match="no quantizer 'huge'; it has none"):
        load_checkpoint(tiny_folder, quantizer="huge")


def test_a_further_quantizer_that_does_not_fit_is_named(tiny_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(tiny_folder, folder)
    save_quantizer(folder, "small", FurtherQuantizer(QuantizerSettings(code_dim=5), Quantizer(12, 5, 4)))
    with pytest.raises(CheckpointError, match=r"small.*in_proj\.weight is \[5, 12\]"):
        load_checkpoint(folder, quantizer="small")
