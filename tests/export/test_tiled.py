"""Tiled pictures from checkpoint to answer: export, validation, and a question over a real socket."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from edge_runtime import EdgeClient
from edge_runtime.golden import golden_of
from edge_runtime.tiles import prepare
from qtl_core.bundle import open_half
from qtl_core.entropy_file import tables_of
from qtl_core.nn.checkpoint import load_checkpoint
from qtl_export.cli import main
from server_runtime import Server, ServerConfig
from server_runtime.torch_engine import TorchEngine
from tests.nn import tiled

QUESTION = "how many digits are there?"
SIZES = [(61, 40), (28, 90), (28, 28)]
Make = Callable[[Path], Any]
SLOW = pytest.mark.slow  # each traces a graph
FAMILIES = [
    pytest.param(tiled.make_onevision, tiled.onevision_inputs, 5, id="onevision"),
    pytest.param(
        lambda folder: tiled.make_idefics3(folder, kind="smolvlm"),
        tiled.idefics3_inputs,
        10,
        id="smolvlm",
        marks=SLOW,
    ),
    pytest.param(
        lambda folder: tiled.make_idefics3(folder, split=False),
        tiled.idefics3_inputs,
        1,
        id="whole",
        marks=SLOW,
    ),
]


@contextmanager
def served(bundle: Path) -> Iterator[str]:
    config = ServerConfig(bind="tcp://127.0.0.1:*")
    half = open_half(bundle / "server", "server")
    server = Server(config, TorchEngine(half, config), tables=tables_of(half))
    thread = threading.Thread(target=server.serve)
    thread.start()
    try:
        yield server.endpoint
    finally:
        server.stop()
        thread.join(20)
    assert not thread.is_alive()


def pictures(folder: Path, n: int) -> Path:
    folder.mkdir()
    for index in range(n):
        tiled.image(30 + 9 * (index % 9), 80 - 7 * (index % 9), index).save(folder / f"{index}.png")
    return folder


@pytest.mark.parametrize(("make", "inputs", "most"), FAMILIES)
def test_answers_over_a_socket_are_those_of_transformers(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], make: Make, inputs: Any, most: int
) -> None:
    theirs = make(tmp_path / "theirs")
    bundle = tmp_path / "bundle"
    options = ["--bits", "16", "-o", str(bundle), "--validate", "3", "--json"]
    assert main([str(tmp_path / "theirs"), *options]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["validation"]["passed"] and said["tiles"] == most
    assert said["validation"]["pictures"] == 3 and said["validation"]["answers"]["asked"] == 3
    assert (said["validation"]["tiles"] > 3) == (most > 1)
    tokenizer = load_checkpoint(tmp_path / "theirs", weights=False).tokenizer
    with served(bundle) as endpoint, EdgeClient(bundle, endpoint, threads=1) as client:
        for size in SIZES:
            picture = tiled.image(*size)
            given = inputs(theirs, tmp_path / "theirs", picture, QUESTION)
            with torch.no_grad():
                ids = theirs.generate(**given, do_sample=False, max_new_tokens=8)
            wanted: Any = tokenizer.decode(ids[0, given["input_ids"].shape[1] :], skip_special_tokens=True)
            answer = client.ask(picture, QUESTION, max_tokens=8)
            # Bytes of a character that the answer ends within are not shown.
            assert answer.text.rstrip("\ufffd") == wanted.rstrip("\ufffd")
            assert answer.tiles == len(prepare(picture, client.manifest.picture).tiles) <= most
            assert answer.payload_bytes == answer.tiles * client.manifest.cut.payload_bytes


@SLOW
def test_codes_of_tiles(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tiled.make_onevision(tmp_path / "mine")
    folder, bundle = pictures(tmp_path / "pictures", 6), tmp_path / "bundle"
    options = ["--bits", "2", "--calibrate", str(folder), "--code-dim", "8", "-o", str(bundle), "--json"]
    assert main([str(tmp_path / "mine"), *options]) == 0
    said = json.loads(capsys.readouterr().out)
    validation = said["validation"]
    assert validation["passed"] and validation["pictures"] == 6
    manifest = json.loads((bundle / "client" / "manifest.json").read_text())
    assert manifest["picture"]["tiling"]["type"] == "anyres"
    assert manifest["cut"]["payload_bytes"] == said["payload_bytes"] == 16 * 8 // 4
    assert said["fitted"]["unit"] == "tiles" and said["fitted"]["pictures"] > 6
    for half in ("client", "server"):
        card = (bundle / half / "README.md").read_text()
        assert "up to 5 a picture" in card and "what crosses for a tile" in card
    client_half = open_half(bundle / "client", "client")
    golden = golden_of(client_half)
    assert golden is not None and golden.pictures.shape[1:] == (tiled.SIDE, tiled.SIDE, 3)
    model = load_checkpoint(tmp_path / "mine").model
    with served(bundle) as endpoint, EdgeClient(bundle, endpoint, threads=1) as client:
        picture = tiled.image(61, 40)
        encoded = client.encode(picture)
        assert encoded.tiles == 5 and len(encoded.payload) == 5 * 32 and encoded.size == (61, 40)
        answer = client.ask(encoded, QUESTION, max_tokens=4)
        assert answer.packed_bytes == 160 and answer.payload_bytes <= 160
    # Each tile is a picture of its own to the graph: alone it gets the same codes.
    one = client._encoder.run(prepare(picture, client_half.manifest.picture).tiles[2:3])
    assert one == [encoded.payload[64:96]]
    assert not model.quantized


@SLOW
def test_a_table_is_shown_of_tiles(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tiled.make_idefics3(tmp_path / "mine")
    folder = pictures(tmp_path / "pictures", 40)
    options = ["--bits", "2", "--calibrate", str(folder), "--code-dim", "4", "-o", str(tmp_path / "bundle")]
    assert main([str(tmp_path / "mine"), *options, "--validate", "2"]) == 0
    out = capsys.readouterr().out
    assert "bytes a tile (4 tokens x 4), up to 10 tiles a picture" in out and "2 pictures in " in out


def test_inspect_tells_tiles(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tiled.make_idefics3(tmp_path, kind="smolvlm")
    assert main(["inspect", str(tmp_path), "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert (said["family"], said["tiles"], said["tokens"]) == ("smolvlm", 10, 4)
    assert said["bytes_by_bits"]["16"] == 4 * tiled.WIDTH * 2
    # The norm in front of the pixel shuffle is part of the graph.
    vision = load_checkpoint(tmp_path).model.vision
    assert said["client_parameters"] == sum(one.numel() for one in vision.parameters())
    assert main(["inspect", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert "up to 10 a picture" in out and "one tile" in out and "bytes of one tile" in out


def test_tiles_to_fit_to_are_of_every_picture(tmp_path: Path) -> None:
    from qtl_export.held_out import gather, originals

    tiled.make_onevision(tmp_path / "mine")
    spec = load_checkpoint(tmp_path / "mine", weights=False).picture
    folder = pictures(tmp_path / "pictures", 6)
    found = originals(tmp_path, folder, spec, 12)
    assert found is not None and found[0].shape == (12, tiled.SIDE, tiled.SIDE, 3)
    whole = gather(tmp_path, folder, spec, 3)
    assert len(whole.spans) == 3 and whole.spans[0].size == (30, 80)
    assert sum(span.tiles for span in whole.spans) == len(whole.pictures) == whole.originals
    first = whole.spans[1]
    seen = prepare(folder / "1.png", spec).tiles
    np.testing.assert_array_equal(whole.pictures[first.first : first.first + first.tiles], seen)
