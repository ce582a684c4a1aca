"""The real engine: a tiny model with random weights behind the real front, in this process and in its own."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import pytest
import torch
import zmq

from qtl_core.bundle import Cut, Half, Manifest, Text, hash_files, open_half, write_manifest
from qtl_core.codes import pack, unpack
from qtl_core.errors import BundleError, HostError
from qtl_core.messages import Ask
from qtl_core.nn.checkpoint import Checkpoint
from qtl_core.nn.server_partition import ServerPartition, write_server_half
from qtl_core.wire import frame_codes
from server_runtime import Server, ServerConfig
from server_runtime.cli import main
from server_runtime.engine import Prompt
from server_runtime.torch_engine import TorchEngine, pick_device
from tests.server.peer import PATIENCE_S, Peer, eventually
from tests.tiny import tiny, tiny_folder

__all__ = ["tiny", "tiny_folder"]

QUESTION = "is there a 5?"
PLAIN = Text(mode="plain", levels=0, code_dim=0, width=16, max_tokens=48, scaling="none")
CODED = Text(mode="codes", levels=16, code_dim=16, width=16, max_tokens=48, scaling="image")
CUTS = {
    "codes": Cut(
        tokens=9,
        width=16,
        code_dim=8,
        merge=2,
        levels=5,
        bits=3,
        scaling="frozen",
        codec="packed",
        payload_bytes=27,
    ),
    "float16": Cut(
        tokens=36,
        width=16,
        code_dim=16,
        merge=1,
        levels=0,
        bits=16,
        scaling="none",
        codec="float16",
        payload_bytes=1152,
    ),
}


def write_half(folder: Path, tiny: Checkpoint, cut: Cut, text: Text = PLAIN) -> Half:
    write_server_half(folder, tiny, cut, text)
    manifest = Manifest(
        half="server",
        fingerprint="0123456789abcdef" * 2,
        model="tiny",
        cut=cut,
        picture=tiny.picture,
        text=text,
        template=tiny.template,
        files=hash_files(folder),
    )
    write_manifest(folder, manifest)
    return open_half(folder, "server")


@pytest.mark.parametrize("kind", CUTS)
@pytest.mark.parametrize("text", [PLAIN, CODED], ids=["plain", "coded"])
def test_answer_over_the_wire_is_the_models(tmp_path: Path, tiny: Checkpoint, kind: str, text: Text) -> None:
    half = write_half(tmp_path / "server", tiny, CUTS[kind], text)
    config = ServerConfig(bind="tcp://127.0.0.1:*", device="cpu")
    server = Server(config, TorchEngine(half, config))
    thread = threading.Thread(target=server.serve)
    thread.start()
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    peer = Peer(context, server.endpoint, half.manifest)
    try:
        assert peer.hello().limits.max_tokens == min(64, tiny.settings.max_answer_tokens)
        vision = peer.payload(seed=4)
        frames, payloads, coded = [peer.frame(vision)], [vision], None
        if text.mode == "codes":
            coded = np.random.default_rng(1).integers(0, 16, (5, 16)).astype(np.uint8)
            payloads.append(pack(coded, 16))
            frames.append(frame_codes("q", payloads[1], count=5))
        question = "" if coded is not None else QUESTION
        peer.send(Ask(1, tuple(frames), question, 6), payloads)
        tokens, answer = peer.streamed()
    finally:
        peer.close()
        context.term()
        server.stop()
        thread.join(PATIENCE_S)
    part = ServerPartition.load(half.path, half.manifest)
    shape = (half.manifest.cut.tokens, half.manifest.cut.code_dim)
    if half.manifest.cut.quantized:
        received: npt.NDArray[Any] = unpack(vision, 5, shape)
    else:
        received = np.frombuffer(vision, "<f2").reshape(shape).copy()
    expected = list(part.generate(received, question, text_codes=coded, max_tokens=6))
    assert answer.text == "".join(expected) == "".join(token.text for token in tokens)
    assert answer.tokens == len(expected)
    assert answer.finish == ("length" if len(expected) == 6 else "stop")


def test_qtl_server_as_a_process(tmp_path: Path, tiny: Checkpoint, source_env: dict[str, str]) -> None:
    half = write_half(tmp_path / "bundle" / "server", tiny, CUTS["codes"])
    ready = tmp_path / "ready"
    program = "import sys; from server_runtime.cli import main; sys.exit(main())"
    options = ("--bind", "tcp://127.0.0.1:0", "--ready-file", str(ready), "--verbose")
    popen = subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path / "bundle"), *options],
        env={**source_env, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    with popen:
        try:
            for _ in range(20):  # PyTorch may take its time on a busy machine
                if eventually(lambda: ready.exists() or popen.poll() is not None):
                    break
            assert popen.poll() is None, popen.communicate()
            endpoint = ready.read_text().strip()
            context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
            peer = Peer(context, endpoint, half.manifest)
            try:
                peer.hello()
                peer.ask(1, QUESTION, max_tokens=3)
                assert peer.answer().tokens <= 3
                peer.ask(2, "word " * 60)
                error = peer.error()
                assert (error.id, error.code) == (2, "question")
                peer.ask(3, QUESTION, max_tokens=3)
                assert peer.answer().id == 3
            finally:
                peer.close()
                context.term()
            popen.terminate()
            out, err = popen.communicate(timeout=3 * PATIENCE_S)
        finally:
            popen.kill()
    assert popen.returncode == 0, err
    assert not endpoint.endswith(":0")
    assert out == (
        f"qtl-server ready on {endpoint} (model tiny, 5 levels, fingerprint {half.manifest.fingerprint})\n"
    )
    assert "2 answered, 0 replayed, 0 busy, 1 (question 1) errors" in err


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_dtype(tmp_path: Path, tiny: Checkpoint, dtype: str) -> None:
    half = write_half(tmp_path, tiny, CUTS["codes"])
    engine = TorchEngine(half, ServerConfig(dtype=dtype, device="cpu"))
    codes = np.zeros((9, 8), dtype=np.uint8)
    assert len(list(engine.generate(Prompt(vision=codes, question=QUESTION), 2))) <= 2
    parameter = next(engine._open().parameters())
    assert parameter.dtype == getattr(torch, dtype)
    engine.close()
    with pytest.raises(HostError):
        engine.question_tokens("x")


def test_weights_that_do_not_fit_their_manifest(tmp_path: Path, tiny: Checkpoint) -> None:
    half = write_half(tmp_path, tiny, CUTS["codes"])
    wrong = msgspec.structs.replace(half.manifest, text=CODED)
    with pytest.raises(BundleError, match="cannot be loaded"):
        TorchEngine(Half(half.path, wrong), ServerConfig(device="cpu"))


def test_pick_device() -> None:
    assert pick_device("auto", cuda=False) == "cpu"
    assert pick_device("auto", cuda=True) == "cuda"
    assert pick_device("cpu", cuda=True) == "cpu"
    assert pick_device("cuda", cuda=True) == "cuda"
    with pytest.raises(HostError, match="--device cpu"):
        pick_device("cuda", cuda=False)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device here")
def test_cuda_that_is_not_there(tmp_path: Path, tiny: Checkpoint, capsys: pytest.CaptureFixture[str]) -> None:
    write_half(tmp_path, tiny, CUTS["codes"])
    assert main([str(tmp_path), "--bind", "tcp://127.0.0.1:*", "--device", "cuda"]) == HostError.exit_code
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("error: no CUDA device")
