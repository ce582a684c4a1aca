"""PaliGemma 1 and 2: our features, logits and answers are those of transformers, on random weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from qtl_core.errors import CheckpointError
from qtl_core.nn.checkpoint import load_checkpoint
from tests.nn import foreign
from tests.nn.paligemma import make_paligemma
from tests.nn.test_family_llava import CLOSE, served

QUESTION = "detect digit ; is it there?"  # longer than a window of 6
CASES: dict[str, dict[str, Any]] = {
    "gemma": {},
    "gemma-bfloat16-old-names": {"dtype": torch.bfloat16, "old_names": True},
    "gemma2-windows-and-capped-scores": {"decoder": "gemma2"},
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_features_logits_and_answers_are_those_of_transformers(tmp_path: Path, case: dict[str, Any]) -> None:
    theirs = make_paligemma(tmp_path / "mine", **case)
    ours = load_checkpoint(tmp_path / "mine")
    assert ours.family == "paligemma" and not ours.model.quantized
    picture = foreign.pictures(1)
    pixels = ((picture / 255 - 0.5) / 0.5).permute(0, 3, 1, 2)
    # As PaliGemmaProcessor puts it.
    vocabulary = ours.tokenizer.get_vocab()
    text = ours.tokenizer(f"{QUESTION}\n", add_special_tokens=False).input_ids
    ids = torch.tensor([[vocabulary["<image>"]] * 16 + [ours.tokenizer.bos_token_id, *text]])
    given: Any = {"pixel_values": pixels, "token_type_ids": torch.zeros_like(ids)}
    given["attention_mask"] = torch.ones_like(ids)
    with torch.no_grad():
        expected = theirs.get_image_features(pixel_values=pixels).pooler_output[0]
        expected_logits = theirs(input_ids=ids, **given).logits[0]
        features = ours.model.vision(picture)[0]
        decoder = ours.model.decoder
        embedded = torch.cat([features, decoder.embed(ids[0, 16:])])
        n = len(embedded)
        hidden, _ = decoder(embedded[None], decoder.prompt_mask(0, 16, n - 16)[None], torch.arange(n)[None])
        logits = decoder.logits(hidden)[0]
        answer = theirs.generate(input_ids=ids, **given, do_sample=False, max_new_tokens=12)
        # Without the prefix's attention in both directions it is another model.
        causal = decoder.prompt_mask(0, 16, n - 16).tril()[None]
        other = decoder.logits(decoder(embedded[None], causal, torch.arange(n)[None])[0])[0]
    assert expected.abs().max() > 0.1 and expected_logits.abs().max() > 0.1
    assert (features - expected).abs().max() <= CLOSE
    assert (logits - expected_logits).abs().max() <= CLOSE
    assert (other - expected_logits).abs().max() > 100 * CLOSE

    part = served(tmp_path / "server", ours, 16)
    said = "".join(part.generate(features.numpy(), QUESTION, max_tokens=12))
    assert said == ours.tokenizer.decode(answer[0, ids.shape[1] :], skip_special_tokens=True)


def test_prompts_are_picture_start_question_newline(tmp_path: Path) -> None:
    make_paligemma(tmp_path)
    checkpoint = load_checkpoint(tmp_path)
    template = checkpoint.template
    assert (template.before_image, template.between, template.after_question) == ("", "<s>", "\n")
    assert checkpoint.prompt.start == () and checkpoint.settings.picture_attention == "prefix"
    assert checkpoint.end_tokens == (checkpoint.tokenizer.eos_token_id,)


def test_what_a_published_configuration_leaves_out_is_the_usual(tmp_path: Path) -> None:
    make_paligemma(tmp_path)
    file = tmp_path / "config.json"
    config = json.loads(file.read_text())
    for part in ("vision_config", "text_config"):
        del config[part]["model_type"]
    config.pop("tie_word_embeddings", None)
    file.write_text(json.dumps(config))
    model = load_checkpoint(tmp_path).model
    assert model.decoder.language_model.config.tie_word_embeddings
    assert model.vision.tower.config.model_type == "siglip_vision_model"


@pytest.mark.parametrize(
    ("part", "kind", "named"),
    [
        ("text_config", "llama", "decoder of the kind 'llama'; known here: gemma, gemma2"),
        ("vision_config", "clip_vision_model", "tower of the kind 'clip_vision_model'"),
    ],
)
def test_other_parts_are_named(tmp_path: Path, part: str, kind: str, named: str) -> None:
    make_paligemma(tmp_path)
    file = tmp_path / "config.json"
    config = json.loads(file.read_text())
    config[part]["model_type"] = kind
    file.write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=named):
        load_checkpoint(tmp_path)
