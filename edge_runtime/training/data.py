"""What a device trains on: conversations in LLaVA's JSON, for every stage."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from edge_runtime.picture import prepare
from edge_runtime.training.conversations import (
    Bad,
    Conversation,
    Conversations,
    OnBad,
    read_conversations,
)
from edge_runtime.training.sampling import ConversationSamples
from qtl_core import bundle
from qtl_core.errors import BundleError, PictureError
from qtl_core.split_stage import SplitStage

Follow = Callable[[Sequence[Conversation]], Iterable[Conversation]]


@dataclass(frozen=True)
class Data:
    """The data of a run.

    Attributes:
        stages: the samples of each stage.
        digest: changes with what is trained on.
        bad: samples that were left out, and why.
    """

    stages: tuple[ConversationSamples, ...]
    digest: str
    bad: tuple[Bad, ...]


def read_data(
    stages: Sequence[SplitStage],
    seeds: Sequence[int],
    file: Path,
    folder: Path,
    spec: bundle.Picture,
    *,
    on_bad: OnBad = "stop",
    follow: Follow = iter,
) -> Data:
    """Reads conversations, and checks that their pictures can be decoded.

    How many tokens a conversation has is not checked: the tokenizer is the server's.

    Args:
        stages: what is trained.
        seeds: of each stage.
        file: the conversations.
        folder: that they name pictures in.
        spec: how a picture is prepared.
        on_bad: what becomes of samples that cannot be trained on.
        follow: wraps the walk over samples, for a progress bar.

    Raises:
        SampleError: a bad sample under "stop", or none is left.
        BundleError: a stage on other data than conversations.
    """
    look = _Look(spec)
    found: list[Conversations] = []
    samples = []
    for number, (stage, seed) in enumerate(zip(stages, seeds, strict=True), 1):
        if stage.data is None:
            raise BundleError(
                f"stage {number} of this bundle's recipe trains on digit scenes, which a device cannot draw: "
                "give it [stages.data] and export the bundle again"
            )
        most = stage.data.max_pictures
        read = read_conversations(file, folder, on_bad=on_bad, most_pictures=most)
        found.append(read.checked(look, on_bad, follow))
        samples.append(
            ConversationSamples(found[-1], micro_batches=stage.micro_batches, rows=stage.data.rows, seed=seed)
        )
    digest = hashlib.sha256("".join(one.digest for one in found).encode()).hexdigest()[:32]
    bad = {one.index: one for each in found for one in each.bad}
    return Data(tuple(samples), digest, tuple(bad[index] for index in sorted(bad)))


class _Look:
    """Decodes every picture once."""

    def __init__(self, spec: bundle.Picture) -> None:
        self._spec = spec
        self._seen: dict[Path, str] = {}

    def __call__(self, sample: Conversation) -> None:
        for path in sample.pictures:
            if path not in self._seen:
                try:
                    prepare(path, self._spec)
                    self._seen[path] = ""
                except PictureError as error:
                    self._seen[path] = str(error)
            if self._seen[path]:
                raise PictureError(self._seen[path])
