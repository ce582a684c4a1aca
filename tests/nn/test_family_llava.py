"""Hugging Face's LLaVA: our features, logits and answers are those of transformers, on random weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from qtl_core.bundle import Cut, Manifest, Text
from qtl_core.nn.checkpoint import Checkpoint, load_checkpoint
from qtl_core.nn.server_partition import ServerPartition, write_server_half
from tests.nn import foreign

QUESTION = "how many digits are there?"
CLOSE = 1e-4
CASES: dict[str, dict[str, Any]] = {
    "clip-llama": {},
    "clip-llama-float16": {"dtype": torch.float16, "shard": "20KB"},
    "siglip-llama-bfloat16-tied": {"tower": "siglip_vision_model", "dtype": torch.bfloat16, "tied": True},
    "clip-qwen2-several-layers": {"decoder": "qwen2", "layer": [-3, -1], "tied": True},
    "siglip-qwen3-full": {"tower": "siglip_vision_model", "decoder": "qwen3", "layer": -1, "select": "full"},
    "clip-phi-full": {"decoder": "phi", "select": "full"},
    "siglip-phi3-first-layers": {"tower": "siglip_vision_model", "decoder": "phi3", "layer": [0, 1, 2]},
    "clip-gemma-tied": {"decoder": "gemma", "tied": True},
    "siglip-gemma2-windows": {"tower": "siglip_vision_model", "decoder": "gemma2", "tied": True},
    "siglip-gemma3-windows": {"tower": "siglip_vision_model", "decoder": "gemma3_text", "select": "full"},
    "clip-mistral-window": {"decoder": "mistral"},
    "siglip-stablelm": {"tower": "siglip_vision_model", "decoder": "stablelm"},
}


def served(folder: Path, checkpoint: Checkpoint, tokens: int) -> ServerPartition:
    width = checkpoint.model.decoder.width
    cut = Cut(
        tokens=tokens,
        width=width,
        code_dim=width,
        merge=1,
        levels=0,
        bits=16,
        scaling="none",
        codec="float16",
        payload_bytes=2 * tokens * width,
    )
    text = Text(mode="plain", levels=0, code_dim=0, width=width, max_tokens=64, scaling="none")
    write_server_half(folder, checkpoint, cut, text)
    manifest = Manifest(
        half="server",
        fingerprint="0" * 32,
        model="tiny",
        cut=cut,
        picture=checkpoint.picture,
        text=text,
        template=checkpoint.template,
        files={},
    )
    return ServerPartition.load(folder, manifest)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_features_logits_and_answers_are_those_of_transformers(tmp_path: Path, case: dict[str, Any]) -> None:
    theirs = foreign.make_llava(tmp_path / "llava", **case)
    ours = load_checkpoint(tmp_path / "llava")
    assert ours.family == "llava" and not ours.model.quantized
    picture = foreign.pictures(1)
    mean, std = (torch.tensor(ours.processor[name]) for name in ("image_mean", "image_std"))
    pixels = ((picture / 255 - mean) / std).permute(0, 3, 1, 2)
    ids = foreign.prompt_of(theirs, tmp_path / "llava", QUESTION)
    with torch.no_grad():
        expected = theirs.get_image_features(pixel_values=pixels).pooler_output[0]
        expected_logits = theirs(input_ids=ids, pixel_values=pixels).logits[0]
        features = ours.model.vision(picture)[0]
        decoder = ours.model.decoder
        is_picture = ids[0] == theirs.config.image_token_index
        embedded = decoder.embed(ids[0].masked_fill(is_picture, 0))
        embedded[is_picture] = features
        n = len(embedded)
        hidden, _ = decoder(embedded[None], decoder.prompt_mask(0, 0, n)[None], torch.arange(n)[None])
        logits = decoder.logits(hidden)[0]
        answer = theirs.generate(input_ids=ids, pixel_values=pixels, do_sample=False, max_new_tokens=12)
    assert expected.abs().max() > 0.1 and expected_logits.abs().max() > 0.1
    assert (features - expected).abs().max() <= CLOSE
    assert (logits - expected_logits).abs().max() <= CLOSE

    part = served(tmp_path / "server", ours, len(features))
    said = "".join(part.generate(features.numpy(), QUESTION, max_tokens=12))
    assert said == ours.tokenizer.decode(answer[0, ids.shape[1] :], skip_special_tokens=True)


def test_prompts_begin_as_the_tokenizer_begins_them(tmp_path: Path) -> None:
    foreign.make_llava(tmp_path)
    checkpoint = load_checkpoint(tmp_path)
    template = checkpoint.template
    assert checkpoint.prompt.start == (checkpoint.tokenizer.get_vocab()["<s>"],)
    assert template.before_image == "USER: "
    assert template.between == "\n" and template.after_question == " ASSISTANT:"
