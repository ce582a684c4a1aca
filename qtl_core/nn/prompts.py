"""The prompt of a model as text around picture and question, from its chat template."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerFast

from qtl_core.bundle import Template
from qtl_core.errors import CheckpointError
from qtl_core.nn.reading import first_line, read_json

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


def read_tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    """A checkpoint's tokenizer, its chat template included wherever that is kept.

    Raises:
        CheckpointError: no ``tokenizer.json``, or a broken one.
    """
    if not (folder / "tokenizer.json").is_file():
        raise CheckpointError(
            f"checkpoint {folder} has no tokenizer.json; is the download complete? An old tokenizer becomes "
            "one by AutoTokenizer.from_pretrained(FOLDER).save_pretrained(FOLDER)"
        )
    try:
        tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    except Exception as error:  # tokenizers raises nothing more specific
        raise CheckpointError(f"{folder / 'tokenizer.json'} cannot be read: {first_line(error)}") from error
    apart = folder / "chat_template.json"
    if not tokenizer.chat_template and apart.is_file():
        tokenizer.chat_template = read_json(apart).get("chat_template")
    return tokenizer


def start_tokens(tokenizer: PreTrainedTokenizerFast, text: str) -> tuple[int, ...]:
    """Ids that the tokenizer puts in front of every prompt; none where the text begins with them already."""
    backend = tokenizer.backend_tokenizer
    alone = backend.encode("x", add_special_tokens=False).ids
    ids = backend.encode("x", add_special_tokens=True).ids
    in_front = next((ids[:at] for at in range(len(ids)) if ids[at : at + len(alone)] == alone), [])
    start = "".join(str(tokenizer.convert_ids_to_tokens(one)) for one in in_front)
    return () if text.startswith(start) else tuple(in_front)
