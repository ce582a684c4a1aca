"""``text = "codes"``: the files with which the device tokenizes, embeds and quantizes a question."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from edge_runtime.text import TOKENIZER, WEIGHTS
from qtl_core.nn.checkpoint import Checkpoint


def write_language(folder: Path, checkpoint: Checkpoint, levels: int) -> None:
    """Writes the client half's ``text/tokenizer.json`` and ``text/language.npz``.

    Args:
        folder: the client half.
        checkpoint: the model.
        levels: L of the language quantizer.
    """
    (folder / TOKENIZER).parent.mkdir(parents=True, exist_ok=True)
    (folder / TOKENIZER).write_text(checkpoint.tokenizer.backend_tokenizer.to_str(pretty=True), "utf-8")
    params = checkpoint.model.language_quantizer.params(levels)
    embedding: Any = checkpoint.model.decoder.language_model.get_input_embeddings()
    arrays = {
        "embedding": embedding.weight.detach().cpu().float().numpy(),
        "in_proj_weight": params.in_proj_weight,
        "in_proj_bias": params.in_proj_bias,
        "k": np.asarray(params.k, dtype=np.float32),
    }
    if params.mean is not None and params.std is not None:
        arrays |= {"mean": params.mean, "std": params.std}
    with (folder / WEIGHTS).open("wb") as file:
        np.savez(file, allow_pickle=False, **arrays)
