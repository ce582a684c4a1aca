"""Private labels where PyTorch is: which tokens are scored, the untied head, and the server's two halves."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from edge_runtime.training.labels import PrivateLabels
from edge_runtime.training.sampling import ConversationSamples
from qtl_core.crossing import Row
from qtl_core.errors import InputError, RecipeError
from qtl_core.nn.checkpoint import Checkpoint
from qtl_core.split_stage import SplitStage
from qtl_training.digits import questions as q
from qtl_training.packing import Vocabulary
from qtl_training.split.samples import DigitSamples
from qtl_training.split.server_side import ServerSide

HEAD = "head.weight"
"""The client's head among the tensors of WEIGHTS."""

_LOOKED_AT = 200

Samples = DigitSamples | ConversationSamples


def scored_tokens(stage: SplitStage, checkpoint: Checkpoint) -> list[int]:
    """Token ids whose scores are made, in order: the candidates' first, or all there are.

    Raises:
        RecipeError: candidates that begin with the same token.
    """
    if not stage.candidates:
        return list(range(len(_weight(checkpoint))))
    words = Vocabulary(checkpoint)
    first: dict[int, str] = {}
    for candidate in stage.candidates:
        ids = words.ids(candidate)
        if not ids:
            raise RecipeError(f"the candidate {candidate!r} has no token; remove it")
        if ids[0] in first:
            raise RecipeError(
                f"the candidates {first[ids[0]]!r} and {candidate!r} begin with the same token, and are told "
                "apart by their first; reword one of them, or share labels"
            )
        first[ids[0]] = candidate
    return list(first)


def class_of(stage: SplitStage, checkpoint: Checkpoint) -> Callable[[str], int]:
    """Tells which of ``scored_tokens`` an answer is; it raises InputError for one that is none."""
    known = {candidate: index for index, candidate in enumerate(stage.candidates)}
    words = Vocabulary(checkpoint)

    def found(answer: str) -> int:
        if known:
            if answer not in known:
                raise InputError(
                    f"the answer {answer!r} is none of the recipe's {len(known)} candidates; add it, leave "
                    "such questions out (types), or share labels"
                )
            return known[answer]
        ids = words.ids(answer)
        if len(ids) != 1:
            raise InputError(
                f"the answer {answer!r} has {len(ids)} tokens, and labels are private: all but the last of "
                "them would be inputs of the server's model (teacher forcing). Leave such questions out "
                "(types), name candidates that differ in their first token, or share labels"
            )
        return ids[0]

    return found


def check_answers(stage: SplitStage, labels: PrivateLabels, samples: Samples) -> None:
    """Looks whether what a stage asks has answers that can stay private, before any step.

    Raises:
        InputError: one of them that cannot.
    """
    if not isinstance(samples, DigitSamples):
        for one in samples.conversations:
            try:
                labels.check([one.row(dict.fromkeys(one.pictures, 0))])
            except InputError as error:
                raise InputError(f"sample {one.index}: {error}") from error
            if len(one.turns) > 1:
                raise InputError(
                    f"sample {one.index} has {len(one.turns)} turns, and labels are private: the answers of "
                    "earlier turns would be inputs of the server's model. Make each turn a sample of its "
                    "own, or share labels"
                )
        return
    scenes = samples.scenes
    for kind in stage.types or q.TYPES:
        for scene in range(min(len(scenes), _LOOKED_AT)):
            for text, answer in q.options(kind, scenes.digits[scene], scenes.colours[scene]):
                try:
                    labels.check([Row((0,), ((text, answer),))])
                except InputError as error:
                    raise InputError(f"questions of type {kind}: {error}") from error


def untie(checkpoint: Checkpoint) -> None:
    """Gives the language model an output head of its own, which begins as its embeddings.

    Raises:
        RecipeError: a model whose scores are more than a product with the head.
    """
    language_model, whole = checkpoint.model.decoder.language_model, checkpoint.llava
    head: Any = language_model.get_output_embeddings()
    embeddings: Any = language_model.get_input_embeddings()
    if getattr(head, "bias", None) is not None or checkpoint.model.decoder.logit_cap is not None:
        raise RecipeError('head = "client" is for models whose scores have neither a bias nor a cap')
    if head.weight is not embeddings.weight:
        return
    head.weight = nn.Parameter(head.weight.detach().clone())
    models: tuple[Any, ...] = (language_model, whole)
    for model in models:
        model.all_tied_weights_keys = {}
    configs: tuple[Any, ...] = (language_model.config, whole.config, whole.config.text_config)
    for config in configs:
        config.tie_word_embeddings = False


def _weight(checkpoint: Checkpoint) -> Tensor:
    weight: Tensor = checkpoint.model.decoder.language_model.get_output_embeddings().weight
    return weight


def head_of(checkpoint: Checkpoint, tokens: Sequence[int]) -> NDArray[np.float32]:
    """The rows of the output head for these tokens, a copy, float32 [tokens, width]."""
    weight = _weight(checkpoint)
    found: NDArray[np.float32] = weight.detach()[list(tokens)].float().numpy()
    return found


def put_head(checkpoint: Checkpoint, tokens: Sequence[int], head: NDArray[np.float32]) -> None:
    """Writes rows of the output head."""
    weight = _weight(checkpoint)
    with torch.no_grad():
        weight[list(tokens)] = torch.from_numpy(head).to(weight.dtype)


def secret_head(like: NDArray[np.float32], seed: int) -> NDArray[np.float32]:
    """A head of the same size at random, which nobody knows who does not know the seed."""
    drawn = np.random.default_rng([seed, 16]).standard_normal(like.shape)
    return (drawn * like.std()).astype(np.float32)


class HeldLabels:
    """The client's labels through a stage, and where their head is kept between stages: in the checkpoint.

    Args:
        checkpoint: gets a head of its own where the client has one.
        stages: the recipe's.
        number: the stage.
        seed: of the stage.
        head_seed: of a secret head to start from; None starts from the model's own, which the server has too.

    Attributes:
        labels: what the training loop asks.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        stages: Sequence[SplitStage],
        number: int,
        seed: int,
        head_seed: int | None,
    ) -> None:
        stage = stages[number]
        self._checkpoint, self.tokens = checkpoint, scored_tokens(stage, checkpoint)
        head = None
        if stage.head == "client":
            untie(checkpoint)
            head = head_of(checkpoint, self.tokens)
            if head_seed is not None and not any(one.head == "client" for one in stages[:number]):
                head = secret_head(head, head_seed)
        columns = len(self.tokens) if head is None else head.shape[1]
        self.labels = PrivateLabels(stage, seed, class_of(stage, checkpoint), columns, head)

    def store(self) -> None:
        """Writes the head into the checkpoint."""
        if self.labels.head is not None:
            put_head(self._checkpoint, self.tokens, self.labels.head)

    def state(self) -> dict[str, Tensor]:
        """Head and optimizer."""
        return {name: torch.from_numpy(value) for name, value in self.labels.state().items()}

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Takes up a saved state."""
        held = {name: value.numpy() for name, value in state.items() if name.startswith("labels.")}
        self.labels.load(held)


@dataclass(frozen=True)
class _Open:
    """A micro-batch whose outputs are with the client."""

    values: Tensor
    outputs: Tensor


class PrivateServerSide(ServerSide):
    """A server's side that never sees an answer.

    Args:
        checkpoint: its model is trained in place; gets a head of its own where the client has one.
        stage: the recipe's settings.
    """

    def __init__(self, checkpoint: Checkpoint, stage: SplitStage, seed: int = 0, device: str = "cpu") -> None:
        if stage.head == "client":
            untie(checkpoint)
        super().__init__(checkpoint, stage, seed, device)
        self._at_client = stage.head == "client"
        self._tokens = scored_tokens(stage, checkpoint) if stage.candidates else None
        self._open: dict[int, _Open] = {}

    def forward(
        self,
        micro: int,
        crossed: NDArray[np.uint8] | NDArray[np.float16],
        levels: int,
        rows: Sequence[Row],
    ) -> NDArray[np.float32]:
        """What the model puts at the last question position of each turn.

        Args:
            micro: number in the step; ``backward`` names it again.
            crossed: what the client's ``forward`` returned.
            levels: L; 0 for features.
            rows: one for each picture, in their order; answers are not looked at.

        Returns:
            float32 [turns, tokens that are scored] or, where the head is the client's, [turns, width].
        """
        values = self._values(crossed, levels).requires_grad_()
        packed, hidden = self._hidden(values, levels, rows, answers=False)
        row, place = packed.ends.T
        outputs = hidden[row, place]
        if not self._at_client:
            outputs = self._logits(outputs)
            if self._tokens is not None:
                outputs = outputs[:, self._tokens]
        self._open[micro] = _Open(values, outputs)
        sent: NDArray[np.float32] = outputs.detach().float().cpu().numpy()
        return sent

    def shape(self, micro: int) -> tuple[int, int]:
        """Of a micro-batch's outputs."""
        turns, columns = self._open[micro].outputs.shape
        return turns, columns

    def backward(self, micro: int, gradient: NDArray[np.float32]) -> NDArray[np.float32]:
        """The gradient with respect to what crossed, of that with respect to the outputs; in order."""
        held = self._open.pop(micro)
        held.outputs.backward(torch.from_numpy(gradient).to(held.outputs))
        if held.values.grad is None:
            raise RuntimeError("no gradient reached what crossed the cut")
        found: NDArray[np.float32] = held.values.grad.cpu().numpy()
        return found
