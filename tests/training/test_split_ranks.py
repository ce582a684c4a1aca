"""A training server of several processes under torchrun: what it learns is what one process learns."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from tests.training.split_pair import in_one, log, recipe_of

MICRO = "micro_batches = 3"


@contextmanager
def server(folder: Path, env: dict[str, str]) -> Iterator[subprocess.Popen[str]]:
    address = folder / "address"
    bind = address.read_text().strip() if address.exists() else "tcp://127.0.0.1:*"
    address.unlink(missing_ok=True)
    command = [
        *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"),
        # Without the -- torchrun takes --run for one of its own.
        *("-m", "--", "qtl_training", "serve", str(folder / "pair.toml")),
        *("--run", str(folder / "server"), "--bind", bind, "--ready-file", str(address), "--threads", "1"),
    ]
    process = subprocess.Popen(
        command, env={**env, "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True,
    )  # fmt: skip
    try:
        wait_for(lambda: address.exists() or process.poll() is not None)
        assert process.poll() is None, process.communicate()
        yield process
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGTERM)
        process.communicate(timeout=60)


def client(folder: Path, env: dict[str, str]) -> subprocess.Popen[str]:
    command = [
        *(sys.executable, "-m", "qtl_training", "client", str(folder / "pair.toml")),
        *("--run", str(folder / "client"), "--server", (folder / "address").read_text().strip()),
        *("--threads", "1", "--comeback", "120"),
    ]
    return subprocess.Popen(command, env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def wait_for(what: Any, seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end
        time.sleep(0.05)


def check_against_one_process(folder: Path, local: Path) -> None:
    ours, theirs = log(folder / "client"), log(local.parent)
    last = {(line["stage"], line["step"]): line for line in ours}
    for line in theirs:
        found = last[line["stage"], line["step"]]
        assert found["loss"] == pytest.approx(line["loss"], rel=1e-5)
        assert found["norm"] == pytest.approx(line["norm"], rel=1e-4)
    one = load_file(local / "model.safetensors")
    spread = load_file(folder / "server" / "checkpoint" / "model.safetensors")
    assert all(float((one[name] - spread[name]).abs().max()) < 1e-4 for name in one)


@pytest.mark.slow
def test_two_ranks_learn_what_one_process_learns(tmp_path: Path, source_env: dict[str, str]) -> None:
    recipe = recipe_of(tmp_path, MICRO, "micro_batches = 4\ncheckpointing = true", steps=4)
    local = in_one(recipe, tmp_path / "local")
    with server(tmp_path, source_env) as process:
        told = client(tmp_path, source_env)
        _, err = told.communicate(timeout=240)
        assert told.returncode == 0, err
        out, err = process.communicate(timeout=60)
        assert process.returncode == 0, err
    assert out.count("ready on") == out.count("checkpoint:") == 1
    check_against_one_process(tmp_path, local)


@pytest.mark.slow
def test_a_rank_that_is_killed_ends_all_and_the_run_goes_on(
    tmp_path: Path, source_env: dict[str, str]
) -> None:
    recipe = recipe_of(tmp_path, MICRO, steps=60)
    local = in_one(recipe, tmp_path / "local")
    with server(tmp_path, source_env) as process:
        told = client(tmp_path, source_env)
        steps = tmp_path / "client" / "log.jsonl"
        wait_for(lambda: steps.exists() and steps.read_text().count("\n") > 3)
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        ranks = [
            pid for pid in children if b"RANK=1" in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        ]
        os.kill(int(ranks[0]), signal.SIGKILL)
        _, err = process.communicate(timeout=60)
        assert process.returncode != 0
        assert "rank 0 of the training server lost another one" in err
        assert "the run goes on from its newest snapshot" in err
        assert "qtl_training/split/ranks.py" not in err  # no traceback of ours
    with server(tmp_path, source_env) as process:
        _, err = told.communicate(timeout=240)
        assert told.returncode == 0, err
        process.communicate(timeout=60)
    check_against_one_process(tmp_path, local)
