"""Tiny PaliGemmas with random weights, saved by transformers itself."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, PaliGemmaConfig, PaliGemmaForConditionalGeneration

from qtl_core.nn.families.base import quiet
from tests.nn import foreign


def make_paligemma(
    folder: Path, decoder: str = "gemma", *, dtype: torch.dtype = torch.float32, old_names: bool = False
) -> Any:
    """Writes a PaliGemma to a folder; returns it as transformers reads it in float32."""
    tokenizer = foreign.tokenizer_with_start()
    settings: dict[str, Any] = {"vocab_size": len(tokenizer), "hidden_size": foreign.WIDTH, "head_dim": 16}
    settings |= {"intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 2}
    settings |= {"num_key_value_heads": 1, "max_position_embeddings": 256, "pad_token_id": 0}
    settings |= {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    if decoder == "gemma2":
        settings |= {"sliding_window": 6, "query_pre_attn_scalar": 16, "final_logit_softcapping": 3.0}
    config = PaliGemmaConfig(
        vision_config=AutoConfig.for_model("siglip_vision_model", **foreign.TOWER, vision_use_head=False),
        text_config=AutoConfig.for_model(decoder, **settings),
        image_token_index=tokenizer.get_vocab()["<image>"],
        projection_dim=foreign.WIDTH,
        hidden_size=foreign.WIDTH,
    )
    torch.manual_seed(6)
    model = PaliGemmaForConditionalGeneration(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * (0.15 if parameter.ndim > 1 else 0.05))
    with quiet():
        model.to(dtype).save_pretrained(folder, save_original_format=old_names)
    tokenizer.chat_template = None
    tokenizer.save_pretrained(folder)
    side = {"height": foreign.SIDE, "width": foreign.SIDE}
    processor = {"image_processor_type": "SiglipImageProcessor", "size": side, "image_seq_length": 16}
    (folder / "preprocessor_config.json").write_text(json.dumps({**processor, "do_convert_rgb": None}))
    with quiet():
        read: PaliGemmaForConditionalGeneration = PaliGemmaForConditionalGeneration.from_pretrained(
            folder, dtype=torch.float32
        )
    return read.eval()
