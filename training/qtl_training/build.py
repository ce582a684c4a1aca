"""A new model from a recipe: transformers' classes, a tokenizer trained on the questions, quantizers."""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlavaConfig, LlavaForConditionalGeneration, PreTrainedTokenizerFast

from qtl_core.nn import stem
from qtl_core.nn.checkpoint import IMAGE_TOKEN, Settings, assemble, save_checkpoint
from qtl_core.nn.model import TowerSettings
from qtl_training.digits.questions import every_wording
from qtl_training.recipe import ModelRecipe

_MEAN = (0.5, 0.5, 0.5)
_CHAT_TEMPLATE = (
    "{% for message in messages %}{% if message['role'] == 'user' %}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}{% if part['type'] == 'image' %}" + IMAGE_TOKEN + "{% else %}"
    "{{ part['text'] }}{% endif %}{% endfor %}{% endif %}{{ '\\n' }}"
    "{% else %}{{ message['content'] }}{{ eos_token }}{% endif %}{% endfor %}"
)


def build_checkpoint(folder: Path, recipe: ModelRecipe, name: str, seed: int) -> None:
    """Writes a checkpoint with random weights, shaped as the recipe says."""
    torch.manual_seed(seed)
    stem.register()
    tokenizer = train_tokenizer(recipe.vocabulary)
    side = recipe.image_size // recipe.patch_size
    image_token = tokenizer.get_vocab()[IMAGE_TOKEN]
    vision = stem.SiglipStemVisionConfig(
        hidden_size=recipe.tower_width,
        intermediate_size=recipe.tower_mlp,
        num_hidden_layers=recipe.tower_layers,
        num_attention_heads=recipe.tower_heads,
        image_size=recipe.image_size,
        patch_size=recipe.patch_size,
        stem_widths=list(recipe.stem_widths),
        stem_blocks=list(recipe.stem_blocks),
        vision_use_head=False,
    )
    text = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=recipe.width,
        intermediate_size=recipe.mlp,
        num_hidden_layers=recipe.layers,
        num_attention_heads=recipe.heads,
        num_key_value_heads=recipe.heads,
        max_position_embeddings=256,
        rope_parameters={"rope_type": "default", "rope_theta": recipe.rope_theta},
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        tie_word_embeddings=True,
    )
    config = LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=image_token,
        image_seq_length=side * side,
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
        tie_word_embeddings=True,
    )
    llava = LlavaForConditionalGeneration(config)
    settings = Settings(
        name=name,
        vision=recipe.vision,
        language=recipe.language,
        picture_attention=recipe.picture_attention,
        picture_places=recipe.picture_places,
        image_aspect_ratio=recipe.image_aspect_ratio,
    )
    tower = TowerSettings(mean=_MEAN, std=_MEAN, feature_layer=-1, feature_select="full")
    processor = {
        "image_processor_type": "SiglipImageProcessor",
        "do_resize": True,
        "size": {"height": recipe.image_size, "width": recipe.image_size},
        "resample": 3,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(_MEAN),
        "image_std": list(_MEAN),
        "do_convert_rgb": True,
    }
    save_checkpoint(folder, llava, assemble(llava, settings, tower), settings, tokenizer, processor)


def train_tokenizer(vocabulary: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE of the questions' words; any other text still has tokens, only more of them."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=["<pad>", "</s>", IMAGE_TOKEN],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(every_wording(), trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="</s>",
        extra_special_tokens={"image_token": IMAGE_TOKEN},
        model_max_length=256,
        clean_up_tokenization_spaces=False,
    )
    fast.chat_template = _CHAT_TEMPLATE
    return fast
