"""The audit of a server that steers: what it moves, what is watched, and what is told of it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from qtl_core.crossing import Row
from qtl_core.nn.checkpoint import Checkpoint, load_checkpoint
from qtl_training import audit_cli
from qtl_training.audit.settings import Effort
from qtl_training.training_audits import hijack
from qtl_training.training_audits.hijacker import Hijacker, Pilot, trained_pilot
from qtl_training.training_audits.watching import SIGNS, cosine, swapped, told_apart

SMALL = hijack.HijackEffort(
    steps=2,
    look_every=1,
    pilot_steps=1,
    scenes=40,
    held_out=8,
    attackers=Effort(
        scenes=40,
        table_scenes=1,
        sized_scenes=2,
        test_scenes=8,
        reader_scenes=40,
        inversion_steps=1,
        reader_steps=1,
        batch=8,
    ),
)


def features(n: int) -> torch.Tensor:
    return torch.randn(n, 36, 16, generator=torch.Generator().manual_seed(1))


def test_gradients_draw_codes_to_the_pilots(tiny: Checkpoint, tiny_folder: Path) -> None:
    torch.manual_seed(0)
    model = load_checkpoint(tiny_folder).model
    pilot = Pilot(model, 4)
    with torch.no_grad():  # a pilot that is plainly elsewhere
        pilot.quantizer.in_proj.weight.zero_()
        pilot.quantizer.in_proj.bias.fill_(10)
    pilot.eval().requires_grad_(False)
    own = features(64)
    assert float(pilot(own).min()) > 0.9
    hijacker = Hijacker(pilot, own, steps=60, seed=1)
    values = 2 * torch.rand(16, 9, 8) - 1
    before = float(values.mean())
    for step in range(60):
        gradient = hijacker.gradient(step, values)
        values = (values - 0.5 * gradient / (gradient.abs().max() + 1e-9)).clamp(-1, 1)
    assert float(values.mean()) > before + 0.3
    # Looking changes nothing: asked twice it says the same.
    assert torch.equal(hijacker.pull(values), hijacker.pull(values))


def test_a_pilot_begins_as_the_client_and_leaves_it_alone(tiny_folder: Path) -> None:
    model = load_checkpoint(tiny_folder).model
    before = {name: value.clone() for name, value in model.state_dict().items()}
    pixels = np.random.default_rng(0).integers(0, 256, (12, 96, 96, 3), np.uint8)
    pilots = [
        trained_pilot(
            model, 4, features(12), pixels, tokens=36, steps=steps, batch=4, seed=1, progress=False
        ).eval()
        for steps in (0, 3)
    ]
    quantizer = model.vision_quantizer
    codes = quantizer.encode(model.vision.connector(features(12)), 4)
    torch.testing.assert_close(pilots[0](features(12)), quantizer.values(codes, 4))
    assert not torch.equal(pilots[0].quantizer.in_proj.weight, pilots[1].quantizer.in_proj.weight)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_wrong_answers_are_wrong() -> None:
    rows = [
        Row((0,), (("is there a 3?", "yes"), ("what colour is the 4?", "red"))),
        Row((1,), (("is there a 5?", "no"), ("what colour is the 1?", "blue"))),
    ]
    for row, other in zip(rows, swapped(rows), strict=True):
        for (question, answer), (same, wrong) in zip(row.turns, other.turns, strict=True):
            assert same == question and wrong != answer
            assert wrong in {a for one in rows for q, a in one.turns if q[:4] == question[:4]}


def test_what_tells_two_servers_apart() -> None:
    assert told_apart([1, 2, 3], [4, 5]) == told_apart([4, 5], [1, 2, 3]) == 1
    assert told_apart([1, 2], [1, 2]) == 0.5
    assert told_apart([1, 2, 3, 4], [2.5]) == 0.5
    one = np.array([[1.0, 0.0]], np.float32)
    assert cosine(one, 3 * one) == pytest.approx(1) and cosine(one, -one) == pytest.approx(-1)


@pytest.mark.slow
def test_the_command(tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hijack, "QUICK", SMALL)
    page, out = tmp_path / "page.md", tmp_path / "deep" / "hijack.json"
    page.write_text("before\n<!-- hijack:start -->\nlast time\n<!-- hijack:end -->\nafter\n", "utf-8")
    command = ["hijack", str(tiny_folder), "--quick", "--json", str(out), "--docs", str(page)]
    done = CliRunner().invoke(audit_cli.cli, [*command, "--work", str(tmp_path)], catch_exceptions=False)
    assert done.exit_code == 0
    found = json.loads(out.read_text())
    assert [row["server"] for row in found["rows"]] == ["before", "honest", "half", "hijacking"]
    assert found["rows"][0]["pilot_leaks"] is None and found["rows"][3]["pilot_leaks"]["psnr"] > 0
    assert set(found["signs"]["half"]) == set(SIGNS)
    # What answers are given does not matter to a server that steers.
    assert found["signs"]["hijacking"]["answers_matter"]["mean"] == pytest.approx(1, abs=1e-4)
    assert found["signs"]["honest"]["answers_matter"]["mean"] < 0.999
    assert found["summary"][0] in done.output
    text = page.read_text("utf-8")
    assert text.endswith("after\n") and "last time" not in text and "| hijacking | the pilot |" in text
