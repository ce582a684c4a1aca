"""The token ids of a prompt: what stands before the picture, and question and template behind it.

Text that looks like a special token must not become one where it is somebody's question.
"""

from __future__ import annotations

import re
from typing import Literal, TypeAlias

import msgspec
from tokenizers import AddedToken, Tokenizer

from qtl_core.bundle import Template

Joint: TypeAlias = Literal["pieces", "whole", "chunks"]
# Stands for the picture in front of a question, where the tokenizer's own token for it is read as text.
_PICTURE = "\ue000picture\ue001"


class PromptStyle(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How a model's prompts become tokens.

    Attributes:
        joint: "pieces" tokenizes each piece of the template and the question on its own, which is what coded
            questions need; "whole" the prompt as one text with the picture in it, as transformers does;
            "chunks" what is behind the picture as a text of its own.
        start: ids in front of everything.
    """

    joint: Joint = "pieces"
    start: tuple[int, ...] = ()


class PromptTokens:
    """Tokenizes prompts of one model.

    Args:
        tokenizer: the model's; it is not changed.
        template: what stands around picture and question.
        style: how they are joined.
    """

    def __init__(self, tokenizer: Tokenizer, template: Template, style: PromptStyle) -> None:
        self._tokenizer, self._template, self._style = tokenizer, template, style
        self._plain = Tokenizer.from_str(tokenizer.to_str())
        self._plain.encode_special_tokens = True
        self._behind = Tokenizer.from_str(tokenizer.to_str())
        self._behind.add_tokens([AddedToken(_PICTURE, normalized=False)])
        self._behind.encode_special_tokens = True
        special = [token.content for token in tokenizer.get_added_tokens_decoder().values() if token.special]
        self._special = re.compile(
            "|".join(map(re.escape, sorted(special, key=len, reverse=True))) or r"(?!)"
        )

    def question(self, question: str) -> list[int]:
        """The ids of a question on its own."""
        return list(self._plain.encode(question, add_special_tokens=False).ids)

    def before(self, picture: str = "") -> list[int]:
        """The ids before the picture, and of the template's text in its place where there is some."""
        return [*self._style.start, *self.piece(self._template.before_image + picture)]

    def after(self, question: str) -> list[int]:
        """The ids behind the picture, the question among them."""
        between, rest = self._template.between, self._template.after_question
        if self._style.joint == "pieces":
            return [*self.piece(between), *self.question(question), *self.piece(rest)]
        # Special tokens part a text in any case: what stands between two of them is one with the question.
        ends = [found.end() for found in self._special.finditer(between)]
        split = ends[-1] if ends else 0
        found = self._special.search(rest)
        end = found.start() if found else len(rest)
        text = between[split:] + question + rest[:end]
        if self._style.joint == "chunks" and not ends:
            middle = self.question(text)
        else:
            middle = self.run(text, "special")
        return [*self.piece(between[:split]), *middle, *self.piece(rest[end:])]

    def split(self, text: str) -> list[tuple[str, str]]:
        """A piece of the template at its special tokens: texts, each with the token behind it or ""."""
        found, at = [], 0
        for special in self._special.finditer(text):
            found.append((text[at : special.start()], special.group()))
            at = special.end()
        return [*found, (text[at:], "")]

    def run(self, text: str, behind: Literal["start", "picture", "special"]) -> list[int]:
        """The ids of text as one with what is before it: the prompt's start, a picture or a special token."""
        if behind == "start" or (behind == "picture" and self._style.joint == "chunks"):
            return self.question(text)
        text = _PICTURE + text.replace(_PICTURE, "")
        return list(self._behind.encode(text, add_special_tokens=False).ids)[1:]

    def piece(self, text: str) -> list[int]:
        """The ids of a piece of the template on its own."""
        return list(self._tokenizer.encode(text, add_special_tokens=False).ids)
