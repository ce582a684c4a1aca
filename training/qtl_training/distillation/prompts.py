"""What the model is asked about pictures nobody has described: a few general prompts, or the user's."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from qtl_core.errors import QuestionError

PROMPTS: Final = (
    "Describe the picture.",
    "Describe this image in detail.",
    "What is in the picture?",
    "What is in the foreground, and what is behind it?",
    "List the objects in the picture and where they are.",
    "How many objects are there?",
    "What colours are there in the picture?",
    "What text or numbers can be read in the picture?",
    "Who or what is in the picture, and what is happening?",
    "Where was this picture taken?",
    "What is on the left of the picture?",
    "What is on the right of the picture?",
    "What is in the middle of the picture?",
    "Is there a person in the picture? Answer yes or no.",
    "What is unusual about this picture?",
    "Give the picture a short title.",
)
"""Asked where no file of prompts is given."""


def read_prompts(path: Path | None) -> tuple[str, ...]:
    """One prompt a line; blank lines are skipped.

    Args:
        path: a UTF-8 file; None for ``PROMPTS``.

    Raises:
        QuestionError: unreadable, no UTF-8 text, or without a prompt.
    """
    if path is None:
        return PROMPTS
    try:
        text = path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise QuestionError(f"the prompts {path} cannot be read: {error}") from error
    found = tuple(dict.fromkeys(line.strip() for line in text.splitlines() if line.strip()))
    if not found:
        raise QuestionError(f"there is no prompt in {path}; put one on each line")
    return found
