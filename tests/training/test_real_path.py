"""qtl-eval: the real path gives the answers of the model in one process."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from edge_runtime import EdgeClient
from qtl_core.errors import ServerUnavailable
from qtl_core.nn.checkpoint import load_checkpoint
from qtl_export.config import ExportConfig
from qtl_export.exporter import export
from qtl_training import real_path
from qtl_training.answering import answers
from qtl_training.digits.dataset import question_set
from qtl_training.features import tower_features


@pytest.fixture(scope="module")
def bundle(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("real") / "bundle"
    export(ExportConfig(checkpoint=tiny_folder, output=folder, levels=4, validate=0))
    return folder


def test_answers_and_bytes_are_those_of_one_process(bundle: Path, tiny_folder: Path) -> None:
    data = question_set("validation", each_type=2)
    with real_path.server(bundle) as address, EdgeClient(bundle, address) as client:
        replies, traffic = real_path.ask_all(client, data, progress=False)
    checkpoint = load_checkpoint(tiny_folder)
    features = tower_features(checkpoint.model.vision, data.scenes, progress=False)
    local = answers(checkpoint, features, data.questions, 4, max_tokens=16)
    # A code on a rounding boundary may fall on the other side in another runtime, so not all need agree.
    assert sum(a == b for a, b in zip(replies, local, strict=True)) >= len(local) - 1
    assert traffic.payload_bytes == 18 and traffic.bytes_up > 18 + 20


def test_the_command_prints_the_keys_scripts_read(bundle: Path, source_env: dict[str, str]) -> None:
    command = [sys.executable, "-m", "qtl_training.eval_cli", "--bundle", str(bundle), "--json"]
    done = subprocess.run(
        [*command, "--data", "digits", "--split", "test", "--each-type", "1"],
        env=source_env,
        check=True,
        capture_output=True,
        timeout=300,
    )
    result = json.loads(done.stdout)
    families = {"existence", "counting", "reading", "attribute", "reasoning", "macro"}
    assert set(result["accuracy"]) == set(result["question_only"]) == families
    assert result["n"] == 13 and result["bits"] == 2 and result["payload_bytes"] == 18


def test_a_server_that_cannot_start_says_why(tmp_path: Path) -> None:
    with pytest.raises(ServerUnavailable, match="did not start"), real_path.server(tmp_path / "none"):
        pass


def test_a_missing_bundle_is_one_line(tmp_path: Path, source_env: dict[str, str]) -> None:
    command = [sys.executable, "-m", "qtl_training.eval_cli", "--bundle", str(tmp_path / "none")]
    done = subprocess.run(command, env=source_env, capture_output=True, text=True, timeout=120)
    assert done.returncode == 4
    assert len(done.stderr.strip().splitlines()) == 1 and "none" in done.stderr
