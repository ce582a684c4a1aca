"""The audit of labels: attacks find what is planted, and nothing where nothing is."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import msgspec
import numpy as np
import pytest
from click.testing import CliRunner

from edge_runtime.training.labels import cross_entropy
from qtl_core.errors import InputError
from qtl_training import audit_cli
from qtl_training.training_audits import labels as audit
from qtl_training.training_audits import observed as observed_module
from qtl_training.training_audits.label_attacks import ATTACKS, chance, recovered
from qtl_training.training_audits.observed import Floats, Observed, kind_of
from qtl_training.training_audits.page import renew

N, ANSWERS, WIDTH = 600, 7, 24


def observed(own: Floats | None, known: Floats, *, knows: float = 0.0) -> Observed:
    """Questions on which the model is right by chance, or (``knows``) leans towards the label."""
    random = np.random.default_rng(3)
    labels = random.integers(0, ANSWERS, N)
    outputs = random.standard_normal((N, known.shape[1])).astype(np.float32)
    outputs += knows * known[labels]
    scores = outputs if own is None else outputs @ own.T
    gradient = cross_entropy(scores, labels)[1]
    gradient = gradient if own is None else gradient @ own
    micro = np.arange(N) // 100
    return Observed(outputs, gradient, micro, known, np.zeros(N, np.int64), labels, 0.0)


def head(seed: int) -> Floats:
    return np.random.default_rng(seed).standard_normal((ANSWERS, WIDTH)).astype(np.float32)


def test_scores_give_labels_away() -> None:
    seen = observed(None, np.eye(ANSWERS, dtype=np.float32))
    for bits in (32, 16, 8):
        assert recovered("gradients", seen, bits, 1) == 100
    assert recovered("outputs", seen, 32, 1) < 25 and chance(seen) < 25
    # With the model certain and right no gradient is left, and the outputs tell.
    certain = observed(None, np.eye(ANSWERS, dtype=np.float32), knows=40)
    assert recovered("gradients", certain, 2, 1) == recovered("outputs", certain, 2, 1) == 100


def test_a_known_head_gives_labels_away_and_a_secret_one_needs_examples() -> None:
    known = observed(head(1), head(1))
    assert recovered("gradients", known, 32, 1) > 99
    assert recovered("norms", known, 32, 1) > 60
    secret = observed(head(1), head(2))
    for attack in ("outputs", "gradients", "norms"):
        assert recovered(attack, secret, 32, 1) < 30, attack
    assert recovered("gradients, examples", secret, 32, 1) > 90
    assert recovered("outputs, examples", secret, 32, 1) < 30


def test_nothing_in_the_gradient_is_nothing_recovered() -> None:
    seen = observed(head(1), head(1))
    empty = dataclasses.replace(seen, gradient=np.random.default_rng(1).permutation(seen.gradient))
    for attack in ATTACKS:
        assert recovered(attack, empty, 32, 1) < 30, attack


def test_kinds_of_questions() -> None:
    assert kind_of("is there a red 3?") == kind_of("is there a blue 7") == "is there a _ _"
    assert kind_of("how many 3s are there?") == "how many _ are there"
    assert kind_of("which digit is top left?") != kind_of("which colour is top left?")


def test_the_command(tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audit, "QUICK", audit.LabelEffort(scenes=40, recorded=1, steps=1))
    # The tiny model's tokenizer knows few whole words: two answers, and questions that have no others.
    stage = msgspec.structs.replace(
        observed_module.STAGE, candidates=("yes", "no"), types=("exists_digit", "compare")
    )
    for module in (audit, observed_module):
        monkeypatch.setattr(module, "STAGE", stage)
    page, out = tmp_path / "page.md", tmp_path / "deep" / "labels.json"
    page.write_text("before\n<!-- labels:start -->\nlast time\n<!-- labels:end -->\nafter\n", "utf-8")
    command = ["labels", str(tiny_folder), "--quick", "--json", str(out), "--docs", str(page)]
    done = CliRunner().invoke(audit_cli.cli, command, catch_exceptions=False)
    assert done.exit_code == 0
    found = json.loads(out.read_text())
    assert found["quick"] and found["seeds"] == 1 and found["questions"] == 320
    assert len(found["rows"]) == 6 and set(found["rows"][0]["recovered"]) == {"32", "16", "8", "4", "2"}
    assert found["rows"][0]["recovered"]["32"]["gradients"]["mean"] == 100
    assert done.output.strip().splitlines() == found["summary"]
    text = page.read_text("utf-8")
    assert text.startswith("before\n") and text.endswith("after\n") and "last time" not in text
    assert "| scores come down | start | 32 |" in text


def test_a_page_without_a_place(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("nothing", "utf-8")
    with pytest.raises(InputError, match="has no <!-- labels:start -->"):
        renew(page, "labels", "text")
