"""Digit scenes as people's own data would be: PNG pictures, and conversations about them in LLaVA's JSON."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

import numpy as np
from PIL import Image
from tqdm import tqdm

from edge_runtime.training.conversations import MARKER
from qtl_core.errors import InputError, StorageError
from qtl_training.digits import questions as q
from qtl_training.digits.scenes import Scenes, render, sample
from qtl_training.stages.asking import ask

FILE: Final = "conversations.json"
PICTURES: Final = "pictures"
PARTS: Final = {"train": "train", "held-out": "test"}
"""Folder of a part, and whose scans its pictures are drawn from: no scan is in both."""
_EACH = 8
_STREAM = 16


def write_parts(
    folder: Path, count: int, held_out: int, *, turns: int = 3, seed: int = 1, progress: bool = True
) -> dict[str, int]:
    """Writes both parts, and returns how many pictures each has.

    Of eight samples one shows two pictures, one after the other, one has none, and the rest are about one.

    Args:
        folder: gets a folder for each part, each with ``conversations.json`` and ``pictures``.
        count: samples to train on.
        held_out: samples to evaluate on.
        turns: questions of a sample at most, but one about each picture at least; half of the samples have as
            many, the others one to as many.
        seed: the same arguments write the same files.
        progress: whether to show a bar.

    Raises:
        InputError: the folder has such parts already.
        StorageError: it cannot be written.
    """
    found = {}
    for part, samples in (("train", count), ("held-out", held_out)):
        if (folder / part).exists():
            raise InputError(f"{folder / part} is there already; name another folder, or remove it")
        try:
            found[part] = _write(folder / part, part, samples, turns, seed, progress)
        except OSError as error:
            raise StorageError(f"{folder / part} cannot be written: {error.strerror}") from error
    return found


def _write(folder: Path, part: str, samples: int, turns: int, seed: int, progress: bool) -> int:
    (folder / PICTURES).mkdir(parents=True)
    shown = [1 + (number % _EACH == 1) - (number % _EACH == 3) for number in range(samples)]
    scenes = sample(PARTS[part], max(1, sum(shown)), seed)
    rng = np.random.default_rng([seed, list(PARTS).index(part), _STREAM])
    written, said = 0, []
    for number in tqdm(range(samples), desc=part, unit="sample", disable=not progress or None):
        pictures = list(range(written, written + shown[number]))
        written += len(pictures)
        for scene in pictures:
            image = Image.fromarray(render(scenes, slice(scene, scene + 1))[0])
            image.save(folder / PICTURES / _name(scene))
        most = turns if rng.random() < 0.5 else int(rng.integers(1, turns + 1))
        said.append(_sample(f"{part}-{number}", scenes, pictures, most, rng))
    (folder / FILE).write_text(json.dumps(said, indent=1) + "\n", "utf-8")
    return written


def _sample(
    name: str, scenes: Scenes, pictures: list[int], turns: int, rng: np.random.Generator
) -> dict[str, Any]:
    if not pictures:
        return {"id": name, "conversations": _said([_sum(rng) for _ in range(turns)])}
    each = max(1, turns // len(pictures))
    asked = ask(scenes, pictures, each, np.full(len(q.TYPES), 1 / len(q.TYPES)), rng)
    pairs = []
    for about in asked:
        texts = [(one.text, one.answer) for one in about]
        pairs += [(f"{MARKER}\n{texts[0][0]}", texts[0][1]), *texts[1:]]
    names = [_name(scene) for scene in pictures]
    return {"id": name, "image": names[0] if len(names) == 1 else names, "conversations": _said(pairs)}


def _sum(rng: np.random.Generator) -> tuple[str, str]:
    first, second = (int(one) for one in rng.integers(0, 10, 2))
    return f"what is {first} plus {second}?", str(first + second)


def _said(pairs: list[tuple[str, str]]) -> list[dict[str, str]]:
    return [
        {"from": who, "value": text}
        for pair in pairs
        for who, text in zip(("human", "gpt"), pair, strict=True)
    ]


def _name(scene: int) -> str:
    return f"{scene:06d}.png"
