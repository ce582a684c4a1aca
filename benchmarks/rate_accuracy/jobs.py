"""The pieces of work of the comparison; each leaves one file in the work folder."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any, cast

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from tqdm import tqdm

from benchmarks.rate_accuracy.store import Store
from qtl_core.nn.checkpoint import Checkpoint, load_checkpoint
from qtl_training.digits.dataset import QuestionSet, question_set
from qtl_training.digits.scenes import Scenes, render
from qtl_training.features import tower_features
from qtl_training.rivals import measuring, trial
from qtl_training.rivals.methods import Knob, Setting, Variant
from qtl_training.rivals.pictures import Format, PictureCodec
from qtl_training.rivals.trial import Conditions

FORMAT = 2
"""Of result files; a change of what they mean gets a new number, and everything is computed again."""


@dataclass(frozen=True, kw_only=True)
class Frame:
    """What every job works in.

    Attributes:
        conditions: of the fine-tunes.
        start_hash: of the start checkpoint.
        each_type: questions of each type on the test split; half as many are asked on the validation
            split, which only chooses settings.
        work: the work folder.
        fast: whether pictures of the test split too are encoded at the codecs' fast settings.
        progress: whether to show bars.
    """

    conditions: Conditions
    start_hash: str
    each_type: int
    work: Path
    fast: bool = False
    progress: bool = True

    @property
    def store(self) -> Store:
        """The work folder's files."""
        return Store(self.work)

    def questions(self, split: str) -> int:
        """Questions of each type that are asked on a split."""
        return self.each_type if split == "test" else -(-self.each_type // 2)


@dataclass(frozen=True, kw_only=True)
class Features:
    """Job: the start checkpoint's tower features of a split; of "train", of one seed's scenes."""

    split: str
    seed: int = 0

    def path(self, frame: Frame) -> Path:
        """Where they are kept."""
        scenes = frame.conditions.scenes if self.split == "train" else 0
        name = f"{self.split}{self.seed or ''}"
        return frame.store.path("features", name, ".npy", start=frame.start_hash, scenes=scenes)

    def run(self, frame: Frame) -> None:
        """Computes them."""
        vision = load_checkpoint(frame.conditions.start).model.vision
        found = tower_features(vision, _scenes(frame, self.split, self.seed), progress=frame.progress)

        def fill(part: Path) -> None:
            with part.open("wb") as file:
                np.save(file, found.numpy())

        frame.store.write(self.path(frame), fill)

    def load(self, frame: Frame) -> Tensor:
        """The features, float16, mapped from the file and not read at once."""
        return torch.from_numpy(np.load(self.path(frame), mmap_mode="c"))


@dataclass(frozen=True, kw_only=True)
class Pictures:
    """Job: the pictures of a split, drawn once for all codecs and settings."""

    split: str

    def path(self, frame: Frame) -> Path:
        """Where they are kept."""
        return frame.store.path("pictures", self.split, ".npy", format=FORMAT)

    def run(self, frame: Frame) -> None:
        """Draws them."""
        scenes = _data(self.split, frame.questions(self.split)).scenes

        def fill(part: Path) -> None:
            with part.open("wb") as file:
                np.save(file, render(scenes, slice(None)))

        frame.store.write(self.path(frame), fill)

    def load(self, frame: Frame) -> NDArray[np.uint8]:
        """The pictures, uint8 [scenes, 96, 96, 3], mapped from the file."""
        pictures: NDArray[np.uint8] = np.load(self.path(frame), mmap_mode="r")
        return pictures


@dataclass(frozen=True, kw_only=True)
class Files:
    """Job: the pictures of a split as files of one codec at one setting."""

    codec: str
    setting: Setting
    split: str
    fast: bool

    def path(self, frame: Frame) -> Path:
        """Where they are kept; they depend on no model."""
        name = f"{self.codec}-{self.setting.label}-{self.split}{'-fast' if self.fast else ''}"
        # Which scenes have files depends on how many questions there are.
        asked = frame.questions(self.split)
        return frame.store.path("files", name, ".npz", pillow=version("pillow"), each_type=asked)

    def run(self, frame: Frame) -> None:
        """Encodes them; scenes that no question is about are left out."""
        data = _data(self.split, frame.questions(self.split))
        asked = sorted({question.scene for question in data.questions})
        codec = PictureCodec(cast(Format, self.codec))
        pictures = Pictures(split=self.split).load(frame)
        files = [b""] * len(pictures)
        for scene in tqdm(asked, desc=self.path(frame).stem, leave=False, disable=not frame.progress or None):
            files[scene] = codec.encode(pictures[scene], self.setting, fast=self.fast)
        ends = np.cumsum([len(file) for file in files])
        raw = np.frombuffer(b"".join(files), np.uint8)

        def fill(part: Path) -> None:
            with part.open("wb") as file:
                np.savez(file, ends=ends, raw=raw)

        frame.store.write(self.path(frame), fill)

    def load(self, frame: Frame) -> list[bytes]:
        """The files by scene; empty where no question is about it."""
        with np.load(self.path(frame), allow_pickle=False) as held:
            raw, ends = held["raw"].tobytes(), held["ends"].tolist()
        return [raw[start:stop] for start, stop in zip([0, *ends[:-1]], ends, strict=True)]


@dataclass(frozen=True, kw_only=True)
class Train:
    """Job: one fine-tune of a variant."""

    variant: Variant
    seed: int

    def path(self, frame: Frame) -> Path:
        """Where the weights are kept."""
        name = f"{_name(self.variant)}-seed{self.seed}"
        return frame.store.path("weights", name, ".safetensors", **self.depends(frame))

    def depends(self, frame: Frame) -> dict[str, Any]:
        """Everything the weights depend on."""
        variant, conditions = self.variant, frame.conditions
        return {
            "format": FORMAT,
            "start": frame.start_hash,
            "seed": self.seed,
            "variant": variant.label,
            "settings": dict(variant.settings),
            "knobs": variant.knobs,
            "recipe": msgspec.to_builtins(trial.recipe_of(variant, conditions)),
            "fit_pictures": conditions.fit_pictures,
        }

    def run(self, frame: Frame) -> None:
        """Trains."""
        variant, steps = self.variant, frame.conditions.steps
        features = None if variant.kind == "picture" else Features(split="train", seed=self.seed).load(frame)
        path, started = self.path(frame), time.process_time()
        with tqdm(
            total=steps, desc=path.stem, unit="step", leave=False, disable=not frame.progress or None
        ) as bar:
            checkpoint = trial.train(variant, frame.conditions, self.seed, features, bar)
        seconds = {"cpu_seconds": f"{time.process_time() - started:.1f}"}
        # Clones, because some tensors share their memory and the format would have none of that.
        state = {name: value.clone() for name, value in checkpoint.model.state_dict().items()}
        frame.store.write(path, lambda part: save_file(state, part, seconds))

    def load(self, frame: Frame) -> tuple[Checkpoint, float]:
        """The trained model, and the processor seconds its training took."""
        checkpoint = trial.prepare(self.variant, frame.conditions, self.seed)
        with safe_open(self.path(frame), "pt") as held:
            checkpoint.model.load_state_dict({name: held.get_tensor(name) for name in held.offset_keys()})
            seconds = float(held.metadata()["cpu_seconds"])
        checkpoint.model.eval()
        return checkpoint, seconds


@dataclass(frozen=True, kw_only=True)
class Measure:
    """Job: a variant fine-tuned with one seed, measured on a split at some of its knobs.

    Attributes:
        variant: what was trained.
        seed: the seed.
        split: "validation" or "test".
        knobs: where it is measured; empty: at all of its own.
    """

    variant: Variant
    seed: int
    split: str
    knobs: tuple[Knob, ...] = ()

    def path(self, frame: Frame) -> Path:
        """Where the result is kept."""
        name = f"{_name(self.variant)}-seed{self.seed}-{self.split}"
        depends = {
            "knobs": self.knobs or self.variant.knobs,
            "each_type": frame.questions(self.split),
            "calibration_pictures": frame.conditions.calibration_pictures,
            "fast": self._fast(frame),
        }
        return frame.store.path("results", name, ".json", **depends, training=self.training.depends(frame))

    @property
    def training(self) -> Train:
        """The fine-tune it measures."""
        return Train(variant=self.variant, seed=self.seed)

    def files(self, frame: Frame) -> list[Files]:
        """The coded pictures it needs."""
        if self.variant.kind != "picture":
            return []
        knobs = cast("tuple[Setting, ...]", self.knobs or self.variant.knobs)
        fast = self._fast(frame)
        return [Files(codec=self.variant.method, setting=k, split=self.split, fast=fast) for k in knobs]

    def run(self, frame: Frame) -> None:
        """Measures."""
        started = time.process_time()
        if self.variant.kind == "shipped":
            checkpoint, trained = trial.prepare(self.variant, frame.conditions, self.seed), 0.0
        else:
            checkpoint, trained = self.training.load(frame)
        rows = self._measured(frame, checkpoint)
        result = {
            "variant": self.variant.label,
            "lr": self.variant.lr,
            "seed": self.seed,
            "split": self.split,
            "steps": frame.conditions.steps if self.variant.kind != "shipped" else 0,
            "start": frame.start_hash,
            "rows": rows,
            "cpu_seconds": {"train": trained, "measure": time.process_time() - started},
        }
        frame.store.write_json(self.path(frame), result)

    def _measured(self, frame: Frame, checkpoint: Checkpoint) -> list[dict[str, Any]]:
        data = _data(self.split, frame.questions(self.split))
        if self.variant.kind == "picture":
            needed = self.files(frame)

            def files() -> Iterator[tuple[Setting, list[bytes]]]:
                for job in needed:
                    yield job.setting, job.load(frame)

            fast = self._fast(frame)
            return measuring.measure_pictures(self.variant, checkpoint, data, files(), fast=fast)
        return measuring.measure(
            self.variant,
            checkpoint,
            data,
            Features(split=self.split).load(frame),
            Features(split="train", seed=self.seed).load(frame),
            self.knobs or measuring.knobs_of(self.variant, checkpoint),
            frame.conditions,
        )

    def _fast(self, frame: Frame) -> bool:
        return self.variant.kind == "picture" and (frame.fast or self.split == "validation")


Job = Pictures | Features | Files | Train | Measure


def _name(variant: Variant) -> str:
    return f"{variant.label}-lr{variant.lr:g}" if variant.lr else variant.label


@cache
def _data(split: str, each_type: int) -> QuestionSet:
    return question_set(split, each_type=each_type)


def _scenes(frame: Frame, split: str, seed: int) -> Scenes:
    if split == "train":
        return trial.training_scenes(frame.conditions, seed)
    return _data(split, frame.questions(split)).scenes
