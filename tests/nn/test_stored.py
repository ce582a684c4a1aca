"""Weights that stay in their files: read piece by piece, copied to a server half, never held as a whole."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save, save_file

from qtl_core.bundle import Cut, Manifest, Text
from qtl_core.nn import stored, tensor_writing, weights
from qtl_core.nn.checkpoint import Checkpoint, decoder_bytes, load_checkpoint, load_client
from qtl_core.nn.server_partition import WEIGHTS_FILE, ServerPartition, write_server_half
from qtl_core.nn.stored import Source, drop_weights, load_weights, sources_of
from qtl_core.nn.tensor_writing import write_tensors
from qtl_core.nn.weights import Weights
from tests.nn import foreign

CUT = Cut(tokens=16, width=32, code_dim=32, merge=1, levels=0, bits=16, scaling="none", codec="float16",
          payload_bytes=1024)  # fmt: skip
TEXT = Text(mode="plain", levels=0, code_dim=0, width=32, max_tokens=48, scaling="none")


@pytest.fixture
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pieces of 512 bytes, files opened anew every 2 kB."""
    monkeypatch.setattr(weights, "PIECE", 512)
    monkeypatch.setattr(weights, "_KEPT", 2048)


@pytest.mark.parametrize("pickled", [False, True])
def test_pieces_make_the_tensor(tmp_path: Path, small_pieces: None, pickled: bool) -> None:
    tensors = {
        "long": torch.randn(700, 3),
        "flat": torch.randn(1000).bfloat16(),
        "wide": torch.randn(3, 500).half(),
        "none": torch.zeros(0, 4),
        "scalar": torch.tensor(7),
        "double": torch.randn(5, 4, 3, dtype=torch.float64),
    }
    if pickled:
        torch.save(tensors, tmp_path / "pytorch_model.bin")
    else:
        save_file(tensors, tmp_path / "model.safetensors")
    files = Weights(tmp_path)
    for name, tensor in tensors.items():
        assert (files.shape(name), files.dtype(name)) == (tuple(tensor.shape), tensor.dtype)
        read = Source(files, name).read()
        assert read.dtype == (torch.float32 if tensor.is_floating_point() else tensor.dtype)
        assert torch.equal(read, tensor.to(read.dtype))
    assert [len(piece) for piece in files.pieces("long")] == [42] * 16 + [28]
    assert all(piece.nbytes <= 1000 for name in tensors for piece in files.pieces(name))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_files_are_the_library_s(tmp_path: Path, dtype: torch.dtype) -> None:
    tensors = {"b.weight": torch.randn(4, 5, dtype=dtype), "a": torch.randn(3, dtype=dtype)}
    entry = write_tensors(tmp_path / "ours.safetensors", tensors)
    data = (tmp_path / "ours.safetensors").read_bytes()
    assert data == save(tensors)
    assert (entry.size, entry.sha256) == (len(data), hashlib.sha256(data).hexdigest())


def test_mixed_types_are_kept_and_double_becomes_single(tmp_path: Path) -> None:
    tensors = {
        "a": torch.randn(3).half(),
        "b": torch.randn(2, 2),
        "c": torch.arange(3, dtype=torch.uint8),
        "d": torch.randn(5).bfloat16(),
        "e": torch.randn(3, dtype=torch.float64),
        "f": torch.tensor(4),
        "g": torch.zeros(0, 2),
        "h": torch.randn(4, 3).T,
    }
    write_tensors(tmp_path / "ours.safetensors", tensors)
    read = load_file(tmp_path / "ours.safetensors")
    assert read.keys() == tensors.keys()
    for name, tensor in tensors.items():
        expected = tensor.float() if tensor.dtype == torch.float64 else tensor
        assert read[name].dtype == expected.dtype and torch.equal(read[name], expected)
    with pytest.raises(TypeError, match=r"z is torch\.complex64"):
        write_tensors(tmp_path / "no.safetensors", {"z": torch.zeros(1, dtype=torch.complex64)})


@pytest.mark.parametrize(
    ("decoder", "tied", "dtype"),
    [
        ("llama", False, torch.float32),
        ("llama", True, torch.bfloat16),
        ("qwen2", True, torch.float16),
        ("phi", False, torch.bfloat16),  # whose head has a bias that is in no file
    ],
)
def test_a_server_half_is_copied_from_the_files(
    tmp_path: Path, small_pieces: None, monkeypatch: pytest.MonkeyPatch,
    decoder: str, tied: bool, dtype: torch.dtype,
) -> None:  # fmt: skip
    foreign.make_llava(tmp_path / "mine", decoder=decoder, tied=tied, dtype=dtype, shard="40KB")
    whole = load_checkpoint(tmp_path / "mine")
    lazy = load_checkpoint(tmp_path / "mine", weights=False)
    assert decoder_bytes(lazy) == decoder_bytes(whole) > 0
    largest = 0
    pieces = Weights.pieces

    def watched(self: Weights, name: str) -> Iterator[torch.Tensor]:
        nonlocal largest
        for piece in pieces(self, name):
            largest = max(largest, piece.nbytes)
            yield piece

    monkeypatch.setattr(Weights, "pieces", watched)
    monkeypatch.setattr(stored.Source, "read", None)  # nothing may be read as a whole
    entry = write_server_half(tmp_path / "half", lazy, CUT, TEXT)
    assert 0 < largest <= 1024
    assert entry.size == (tmp_path / "half" / WEIGHTS_FILE).stat().st_size
    stored_now = load_file(tmp_path / "half" / WEIGHTS_FILE)
    assert {tensor.dtype for name, tensor in stored_now.items() if "head.bias" not in name} == {dtype}
    assert ("decoder.language_model.lm_head.weight" in stored_now) != tied
    read = ServerPartition.load(tmp_path / "half", _manifest(lazy)).decoder.state_dict()
    expected = whole.model.decoder.state_dict()
    assert read.keys() == expected.keys()
    assert all(torch.equal(read[name], expected[name]) for name in expected)


@pytest.mark.parametrize("kind", ["foreign", "ours"])
def test_only_the_client_s_weights_are_loaded(tmp_path: Path, tiny_folder: Path, kind: str) -> None:
    folder = tiny_folder
    if kind == "foreign":
        folder = tmp_path / "mine"
        foreign.make_llava(folder, dtype=torch.bfloat16)
    whole, lazy = load_checkpoint(folder), load_checkpoint(folder, weights=False)
    assert all(parameter.is_meta for parameter in lazy.model.vision.tower.parameters())
    load_client(lazy)
    language_model = lazy.model.decoder.language_model
    assert all(parameter.is_meta for parameter in language_model.parameters())
    inside = {id(parameter) for parameter in language_model.parameters()}
    assert not any(each.is_meta for each in lazy.model.parameters() if id(each) not in inside)
    ours, theirs = lazy.model.vision.state_dict(), whole.model.vision.state_dict()
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in theirs)
    table = language_model.get_input_embeddings()
    load_weights(table)
    expected: torch.nn.Module = whole.model.decoder.language_model.get_input_embeddings()
    assert torch.equal(table.state_dict()["weight"], expected.state_dict()["weight"])
    load_weights(lazy.model)
    ours, theirs = lazy.model.state_dict(), whole.model.state_dict()
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert len(sources_of(lazy.model)) > len(sources_of(lazy.model.vision)) > 10
    drop_weights(lazy.model.vision)
    assert all(parameter.is_meta for parameter in lazy.model.vision.parameters())


def test_names_of_types_are_the_format_s() -> None:
    assert len(set(tensor_writing._KINDS.values())) == len(tensor_writing._KINDS)
    for kind, name in tensor_writing._KINDS.items():
        assert f'"{name}"' in save({"x": torch.zeros(1, dtype=kind)})[8:64].decode("utf-8", "replace")


def _manifest(checkpoint: Checkpoint) -> Manifest:
    return Manifest(
        half="server", fingerprint="0" * 32, model="mine", cut=CUT, picture=checkpoint.picture, text=TEXT,
        template=checkpoint.template, files={},
    )  # fmt: skip
