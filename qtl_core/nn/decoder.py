"""The language model as the server runs it: picture features in front, then text.

A causal language model of transformers, and two things that a small model trained from scratch
needs: vectors that tell each picture token its place (they live on the server, so codes need not
carry it), and attention in both directions among the picture's tokens. Both are settings of the
checkpoint; a LLaVA from elsewhere has neither, a PaliGemma has the attention, over its whole prompt.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

PICTURE_ATTENTION = ("causal", "bidirectional", "prefix")


class PictureDecoder(nn.Module):
    """A causal language model that reads picture features before its text.

    Args:
        language_model: a transformers causal language model.
        picture_attention: "causal", "bidirectional" among the picture's tokens, or "prefix": the whole prompt
            sees all of itself.
        picture_tokens: how many tokens a picture has if they get place vectors, one for each row and
            each column of their square grid; 0 for none.
        logit_cap: c of scores c tanh(s / c); None for scores as they are. It changes no order, so a server,
            which answers greedily, does without.

    Raises:
        ValueError: for an unknown kind of attention, or tokens that are no square grid.
    """

    picture_places: nn.Parameter | None

    def __init__(
        self,
        language_model: PreTrainedModel,
        picture_attention: str,
        picture_tokens: int = 0,
        logit_cap: float | None = None,
    ) -> None:
        super().__init__()
        if picture_attention not in PICTURE_ATTENTION:
            raise ValueError(
                f"picture_attention {picture_attention!r} is not one of {', '.join(PICTURE_ATTENTION)}"
            )
        self.language_model = language_model
        self.picture_attention = picture_attention
        self.logit_cap = logit_cap
        width = language_model.config.hidden_size
        self.picture_places = None
        if picture_tokens:
            side = math.isqrt(picture_tokens)
            if side * side != picture_tokens:
                raise ValueError(
                    f"{picture_tokens} picture tokens are not a square grid; they cannot have places"
                )
            self.picture_places = nn.Parameter(torch.randn(2, side, width) / math.sqrt(2))

    @property
    def width(self) -> int:
        """Width of the embeddings."""
        return int(self.language_model.config.hidden_size)

    def embed(self, ids: Tensor) -> Tensor:
        """Embeddings of token ids, [..., width]."""
        embedded: Tensor = self.language_model.get_input_embeddings()(ids)
        return embedded

    def place(self, features: Tensor) -> Tensor:
        """Picture features [..., picture_tokens, width], each told its place."""
        if self.picture_places is None:
            return features
        rows, columns = self.picture_places
        return features + (rows[:, None] + columns[None, :]).flatten(0, 1)

    def forward(
        self, embeddings: Tensor, allowed: Tensor, positions: Tensor, cache: Any = None
    ) -> tuple[Tensor, Any]:
        """Runs the model.

        Args:
            embeddings: float [batch, n, width].
            allowed: bool [batch, n, seen + n], which earlier (cached) and present tokens each may see.
            positions: int64 [batch, n].
            cache: a transformers cache that holds what was ``seen``; None to keep none.

        Returns:
            The last hidden states [batch, n, width] and the cache.
        """
        mask = torch.zeros(allowed.shape, dtype=embeddings.dtype, device=embeddings.device)
        mask = mask.masked_fill(~allowed, torch.finfo(embeddings.dtype).min)[:, None]
        out = self.language_model.base_model(
            inputs_embeds=embeddings,
            attention_mask=self._masks(mask),
            position_ids=positions,
            past_key_values=cache,
            use_cache=cache is not None,
        )
        return out.last_hidden_state, out.past_key_values if cache is not None else None

    def _masks(self, mask: Tensor) -> Tensor | dict[str, Tensor]:
        """The additive mask [batch, 1, n, seen + n] as the model's layers want it.

        Layers that look back over a window only get a mask of their own; tokens that see each other in both
        directions do so over any distance.
        """
        config = self.language_model.config
        kinds = getattr(config, "layer_types", None) or ()
        window = getattr(config, "sliding_window", None)
        if window is None or (kinds and "sliding_attention" not in kinds):
            return mask
        n, seen_and_n = mask.shape[-2:]
        key = torch.arange(seen_and_n, device=mask.device)
        far = key <= key[seen_and_n - n :, None] - window
        present = mask[..., seen_and_n - n :] == 0
        far = far.expand(mask.shape).clone()
        far[..., seen_and_n - n :] &= ~(present & present.transpose(-1, -2))
        near = mask.masked_fill(far, torch.finfo(mask.dtype).min)
        return {"full_attention": mask, "sliding_attention": near} if kinds else near

    def logits(self, hidden: Tensor) -> Tensor:
        """Scores of the vocabulary, [..., vocabulary]."""
        scores: Tensor = self.language_model.get_output_embeddings()(hidden)
        return scores if self.logit_cap is None else self.logit_cap * torch.tanh(scores / self.logit_cap)

    def prompt_mask(
        self, before: int, picture: int, after: int, device: torch.device | None = None
    ) -> Tensor:
        """Which of ``before`` + ``picture`` + ``after`` tokens see which: bool [n, n]."""
        n = before + picture + after
        allowed = torch.ones(n, n, dtype=torch.bool, device=device)
        if self.picture_attention == "prefix":
            return allowed
        allowed = allowed.tril()
        if self.picture_attention == "bidirectional":
            allowed[before : before + picture, before : before + picture] = True
        return allowed

    def prompt_positions(
        self, before: int, picture: int, after: int, device: torch.device | None = None
    ) -> Tensor:
        """Rotary positions of a prompt, int64 [n].

        Where place vectors tell picture tokens apart, all of them share one rotary position: what a
        question looks for then matches alike wherever it is in the picture.
        """
        n = before + picture + after
        if self.picture_places is None or picture == 0:
            return torch.arange(n, device=device)
        index = torch.arange(n, device=device)
        return torch.where(index < before, index, (index - picture + 1).clamp_min(before))
