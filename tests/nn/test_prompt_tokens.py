"""Prompts become the tokens that transformers makes of them, and a question never becomes a special token."""

from __future__ import annotations

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from qtl_core.bundle import Template
from qtl_core.nn.prompt_tokens import PromptStyle, PromptTokens
from qtl_core.nn.prompts import start_tokens
from qtl_training.build import train_tokenizer

SPECIAL = ["<s>", "</s>", "<image>", "<|end|>", "<|assistant|>"]
VICUNA = Template(before_image="USER: ", between="\n", after_question=" ASSISTANT:")
CHAT = Template(before_image="<s>USER: ", between="<|end|>see", after_question="<|end|>\n<|assistant|> ")
QUESTIONS = ["what is it?", "  spaced  ", "x", "is </s> or <image> text?", "\ue000picture\ue001 what?"]


def sentencepiece(legacy: bool) -> PreTrainedTokenizerFast:
    """A tokenizer of characters and a few words that marks spaces as Llama's do, the old way or the new."""
    words = ["▁what", "what", "▁is", "▁it", "USER", "▁USER", "ASSISTANT", "▁ASSISTANT", "▁ASSISTANT:", "\n"]
    letters = sorted({one for word in [*words, *QUESTIONS, "see:<>|/ "] for one in word} | {"▁"})
    pieces = [
        ("<unk>", 0.0),
        *((word, -1.0) for word in words),
        *((one, -9.0) for one in letters if one != "\n"),
    ]
    tokenizer = Tokenizer(models.Unigram(pieces, 0, False))
    if legacy:
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    tokenizer.decoder = decoders.Metaspace()
    return with_special(tokenizer)


def with_special(tokenizer: Tokenizer) -> PreTrainedTokenizerFast:
    tokenizer.add_special_tokens([AddedToken(one, normalized=False) for one in SPECIAL])
    tokenizer.post_processor = TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", tokenizer.token_to_id("<s>"))]
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>")


TOKENIZERS = {
    "legacy": lambda: sentencepiece(True),
    "metaspace": lambda: sentencepiece(False),
    "bytes": lambda: with_special(train_tokenizer(300).backend_tokenizer),
}


@pytest.mark.parametrize("template", [VICUNA, CHAT], ids=["vicuna", "chat"])
@pytest.mark.parametrize("kind", TOKENIZERS)
def test_a_whole_prompt_is_what_transformers_makes_of_it(kind: str, template: Template) -> None:
    tokenizer = TOKENIZERS[kind]()
    style = PromptStyle(joint="whole", start=start_tokens(tokenizer, template.before_image))
    prompts = PromptTokens(tokenizer.backend_tokenizer, template, style)
    picture = tokenizer.get_vocab()["<image>"]
    for question in QUESTIONS[:3]:
        text = f"{template.before_image}<image>{template.between}{question}{template.after_question}"
        expected = tokenizer(text, add_special_tokens=template is VICUNA).input_ids
        assert [*prompts.before(), picture, *prompts.after(question)] == expected


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_chunks_are_texts_of_their_own(kind: str) -> None:
    tokenizer = TOKENIZERS[kind]()
    style = PromptStyle(joint="chunks", start=start_tokens(tokenizer, VICUNA.before_image))
    prompts = PromptTokens(tokenizer.backend_tokenizer, VICUNA, style)
    assert prompts.before() == tokenizer(VICUNA.before_image).input_ids
    for question in QUESTIONS[:3]:
        assert prompts.after(question) == tokenizer(f"\n{question} ASSISTANT:").input_ids[1:]


@pytest.mark.parametrize("joint", ["pieces", "whole", "chunks"])
@pytest.mark.parametrize("template", [VICUNA, CHAT], ids=["vicuna", "chat"])
@pytest.mark.parametrize("kind", TOKENIZERS)
def test_a_question_never_becomes_a_special_token(kind: str, template: Template, joint: str) -> None:
    tokenizer = TOKENIZERS[kind]()
    prompts = PromptTokens(
        tokenizer.backend_tokenizer,
        template,
        PromptStyle(joint=joint),  # type: ignore[arg-type]
    )
    special = {tokenizer.get_vocab()[one] for one in SPECIAL}
    usual = [one for one in prompts.after("x") if one in special]
    for question in QUESTIONS:
        ids = prompts.after(question)
        assert [one for one in ids if one in special] == usual
        assert max(ids) < len(tokenizer)


def test_pieces_are_tokenized_apart() -> None:
    tokenizer = sentencepiece(True)
    prompts = PromptTokens(tokenizer.backend_tokenizer, VICUNA, PromptStyle())
    joined = PromptTokens(tokenizer.backend_tokenizer, VICUNA, PromptStyle(joint="whole"))
    apart = [*prompts.piece("\n"), *prompts.question("what is it?"), *prompts.piece(" ASSISTANT:")]
    assert prompts.after("what is it?") == apart != joined.after("what is it?")


def test_a_prompt_that_begins_with_the_start_token_gets_no_second_one() -> None:
    tokenizer = sentencepiece(False)
    assert start_tokens(tokenizer, "<s>USER: ") == ()
    assert start_tokens(tokenizer, "USER: ") == (tokenizer.bos_token_id,)
