"""A stage's data on the client's side: which samples there are, and the frozen tower's features of them."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
import torch
from torch import Tensor
from tqdm import tqdm

from edge_runtime.training.conversations import Bad, Conversation, Conversations, read_conversations
from edge_runtime.training.sampling import ConversationSamples
from qtl_core.errors import RecipeError, SampleError, StorageError
from qtl_core.nn.checkpoint import Checkpoint
from qtl_core.rows import beyond, too_long
from qtl_core.split_stage import ConversationData, SplitStage
from qtl_training.features import Features, tower_features
from qtl_training.row_packing import RowPacking
from qtl_training.split.picture_features import PictureFeatures
from qtl_training.split.samples import DigitSamples
from qtl_training.stages.fitting import PICTURES

_NAMED = 10
_VALUES_TO_FIT = 1 << 25  # features of large towers are many a picture, and a fit holds them all
_FEWEST_TO_FIT = 16


@dataclass(frozen=True)
class StageData:
    """A stage's data.

    Attributes:
        samples: its micro-batches.
        features: of the pictures that they name.
        pictures: how many there are.
    """

    samples: DigitSamples | ConversationSamples
    features: Features
    pictures: int

    def to_fit(self) -> Tensor:
        """Features that a quantizer is fitted to, [pictures, tokens, tower width]."""
        values = self.features[[0]].numel()
        most = max(_FEWEST_TO_FIT, _VALUES_TO_FIT // values)
        return self.features[list(range(min(self.pictures, PICTURES, most)))]


class _Record(msgspec.Struct, frozen=True, kw_only=True):
    """``data-N.json`` in a run's folder: what stage N is trained on."""

    digest: str
    samples: int
    left_out: tuple[str, ...]


def stage_data(
    checkpoint: Checkpoint,
    stage: SplitStage,
    seed: int,
    *,
    record: Path | None = None,
    progress: bool = True,
    features: Features | None = None,
    say: Callable[[str], None] | None = None,
) -> StageData:
    """The data of a stage, checked, and the tower's features as far as they are kept.

    Args:
        checkpoint: its tower, tokenizer and way with pictures.
        stage: the recipe's settings.
        seed: of what is drawn.
        record: file that holds which data the stage was begun with; written if it is not there.
        progress: whether to show bars.
        features: of the stage's digit scenes, where they are known.
        say: told in a line or a few what was left out; standard error if not given.

    Raises:
        SampleError: a sample that cannot be trained on, under ``on_bad_sample = "stop"``, or none is left.
        RecipeError: no data is named, or the run was begun with other data.
        StorageError: ``record`` cannot be written.
    """
    if stage.data is None:
        samples = DigitSamples(stage, seed)
        if features is None:
            features = tower_features(checkpoint.model.vision, samples.scenes, progress=progress)
        return StageData(samples, features, stage.scenes)
    found, pictured = _conversations(checkpoint, stage.data, progress)
    if record is not None:
        _keep(record, found)
    _tell(found, say or _to_stderr)
    drawn = ConversationSamples(found, micro_batches=stage.micro_batches, rows=stage.data.rows, seed=seed)
    pictured.chosen = drawn.pictures
    return StageData(drawn, pictured, len(drawn.pictures))


def left_out(folder: Path) -> int:
    """How many samples the stages of a run's folder left out, all together.

    Raises:
        StorageError: the folder cannot be read.
    """
    return sum(len(_read(path).left_out) for path in folder.glob("data-*.json"))


def record_of(folder: Path, stage: int) -> Path:
    """The file in a run's folder that says what a stage is trained on."""
    return folder / f"data-{stage}.json"


def _conversations(
    checkpoint: Checkpoint, data: ConversationData, progress: bool
) -> tuple[Conversations, PictureFeatures]:
    if not data.file:
        raise RecipeError(
            "the recipe names no file of conversations: give one with --data FILE and --pictures DIR"
        )
    file = Path(data.file)
    folder = Path(data.pictures) if data.pictures else file.parent
    found = read_conversations(file, folder, on_bad=data.on_bad_sample, most_pictures=data.max_pictures)
    packing, picture = RowPacking(checkpoint), _picture_tokens(checkpoint)

    def short(one: Conversation) -> None:
        row = one.row(dict.fromkeys(one.pictures, 0))
        if beyond(row, data.max_tokens):
            raise SampleError(too_long("it", data.max_tokens))
        tokens = packing.tokens(row, picture)
        if tokens > data.max_tokens:
            raise SampleError(too_long(f"it has {tokens} tokens, which", data.max_tokens))

    features = PictureFeatures(checkpoint.model.vision, checkpoint.picture, cache_bytes=data.cache_mib << 20)

    def readable(one: Conversation) -> None:
        for path in one.pictures:
            features.add(path)

    found = found.checked(short, data.on_bad_sample, _bar("lengths", progress))
    return found.checked(readable, data.on_bad_sample, _bar("tower features", progress)), features


def _bar(label: str, progress: bool) -> Callable[[Sequence[Conversation]], Iterable[Conversation]]:
    def follow(samples: Sequence[Conversation]) -> Iterator[Conversation]:
        yield from tqdm(samples, desc=label, unit="sample", disable=not progress or None)

    return follow


def _picture_tokens(checkpoint: Checkpoint) -> int:
    """Tokens of a picture in the language model."""
    size = checkpoint.picture
    with torch.inference_mode():
        blank = torch.zeros(1, size.height, size.width, 3, dtype=torch.uint8)
        tokens: int = checkpoint.model.vision(blank).shape[1]
    return tokens


def _keep(record: Path, found: Conversations) -> None:
    now = _Record(
        digest=found.digest, samples=len(found.samples), left_out=tuple(one.why for one in found.bad)
    )
    if record.is_file():
        if _read(record).digest != now.digest:
            raise RecipeError(
                f"{found.file} holds other samples than those this run was begun with (see {record}): put "
                "those back, or begin anew with --fresh"
            )
        return
    fresh = record.with_name(record.name + ".new")
    try:
        fresh.write_bytes(msgspec.json.format(msgspec.json.encode(now), indent=2) + b"\n")
        os.replace(fresh, record)
    except OSError as error:
        raise StorageError(f"{record} cannot be written: {error.strerror}") from error


def _read(record: Path) -> _Record:
    try:
        return msgspec.json.decode(record.read_bytes(), type=_Record)
    except (OSError, msgspec.MsgspecError) as error:
        raise StorageError(f"{record} cannot be read: {error}; begin anew with --fresh") from error


def _tell(found: Conversations, say: Callable[[str], None]) -> None:
    if not found.bad:
        return
    said: list[Bad] = sorted(found.bad, key=lambda one: one.index)
    whole = len(found.samples) + len(said)
    say(f"{found.file}: left out {len(said)} of {whole} samples")
    for one in said[:_NAMED]:
        say(f"  {one.why}")
    if len(said) > _NAMED:
        say(f"  and {len(said) - _NAMED} more; all are named in the run's folder")


def _to_stderr(text: str) -> None:
    tqdm.write(text, file=sys.stderr)
