"""``qtl-audit hijack``: how far a server can steer its client, and what the client can notice."""

from __future__ import annotations

import platform
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm, trange

from qtl_core.crossing import Crossed, Row
from qtl_core.nn.checkpoint import Checkpoint, load_checkpoint
from qtl_core.split_stage import Optimizer, SplitStage
from qtl_training.audit import adversaries
from qtl_training.audit.inversion import ORIGINAL, invert, score
from qtl_training.audit.reader import trained_reader
from qtl_training.audit.representations import Cut, Representation, name_of
from qtl_training.audit.settings import AuditSettings, Effort
from qtl_training.audit.target import Target
from qtl_training.digits.scenes import sample
from qtl_training.features import tower_features
from qtl_training.split.client_side import ClientSide
from qtl_training.split.samples import DigitSamples
from qtl_training.split.server_side import ServerSide
from qtl_training.training_audits.hijack_report import BEFORE, signs, summary
from qtl_training.training_audits.hijacker import Hijacker, Pilot, trained_pilot
from qtl_training.training_audits.watching import Floats, Watch

SERVERS: Final[dict[str, float]] = {"honest": 0.0, "half": 0.5, "hijacking": 1.0}
"""Share of the returned gradient that is the hijacker's; the rest is the task's."""
LEVELS: Final = 4

STAGE: Final = SplitStage(
    steps=1,
    scenes=1,
    micro_batches=1,
    pictures=32,
    questions=4,
    levels=(LEVELS,),
    train=("connector", "vision_quantizer"),
    quantizer_lr=5e-4,
    k_lr=2e-3,
    optimizer=Optimizer(lr=2e-4),
)
"""The first stage of training/recipes/digits-split.toml, at its rates."""


@dataclass(frozen=True, kw_only=True)
class HijackEffort:
    """What the audit may spend.

    Attributes:
        steps: of each run.
        look_every: steps between the client's checks.
        pilot_steps: that the server trains its pilot for.
        scenes: the client's pictures.
        held_out: further ones of its own that it checks with.
        attackers: decoders, reader and their pictures, as in ``qtl-audit wire``.
    """

    steps: int = 120
    look_every: int = 8
    pilot_steps: int = 150
    scenes: int = 800
    held_out: int = 48
    attackers: Effort


FULL: Final = HijackEffort(
    attackers=Effort(
        scenes=1000, table_scenes=1, sized_scenes=2, test_scenes=300, reader_scenes=1500, inversion_steps=120,
        reader_steps=500,
    )
)  # fmt: skip
QUICK: Final = HijackEffort(
    steps=20,
    look_every=4,
    pilot_steps=30,
    scenes=200,
    held_out=24,
    attackers=Effort(
        scenes=400, table_scenes=1, sized_scenes=2, test_scenes=100, reader_scenes=800, inversion_steps=20,
        reader_steps=150,
    ),
)  # fmt: skip


class Hijack:
    """One audit.

    Args:
        checkpoint: what client and server begin with.
        effort: what it may spend.
        work: the audit's work folder.
        seed: of everything random.
        progress: whether to show bars.
    """

    def __init__(
        self, checkpoint: Path, effort: HijackEffort, work: Path, *, seed: int = 1, progress: bool = True
    ) -> None:
        self._folder, self._effort, self._seed, self._progress = checkpoint, effort, seed, progress
        settings = AuditSettings(
            checkpoint=checkpoint,
            work=work,
            levels=(LEVELS,),
            quantizers=(),
            seeds=1,
            effort=effort.attackers,
        )
        self.target = Target(settings, progress=progress)
        self._stage = msgspec.structs.replace(STAGE, steps=effort.steps, scenes=effort.scenes)
        vision = self.target.checkpoint.model.vision
        self._samples = DigitSamples(self._stage, self._seed)
        self._features = tower_features(vision, self._samples.scenes, progress=progress)
        asked = msgspec.structs.replace(self._stage, scenes=effort.held_out, pictures=effort.held_out)
        self._held_out = DigitSamples(asked, self._seed + 7_000)
        own = sample("validation", effort.held_out, self._seed + 7_000)
        self._held_out.scenes = own
        self._own = tower_features(vision, own, progress=progress)
        self.reader = trained_reader(
            self.target.gallery.reader, effort.attackers, seed, self.target.work, progress=progress
        )

    def pilot(self) -> Pilot:
        """The server's own client partition."""
        gallery, effort = self.target.gallery, self._effort
        return trained_pilot(
            load_checkpoint(self._folder).model,
            LEVELS,
            gallery.train.features,
            gallery.train.pixels,
            tokens=self.target.cut.tokens,
            steps=effort.pilot_steps,
            batch=effort.attackers.batch,
            seed=self._seed,
            progress=self._progress,
        )

    def trained(
        self, pilot: Pilot, share: float, lengths: Sequence[float]
    ) -> tuple[Checkpoint, list[dict[str, float]], list[float]]:
        """A client after its run with one server.

        Args:
            pilot: the server's.
            share: of the hijacker in what is returned.
            lengths: from which a server that steers draws those of its gradients, so that they are no sign.

        Returns:
            The client's model, what it saw on the way, and the norms of what was returned.
        """
        torch.manual_seed(self._seed)
        checkpoint, stage = load_checkpoint(self._folder), self._stage
        checkpoint.model.train()
        checkpoint.model.vision.tower.eval()
        client, server = ClientSide(checkpoint.model, stage), ServerSide(checkpoint, stage)
        hijacker = Hijacker(pilot, self.target.gallery.train.features, steps=stage.steps, seed=self._seed)
        (micro,) = self._held_out.micro_batches(0)
        # A server that steers answers questions all the same, with the model it began with.
        judge = checkpoint if share == 0 else load_checkpoint(self._folder)
        asked = server if share == 0 else ServerSide(judge, stage)
        watch = Watch(checkpoint, asked, self._own[list(micro.pictures)], micro, LEVELS)

        def returned(codes: Crossed, rows: Sequence[Row], pull: Callable[[Tensor], Tensor]) -> Floats:
            task = pulled = np.zeros(codes.shape, np.float32)
            if share < 1:
                task = asked.run(codes, LEVELS, rows).gradient
                asked.forget()
            if share > 0:
                values = judge.model.vision_quantizer.values(torch.from_numpy(codes), LEVELS)
                pulled = pull(values).numpy()
            if share == 0:
                return task
            mixed = _unit((1 - share) * _unit(task) + share * _unit(pulled))
            length = float(random.choice(lengths)) * (len(codes) / stage.pictures) ** 0.5
            found: Floats = (length * mixed).astype(np.float32)
            return found

        seen, norms, random = [], [], np.random.default_rng([self._seed, 62])
        for step in trange(
            stage.steps, desc=f"share {share:g}", leave=False, disable=not self._progress or None
        ):
            (batch,) = self._samples.micro_batches(step)
            codes = client.forward(0, self._features[list(batch.pictures)], LEVELS)
            if share == 0:
                result = server.run(codes, LEVELS, batch.rows)
                gradient, tokens = result.gradient, result.tokens
            else:
                gradient = returned(codes, batch.rows, partial(hijacker.gradient, step))
                tokens = sum(2 * len(row.turns) for row in batch.rows)
            norms.append(float(np.linalg.norm(gradient)))
            client.backward(0, gradient)
            squared = client.squared_norm(tokens)
            squared += server.squared_norm(tokens)
            client.apply(step, squared)
            server.apply(step, squared)
            if (step + 1) % self._effort.look_every == 0:
                seen.append(watch.look(partial(returned, pull=hijacker.pull)))
        checkpoint.model.eval()
        return checkpoint, seen, norms

    def leak(self, checkpoint: Checkpoint, pilot: Pilot | None) -> dict[str, Any]:
        """What a decoder draws of test pictures from the codes of this client.

        Args:
            checkpoint: the client's.
            pilot: the decoder learns from the pilot's codes; None: from codes of this client's own weights,
                which its server gets at the end of a run.
        """
        cut, gallery = Cut(checkpoint), self.target.gallery
        about: Representation = cut.representations((LEVELS,), ())[1]
        features = gallery.train.features
        learnt = cut.seen(about, features) if pilot is None else _values(pilot, features)
        drawn = invert(
            learnt,
            cut.seen(about, gallery.test.features),
            gallery.train.pixels,
            cut.tokens,
            self._effort.attackers,
            self._seed,
            progress=self._progress,
        )
        return score(drawn, gallery.test, self.reader)


def audit_hijack(
    checkpoint: Path,
    *,
    effort: HijackEffort,
    work: Path,
    seed: int = 1,
    quick: bool = False,
    shipped: bool = False,
    progress: bool = True,
) -> dict[str, Any]:
    """Runs a client with each server; docs/audit.md lists the keys.

    Raises:
        CheckpointError: a checkpoint that cannot be read.
        InputError: a checkpoint for other pictures than digit scenes.
        StorageError: a work folder that cannot be written.
    """
    audit = Hijack(checkpoint, effort, work, seed=seed, progress=progress)
    pilot = audit.pilot()
    rows = [{"server": BEFORE, "leaks": audit.leak(audit.target.checkpoint, None), "pilot_leaks": None}]
    looks: dict[str, list[dict[str, float]]] = {}
    lengths: list[float] = []
    with tqdm(total=len(SERVERS), desc="audit", unit="run", disable=not progress or None) as bar:
        for server, share in SERVERS.items():
            model, looks[server], norms = audit.trained(pilot, share, lengths)
            lengths = lengths or norms
            own = None if share == 0 else audit.leak(model, pilot)
            rows.append({"server": server, "leaks": audit.leak(model, None), "pilot_leaks": own})
            bar.update()
    original = score(audit.target.gallery.test.pixels, audit.target.gallery.test, audit.reader)
    report = {
        "checkpoint": audit.target.checkpoint.settings.name,
        "weights": {"sha256": audit.target.weights, "shipped": shipped},
        "adversary": adversaries.SERVER,
        "quick": quick,
        "seed": seed,
        "representation": name_of(LEVELS),
        "effort": asdict(effort),
        "rows": rows,
        ORIGINAL: original,
        "pictures": STAGE.pictures,
        "signs": {server: signs(looks["honest"], seen) for server, seen in looks.items()},
        "machine": platform.machine(),
    }
    return {**report, "summary": summary(report)}


@torch.no_grad()
def _values(pilot: Pilot, features: Tensor) -> Tensor:
    pilot.eval()
    return torch.cat([pilot(part) for part in features.split(256)])


def _unit(values: Floats) -> Floats:
    found: Floats = values / (np.linalg.norm(values) + 1e-30)
    return found
