"""An export holds the client partition only: what is read, what is compared, and what is said of it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from qtl_core.bundle import open_half
from qtl_core.nn.checkpoint import decoder_bytes, load_checkpoint
from qtl_core.nn.server_partition import ServerPartition
from qtl_core.nn.stored import Source
from qtl_export import answers
from qtl_export.answers import reason_not_to_ask
from qtl_export.config import ExportConfig
from qtl_export.exporter import export
from tests.export.conftest import Export


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the tensors that are read as a whole."""
    names: list[str] = []
    original = Source.read

    def noted(self: Source) -> torch.Tensor:
        names.append(self.name)
        return original(self)

    monkeypatch.setattr(Source, "read", noted)
    return names


@pytest.mark.parametrize("text", ["plain", "codes"])
def test_the_language_model_is_not_read_where_answers_are_not_compared(
    text: str,
    traced: None,
    exported: Export,
    checkpoint: Path,
    tmp_path: Path,
    read: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    exported(4)  # whose graph is taken here
    read.clear()
    monkeypatch.setattr(ServerPartition, "load", None)
    said = export(
        ExportConfig(
            checkpoint=checkpoint,
            levels=4,
            output=tmp_path / "b",
            text="codes" if text == "codes" else "plain",
            validate=4,
            validate_answers=False,
        )
    )
    theirs = [name for name in read if "language_model" in name or "lm_head" in name]
    # A device that codes its questions has the table of embeddings.
    assert len(read) > 10 and [name.rpartition("embed_tokens")[1] for name in theirs] == (
        ["embed_tokens"] if text == "codes" else []
    )
    found = said.validation
    assert found["passed"] and found["codes"]["compared"] > 0
    assert (found["answers"]["asked"], found["answers"]["accuracy"]) == (0, None)
    assert (found["answers"]["text_codes"] > 0) == (text == "codes")
    assert found["answers"]["text_codes_differ"] == 0
    assert "no answers compared: --no-validate-answers" in said.as_text()
    for half in ("client", "server"):
        card = (tmp_path / "b" / half / "README.md").read_text("utf-8")
        assert "No answers were compared: --no-validate-answers." in card
    assert open_half(tmp_path / "b", "server").manifest.validation["answers"]["why_not"]


def test_when_answers_are_compared(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = load_checkpoint(checkpoint, weights=False)
    size = decoder_bytes(loaded)
    assert reason_not_to_ask(loaded, 0, None) == ""  # small enough for anybody
    monkeypatch.setattr(answers, "ALWAYS_ASKED", size - 1)
    assert reason_not_to_ask(loaded, size, None) == ""
    assert "--validate-answers loads it" in reason_not_to_ask(loaded, size - 1, None)
    assert reason_not_to_ask(loaded, 0, True) == ""
    assert reason_not_to_ask(loaded, 10 * size, False) == "--no-validate-answers"
