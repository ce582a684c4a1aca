"""A question as codes (``text = "codes"``, the paper's mode): tokenizer, embeddings and language quantizer.

The server can invert quantized embeddings by nearest neighbour: this mode hides nothing from it, and costs
more bytes than plain text. Needs the extra ``[text]``, which brings the tokenizers library.
"""

from __future__ import annotations

import zipfile
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from qtl_core import codes, quantizer
from qtl_core.bundle import Half
from qtl_core.errors import BundleError, CodeError, MissingExtra, QuestionError

TOKENIZER: Final = "text/tokenizer.json"
WEIGHTS: Final = "text/language.npz"
"""``embedding`` [vocabulary, width], ``in_proj_weight``, ``in_proj_bias``; where they apply ``k``, ``mean``,
``std``."""


@dataclass(frozen=True)
class CodedQuestion:
    """A question as it crosses the cut: packed codes, and how many tokens they are."""

    payload: bytes
    tokens: int


class TextEncoder:
    """The device's part of the language side.

    Args:
        half: a checked client half whose text mode is "codes".

    Raises:
        MissingExtra: the tokenizers library is not installed.
        BundleError: a tokenizer or weights that cannot be read, or do not fit the manifest.
    """

    def __init__(self, half: Half) -> None:
        self._text = half.manifest.text
        tokenizer, weights = half.file(TOKENIZER), half.file(WEIGHTS)
        library = _tokenizers()
        try:
            self._tokenizer: Any = library.Tokenizer.from_file(str(tokenizer))
        except Exception as error:  # the library raises plain Exception
            raise BundleError(f"cannot read {tokenizer}: {error}; export the bundle again") from error
        # Text that looks like a special token stays text, as on the server: it is somebody's question.
        self._tokenizer.encode_special_tokens = True
        try:
            with np.load(weights, allow_pickle=False) as file:
                arrays = {name: np.asarray(file[name]) for name in file.files}
            self._embedding = np.asarray(arrays.pop("embedding"), dtype=np.float32)
            self._params = self._quantizer(arrays)
        except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile, CodeError) as error:
            raise BundleError(
                f"the language weights {weights} do not fit: {error}; export the bundle again"
            ) from error

    def encode(self, question: str) -> CodedQuestion:
        """Tokenizes, embeds and quantizes a question.

        Raises:
            QuestionError: no tokens, or more than the model takes.
            BundleError: the tokenizer knows tokens that the embedding has not.
        """
        ids = self._tokenizer.encode(question, add_special_tokens=False).ids
        if not ids:
            raise QuestionError(f"the question {question!r} has no tokens; ask something")
        if len(ids) > self._text.max_tokens:
            raise QuestionError(
                f"the question has {len(ids)} tokens, this model takes {self._text.max_tokens}: shorten it"
            )
        if max(ids) >= len(self._embedding):
            raise BundleError(
                f"token {max(ids)} has no embedding (there are {len(self._embedding)}); "
                "export the bundle again"
            )
        coded = quantizer.encode(self._embedding[ids], self._params)
        return CodedQuestion(codes.pack(coded, self._text.levels), len(ids))

    def _quantizer(self, arrays: dict[str, Any]) -> quantizer.Params:
        width, code_dim = self._text.width, self._text.code_dim
        if self._embedding.ndim != 2 or self._embedding.shape[1] != width:
            raise ValueError(
                f"the embedding is {list(self._embedding.shape)}, the manifest says width {width}"
            )
        if self._text.scaling == "none":
            raise ValueError("the manifest names no scaling for the language quantizer")
        found = np.shape(arrays["in_proj_weight"])
        if found != (code_dim, width):
            raise ValueError(f"in_proj_weight is {list(found)}, the manifest says {[code_dim, width]}")
        return quantizer.Params(
            in_proj_weight=arrays["in_proj_weight"],
            in_proj_bias=arrays["in_proj_bias"],
            # The way back is the server's; the device has no use for its weights.
            out_proj_weight=np.zeros((width, code_dim), np.float32),
            out_proj_bias=np.zeros(width, np.float32),
            levels=self._text.levels,
            scaling=self._text.scaling,
            k=arrays.get("k", 3.0),
            mean=arrays.get("mean"),
            std=arrays.get("std"),
        )


def _tokenizers() -> Any:
    try:
        import tokenizers
    except ImportError as error:
        raise MissingExtra.of("text", "tokenizers") from error
    return tokenizers
