"""The token ids of a whole conversation: the prompt's template, and what joins one turn to the next.

Its first question becomes the tokens of ``prompt_tokens``; the rest follows the checkpoint's chat template.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from transformers import PreTrainedTokenizerFast

from qtl_core.bundle import Template
from qtl_core.nn.families.base import Checkpoint
from qtl_core.nn.prompt_tokens import PromptTokens

Kind: TypeAlias = Literal["template", "question", "picture", "answer"]
_MARKS = ("\x02q1\x03", "\x02a1\x03", "\x02q2\x03", "\x02a2\x03")
_USER = "USER: "


@dataclass(frozen=True)
class Part:
    """A run of tokens.

    Attributes:
        kind: whose they are. What is learnt is "answer".
        ids: the tokens; none for "picture", which stands for those of one.
    """

    kind: Kind
    ids: tuple[int, ...] = ()


@dataclass(frozen=True)
class Joins:
    """What stands between turns.

    Attributes:
        lead: between the template's end and an answer.
        end: the id behind an answer.
        again: from there to the next question.
    """

    lead: str
    end: int
    again: str


@dataclass(frozen=True)
class _Text:
    kind: Literal["template", "question", "answer", "picture", "end"]
    text: str = ""


class ConversationTokens:
    """Tokenizes conversations for one model.

    Args:
        checkpoint: whose tokenizer, template and style are used.
    """

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._template, self._style = checkpoint.template, checkpoint.prompt
        self._prompts = PromptTokens(
            checkpoint.tokenizer.backend_tokenizer, checkpoint.template, checkpoint.prompt
        )
        self.joins = joins_of(checkpoint.tokenizer, checkpoint.template, checkpoint.end_tokens)

    def parts(self, turns: Sequence[tuple[str, str]], places: Sequence[tuple[int, int]]) -> list[Part]:
        """A conversation.

        Args:
            turns: questions and answers.
            places: for each picture its turn, and the character of the question that it stands before.
        """
        texts = self._texts(turns, places)
        found = self._pieces(texts) if self._style.joint == "pieces" else self._runs(texts)
        return [Part("template", self._style.start), *found] if self._style.start else list(found)

    def _texts(self, turns: Sequence[tuple[str, str]], places: Sequence[tuple[int, int]]) -> Iterator[_Text]:
        template = self._template
        for number, (question, answer) in enumerate(turns):
            yield _Text("template", self.joins.again if number else template.before_image)
            offsets = [at for turn, at in places if turn == number]
            # The template is about pictures in front of a question; among its words they stand alone.
            while offsets and offsets[0] == 0:
                yield _Text("picture")
                yield _Text("template", template.between)
                offsets.pop(0)
            for start, stop in zip([0, *offsets], [*offsets, len(question)], strict=True):
                if start:
                    yield _Text("picture")
                yield _Text("question", question[start:stop])
            yield _Text("template", template.after_question)
            yield _Text("answer", self.joins.lead + answer)
            yield _Text("end")

    def _pieces(self, texts: Iterator[_Text]) -> Iterator[Part]:
        """Each piece on its own."""
        answer: tuple[int, ...] = ()
        for one in texts:
            if one.kind == "picture":
                yield Part("picture")
            elif one.kind == "template":
                yield Part("template", tuple(self._prompts.piece(one.text)))
            elif one.kind == "question":
                yield Part("question", tuple(self._prompts.question(one.text)))
            elif one.kind == "answer":
                answer = tuple(self._prompts.question(one.text))
            else:
                yield Part("answer", (*answer, self.joins.end))

    def _runs(self, texts: Iterator[_Text]) -> Iterator[Part]:
        """Everything between two special tokens or pictures as one text."""
        run = ""
        answer: tuple[int, ...] = ()
        behind: Literal["start", "picture", "special"] = "start"
        for one in texts:
            if one.kind == "template":
                for text, special in self._prompts.split(one.text):
                    run += text
                    if special:
                        ids = (*self._prompts.run(run, behind), *self._prompts.piece(special))
                        yield Part("template", ids)
                        run, behind = "", "special"
            elif one.kind == "question":
                run += one.text
            elif one.kind == "picture":
                yield Part("question", tuple(self._prompts.run(run, behind)))
                yield Part("picture")
                run, behind = "", "picture"
            elif one.kind == "answer":
                asked = self._prompts.run(run, behind)
                whole = self._prompts.run(run + one.text, behind)
                if whole[: len(asked)] != asked:  # the answer's beginning changes the prompt's last token
                    whole = [*asked, *self._prompts.run(one.text, "special")]
                yield Part("question", tuple(asked))
                run, answer = "", tuple(whole[len(asked) :])
            else:
                yield Part("answer", (*answer, self.joins.end))
                behind = "special"


def joins_of(tokenizer: PreTrainedTokenizerFast, template: Template, ends: Sequence[int]) -> Joins:
    """What a model's chat template puts between turns.

    Where it has none, or none that can be rendered for several turns, what LLaVA and TinyLLaVA Factory put
    there: the end token, and what the prompt says before a user's words.

    Args:
        tokenizer: with a chat template or without.
        template: of one question.
        ends: ids that end an answer; the first one does where the chat template puts none there.
    """
    end = int(tokenizer.eos_token_id) if tokenizer.eos_token_id is not None else int(ends[0])
    rendered = _rendered(tokenizer)
    if rendered is None:
        user = template.before_image.rfind(_USER)
        again = template.before_image[user:] if user >= 0 else template.before_image
        return Joins("" if template.after_question[-1:].isspace() else " ", end, again)
    asked, answered = rendered
    after, stripped = template.after_question, template.after_question.strip()
    if asked.startswith(after):
        lead = asked.removeprefix(after)
    else:
        lead = asked.partition(stripped)[2] if stripped else ""
    names = {str(tokenizer.convert_ids_to_tokens(one)): int(one) for one in (end, *ends)}
    for name, one in names.items():
        if answered.lstrip().startswith(name):
            return Joins(lead, one, answered.lstrip().removeprefix(name))
    return Joins(lead, end, answered.lstrip())


def _rendered(tokenizer: PreTrainedTokenizerFast) -> tuple[str, str] | None:
    """What a chat template puts between a question and its answer, and between that and the next question."""
    if not tokenizer.chat_template:
        return None
    asked, answered, again, last = _MARKS
    for plain in (False, True):

        def said(text: str, plain: bool = plain) -> Any:
            return text if plain else [{"type": "text", "text": text}]

        messages: list[dict[str, Any]] = [
            {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": asked}]},
            {"role": "assistant", "content": said(answered)},
            {"role": "user", "content": said(again)},
            {"role": "assistant", "content": said(last)},
        ]
        try:
            text = str(tokenizer.apply_chat_template(messages, tokenize=False))
        except Exception:  # a template is a program of the checkpoint's, and raises what it likes
            continue
        pieces = []
        for mark in _MARKS:
            piece, found, text = text.partition(mark)
            pieces.append(piece if found else None)
        between, joint = pieces[1], pieces[2]
        # A template for texts prints a list as Python does.
        if None not in pieces and between is not None and joint is not None and "'type'" not in between:
            return between, joint
    return None
