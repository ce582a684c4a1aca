"""``--questions``: right answers from what the device sends beside those from unquantized features."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import msgspec
import numpy as np
import numpy.typing as npt

from edge_runtime.encoder import Encoder
from edge_runtime.picture import Pixels, prepare
from qtl_core import codes as packing
from qtl_core.bundle import Cut
from qtl_core.errors import QuestionError
from qtl_core.nn.calibration import BATCH, cut_features
from qtl_core.nn.checkpoint import Checkpoint
from qtl_core.nn.prompt_tokens import PromptTokens
from qtl_core.nn.server_partition import ServerPartition
from qtl_core.question_file import Asked, read_questions, share_right
from qtl_export.progress import Progress


class Accuracy(msgspec.Struct, frozen=True, kw_only=True):
    """What a file of questions came to.

    Attributes:
        questions: how many.
        pictures: that they are about.
        about_known: questions about pictures that the quantizer was fitted to.
        at_16_bit: share answered right from unquantized half-precision features.
        quantized: share answered right from the codes that the device sends.
        difference: of the two, in percentage points; below 0 where quantizing costs.
    """

    questions: int
    pictures: int
    about_known: int
    at_16_bit: float
    quantized: float
    difference: float


class Questions:
    """A user's questions, their pictures, and the unquantized features of these in half precision.

    Args:
        file: JSON lines, see ``qtl_core.question_file``.
        folder: that pictures are looked for in.
        checkpoint: whose tower and connector make the features.
        known: pictures that a quantizer was fitted to.
        progress: where to show how far it is.

    Raises:
        QuestionError: the file is unreadable, empty, or has a line that is no question, or one that is too
            long for the model; or the checkpoint cuts pictures into tiles.
        PictureError: a picture is missing or broken.
    """

    def __init__(
        self, file: Path, folder: Path, checkpoint: Checkpoint, known: Sequence[Path], progress: Progress
    ) -> None:
        if checkpoint.picture.tiled:
            raise QuestionError(
                f"{file}: questions of your own are asked about pictures in one piece, and {checkpoint.path} "
                "cuts them into tiles; export without --questions"
            )
        self._asked: Sequence[Asked] = read_questions(file, folder)
        self._known = {path.resolve() for path in known}
        self.paths = list(dict.fromkeys(one.picture for one in self._asked))
        tokens = PromptTokens(checkpoint.tokenizer.backend_tokenizer, checkpoint.template, checkpoint.prompt)
        longest = checkpoint.settings.max_question_tokens
        for text in dict.fromkeys(one.text for one in self._asked):
            if len(tokens.question(text)) > longest:
                raise QuestionError(f"{file}: {text!r} has more than {longest} tokens")
        self._pictures: Pixels = np.stack([prepare(path, checkpoint.picture) for path in self.paths])
        self._features: npt.NDArray[np.float16] = cut_features(
            checkpoint.model.vision,
            self._pictures,
            follow=lambda starts: progress.bar(
                starts, "features of the questions' pictures", len(self.paths), "pictures", each=BATCH
            ),
        ).astype(np.float16)

    def ask(self, device: Encoder, server: ServerPartition, cut: Cut, progress: Progress) -> Accuracy:
        """Asks every question twice.

        Args:
            device: over the exported client half.
            server: the exported server half.
            cut: what crosses; quantized.
            progress: where to show how far it is.
        """
        place = {path: i for i, path in enumerate(self.paths)}
        codes: dict[int, npt.NDArray[np.uint8]] = {}
        replies: tuple[list[str], list[str]] = [], []
        bar = progress.bar(self._asked, "questions, at 16 bit and from codes", len(self._asked), "questions")
        for one in bar:
            at = place[one.picture]
            if at not in codes:
                payload = device.run(self._pictures[at : at + 1])[0]
                codes[at] = packing.unpack(payload, cut.levels, (cut.tokens, cut.code_dim))
            for vision, found in zip((self._features[at], codes[at]), replies, strict=True):
                found.append("".join(server.generate(vision, one.text)))
        whole, quantized = (share_right(self._asked, found) for found in replies)
        return Accuracy(
            questions=len(self._asked),
            pictures=len(self.paths),
            about_known=sum(one.picture.resolve() in self._known for one in self._asked),
            at_16_bit=whole,
            quantized=quantized,
            difference=100 * (quantized - whole),
        )
