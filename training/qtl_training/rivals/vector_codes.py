"""Vector quantization: one code of a learnt codebook a token, as LLaVA-AlignedVQ (arXiv 2411.05961)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from vector_quantize_pytorch import VectorQuantize

from qtl_training.rivals.projection import Basis
from qtl_training.rivals.rival import CodedRival

ENTRIES = 4096
_DIGIT = 64  # a code is sent as two digits, which our tables can hold
_FIT_VECTORS = 20_000
_COMMITMENT = 0.25


class VectorCodes(CodedRival):
    """Features are normalised, mapped to a few channels, and replaced by their nearest codebook entry.

    With 4,096 entries a code takes 12 bits at fixed length. Its entropy can be less; so that no rival
    goes without, codes are numbered by how often training pictures use them and sent as two digits
    under our entropy coder's tables where that is shorter.

    Codebook and its updates are vector-quantize-pytorch's: k-means at the start, then exponential
    moving averages. They are slow (0.99), because a step brings a code less than one vector on average.

    Args: as for every rival. The knob is always the number of entries.
    """

    rank: Tensor
    entry: Tensor

    def __init__(
        self,
        width: int,
        tokens: int,
        levels: int = ENTRIES,
        *,
        code_dim: int,
        merge: int = 1,
        basis: Basis = "spread",
    ) -> None:
        super().__init__(width, tokens, levels, basis=basis, code_dim=code_dim, merge=merge)
        self.norm = nn.LayerNorm(width)
        self.codebook = VectorQuantize(
            code_dim, ENTRIES, decay=0.99, kmeans_init=True, commitment_weight=_COMMITMENT
        )
        self.register_buffer("rank", torch.arange(ENTRIES))
        self.register_buffer("entry", torch.arange(ENTRIES))

    def forward(self, x: Tensor, levels: int | None = None) -> tuple[Tensor, Tensor]:
        """As every rival's, after normalising each token."""
        return super().forward(self.norm(x), levels)

    @torch.no_grad()
    def fit(self, x: Tensor, *, seed: int = 0) -> None:
        """Projection from the normalised features, codebook by k-means on a sample of them."""
        normed = self.norm(x)
        super().fit(normed, seed=seed)
        # What comes back are features again, not normalised ones.
        self.projection.fit_back(self.values(self.codes(self.projection(normed), ENTRIES), ENTRIES), x)

    def initialise(self, z: Tensor, seed: int) -> None:
        """The codebook by k-means on a sample of the vectors."""
        vectors = z.reshape(-1, self.channels)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            sample = vectors[torch.randperm(len(vectors))[:_FIT_VECTORS]]
            self.codebook.train()
            self.codebook(sample[None])

    @torch.no_grad()
    def calibrate(self, x: Tensor, knobs: object = ()) -> None:
        """Numbers the entries by use, then fits the tables."""
        x = self.norm(x)
        used = torch.bincount(self._entries(self.projection(x)).flatten(), minlength=ENTRIES)
        self.entry.copy_(torch.argsort(used, descending=True, stable=True))
        self.rank[self.entry] = torch.arange(ENTRIES)
        self.measure(self.projection(x), ENTRIES)

    @torch.no_grad()
    def payloads(self, x: Tensor, levels: int | None = None) -> list[bytes]:
        """As every rival's, after normalising each token."""
        return super().payloads(self.norm(x), ENTRIES)

    def level_counts(self, levels: int) -> tuple[int, ...]:
        """Two digits of 6 bits."""
        return (_DIGIT, ENTRIES // _DIGIT)

    def codes(self, z: Tensor, levels: int) -> Tensor:
        """The two digits, [..., tokens, 2], of each nearest entry's number."""
        number = self.rank[self._entries(z)]
        return torch.stack([number // _DIGIT, number % _DIGIT], -1)

    def values(self, codes: Tensor, levels: int) -> Tensor:
        """The entries themselves."""
        number = codes.long()[..., 0] * _DIGIT + codes.long()[..., 1]
        entries: Tensor = self.codebook.get_codes_from_indices(self.entry[number])
        return entries

    def quantize(self, z: Tensor, levels: int) -> tuple[Tensor, Tensor]:
        """Nearest entries, with the library's gradient and commitment loss in training."""
        if not self.training:
            return super().quantize(z, levels)
        v, _, loss = self.codebook(z)
        return v, loss.sum()

    def _entries(self, z: Tensor) -> Tensor:
        # In batches: the library holds the distance of every vector to every entry.
        self.codebook.eval()
        found = [self.codebook(part)[1] for part in z.split(64)]
        self.codebook.train(self.training)
        return torch.cat(found)
