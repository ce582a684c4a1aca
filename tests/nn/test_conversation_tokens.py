"""Conversations become tokens: the first question as a server asks it, turns joined by the chat template."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from qtl_core.bundle import Template
from qtl_core.nn.checkpoint import Checkpoint
from qtl_core.nn.conversation_tokens import ConversationTokens, Joins, joins_of
from qtl_core.nn.prompt_tokens import Joint, PromptStyle, PromptTokens
from qtl_core.nn.prompts import start_tokens
from qtl_training.build import train_tokenizer
from tests.nn.foreign import tokenizer_with_start
from tests.nn.test_prompt_tokens import CHAT, QUESTIONS, TOKENIZERS, VICUNA

TURNS = (("what is it?", "a seat"), ("is this?", "it is text"))
# As the Hugging Face ports of LLaVA 1.5 have it.
LLAVA = (
    "{% for message in messages %}{{ message['role'].upper() + ': ' }}"
    "{% for part in message['content'] | selectattr('type', 'equalto', 'image') %}{{ '<image>\n' }}"
    "{% endfor %}"
    "{% for part in message['content'] | selectattr('type', 'equalto', 'text') %}{{ part['text'] + ' ' }}"
    "{% endfor %}{% endfor %}{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)
# Contents of assistants as texts, and an end token and a line break behind each message.
CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}{% if part['type'] == 'image' %}<image>{% else %}{{ part['text'] }}"
    "{% endif %}{% endfor %}{% endif %}{{ '</s>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def speaking(tiny: Checkpoint, tokenizer: PreTrainedTokenizerFast, template: Template, joint: Joint) -> Any:
    style = PromptStyle(joint=joint, start=start_tokens(tokenizer, template.before_image))
    ends = (int(tokenizer.eos_token_id),)
    checkpoint = dataclasses.replace(
        tiny, tokenizer=tokenizer, template=template, prompt=style, end_tokens=ends
    )
    return ConversationTokens(checkpoint), PromptTokens(tokenizer.backend_tokenizer, template, style)


@pytest.mark.parametrize("joint", ["pieces", "whole", "chunks"])
@pytest.mark.parametrize("template", [VICUNA, CHAT], ids=["vicuna", "chat"])
@pytest.mark.parametrize("kind", TOKENIZERS)
def test_the_first_question_is_asked_as_a_server_asks_it(
    tiny: Checkpoint, kind: str, template: Template, joint: Joint
) -> None:
    tokenizer = TOKENIZERS[kind]()
    conversation, prompts = speaking(tiny, tokenizer, template, joint)
    end = int(tokenizer.eos_token_id)
    for question in QUESTIONS:
        parts = conversation.parts([(question, "a seat"), *TURNS], [(0, 0)])
        kinds = [part.kind for part in parts]
        picture, answer = kinds.index("picture"), kinds.index("answer")
        before = [token for part in parts[:picture] for token in part.ids]
        after = [token for part in parts[picture + 1 : answer] for token in part.ids]
        assert (before, after) == (prompts.before(), prompts.after(question))
        learnt = [part.ids for part in parts if part.kind == "answer"]
        assert [ids[-1] for ids in learnt] == [end] * 3 and all(end not in ids[:-1] for ids in learnt)
        said = [str(tokenizer.decode(ids[:-1])).strip() for ids in learnt]
        assert said == ["a seat", "a seat", "it is text"]


@pytest.mark.parametrize("kind", ["legacy", "metaspace", "bytes"])
def test_a_whole_conversation_is_what_transformers_makes_of_it(tiny: Checkpoint, kind: str) -> None:
    tokenizer = TOKENIZERS[kind]()
    conversation, _ = speaking(tiny, tokenizer, VICUNA, "whole")
    parts = conversation.parts(TURNS, [(0, 0), (1, 3)])
    picture = tokenizer.get_vocab()["<image>"]
    ours = [token for part in parts for token in (part.ids if part.kind != "picture" else (picture,))]
    text = "USER: <image>\nwhat is it? ASSISTANT: a seat</s>USER: is <image>this? ASSISTANT: it is text</s>"
    assert ours == tokenizer(text).input_ids


def test_texts_without_a_picture(tiny: Checkpoint) -> None:
    tokenizer = TOKENIZERS["bytes"]()
    conversation, _ = speaking(tiny, tokenizer, VICUNA, "whole")
    ours = [token for part in conversation.parts(TURNS[:1], []) for token in part.ids]
    assert ours == tokenizer("USER: what is it? ASSISTANT: a seat</s>").input_ids


def test_what_joins_turns() -> None:
    tokenizer = tokenizer_with_start()
    end = int(tokenizer.eos_token_id)
    tokenizer.chat_template = None
    assert joins_of(tokenizer, VICUNA, (end,)) == Joins(" ", end, "USER: ")
    system = Template(before_image="A chat. USER: ", between="\n", after_question=" ASSISTANT:")
    assert joins_of(tokenizer, system, (end,)) == Joins(" ", end, "USER: ")
    tokenizer.chat_template = LLAVA
    assert joins_of(tokenizer, VICUNA, (end,)) == Joins(" ", end, "USER: ")
    tokenizer.chat_template = CHATML
    chat = Template(
        before_image="<|im_start|>user\n", between="", after_question="</s>\n<|im_start|>assistant\n"
    )
    assert joins_of(tokenizer, chat, (end,)) == Joins("", end, "\n<|im_start|>user\n")
    # One that cannot be rendered for several turns is as good as none.
    tokenizer.chat_template = "{{ raise_exception('one turn only') }}"
    assert joins_of(tokenizer, VICUNA, (end,)) == Joins(" ", end, "USER: ")


def test_the_shipped_layout_joins_turns_by_the_end_token() -> None:
    tokenizer = train_tokenizer(300)
    template = Template(before_image="", between="", after_question="\n")
    end = int(tokenizer.eos_token_id)
    assert joins_of(tokenizer, template, (end,)) == Joins("", end, "")
