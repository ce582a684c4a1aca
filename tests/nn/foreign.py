"""Tiny LLaVAs of Hugging Face with random weights, saved by transformers itself."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    PreTrainedTokenizerFast,
)

from qtl_core.nn.families.base import quiet
from qtl_core.nn.pictures import usual_processor
from qtl_training.build import train_tokenizer

SIDE, PATCH, WIDTH = 28, 7, 32
TOWER = {
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "image_size": SIDE,
    "patch_size": PATCH,
}
_DECODER: dict[str, Any] = {
    "hidden_size": WIDTH,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 256,
    "bos_token_id": None,
}
# What a kind of decoder needs beside, or instead.
_MORE: dict[str, dict[str, Any]] = {
    "phi": {"num_key_value_heads": 2},
    "phi3": {"pad_token_id": 0},
    "qwen3": {"head_dim": 16},
    "gemma": {"head_dim": 16},
    "gemma2": {"head_dim": 16, "sliding_window": 6, "query_pre_attn_scalar": 16},
    "gemma3_text": {"head_dim": 16, "sliding_window": 6, "query_pre_attn_scalar": 16, "num_hidden_layers": 7},
    "mistral": {"sliding_window": 6},
}


def tokenizer_with_start() -> PreTrainedTokenizerFast:
    """A byte-level tokenizer with <image>, whose prompts begin with a start token."""
    from tokenizers.processors import TemplateProcessing

    tokenizer = train_tokenizer(300)
    tokenizer.add_special_tokens({"bos_token": "<s>"})
    start = tokenizer.convert_tokens_to_ids("<s>")
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", start)]
    )
    tokenizer.chat_template = (
        "{% for message in messages %}{{ message['role'] | upper + ': ' }}"
        "{% for part in message['content'] %}"
        "{% if part['type'] == 'image' %}{{ '<image>\n' }}{% endif %}{% endfor %}"
        "{% for part in message['content'] %}{% if part['type'] == 'text' %}{{ part['text'] }}{% endif %}"
        "{% endfor %}{% endfor %}{% if add_generation_prompt %}{{ ' ASSISTANT:' }}{% endif %}"
    )
    return tokenizer


def make_llava(
    folder: Path,
    tower: str = "clip_vision_model",
    decoder: str = "llama",
    *,
    layer: int | list[int] = -2,
    select: Any = "default",
    tied: bool = False,
    dtype: torch.dtype = torch.float32,
    shard: str = "1GB",
) -> Any:
    """Writes a LLaVA to a folder; returns it as transformers reads it in float32."""
    tokenizer = tokenizer_with_start()
    settings = {**_DECODER, **_MORE.get(decoder, {}), "vocab_size": len(tokenizer)}
    settings |= {"eos_token_id": tokenizer.eos_token_id, "tie_word_embeddings": tied}
    if decoder == "phi":
        settings["partial_rotary_factor"] = 0.5
    settings.setdefault("pad_token_id", 0)
    vision = AutoConfig.for_model(tower, **TOWER)
    tokens = (SIDE // PATCH) ** 2 + (tower == "clip_vision_model") - (select == "default")
    config = LlavaConfig(
        vision_config=vision,
        text_config=AutoConfig.for_model(decoder, **settings),
        image_token_index=tokenizer.get_vocab()["<image>"],
        image_seq_length=tokens,
        vision_feature_layer=layer,
        vision_feature_select_strategy=select,
        tie_word_embeddings=tied,
    )
    torch.manual_seed(5)
    llava = LlavaForConditionalGeneration(config).eval()
    with torch.no_grad():
        # Far from the small numbers that models start with: differences should have something to show in.
        for parameter in llava.parameters():
            parameter.add_(torch.randn_like(parameter) * (0.15 if parameter.ndim > 1 else 0.05))
    with quiet():
        llava.to(dtype).save_pretrained(folder, max_shard_size=shard)
    tokenizer.save_pretrained(folder)
    processor = usual_processor(vision.to_dict())
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    with quiet():
        read: LlavaForConditionalGeneration = LlavaForConditionalGeneration.from_pretrained(
            folder, dtype=torch.float32
        )
    return read.eval()


def prompt_of(llava: Any, folder: Path, question: str) -> torch.Tensor:
    """The ids that transformers makes of a question about a picture, int64 [1, n]."""
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    content: Any = [{"type": "image"}, {"type": "text", "text": question}]
    text = str(
        tokenizer.apply_chat_template(
            [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
        )
    )
    text = text.replace("<image>", "<image>" * llava.config.image_seq_length)
    return torch.tensor([tokenizer(text).input_ids])


def pictures(n: int, side: int = SIDE) -> torch.Tensor:
    """Random pictures, uint8 [n, side, side, 3]."""
    return torch.randint(
        0, 256, (n, side, side, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(7)
    )
