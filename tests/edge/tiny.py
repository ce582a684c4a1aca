"""A bundle small enough for tests: the committed tiny graphs, and the same computed in numpy."""

from __future__ import annotations

import hashlib
import io
import shutil
from pathlib import Path
from typing import Any, Literal

import msgspec
import numpy as np
import numpy.typing as npt
from PIL import Image

from qtl_core import bundle, codes
from qtl_core.entropy import Tables
from qtl_core.entropy_file import NAME as TABLES
from qtl_core.entropy_file import write_tables

GOLDEN = Path(__file__).resolve().parents[1] / "golden"
TOKENS, CODE_DIM, LEVELS = 16, 3, 4
PAYLOAD = 12

Pixels = npt.NDArray[np.uint8]

PICTURE = bundle.Picture(
    height=32, width=32, resample="bilinear", fit="square", pad_colour=(127, 127, 127), max_pixels=1_000_000
)
TEMPLATE = bundle.Template(before_image="<", between=">", after_question="?")
PLAIN = bundle.Text(mode="plain", levels=0, code_dim=0, width=3, max_tokens=8, scaling="none")


def cut(bits: Literal[2, 16] = 2) -> bundle.Cut:
    """The cut of the 2-bit graph, or of the unquantized one."""
    quantized = bits == 2
    return bundle.Cut(
        tokens=TOKENS,
        width=3,
        code_dim=CODE_DIM,
        merge=1,
        levels=LEVELS if quantized else 0,
        bits=bits,
        scaling="frozen" if quantized else "none",
        codec="packed" if quantized else "float16",
        payload_bytes=PAYLOAD if quantized else 2 * TOKENS * CODE_DIM,
    )


def write_client(
    folder: Path,
    *,
    bits: Literal[2, 16] = 2,
    picture: bundle.Picture = PICTURE,
    text: bundle.Text = PLAIN,
    files: dict[str, bytes] | None = None,
    tables: Tables | None = None,
) -> bundle.Manifest:
    """Writes a client half into ``folder`` and returns its manifest."""
    folder.mkdir(parents=True, exist_ok=True)
    name = "tiny_client.onnx" if bits == 2 else "tiny_client_16bit.onnx"
    shutil.copyfile(GOLDEN / name, folder / "client.onnx")
    for path, data in (files or {}).items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(data)
    if tables is not None:
        write_tables(folder / TABLES, tables)
    manifest = _manifest(folder, "client", cut(bits), picture, text, tables)
    bundle.write_manifest(folder, manifest)
    return manifest


def write_server(folder: Path, client: bundle.Manifest) -> bundle.Manifest:
    """Writes the server half (weights that are none) that belongs to a client half."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model.safetensors").write_bytes(b"weights")
    manifest = msgspec.structs.replace(
        client, half="server", files=bundle.hash_files(folder), graph="client.onnx"
    )
    bundle.write_manifest(folder, manifest)
    return manifest


def golden(n: int = 4) -> bytes:
    """Golden pictures of the 2-bit graph: ``golden.npz``."""
    pictures = np.stack([scene(seed) for seed in range(n)])
    rows = np.stack([np.frombuffer(payload(one), np.uint8) for one in pictures])
    buffer = io.BytesIO()
    np.savez_compressed(buffer, pictures=pictures, payloads=rows)
    return buffer.getvalue()


def variant(kind: Literal["near", "far"]) -> bytes:
    """A graph that makes a few codes otherwise: "near" by one level, "far" by two."""
    return (GOLDEN / f"tiny_client_{kind}.onnx").read_bytes()


def edit_manifest(folder: Path, **fields: Any) -> None:
    """Rewrites single fields of a manifest on disk, checked by nobody."""
    path = folder / bundle.MANIFEST
    manifest = msgspec.json.decode(path.read_bytes())
    path.write_bytes(msgspec.json.encode({**manifest, **fields}))


def _manifest(
    folder: Path,
    half: bundle.HalfName,
    its_cut: bundle.Cut,
    picture: bundle.Picture,
    text: bundle.Text,
    tables: Tables | None,
) -> bundle.Manifest:
    sha = hashlib.sha256((folder / "client.onnx").read_bytes()).hexdigest()
    return bundle.Manifest(
        half=half,
        fingerprint=bundle.fingerprint(its_cut, picture, text, TEMPLATE, sha, "0" * 64),
        model="tiny",
        cut=its_cut,
        picture=picture,
        text=text,
        template=TEMPLATE,
        files=bundle.hash_files(folder),
        tables="" if tables is None else tables.digest.hex(),
    )


def dark(seed: int = 0) -> Pixels:
    """A scene with codes 0 and 1 only, and twice as many of the first."""
    return np.asarray(scene(seed) // 3, dtype=np.uint8)


def dark_tables(seed: int = 1000) -> Tables:
    """Tables of the 2-bit codes of dark scenes; other codes take more bytes with them than packed."""
    seen = [codes.unpack(payload(dark(seed + each)), LEVELS, (TOKENS, CODE_DIM)) for each in range(20)]
    return Tables.fit(np.stack(seen), LEVELS)


def means(pixels: Pixels) -> npt.NDArray[np.float32]:
    """What the graphs compute first: [16, 3] means of 8 x 8 pixels."""
    cells = pixels.astype(np.float32).reshape(4, 8, 4, 8, 3)
    return np.asarray(cells.mean(axis=(1, 3)).reshape(TOKENS, CODE_DIM), dtype=np.float32)


def payload(pixels: Pixels) -> bytes:
    """The 2-bit payload of a 32 x 32 picture."""
    return codes.pack((means(pixels) // 64).astype(np.uint8), LEVELS)


def scene(seed: int = 0, height: int = 32, width: int = 32) -> Pixels:
    """Some pixels with more than noise in them: blocks of colour."""
    rng = np.random.default_rng(seed)
    blocks = rng.integers(0, 256, (height // 8 + 1, width // 8 + 1, 3), dtype=np.uint8)
    return np.ascontiguousarray(np.kron(blocks, np.ones((8, 8, 1), np.uint8))[:height, :width])


def file_bytes(pixels: Pixels | Image.Image, form: str = "PNG", **options: Any) -> bytes:
    """A picture file."""
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()
