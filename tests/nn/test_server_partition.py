"""The server partition: the same answers as training's packed rows, and nothing a question can break."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch

from qtl_core.bundle import Cut, Manifest, Text
from qtl_core.errors import BundleError
from qtl_core.nn.checkpoint import Checkpoint
from qtl_core.nn.server_partition import ServerPartition, write_server_half
from qtl_training.answering import answers
from qtl_training.digits.questions import Question

PLAIN = Text(mode="plain", levels=0, code_dim=0, width=16, max_tokens=48, scaling="none")
CODED = Text(mode="codes", levels=16, code_dim=16, width=16, max_tokens=48, scaling="image")
AT_4_LEVELS = Cut(
    tokens=9,
    width=16,
    code_dim=8,
    merge=2,
    levels=4,
    bits=2,
    scaling="frozen",
    codec="packed",
    payload_bytes=18,
)
AT_16_BITS = Cut(
    tokens=36,
    width=16,
    code_dim=16,
    merge=1,
    levels=0,
    bits=16,
    scaling="none",
    codec="float16",
    payload_bytes=1152,
)


def half(folder: Path, tiny: Checkpoint, cut: Cut, text: Text = PLAIN) -> ServerPartition:
    write_server_half(folder, tiny, cut, text)
    manifest = Manifest(
        half="server",
        fingerprint="0" * 32,
        model="tiny",
        cut=cut,
        picture=tiny.picture,
        text=text,
        template=tiny.template,
        files={},
    )
    return ServerPartition.load(folder, manifest)


def features(tiny: Checkpoint, n: int) -> torch.Tensor:
    torch.manual_seed(9)
    return torch.randn(n, 36, 16).half()  # of the tower, as the connector reads them


QUESTIONS = ["is there a 5?", "what is top left plus centre?", "where is the 3?", "how many 7s are there?"]


@pytest.mark.parametrize("cut", [AT_4_LEVELS, AT_16_BITS], ids=["codes", "float16"])
def test_answers_are_those_of_packed_rows(tmp_path: Path, tiny: Checkpoint, cut: Cut) -> None:
    part = half(tmp_path, tiny, cut)
    tower = features(tiny, 2)
    asked = tuple(Question(scene, "x", text, "") for scene in range(2) for text in QUESTIONS)
    packed = answers(tiny, tower, asked, cut.levels or None, max_tokens=6)
    with torch.no_grad():
        crossing = tiny.model.vision.connector(tower.float())
        codes = tiny.model.vision_quantizer.encode(crossing, 4).numpy()
    for question, expected in zip(asked, packed, strict=True):
        sent = codes[question.scene] if cut.levels else crossing[question.scene].half().numpy()
        alone = "".join(part.generate(sent, question.text, max_tokens=6))
        assert alone == expected


def test_a_question_may_spell_special_tokens(tmp_path: Path, tiny: Checkpoint) -> None:
    part = half(tmp_path, tiny, AT_4_LEVELS)
    assert part.question_tokens("<image></s>") > 2
    assert list(part.generate(np.zeros((9, 8), np.uint8), "what is <image>?", max_tokens=2)) is not None


def test_coded_questions_answer_like_their_restored_embeddings(tmp_path: Path, tiny: Checkpoint) -> None:
    part = half(tmp_path, tiny, AT_4_LEVELS, CODED)
    quantizer = tiny.model.language_quantizer
    ids = torch.tensor(tiny.tokenizer.encode(QUESTIONS[0], add_special_tokens=False))
    with torch.no_grad():
        codes = quantizer.encode(tiny.model.decoder.embed(ids), 16)
    vision = np.full((9, 8), 2, np.uint8)
    coded = "".join(part.generate(vision, text_codes=codes.numpy(), max_tokens=5))
    question = (Question(0, "x", QUESTIONS[0], ""),)
    tower = features(tiny, 1)
    with torch.no_grad():
        same_picture = tiny.model.vision_quantizer.encode(tiny.model.vision.connector(tower.float()), 4)[0]
    assert isinstance(coded, str)
    through = "".join(part.generate(same_picture.numpy(), text_codes=codes.numpy(), max_tokens=6))
    assert through == answers(tiny, tower, question, 4, text_levels=16)[0]


def test_max_tokens_cuts_an_answer(tmp_path: Path, tiny: Checkpoint) -> None:
    part = half(tmp_path, tiny, AT_4_LEVELS)
    assert len(list(part.generate(np.zeros((9, 8), np.uint8), "hm", max_tokens=3))) <= 3


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json"])
def test_damage_is_named(tmp_path: Path, tiny: Checkpoint, name: str) -> None:
    half(tmp_path, tiny, AT_4_LEVELS)
    (tmp_path / name).write_bytes(b"{}")
    manifest = Manifest(
        half="server", fingerprint="0" * 32, model="tiny", cut=AT_4_LEVELS, picture=tiny.picture, text=PLAIN,
        template=tiny.template, files={},
    )  # fmt: skip
    with pytest.raises(BundleError, match="cannot be loaded"):
        ServerPartition.load(tmp_path, manifest)


def test_manifest_and_weights_must_agree(tmp_path: Path, tiny: Checkpoint) -> None:
    half(tmp_path, tiny, AT_4_LEVELS)
    other = msgspec.structs.replace(AT_4_LEVELS, code_dim=16, payload_bytes=36)
    manifest = Manifest(
        half="server", fingerprint="0" * 32, model="tiny", cut=other, picture=tiny.picture, text=PLAIN,
        template=tiny.template, files={},
    )  # fmt: skip
    with pytest.raises(BundleError, match="export it again"):
        ServerPartition.load(tmp_path, manifest)
