"""The server's side of the cut: codes and a question in, text out.

A server half holds ``model.safetensors`` (language model, ``out_proj`` of each quantizer, place
vectors), ``config.json`` (``ServerConfig``) and ``tokenizer.json``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import torch
import transformers
from safetensors import SafetensorError
from safetensors.torch import load_file
from tokenizers import Tokenizer
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, DynamicCache

from qtl_core import __version__
from qtl_core.bundle import Cut, FileEntry, Manifest, Picture, Template, Text
from qtl_core.errors import BundleError
from qtl_core.nn.checkpoint import Checkpoint
from qtl_core.nn.decoder import PictureDecoder
from qtl_core.nn.prompt_tokens import PromptStyle, PromptTokens
from qtl_core.nn.quantizer import Dequantizer
from qtl_core.nn.stored import Source, sources_of
from qtl_core.nn.tensor_writing import write_tensors
from qtl_core.nn.tile_assembly import AssemblyStyle, Markers, assembly
from qtl_core.upgrades import remedy

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
TOKENIZER_FILE = "tokenizer.json"
_REPLACEMENT = "\ufffd"  # what a tokenizer prints for bytes of a character that is not complete yet


class ServerConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """``config.json`` of a server half.

    Attributes:
        language_model: transformers' configuration of the decoder.
        picture_attention: "causal", "bidirectional" among the picture's tokens, or "prefix".
        picture_places: whether there are place vectors.
        end_tokens: ids that end an answer.
        max_answer_tokens: where an answer is cut off unless the client asks for less.
        prompt: how prompts become tokens.
        tiles: what becomes of the tiles of a picture, where pictures are cut.
    """

    language_model: dict[str, Any]
    picture_attention: str
    picture_places: bool
    end_tokens: tuple[int, ...]
    max_answer_tokens: int
    prompt: PromptStyle = PromptStyle()
    tiles: AssemblyStyle | None = None


class ServerPartition(nn.Module):
    """Dequantizers and language model, answering greedily.

    Args:
        config: shapes and settings.
        cut: what crosses for a picture.
        text: how questions cross.
        template: the prompt.
        tokenizer: the decoder's.
        picture: how pictures are cut, where they are.

    Raises:
        ValueError: parts of the configuration that do not fit together.
    """

    def __init__(
        self,
        config: ServerConfig,
        cut: Cut,
        text: Text,
        template: Template,
        tokenizer: Tokenizer,
        picture: Picture | None = None,
    ) -> None:
        super().__init__()
        self.config, self.cut, self.text, self.template = config, cut, text, template
        settings = dict(config.language_model)
        decoder_config = AutoConfig.for_model(settings.pop("model_type"), **settings)
        self.decoder = PictureDecoder(
            AutoModelForCausalLM.from_config(decoder_config),
            config.picture_attention,
            cut.picture_tokens if config.picture_places else 0,
        )
        self.vision_dequantizer = (
            Dequantizer(cut.width, cut.code_dim, cut.levels, cut.merge) if cut.levels else None
        )
        self.language_dequantizer = (
            Dequantizer(text.width, text.code_dim, text.levels) if text.mode == "codes" else None
        )
        if config.tiles is not None and picture is None:
            raise ValueError("tiles need to be told how pictures are cut")
        self.assembly = assembly(config.tiles, picture) if config.tiles is not None and picture else None
        self._tokenizer = tokenizer
        self._prompts = PromptTokens(tokenizer, template, config.prompt)

    @classmethod
    def load(
        cls, path: str | Path, manifest: Manifest, device: str = "cpu", dtype: str = "float32"
    ) -> ServerPartition:
        """Reads a server half whose manifest has been checked.

        Raises:
            BundleError: if a file is missing or does not fit the manifest.
        """
        folder = Path(path)
        try:
            config = msgspec.json.decode((folder / CONFIG_FILE).read_bytes(), type=ServerConfig)
            tokenizer = read_tokenizer(folder / TOKENIZER_FILE)
            weights = load_file(folder / WEIGHTS_FILE)
            part = cls(config, manifest.cut, manifest.text, manifest.template, tokenizer, manifest.picture)
            _load(part, weights)
        except (OSError, ValueError, RuntimeError, KeyError, SafetensorError) as error:
            first = (str(error).strip().splitlines() or [type(error).__name__])[0]
            here = {"qtl-edge": __version__, "transformers": transformers.__version__}
            raise BundleError(
                f"server half {folder} cannot be loaded: {first}; {remedy(manifest, here)}"
            ) from error
        return part.to(device=device, dtype=getattr(torch, dtype)).eval()

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.parameters()).device

    def question_tokens(self, question: str) -> int:
        """How many tokens a question has."""
        return len(self._prompts.question(question))

    @torch.inference_mode()
    def restore(self, vision: npt.NDArray[Any]) -> Tensor:
        """The features of codes, or of float16 features as they are: [tiles, picture tokens, width].

        Args:
            vision: [tokens, code_dim], or [tiles, tokens, code_dim] where the picture is cut.
        """
        received = torch.from_numpy(np.ascontiguousarray(vision)).to(self.device)
        received = received[None] if received.ndim == 2 else received
        if self.vision_dequantizer is None or received.is_floating_point():
            return received.to(next(self.parameters()).dtype)
        features: Tensor = self.vision_dequantizer(received)
        return features

    def generate(
        self,
        vision: npt.NDArray[Any],
        question: str = "",
        text_codes: npt.NDArray[np.uint8] | None = None,
        max_tokens: int = 0,
        size: tuple[int, int] | None = None,
    ) -> Iterator[str]:
        """Answers a question about a picture, greedily.

        Args:
            vision: codes uint8 [tokens, code_dim], or float16 features [picture tokens, width], which are
                taken as they are, also by a half that takes codes; where pictures are cut, [tiles, ...] of
                either.
            question: the question, where questions cross as text.
            text_codes: codes uint8 [question tokens, code_dim], where they cross as codes.
            max_tokens: where to stop; 0 or too large means the model's own limit.
            size: width and height of the picture in pixels, where pictures are cut.

        Yields:
            One piece of text for each token; a piece is empty while a character is incomplete.

        Raises:
            ValueError: tiles and size that do not belong together.
        """
        limit = self.config.max_answer_tokens
        limit = min(max_tokens, limit) if max_tokens > 0 else limit
        ids: list[int] = []
        shown = ""
        step = self._steps(vision, question, text_codes, size)
        for token in step:
            if token in self.config.end_tokens:
                return
            ids.append(token)
            text = self._tokenizer.decode(ids, skip_special_tokens=True)
            waiting = text.endswith(_REPLACEMENT) and len(ids) < limit
            ready = shown if waiting else text
            yield ready[len(shown) :]
            shown = ready
            if len(ids) == limit:
                return

    @torch.inference_mode()
    def prompt(
        self,
        vision: npt.NDArray[Any],
        question: str = "",
        text_codes: npt.NDArray[np.uint8] | None = None,
        size: tuple[int, int] | None = None,
    ) -> tuple[Tensor, int, int]:
        """The prompt as the decoder takes it; arguments and errors as ``generate``.

        Returns:
            Embeddings [1, n, width], how many of them stand before the picture, and how many are its.
        """
        before, picture = self._picture(vision, size)
        if text_codes is not None:
            if self.language_dequantizer is None:
                raise ValueError("this server half takes questions as plain text, not as codes")
            asked = [
                self._embed(self._prompts.piece(self.template.between)),
                self.language_dequantizer(
                    torch.from_numpy(np.ascontiguousarray(text_codes))[None].to(self.device)
                ),
                self._embed(self._prompts.piece(self.template.after_question)),
            ]
        else:
            asked = [self._embed(self._prompts.after(question))]
        pieces = [self._embed(before), picture, *asked]
        return torch.cat(pieces, dim=1), len(before), picture.shape[1]

    def _picture(self, vision: npt.NDArray[Any], size: tuple[int, int] | None) -> tuple[list[int], Tensor]:
        """Ids before the picture, and the picture's embeddings [1, n, width]."""
        features = self.restore(vision)
        if self.assembly is None:
            return self._prompts.before(), self.decoder.place(features)
        # Where a picture is always one tile, any size is as good as its own.
        size = (1, 1) if size is None and len(features) == 1 else size
        if size is None:
            raise ValueError("the size of a picture with several tiles must be told")
        if isinstance(self.assembly, Markers):
            ids, image = self._prompts.before(self.assembly.text(size)), self.assembly.style.image
            stands_for = self._tokenizer.token_to_id(image)
            return [], self.assembly(features, ids, stands_for, self.decoder.embed)[None]
        return self._prompts.before(), self.assembly(features, size)[None]

    @torch.inference_mode()
    def _steps(
        self,
        vision: npt.NDArray[Any],
        question: str,
        text_codes: npt.NDArray[np.uint8] | None,
        size: tuple[int, int] | None,
    ) -> Iterator[int]:
        """The likeliest next token, again and again."""
        embeddings, before, picture = self.prompt(vision, question, text_codes, size)
        n = embeddings.shape[1]
        parts = before, picture, n - before - picture
        allowed = self.decoder.prompt_mask(*parts, self.device)[None]
        positions = self.decoder.prompt_positions(*parts, self.device)[None]
        cache: Any = DynamicCache()
        while True:
            hidden, cache = self.decoder(embeddings, allowed, positions, cache)
            token = self.decoder.logits(hidden[:, -1]).argmax(-1)
            yield int(token)
            n += 1
            embeddings = self.decoder.embed(token[:, None])
            allowed = torch.ones(1, 1, n, dtype=torch.bool, device=self.device)
            positions = positions[:, -1:] + 1

    def _embed(self, ids: list[int]) -> Tensor:
        return self.decoder.embed(torch.tensor([ids], dtype=torch.int64, device=self.device))


def read_tokenizer(path: Path) -> Tokenizer:
    """Reads a ``tokenizer.json``.

    Raises:
        ValueError: if it is missing or no tokenizer.
    """
    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # tokenizers raises nothing more specific
        raise ValueError(f"{path.name} is not a tokenizer: {error}") from error


def write_server_half(
    folder: str | Path,
    checkpoint: Checkpoint,
    cut: Cut,
    text: Text,
    follow: Callable[[Sequence[str]], Iterable[str]] = iter,
) -> FileEntry:
    """Writes the server half's files, without its manifest.

    A decoder that was left in its files is copied from there, in the type it is stored in, and never loaded.

    Args:
        folder: created if it is not there.
        checkpoint: the model.
        cut: what crosses for a picture.
        text: how questions cross.
        follow: wraps the walk over the names of the weights, for a progress bar.

    Returns:
        Size and SHA-256 of ``model.safetensors``.
    """
    path = Path(folder)
    path.mkdir(parents=True, exist_ok=True)
    decoder, model = checkpoint.model.decoder, checkpoint.model
    tied = decoder.language_model.config.tie_word_embeddings
    state = decoder.state_dict(keep_vars=True)
    in_files = sources_of(decoder)
    shared = {id(state[name]): source for name, source in in_files.items()}  # a tied one has one name there
    weights: dict[str, Tensor | Source] = {
        f"decoder.{name}": in_files.get(name) or shared.get(id(tensor), tensor)
        for name, tensor in state.items()
        if not (tied and name.endswith("lm_head.weight"))
    }
    if cut.levels:
        weights |= _out_proj("vision_dequantizer", model.vision_quantizer.out_proj)
    if text.mode == "codes":
        weights |= _out_proj("language_dequantizer", model.language_quantizer.out_proj)
    if checkpoint.assembly is not None:
        noted = sources_of(checkpoint.assembly)
        own = checkpoint.assembly.state_dict()
        weights |= {f"assembly.{name}": noted.get(name, tensor) for name, tensor in own.items()}
    written = write_tensors(path / WEIGHTS_FILE, weights, follow=follow)
    config = ServerConfig(
        language_model=_plain_config(decoder),
        picture_attention=decoder.picture_attention,
        picture_places=decoder.picture_places is not None,
        end_tokens=checkpoint.end_tokens,
        max_answer_tokens=checkpoint.settings.max_answer_tokens,
        prompt=checkpoint.prompt,
        tiles=None if checkpoint.assembly is None else checkpoint.assembly.style,
    )
    (path / CONFIG_FILE).write_bytes(msgspec.json.format(msgspec.json.encode(config), indent=2) + b"\n")
    # Not its own save(): that raises a bare Exception where the disk is full.
    (path / TOKENIZER_FILE).write_text(checkpoint.tokenizer.backend_tokenizer.to_str(pretty=True), "utf-8")
    return written


def _plain_config(decoder: PictureDecoder) -> dict[str, Any]:
    values: dict[str, Any] = decoder.language_model.config.to_diff_dict()
    for name in ("transformers_version", "_name_or_path", "architectures"):
        values.pop(name, None)
    return values


def _out_proj(prefix: str, layer: nn.Linear) -> dict[str, Tensor]:
    return {f"{prefix}.out_proj.{name}": tensor for name, tensor in layer.state_dict().items()}


def _load(part: ServerPartition, weights: dict[str, Tensor]) -> None:
    missing, unexpected = part.load_state_dict(weights, strict=False)
    language_model = part.decoder.language_model
    if language_model.config.tie_word_embeddings:
        language_model.tie_weights()
        missing = [name for name in missing if not name.endswith("lm_head.weight")]
    if missing or unexpected:
        raise ValueError(f"{WEIGHTS_FILE} lacks {missing[:3]} or has {unexpected[:3]} too many")
