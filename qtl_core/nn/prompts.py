"""The prompt of a model as text around picture and question, from its chat template."""

from __future__ import annotations

from typing import Any

from transformers import PreTrainedTokenizerFast

from qtl_core.bundle import Template
from qtl_core.errors import CheckpointError

IMAGE_TOKEN = "<image>"
_MARK = "\x02question\x03"


def split_template(tokenizer: PreTrainedTokenizerFast, image_token: str = IMAGE_TOKEN) -> Template:
    """The text around picture and question in the tokenizer's chat template.

    Args:
        tokenizer: with a chat template.
        image_token: what stands for a picture in rendered text.

    Raises:
        CheckpointError: if the template has no place for a picture or a question.
    """
    content: Any = [{"type": "image"}, {"type": "text", "text": _MARK}]
    try:
        text = str(
            tokenizer.apply_chat_template(
                [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
            )
        )
    except Exception as error:  # a template is a program of the checkpoint's, and raises what it likes
        raise CheckpointError(f"the chat template cannot be rendered: {error}") from error
    before, image, rest = text.partition(image_token)
    between, question, after = rest.partition(_MARK)
    if not image or not question:
        raise CheckpointError(f"the chat template renders {text!r}: no {image_token} before the question")
    return Template(before_image=before, between=between, after_question=after)
