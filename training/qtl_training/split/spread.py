"""The server's side of split training, data-parallel over the ranks of a ``torchrun``.

A step's micro-batches are spread over the ranks, one each at a time; their gradients are added up over all
ranks before the step, which each rank then takes by itself, so that all have the same weights.
"""

from __future__ import annotations

from collections.abc import Sequence

from safetensors.torch import load, save
from torch import Tensor, nn

from qtl_core.nn.checkpoint import Checkpoint
from qtl_training.local import stage_seed
from qtl_training.recipe import Recipe
from qtl_training.split.ranks import Op, Ranks
from qtl_training.split.server_side import MicroResult, ServerSide, Work
from qtl_training.split.stages import stages_of


class SpreadSide(ServerSide):
    """Rank 0's side: as ``ServerSide``, with the other ranks doing their part.

    Args:
        ranks: the process group.
        checkpoint: its model is trained in place; the others' follows it.
        recipe: what is trained.
        stage: number of the stage.

    Raises:
        HostError: another rank is gone.
    """

    def __init__(self, ranks: Ranks, checkpoint: Checkpoint, recipe: Recipe, stage: int) -> None:
        self._ranks, self.width = ranks, ranks.size
        ranks.tell(Op.ENTER, stage)
        ranks.same(_parts(checkpoint, ranks.device))
        super().__init__(checkpoint, stages_of(recipe)[stage], stage_seed(recipe, stage), ranks.device)

    def run_many(self, works: Sequence[Work]) -> list[MicroResult]:
        """Micro-batches side by side, the first here, each other on a rank of its own."""
        self._ranks.tell(Op.RUN, len(works))
        for rank, work in enumerate(works[1:], 1):
            self._ranks.hand(work, rank)
        first = self.run_one(works[0])
        return [first, *(self._ranks.collect(work.crossed.shape, r) for r, work in enumerate(works[1:], 1))]

    def squared_norm(self, answer_tokens: int) -> float:
        """As ``ServerSide``'s, of the sum over all ranks."""
        self._ranks.tell(Op.NORM, answer_tokens)
        self._ranks.summed(self._optimizer.parameters)
        return super().squared_norm(answer_tokens)

    def apply(self, step: int, squared_norm: float) -> None:
        """As ``ServerSide``'s, on every rank."""
        self._ranks.tell(Op.APPLY, step, squared_norm)
        super().apply(step, squared_norm)

    def finish(self) -> None:
        """As ``ServerSide``'s, on every rank."""
        self._ranks.tell(Op.FINISH)
        super().finish()

    def load(self, state: dict[str, Tensor]) -> None:
        """As ``ServerSide``'s, on every rank."""
        self._ranks.tell(Op.LOAD)
        self._ranks.blob(save({name: value.contiguous() for name, value in state.items()}))
        super().load(state)


def follow(ranks: Ranks, recipe: Recipe, checkpoint: Checkpoint) -> None:
    """What every rank but 0 does, until rank 0 ends the run.

    Args:
        ranks: the process group.
        recipe: what is trained.
        checkpoint: the recipe's, for the shapes; its weights become rank 0's.

    Raises:
        HostError: another rank is gone.
    """
    checkpoint.model.train()
    side: ServerSide | None = None
    while True:
        op, (number, squared, _) = ranks.told()
        if op is Op.END:
            return
        if op is Op.ENTER:
            if side is not None:
                side.finish()  # what it leaves in the weights is overwritten
            ranks.same(_parts(checkpoint, ranks.device))
            stage = int(number)
            side = ServerSide(checkpoint, stages_of(recipe)[stage], stage_seed(recipe, stage), ranks.device)
            checkpoint.model.train()
            continue
        if side is None:
            raise RuntimeError(f"told to {op.name} before a stage began")
        if op is Op.LOAD:
            side.load(load(ranks.blob(b"")))
        elif op is Op.RUN and ranks.rank < number:
            ranks.give(side.run_one(ranks.take()))
        elif op is Op.NORM:
            ranks.summed(side.parameters)
            side.squared_norm(int(number))
        elif op is Op.APPLY:
            side.apply(int(number), squared)
        elif op is Op.FINISH:
            side.finish()
            side = None


def _parts(checkpoint: Checkpoint, device: str) -> list[nn.Module]:
    """What of a model is the server's, on its device."""
    model = checkpoint.model
    parts: list[nn.Module] = [model.decoder, *([model.vision_quantizer] if model.quantized else [])]
    return [part.to(device) for part in parts]
