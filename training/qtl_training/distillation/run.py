"""``qtl-train quantizer``: fit in closed form, fine-tune against the model itself, measure, write.

OUTPUT/
config.json, qtl.json, qtl.safetensors, card.json, entropy-L-levels.npz     the result
run/                         snapshots and log, and the tower's features while it runs
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import msgspec
import torch
from safetensors.torch import load_file, save

from edge_runtime.picture_folder import paths_in
from qtl_core.errors import CheckpointError, HostError, InputError
from qtl_core.nn.checkpoint import Checkpoint, FurtherQuantizer, load_checkpoint
from qtl_core.nn.families.fitted import client_sha
from qtl_core.nn.post_training import (
    check_enough,
    fit,
    kept_aside,
    most_pictures,
    settings_of,
    signal_to_noise,
)
from qtl_core.question_file import read_questions
from qtl_core.snapshots import RUN_FILE, Snapshots
from qtl_training.distillation import output
from qtl_training.distillation.asked import AskedQuestions
from qtl_training.distillation.feature_cache import FeatureCache
from qtl_training.distillation.prompts import read_prompts
from qtl_training.distillation.report import Divergence, Measured, Trained
from qtl_training.distillation.rows import Asking
from qtl_training.distillation.settings import DistillSettings
from qtl_training.distillation.training import Distilling, compare
from qtl_training.stepping import run_steps

_STATE: Final = "state.safetensors"
_MOST_ASIDE: Final = 256
_LOG_EVERY: Final = 10


class _Begun(msgspec.Struct, frozen=True, kw_only=True):
    """``run.json`` of a snapshot: the step that comes next, what it began with, and how good that was.

    ``asked`` is ``Trained.asked``: of the questions that ``fitted`` was measured on.
    """

    step: int
    made_of: dict[str, Any]
    asked: str
    fitted: Measured


def train_quantizer(
    settings: DistillSettings,
    *,
    fresh: bool = False,
    progress: bool = True,
    clock: Callable[[], float] = time.monotonic,
) -> Trained:
    """Makes a quantizer for a checkpoint, or goes on making it.

    What it ends with depends on settings, checkpoint and pictures alone (on one machine type and thread
    count), not on how often the run was killed in between.

    Args:
        settings: what to make.
        fresh: whether to forget what the output folder holds.
        progress: whether to show bars.
        clock: seconds, for the time between snapshots.

    Raises:
        CheckpointError: the checkpoint cannot be read.
        PictureError: no pictures, a broken one, or questions about missing ones.
        QuestionError: prompts or questions that cannot be used.
        InputError: too few pictures, or an output folder that was begun with other settings.
        HostError: the device does not exist here.
        StorageError: the output folder cannot be written.
    """
    output.prepare(settings.output, fresh=fresh)
    return _Run(settings, progress, clock).result()


class _Run:
    def __init__(self, settings: DistillSettings, progress: bool, clock: Callable[[], float]) -> None:
        self._settings, self._progress, self._clock = settings, progress, clock
        # What is cheap to look at first: a wrong file should not cost hours to find out.
        paths = paths_in(settings.pictures)[: settings.max_pictures]
        prompts = read_prompts(settings.prompts)
        self._questions = (
            () if settings.questions is None else read_questions(settings.questions, settings.pictures)
        )
        self._said = hashlib.sha256(repr(self._questions).encode()).hexdigest() if self._questions else ""
        self._checkpoint = _frozen(load_checkpoint(settings.checkpoint), settings.device)
        if self._checkpoint.assembly is not None:
            raise CheckpointError(
                f"checkpoint {settings.checkpoint} ({self._checkpoint.family}) cuts pictures into tiles, "
                "which qtl-train quantizer does not do yet; fit a quantizer with qtl-export --calibrate"
            )
        self._client = client_sha(self._checkpoint.model.vision)
        self._asking = Asking(self._checkpoint, settings.answer_tokens)
        self._prompts = [self._asking.prompt(text) for text in prompts]
        for asked in self._questions:
            self._asking.prompt(asked.text)
        self._snapshots = Snapshots(settings.output / output.RUN)
        self._made_of = self._described(paths, prompts)
        snapshot = self._snapshots.newest()
        self._begun = None if snapshot is None else self._resumed(snapshot)
        self._snapshot = snapshot
        self._paths = paths

    def result(self) -> Trained:
        settings = self._settings
        finished = output.finished(settings.output, self._made_of, self._said)
        if finished is not None:
            return finished
        cache = self._snapshots.path if settings.cache is None else settings.cache
        features = FeatureCache(cache, self._checkpoint, self._client, self._paths)
        tokens, width = features.tokens, features.width
        code_dim = width if settings.code_dim is None else settings.code_dim
        check_enough(len(features), tokens, width, code_dim, str(settings.pictures))
        features.fill(progress=self._progress)
        aside = kept_aside(len(features), _MOST_ASIDE)
        known = torch.nonzero(~aside)[:, 0].tolist()
        others = torch.nonzero(aside)[:, 0].tolist()
        # The closed form takes as many pictures as it takes in the exporter.
        some = features.cut(known[: most_pictures(tokens, width)])
        quantizer, k = fit(some.cpu(), code_dim, settings.levels)
        quantizer.to(some.device)
        mean, variance = some.mean((0, 1)), float((some - some.mean((0, 1))).pow(2).mean())
        del some
        held = features.cut(others[: most_pictures(tokens, width)])
        questions = self._asked(cache)

        def measured(what: str) -> Measured:
            return Measured(
                k=float(quantizer.k.detach().mean()),
                snr_db=signal_to_noise(quantizer, held, mean),
                kl=Divergence.of(
                    *compare(self._asking, features, others, self._prompts, quantizer, settings.batch)
                ),
                accuracy=None if questions is None else questions.accuracy(quantizer, what),
            )

        begun = self._begun
        fitted = begun.fitted if begun is not None and begun.asked == self._said else measured("fitted")
        training = Distilling(quantizer, features, known, self._asking, self._prompts, variance, settings)
        self._train(training, fitted)
        tuned = measured("fine-tuned") if settings.steps else fitted
        quantizer.eval().requires_grad_(False).cpu()
        about = {asked.picture.resolve() for asked in self._questions}
        trained_on = about & {self._paths[i].resolve() for i in known}
        tables = output.write_quantizer(
            settings.output,
            settings.checkpoint,
            self._checkpoint,
            FurtherQuantizer(settings_of(code_dim, settings.levels, k), quantizer),
            features,
            known,
        )
        trained = Trained(
            output=str(settings.output),
            checkpoint=str(settings.checkpoint),
            family=self._checkpoint.family,
            levels=settings.levels,
            code_dim=code_dim,
            tokens=tokens,
            width=width,
            pictures=len(known),
            pictures_aside=len(others),
            steps=settings.steps,
            prompts=len(self._prompts),
            tables=tables,
            fitted=fitted,
            tuned=tuned,
            questions=len(self._questions),
            asked=self._said,
            questions_about_known=sum(one.picture.resolve() in trained_on for one in self._questions),
            accuracy_16bit=None if questions is None else questions.accuracy(None, "16 bit"),
            settings=self._made_of,
        )
        output.write_card(settings.output, trained)
        if settings.cache is None:
            for file in cache.glob("features-*.f16"):
                file.unlink()
        return trained

    def _asked(self, cache: Path) -> AskedQuestions | None:
        if not self._questions:
            return None
        pictures = list(dict.fromkeys(asked.picture for asked in self._questions))
        features = FeatureCache(cache, self._checkpoint, self._client, pictures)
        features.fill(progress=self._progress)
        return AskedQuestions(
            self._questions,
            features,
            pictures,
            self._asking,
            2 * self._settings.batch,
            progress=self._progress,
        )

    def _train(self, training: Distilling, fitted: Measured) -> None:
        if self._begun is not None and self._snapshot is not None:
            training.load(load_file(self._snapshot / _STATE))
        first = 0 if self._begun is None else self._begun.step

        def save_snapshot(step: int) -> None:
            def fill(folder: Path) -> None:
                state = {name: one.detach().cpu().contiguous() for name, one in training.state().items()}
                (folder / _STATE).write_bytes(save(state))
                begun = _Begun(step=step, made_of=self._made_of, asked=self._said, fitted=fitted)
                (folder / RUN_FILE).write_bytes(msgspec.json.encode(begun))

            self._snapshots.save(0, step, fill)

        if self._begun is None:
            save_snapshot(0)
        run_steps(
            training,
            first,
            f"L = {self._settings.levels}",
            log=self._snapshots.log,
            log_every=_LOG_EVERY,
            save=save_snapshot,
            save_every=self._settings.save_every,
            progress=self._progress,
            clock=self._clock,
        )
        if first < training.steps:
            save_snapshot(training.steps)

    def _described(self, paths: Sequence[Path], prompts: Sequence[str]) -> dict[str, Any]:
        """All that the result depends on."""
        names = "\n".join(f"{path.name} {path.stat().st_size}" for path in paths)
        return {
            **self._settings.as_json(),
            "client": self._client,
            "pictures": hashlib.sha256(names.encode()).hexdigest(),
            "prompts": list(prompts),
        }

    def _resumed(self, snapshot: Path) -> _Begun:
        begun = msgspec.json.decode((snapshot / RUN_FILE).read_bytes(), type=_Begun)
        if begun.made_of != json.loads(json.dumps(self._made_of)):
            other = [name for name, value in self._made_of.items() if begun.made_of.get(name) != value]
            raise InputError(
                f"{self._settings.output} was begun with other settings ({', '.join(other)}); start anew "
                "with --fresh, or name another folder with --output"
            )
        return begun


def _frozen(checkpoint: Checkpoint, device: str) -> Checkpoint:
    checkpoint.model.requires_grad_(False).eval()
    try:
        checkpoint.model.to(device)
    except (RuntimeError, AssertionError) as error:
        first = str(error).strip().splitlines()[0]
        raise HostError(f"cannot compute on {device!r}: {first}; leave out --device for the CPU") from error
    return checkpoint
