"""What both halves must agree on, and their manifests."""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch

from edge_runtime.golden import FILE as GOLDEN
from edge_runtime.picture import Pixels
from qtl_core import __version__, bundle
from qtl_core.bundle import UNQUANTIZED_BITS, Cut, FileEntry, HalfName, Manifest, Text, VariantEntry
from qtl_core.codes import bits_of, packed_size
from qtl_core.entropy import Tables
from qtl_core.entropy_file import NAME as TABLES
from qtl_core.entropy_file import write_tables
from qtl_core.nn.checkpoint import Checkpoint
from qtl_core.trainable import FOLDER
from qtl_export.cost import client_cost
from qtl_export.graph import GRAPH, IR_VERSION, OPSET, example

HALVES: Final[tuple[HalfName, ...]] = ("client", "server")
_MADE_WITH: Final = ("torch", "transformers", "onnxscript", "onnxruntime", "numpy")
# The file whose bytes a half's part of the fingerprint is, where a half has but one to load.
_LOADED: Final = (".onnx", ".data", ".safetensors", ".npz")
# Not in the fingerprint: examples, and tables that can be measured anew; the handshake compares their digest.
_APART: Final = (GOLDEN, TABLES)
# Nor what a client half can be trained with: it answers as one without.
_TRAINING: Final = f"{FOLDER}/"


@dataclass(frozen=True)
class Agreement:
    """What the two halves of a bundle share.

    Attributes:
        model: name of the model.
        cut: what crosses for a picture.
        picture: how pictures are prepared.
        text: how questions cross.
        template: the prompt.
        tables: the entropy coder's, where there are any.
        hashed: size and hash of large files that were hashed while they were written, by half and name.
        gflop: what the client graph computes for a picture; only the client half says so.
    """

    model: str
    cut: Cut
    picture: bundle.Picture
    text: Text
    template: bundle.Template
    tables: Tables | None = None
    hashed: dict[tuple[HalfName, str], FileEntry] = field(default_factory=dict)
    gflop: float = 0.0

    @classmethod
    def of(cls, checkpoint: Checkpoint, levels: int, text: str) -> Agreement:
        """The agreement of a checkpoint at ``levels`` (0: unquantized) with questions as ``text``."""
        return cls(
            checkpoint.settings.name,
            _cut(checkpoint, levels),
            checkpoint.picture,
            _text(checkpoint, levels, text),
            checkpoint.template,
            gflop=client_cost(checkpoint, bool(levels)).gflop,
        )

    def fingerprint(self, work: Path) -> str:
        """The pair's fingerprint, once the files of both halves are there."""
        shas = [_loaded_sha(self._hash_files(work, half)) for half in HALVES]
        return bundle.fingerprint(self.cut, self.picture, self.text, self.template, shas[0], shas[1])

    def write_tables(self, work: Path) -> None:
        """Writes the entropy coder's tables into both halves, where there are any."""
        if self.tables is not None:
            for half in HALVES:
                write_tables(work / half / TABLES, self.tables)

    def write_manifest(
        self,
        work: Path,
        half: HalfName,
        fingerprint: str,
        validation: dict[str, Any],
        variants: Mapping[str, VariantEntry] | None = None,
    ) -> Manifest:
        """Writes the manifest of one half over the files it has by now; ``variants`` go with the client's."""
        manifest = Manifest(
            half=half,
            fingerprint=fingerprint,
            model=self.model,
            cut=self.cut,
            picture=self.picture,
            text=self.text,
            template=self.template,
            files=self._hash_files(work, half),
            graph=GRAPH,
            tables="" if self.tables is None else self.tables.digest.hex(),
            made_by=versions(),
            validation=validation,
            gflop=self.gflop if half == "client" else 0.0,
            variants=dict(variants or {}) if half == "client" else {},
        )
        bundle.write_manifest(work / half, manifest)
        return manifest

    def _hash_files(self, work: Path, half: HalfName) -> dict[str, FileEntry]:
        known = {name: entry for (of, name), entry in self.hashed.items() if of == half}
        return bundle.hash_files(work / half, known)


def versions() -> dict[str, str]:
    """What a bundle is made with."""
    return {
        "qtl-edge": __version__,
        **{name: metadata.version(name) for name in _MADE_WITH},
        "opset": str(OPSET),
        "ir_version": str(IR_VERSION),
        "machine": platform.machine(),
    }


def write_golden(folder: Path, pictures: Pixels, payloads: list[bytes]) -> None:
    """Writes a few pictures and their payloads, for clients in other languages to test with."""
    with (folder / GOLDEN).open("wb") as file:
        rows = np.stack([np.frombuffer(payload, dtype=np.uint8) for payload in payloads])
        np.savez_compressed(file, allow_pickle=False, pictures=pictures, payloads=rows)


def _cut(checkpoint: Checkpoint, levels: int) -> Cut:
    with torch.inference_mode():
        features = checkpoint.model.vision(example(checkpoint.picture)[:1])
    picture_tokens, width = features.shape[1:]
    if not levels:
        return Cut(
            tokens=picture_tokens,
            width=width,
            code_dim=width,
            merge=1,
            levels=0,
            bits=UNQUANTIZED_BITS,
            scaling="none",
            codec="float16",
            payload_bytes=2 * picture_tokens * width,
        )
    quantizer = checkpoint.model.vision_quantizer
    tokens = picture_tokens // quantizer.merge**2
    return Cut(
        tokens=tokens,
        width=width,
        code_dim=quantizer.code_dim,
        merge=quantizer.merge,
        levels=levels,
        bits=bits_of(levels),
        scaling=_scaling(quantizer.scaling),
        codec="packed",
        payload_bytes=packed_size(tokens * quantizer.code_dim, levels),
    )


def _text(checkpoint: Checkpoint, levels: int, mode: str) -> Text:
    width = checkpoint.model.decoder.width
    longest = checkpoint.settings.max_question_tokens
    if mode == "plain":
        return Text(mode="plain", levels=0, code_dim=0, width=width, max_tokens=longest, scaling="none")
    quantizer = checkpoint.model.language_quantizer
    return Text(
        mode="codes",
        # Beside an unquantized picture the question still needs codes: the finest there are.
        levels=levels or 256,
        code_dim=quantizer.code_dim,
        width=width,
        max_tokens=longest,
        scaling=_scaling(quantizer.scaling),
    )


def _scaling(name: str) -> bundle.Scaling:
    return "frozen" if name == "frozen" else "image"


def _loaded_sha(entries: Mapping[str, FileEntry]) -> str:
    """SHA-256 of the one file a half loads; of all their hashes where there are several."""
    shas = [
        f"{name} {entry.sha256}"
        for name, entry in entries.items()
        if name.endswith(_LOADED) and name not in _APART and not name.startswith(_TRAINING)
    ]
    if len(shas) == 1:
        return shas[0].split()[1]
    return hashlib.sha256("\n".join(shas).encode()).hexdigest()
