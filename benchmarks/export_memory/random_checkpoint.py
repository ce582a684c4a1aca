"""A LLaVA of Hugging Face with random weights, as large as wanted: in shards, never held as a whole."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor
from transformers import LlamaConfig, LlavaConfig, LlavaForConditionalGeneration, SiglipVisionConfig

from qtl_core.nn.families.base import quiet
from qtl_core.nn.pictures import usual_processor
from qtl_core.nn.weights import without_weights
from qtl_training.build import train_tokenizer

_SHARD: Final = 1 << 30
_BLOCK: Final = 1 << 22
_VOCABULARY: Final = 32_000


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """Of a SigLIP tower and a Llama behind it."""

    side: int
    patch: int
    hidden: int
    mlp: int
    layers: int
    heads: int
    width: int
    decoder_mlp: int
    decoder_layers: int
    decoder_heads: int

    @property
    def tokens(self) -> int:
        """Tokens of a picture."""
        return (self.side // self.patch) ** 2


SIZES: Final = {
    "tiny": Sizes(side=56, patch=14, hidden=64, mlp=128, layers=2, heads=2, width=64, decoder_mlp=128,
                  decoder_layers=2, decoder_heads=2),
    "medium": Sizes(side=224, patch=16, hidden=768, mlp=3072, layers=8, heads=12, width=1024,
                    decoder_mlp=2816, decoder_layers=20, decoder_heads=8),
    "so400m": Sizes(side=384, patch=14, hidden=1152, mlp=4304, layers=27, heads=16, width=2560,
                    decoder_mlp=6912, decoder_layers=32, decoder_heads=32),
}  # fmt: skip
"""SigLIP so400m at 384 pixels before a decoder of 2.7 thousand million parameters, and two for tests."""


def write(folder: Path, sizes: Sizes, dtype: torch.dtype, seed: int = 0) -> int:
    """Writes the checkpoint.

    Args:
        folder: created.
        sizes: of tower and decoder.
        dtype: of the stored weights.
        seed: of the weights.

    Returns:
        Bytes of the decoder's weights on disk.
    """
    folder.mkdir(parents=True)
    tokenizer = train_tokenizer(300)
    vision = SiglipVisionConfig(
        hidden_size=sizes.hidden,
        intermediate_size=sizes.mlp,
        num_hidden_layers=sizes.layers,
        num_attention_heads=sizes.heads,
        image_size=sizes.side,
        patch_size=sizes.patch,
        vision_use_head=False,
    )
    config = LlavaConfig(
        vision_config=vision,
        text_config=LlamaConfig(
            hidden_size=sizes.width,
            intermediate_size=sizes.decoder_mlp,
            num_hidden_layers=sizes.decoder_layers,
            num_attention_heads=sizes.decoder_heads,
            vocab_size=_VOCABULARY,
            max_position_embeddings=4096,
            eos_token_id=tokenizer.eos_token_id,
            bos_token_id=None,
            tie_word_embeddings=False,
        ),
        image_token_index=_VOCABULARY - 1,
        image_seq_length=sizes.tokens,
        vision_feature_layer=-2,
        vision_feature_select_strategy="full",
        tie_word_embeddings=False,
    )
    with quiet(), without_weights():
        shapes = {
            name: each.shape for name, each in LlavaForConditionalGeneration(config).state_dict().items()
        }
    decoder = _write_shards(folder, shapes, dtype, torch.Generator().manual_seed(seed))
    config.architectures = ["LlavaForConditionalGeneration"]
    config.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(usual_processor(vision.to_dict())), "utf-8")
    return decoder


def write_pictures(folder: Path, n: int, side: int) -> None:
    """Writes pictures with something in them: random gratings."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    y, x = (axis[..., None] / side for axis in np.mgrid[:side, :side])
    for index in range(n):
        wave, phase = rng.uniform(-40, 40, (2, 3)), rng.uniform(0, 6, 3)
        light = 127.5 + 127.5 * np.sin(wave[0] * x + wave[1] * y + phase)
        Image.fromarray(light.astype(np.uint8)).save(folder / f"{index:03}.png")


def _write_shards(
    folder: Path, shapes: dict[str, torch.Size], dtype: torch.dtype, generator: torch.Generator
) -> int:
    # One block of random numbers over and over: what the weights are is of no matter to memory.
    block = torch.randn(_BLOCK, generator=generator) / 50
    shard: dict[str, Tensor] = {}
    places: dict[str, str] = {}
    decoder = 0
    waiting = list(shapes)
    while waiting:
        name = waiting.pop(0)
        shard[name] = _values(name, shapes[name], block).to(dtype)
        size = shard[name].nbytes
        decoder += 0 if name.startswith(("model.vision_tower.", "model.multi_modal_projector.")) else size
        if not waiting or sum(each.nbytes for each in shard.values()) >= _SHARD:
            file = f"model-{len(set(places.values())) + 1:05}.safetensors"
            save_file(shard, folder / file)
            places |= dict.fromkeys(shard, file)
            shard = {}
    index = {"metadata": {}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), "utf-8")
    return decoder


def _values(name: str, shape: torch.Size, block: Tensor) -> Tensor:
    if "norm" in name:
        return torch.ones(shape) if name.endswith("weight") else torch.zeros(shape)
    times = -(-shape.numel() // len(block))
    return block.repeat(times)[: shape.numel()].reshape(shape)
