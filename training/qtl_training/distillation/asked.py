"""A user's questions put to the unquantized model and to quantizers of it, in one process."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from tqdm import tqdm

from qtl_core.nn.quantizer import Quantizer
from qtl_core.question_file import Asked, share_right
from qtl_training.distillation.feature_cache import FeatureCache
from qtl_training.distillation.rows import Asking


class AskedQuestions:
    """Questions with known answers about pictures of a cache.

    Args:
        questions: at least one.
        features: of ``pictures``.
        pictures: the files that questions are about.
        asking: the decoder.
        batch: questions at a time.
        progress: whether to show bars.

    Raises:
        QuestionError: a question is longer than the model takes.
    """

    def __init__(
        self,
        questions: Sequence[Asked],
        features: FeatureCache,
        pictures: Sequence[Path],
        asking: Asking,
        batch: int,
        *,
        progress: bool,
    ) -> None:
        self._questions, self._features, self._asking = questions, features, asking
        place = {path: i for i, path in enumerate(pictures)}
        self._about = [place[one.picture] for one in questions]
        self._prompts = [asking.prompt(one.text) for one in questions]
        # Rows of a like length lie together, so that little is padding.
        self._order = sorted(range(len(questions)), key=lambda i: len(self._prompts[i]))
        self._batch, self._progress = batch, progress

    @torch.no_grad()
    def accuracy(self, quantizer: Quantizer | None, what: str) -> float:
        """Share of right greedy answers, 0 to 1.

        Args:
            quantizer: in evaluation mode; None asks about half-precision features, as ``--bits 16`` sends.
            what: the model's name on the bar.
        """
        replies = [""] * len(self._questions)
        with tqdm(
            total=len(replies),
            desc=f"questions, {what}",
            unit=" questions",
            disable=not self._progress or None,
        ) as bar:
            for start in range(0, len(replies), self._batch):
                some = self._order[start : start + self._batch]
                features = self._features.cut([self._about[i] for i in some])
                if quantizer is None:
                    features = features.half().float()
                else:
                    features = quantizer.decode(quantizer.encode(features))
                rows = self._asking.rows([self._prompts[i] for i in some], features.shape[1])
                answers, _ = self._asking.greedy(features, rows)
                for i, answer in zip(some, answers, strict=True):
                    replies[i] = self._asking.text(answer)
                bar.update(len(some))
        return share_right(self._questions, replies)
