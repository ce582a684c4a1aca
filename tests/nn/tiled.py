"""Tiny LLaVA-OneVisions, Idefics3s and SmolVLMs with random weights, saved by transformers itself."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import (
    AutoConfig,
    BatchFeature,
    Idefics3Config,
    Idefics3ForConditionalGeneration,
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
    PreTrainedTokenizerFast,
    SmolVLMConfig,
    SmolVLMForConditionalGeneration,
)
from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil
from transformers.models.llava_onevision.image_processing_pil_llava_onevision import (
    LlavaOnevisionImageProcessorPil,
)
from transformers.models.llava_onevision.processing_llava_onevision import LlavaOnevisionProcessor
from transformers.models.smolvlm.image_processing_pil_smolvlm import SmolVLMImageProcessorPil

from qtl_core.nn.families.base import quiet
from tests.nn import foreign

SIDE, PATCH, WIDTH = foreign.SIDE, foreign.PATCH, foreign.WIDTH
GRIDS = ((1, 1), (1, 2), (2, 1), (2, 2), (1, 4), (4, 1))
_HALF = [0.5, 0.5, 0.5]
_TOWER: dict[str, Any] = {
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
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
    "max_position_embeddings": 4096,
    "bos_token_id": None,
    "pad_token_id": 0,
}
MARKERS = ("<fake_token_around_image>", "<global-img>", "<end_of_utterance>")


def make_onevision(
    folder: Path,
    *,
    tower: str = "siglip_vision_model",
    decoder: str = "qwen2",
    ratio: str = "anyres_max_9",
    grids: tuple[tuple[int, int], ...] = GRIDS,
    tied: bool = False,
    **more: Any,
) -> Any:
    """Writes a LLaVA-OneVision to a folder; returns it as transformers reads it in float32."""
    tokenizer = foreign.tokenizer_with_start()
    text = AutoConfig.for_model(
        decoder,
        **_DECODER,
        vocab_size=len(tokenizer),
        eos_token_id=tokenizer.eos_token_id,
        tie_word_embeddings=tied,
    )
    pinpoints = [[rows * SIDE, columns * SIDE] for rows, columns in grids]
    config = LlavaOnevisionConfig(
        vision_config=AutoConfig.for_model(tower, **_TOWER),
        text_config=text,
        image_token_index=tokenizer.get_vocab()["<image>"],
        video_token_index=len(tokenizer) - 1,
        image_grid_pinpoints=pinpoints,
        vision_aspect_ratio=ratio,
        tie_word_embeddings=tied,
        **more,
    )
    processor = LlavaOnevisionImageProcessorPil(
        size={"height": SIDE, "width": SIDE},
        image_grid_pinpoints=pinpoints,
        image_mean=_HALF,
        image_std=_HALF,
    )
    return _written(folder, LlavaOnevisionForConditionalGeneration, config, tokenizer, processor)


def make_idefics3(
    folder: Path,
    *,
    kind: str = "idefics3",
    split: bool = True,
    longest: int = 3 * SIDE,
    side: int = SIDE,
    patch: int = PATCH,
    scale: int = 2,
    markers: bool = True,
    tied: bool = False,
) -> Any:
    """Writes an Idefics3 or a SmolVLM; ``markers``: whether <global-img> and <row_..> are tokens."""
    tokenizer = foreign.tokenizer_with_start()
    added = [*MARKERS] if markers else ["<fake_token_around_image>", "<end_of_utterance>"]
    if markers:
        added += [f"<row_{row}_col_{column}>" for row in range(1, 7) for column in range(1, 7)]
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>", *added]})
    tokenizer.chat_template = (
        "{% for message in messages %}{{ message['role'] | capitalize }}"
        "{% if message['content'][0]['type'] == 'image' %}{{ ':' }}{% else %}{{ ': ' }}{% endif %}"
        "{% for line in message['content'] %}{% if line['type'] == 'text' %}{{ line['text'] }}"
        "{% elif line['type'] == 'image' %}{{ '<image>' }}{% endif %}{% endfor %}<end_of_utterance>\n"
        "{% endfor %}{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
    )
    shape = _TOWER | {"image_size": side, "patch_size": patch}
    text = AutoConfig.for_model(
        "llama",
        **_DECODER,
        vocab_size=len(tokenizer),
        eos_token_id=tokenizer.get_vocab()["<end_of_utterance>"],
        tie_word_embeddings=tied,
    )
    settings: dict[str, Any] = {
        "vision_config": shape,
        "text_config": text.to_dict(),
        "image_token_id": tokenizer.get_vocab()["<image>"],
        "scale_factor": scale,
        "tie_word_embeddings": tied,
    }
    edges: dict[str, Any] = {"size": {"longest_edge": longest}, "max_image_size": {"longest_edge": side}}
    model: Any
    config: Any
    processor: Any
    if kind == "idefics3":
        model, config = Idefics3ForConditionalGeneration, Idefics3Config(**settings)
        processor = Idefics3ImageProcessorPil(**edges, do_image_splitting=split)
    else:
        model, config = SmolVLMForConditionalGeneration, SmolVLMConfig(**settings)
        processor = SmolVLMImageProcessorPil(**edges, do_image_splitting=split)
    return _written(folder, model, config, tokenizer, processor)


def _written(folder: Path, kind: Any, config: Any, tokenizer: Any, processor: Any) -> Any:
    torch.manual_seed(5)
    model = kind(config).eval()
    with torch.no_grad():
        # Far from the small numbers that models start with: differences should have something to show in.
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * (0.15 if parameter.ndim > 1 else 0.05))
    with quiet():
        model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(processor.to_dict()))
    with quiet():
        read = kind.from_pretrained(folder, dtype=torch.float32)
    return read.eval()


def image(width: int, height: int, seed: int = 0) -> Image.Image:
    """A picture with something in it."""
    rng = np.random.default_rng([width, height, seed])
    small = rng.integers(0, 256, (height // 6 + 2, width // 6 + 2, 3), dtype=np.uint8)
    return Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)


def question_text(folder: Path, question: str) -> str:
    """The prompt with one <image> in it, as the chat template writes it."""
    content: Any = [{"type": "image"}, {"type": "text", "text": question}]
    return str(
        PreTrainedTokenizerFast.from_pretrained(folder).apply_chat_template(
            [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
        )
    )


def onevision_inputs(model: Any, folder: Path, picture: Image.Image, question: str) -> BatchFeature:
    """What transformers makes of a picture and a question; the count of tokens is its processor's own."""
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    images = LlavaOnevisionImageProcessorPil(**json.loads((folder / "preprocessor_config.json").read_text()))
    found = images(picture, return_tensors="pt")
    # Its processor cannot be built without a video processor, which needs torchvision.
    processor = LlavaOnevisionProcessor.__new__(LlavaOnevisionProcessor)
    vision = model.config.vision_config
    processor.image_processor = images
    processor.num_image_tokens = (vision.image_size // vision.patch_size) ** 2
    processor.vision_aspect_ratio = model.config.vision_aspect_ratio
    tokens = processor._get_number_of_features(picture.height, picture.width, SIDE, SIDE)
    text = question_text(folder, question).replace("<image>", "<image>" * tokens)
    ids = torch.tensor([tokenizer(text).input_ids])
    return BatchFeature({"input_ids": ids, "attention_mask": torch.ones_like(ids), **found})


def idefics3_inputs(model: Any, folder: Path, picture: Image.Image, question: str) -> BatchFeature:
    """What transformers makes of a picture and a question, by Idefics3's own processor."""
    from transformers.models.idefics3.processing_idefics3 import Idefics3Processor

    # SmolVLM's is the same for pictures, and needs torchvision for videos.
    images = Idefics3ImageProcessorPil(**json.loads((folder / "preprocessor_config.json").read_text()))
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    processor = Idefics3Processor(images, tokenizer, image_seq_len=model.model.image_seq_len)
    return processor(text=question_text(folder, question), images=[picture], return_tensors="pt")
