"""A checkpoint small enough to export in a second or two, and its exports, each made once."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("onnxscript")

import torch

from qtl_core.nn.checkpoint import Checkpoint, QuantizerSettings, load_checkpoint, save_checkpoint
from qtl_export import exporter
from qtl_export.config import ExportConfig
from qtl_export.exporter import export
from qtl_export.graph import GRAPH, export_graph
from qtl_export.report import Exported
from qtl_training.build import build_checkpoint
from qtl_training.recipe import ModelRecipe

SIDE, TOKENS, CODE_DIM = 16, 4, 5
PICTURES = 12

RECIPE = ModelRecipe(
    image_size=SIDE,
    patch_size=4,
    stem_widths=(8,),
    stem_blocks=(0,),
    tower_width=16,
    tower_layers=1,
    tower_heads=2,
    tower_mlp=32,
    width=16,
    layers=1,
    heads=2,
    mlp=32,
    vocabulary=300,
    # 20 codes a picture: at 3, 5 and 7 bits the last byte has padding.
    vision=QuantizerSettings(code_dim=CODE_DIM, scaling="image", merge=2, k_levels=(2, 16, 256)),
    language=QuantizerSettings(code_dim=16, scaling="frozen"),
)


def smooth(n: int, seed: int) -> np.ndarray:
    """Pictures with something in them: random gratings, uint8 [n, side, side, 3]."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:SIDE, :SIDE] / SIDE
    wave = rng.uniform(-6, 6, (2, n, 1, 1, 3))
    phase = rng.uniform(0, 6, (n, 1, 1, 3))
    light = 0.5 + 0.5 * np.sin(wave[0] * x[..., None] + wave[1] * y[..., None] + phase)
    return np.asarray(255 * light, dtype=np.uint8)


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model whose vision quantizer has seen features, with held-out pictures and questions."""
    folder = tmp_path_factory.mktemp("tiny") / "checkpoint"
    build_checkpoint(folder, RECIPE, "tiny", seed=3)
    loaded = load_checkpoint(folder)
    with torch.no_grad():
        quantizer = loaded.model.vision_quantizer
        quantizer.k.copy_(torch.tensor([1.5, 2.25, 3.5]))
        quantizer.fit(loaded.model.vision(torch.from_numpy(smooth(64, 1))))
    save_checkpoint(folder, loaded.llava, loaded.model, loaded.settings, loaded.tokenizer, loaded.processor)
    texts = ["how many digits are there?", "is any digit red?", "<image></s>?", "what is ü?"]
    np.savez_compressed(
        folder / "held_out.npz",
        pictures=smooth(PICTURES, 2),
        questions=np.array([texts[i % len(texts)] for i in range(8)]),
        answers=np.array(["no"] * 8),
        scene=np.arange(8) % PICTURES,
    )
    return folder


Export = Callable[..., tuple[Path, Exported]]
"""``exported(levels, text="plain")``."""


@pytest.fixture(scope="session")
def exported(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Export:
    """Exports the tiny checkpoint, each kind once in a session: the bundle, and what was said of it."""
    made: dict[tuple[int, str], tuple[Path, Exported]] = {}

    def make(levels: int, text: str = "plain") -> tuple[Path, Exported]:
        if (levels, text) not in made:
            output = tmp_path_factory.mktemp("bundles") / f"{levels}-{text}"
            config = ExportConfig(
                checkpoint=checkpoint,
                levels=levels,
                output=output,
                text="codes" if text == "codes" else "plain",
                validate=40,
            )
            # Whatever a test has put there: these are real, but for text that does not touch the graph.
            source = make(levels)[0] if text == "codes" else None
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(exporter, "export_graph", _copy_of(source) if source else export_graph)
                made[levels, text] = output, export(config)
        return made[levels, text]

    return make


@pytest.fixture
def traced(exported: Export, monkeypatch: pytest.MonkeyPatch) -> None:
    """Exports of the tiny checkpoint take a graph that was traced before: tracing costs seconds."""

    def traced_before(checkpoint: Checkpoint, levels: int, folder: Path) -> Path:
        return _copy_of(exported(levels)[0])(checkpoint, levels, folder)

    monkeypatch.setattr(exporter, "export_graph", traced_before)


def _copy_of(bundle: Path) -> Callable[[Checkpoint, int, Path], Path]:
    return lambda checkpoint, levels, folder: Path(shutil.copy(bundle / "client" / GRAPH, folder))
