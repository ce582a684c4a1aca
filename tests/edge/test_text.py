"""Questions as codes: needs the tokenizers library, but for the error that says so."""

from __future__ import annotations

import builtins
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge_runtime import EdgeClient
from qtl_core import bundle, codes, quantizer
from qtl_core.errors import BundleError, MissingExtra, QuestionError
from tests.edge import tiny
from tests.edge.peer import ScriptedServer

WIDTH, DIM, LEVELS = 6, 4, 8
TEXT = bundle.Text(mode="codes", levels=LEVELS, code_dim=DIM, width=WIDTH, max_tokens=4, scaling="image")
WORDS = ("[unk]", "how", "many", "red", "digits", "are", "there")


def tokenizer_json() -> bytes:
    """A word-level tokenizer, written out so that making it needs no library."""
    return json.dumps(
        {
            "version": "1.0",
            "truncation": None,
            "padding": None,
            "added_tokens": [],
            "normalizer": None,
            "pre_tokenizer": {"type": "Whitespace"},
            "post_processor": None,
            "decoder": None,
            "model": {
                "type": "WordLevel",
                "vocab": {word: index for index, word in enumerate(WORDS)},
                "unk_token": "[unk]",
            },
        }
    ).encode()


def weights(**changes: Any) -> dict[str, Any]:
    rng = np.random.default_rng(5)
    arrays = {
        "embedding": rng.normal(size=(len(WORDS), WIDTH)).astype(np.float32),
        "in_proj_weight": rng.normal(size=(DIM, WIDTH)).astype(np.float32),
        "in_proj_bias": rng.normal(size=DIM).astype(np.float32),
        "k": np.float32(2.0),
    }
    return {name: value for name, value in {**arrays, **changes}.items() if value is not None}


def write(folder: Path, **changes: Any) -> Path:
    buffer = io.BytesIO()
    np.savez(buffer, **weights(**changes))
    files = {"text/tokenizer.json": tokenizer_json(), "text/language.npz": buffer.getvalue()}
    tiny.write_client(folder, text=TEXT, files=files)
    return folder


def test_missing_extra_quotes_the_pip_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def refuse(name: str, *args: Any, **kwargs: Any) -> Any:
        if name == "tokenizers":
            raise ImportError("No module named 'tokenizers'")
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(MissingExtra, match=r'pip install "qtl-edge\[text\]"') as caught:
        EdgeClient(write(tmp_path), threads=1)
    assert caught.value.exit_code == 8


def test_half_without_its_text_files(tmp_path: Path) -> None:
    tiny.write_client(tmp_path, text=TEXT)
    with pytest.raises(BundleError, match=r"has no text/tokenizer\.json"):
        EdgeClient(tmp_path, threads=1)


def test_question_crosses_as_codes(
    tmp_path: Path, serve: Callable[..., ScriptedServer], connect: Callable[..., EdgeClient]
) -> None:
    pytest.importorskip("tokenizers")
    server = serve()
    answer = connect(server, bundle=write(tmp_path / "codes")).ask(tiny.scene(), "how many red digits")
    assert answer.text == "four red"
    assert server.hellos[0].text == "codes"
    (request,) = server.requests
    assert request.ask.question == ""
    assert [frame.name for frame in request.ask.frames] == ["v", "q"]
    assert request.ask.frames[1].count == 4
    arrays = weights()
    params = quantizer.Params(
        in_proj_weight=arrays["in_proj_weight"],
        in_proj_bias=arrays["in_proj_bias"],
        out_proj_weight=np.zeros((WIDTH, DIM), np.float32),
        out_proj_bias=np.zeros(WIDTH, np.float32),
        levels=LEVELS,
        k=2.0,
    )
    expected = quantizer.encode(arrays["embedding"][[1, 2, 3, 4]], params)
    assert np.array_equal(codes.unpack(request.payloads["q"], LEVELS, (4, DIM)), expected)


def test_questions_that_do_not_fit(tmp_path: Path) -> None:
    pytest.importorskip("tokenizers")
    client = EdgeClient(write(tmp_path), threads=1)
    with pytest.raises(QuestionError, match="has 5 tokens, this model takes 4"):
        client.ask(tiny.scene(), "how many red digits are")


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"embedding": None}, "embedding"),
        ({"in_proj_bias": None}, "in_proj_bias"),
        ({"embedding": np.zeros((7, 5), np.float32)}, "the manifest says width 6"),
        ({"in_proj_weight": np.zeros((4, 5), np.float32)}, "."),
        (
            {"in_proj_weight": np.zeros((3, 6), np.float32), "in_proj_bias": np.zeros(3, np.float32)},
            r"in_proj_weight is \[3, 6\]",
        ),
        ({"k": np.float32(-1)}, "k must be positive"),
        ({"embedding": np.array([{"pickled": True}])}, "."),
    ],
)
def test_weights_that_do_not_fit(tmp_path: Path, changes: dict[str, Any], says: str) -> None:
    pytest.importorskip("tokenizers")
    with pytest.raises(BundleError, match=says):
        EdgeClient(write(tmp_path, **changes), threads=1)


def test_embedding_shorter_than_the_vocabulary(tmp_path: Path) -> None:
    pytest.importorskip("tokenizers")
    client = EdgeClient(write(tmp_path, embedding=np.zeros((3, WIDTH), np.float32)), threads=1)
    with pytest.raises(BundleError, match="token 4 has no embedding"):
        client.ask(tiny.scene(), "digits")


def test_tokenizer_that_is_none(tmp_path: Path) -> None:
    pytest.importorskip("tokenizers")
    buffer = io.BytesIO()
    np.savez(buffer, **weights())
    files = {"text/tokenizer.json": b"{}", "text/language.npz": buffer.getvalue()}
    tiny.write_client(tmp_path, text=TEXT, files=files)
    with pytest.raises(BundleError, match=r"cannot read .*tokenizer\.json"):
        EdgeClient(tmp_path, threads=1)
