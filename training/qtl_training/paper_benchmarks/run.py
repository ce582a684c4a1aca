"""One benchmark through the real path: ask what was not answered yet, write predictions, score."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Final, TypeAlias

import msgspec
import numpy as np
from tqdm import tqdm

from edge_runtime import EdgeClient
from edge_runtime.picture import Source
from qtl_core.bundle import Manifest, open_half
from qtl_core.errors import QuestionError, RequestRefused
from qtl_training import real_path
from server_runtime.config import LONGEST_QUESTION

from .answers import ANSWERS, AnswerFile, AnswerLine, Cost, RunIdentity, digest, open_answers, write_whole
from .benchmark import LONG, Benchmark, Question
from .gqa import Gqa
from .mm_vet import MmVet
from .mme import Mme
from .mmmu import Mmmu
from .pope import Pope
from .scienceqa import ScienceQa
from .textvqa import TextVqa
from .vqav2 import VqaV2

BENCHMARKS: Final[dict[str, type[Benchmark]]] = {
    kind.name: kind for kind in (Pope, TextVqa, Gqa, ScienceQa, Mme, Mmmu, MmVet, VqaV2)
}
"""Every benchmark by its name on the command line."""
RESULT: Final = "result.json"

# A server of our own takes the benchmarks' longest questions and answers.
_SERVER: Final = ("--max-question", str(LONGEST_QUESTION), "--max-tokens", str(LONG))

Result: TypeAlias = dict[str, Any]


def evaluate_benchmark(
    bundle: Path,
    name: str,
    folder: Path,
    *,
    output: Path | None = None,
    server: str | None = None,
    limit: int | None = None,
    progress: bool = True,
) -> Result:
    """Asks a benchmark's questions, as far as they were not answered before, writes predictions and scores.

    Args:
        bundle: both halves; the client half alone will do where ``server`` is given.
        name: one of ``BENCHMARKS``.
        folder: with the benchmark's published files.
        output: the folder of the run; None for ``answers/MODEL-FINGERPRINT`` in ``folder``.
        server: an address to ask; None starts a server on the bundle.
        limit: only so many questions, the first ones; None for all.
        progress: whether to show a bar.

    Returns:
        ``scores`` (percent; None where they are made elsewhere, see ``scored_at``), how many questions they
        are over (``n``) of how many (``questions``), were asked now (``asked``) and before (``reused``), were
        refused, cut short or have no picture, the mean bytes of a question, the cut, and the files written.
        It is also in ``result.json``.

    Raises:
        BenchmarkError: files of the benchmark that are missing or do not fit, or answers of another run.
        PictureError: a picture that cannot be read.
        RequestRefused: the server refused every single question.
        QtlError: what ``EdgeClient.ask`` raises; what was answered is kept, and the same call goes on.
    """
    manifest = open_half(bundle, "client").manifest
    if server is None:
        open_half(bundle, "server")
    benchmark = BENCHMARKS[name](folder)
    if output is None:
        output = folder / "answers" / f"{manifest.model}-{manifest.fingerprint[:12]}"
    chosen = range(min(limit, len(benchmark.questions)) if limit is not None else len(benchmark.questions))
    identity = RunIdentity(
        benchmark=name,
        fingerprint=manifest.fingerprint,
        questions=digest(benchmark.questions),
        max_tokens=benchmark.max_tokens,
    )
    with open_answers(output, identity, benchmark.questions) as answers:
        todo = [index for index in chosen if index not in answers.lines]
        if todo:
            with (
                real_path.server(bundle, options=_SERVER)
                if server is None
                else nullcontext(server) as address,
                EdgeClient(bundle, address) as client,
            ):
                _ask(client, benchmark, answers, todo, reused=len(chosen) - len(todo), progress=progress)
        answers.sort()
        lines = [answers.lines[index] for index in chosen]
        if all(line.metadata.finish == "refused" for line in lines):
            # Scores of empty answers would look like a model's: to POPE, an empty answer is a yes.
            raise RequestRefused(
                "question",
                f"the server refused all {len(lines)} questions: this model cannot be asked {name} (the "
                f"first because {lines[0].metadata.refused})",
            )
        return _finish(benchmark, manifest, output, lines, asked=len(todo))


def table(result: Result) -> str:
    """The result as text."""
    whole = "" if result["complete"] else f" of {result['questions']}: a part only"
    lines = [f"{result['benchmark']}: {result['n']} questions{whole}, {result['reused']} answered before"]
    if result["scores"] is None:
        lines.append(f"scored by {result['scored_at']}")
    else:
        lines += _rows(result["scores"], "  ")
    for key, what in (
        ("refused", "refused by the server, counted as empty answers"),
        ("cut_short", "answers cut short at the longest length"),
        ("without_picture", "questions without a picture, asked with a white one"),
    ):
        if result[key]:
            lines.append(f"{result[key]} {what}")
    lines.append(
        f"bytes a question: payload {result['payload_bytes']:.0f}, up {result['bytes_up']:.0f}, "
        f"down {result['bytes_down']:.0f}"
    )
    lines.append(f"written to {result['output']}: {', '.join(result['files'])}")
    return "\n".join(lines)


def _ask(
    client: EdgeClient,
    benchmark: Benchmark,
    answers: AnswerFile,
    todo: Sequence[int],
    *,
    reused: int,
    progress: bool,
) -> None:
    manifest = client.manifest
    white = np.full((manifest.picture.height, manifest.picture.width, 3), 255, np.uint8)
    bar = tqdm(
        desc=benchmark.name, total=reused + len(todo), initial=reused, unit="q", disable=not progress or None
    )
    with bar:
        for group in _by_picture(benchmark.questions, todo):
            picture = benchmark.questions[group[0]].picture
            source: Source = white if picture is None else picture
            encoded = client.encode(source)
            for index in group:
                question = benchmark.questions[index]
                text = ""
                try:
                    answer = client.ask(encoded, question.text, max_tokens=benchmark.max_tokens)
                except (QuestionError, RequestRefused) as error:
                    # Too long for this model: that is a wrong answer, not the end of the run.
                    if isinstance(error, RequestRefused) and error.reason != "question":
                        raise
                    cost = Cost(index=index, finish="refused", refused=str(error))
                else:
                    text = answer.text.strip()
                    cost = Cost(
                        index=index,
                        finish=answer.finish,
                        payload_bytes=answer.payload_bytes,
                        bytes_up=answer.bytes_up,
                        bytes_down=answer.bytes_down,
                    )
                answers.append(
                    AnswerLine(
                        question_id=question.id,
                        prompt=question.prompt,
                        text=text,
                        answer_id=f"{benchmark.name}-{index}",
                        model_id=manifest.model,
                        metadata=cost,
                    )
                )
                bar.update()


def _by_picture(questions: Sequence[Question], todo: Sequence[int]) -> list[list[int]]:
    """Questions about one picture together, so that it is encoded once."""
    groups: dict[Path | None, list[int]] = {}
    for index in todo:
        groups.setdefault(questions[index].picture, []).append(index)
    return list(groups.values())


def _finish(
    benchmark: Benchmark, manifest: Manifest, output: Path, lines: Sequence[AnswerLine], *, asked: int
) -> Result:
    replies = {line.metadata.index: line.text for line in lines}
    files = benchmark.predictions(replies)
    for file, content in files.items():
        write_whole(output / file, content.encode())
    costs = [line.metadata for line in lines if line.metadata.finish != "refused"]

    def mean(key: str) -> float:
        return float(np.mean([getattr(cost, key) for cost in costs])) if costs else 0.0

    cut = manifest.cut
    result: Result = {
        "benchmark": benchmark.name,
        "n": len(lines),
        "questions": len(benchmark.questions),
        "complete": benchmark.complete(replies),
        "asked": asked,
        "reused": len(lines) - asked,
        "refused": sum(line.metadata.finish == "refused" for line in lines),
        "cut_short": sum(line.metadata.finish == "length" for line in lines),
        "without_picture": sum(benchmark.questions[index].picture is None for index in replies),
        "scores": benchmark.score(replies),
        "scored_at": benchmark.scored_at,
        "bits": cut.bits,
        "levels": cut.levels,
        "tokens": cut.tokens,
        "code_dim": cut.code_dim,
        **{key: mean(key) for key in ("payload_bytes", "bytes_up", "bytes_down")},
        "model": manifest.model,
        "fingerprint": manifest.fingerprint,
        "output": str(output),
        "files": [ANSWERS, *files],
    }
    write_whole(output / RESULT, msgspec.json.format(msgspec.json.encode(result), indent=2) + b"\n")
    return result


def _rows(scores: dict[str, Any], indent: str) -> list[str]:
    rows = []
    for name, value in scores.items():
        if isinstance(value, dict):
            rows += [f"{indent}{name}", *_rows(value, indent + "  ")]
        else:
            shown = f"{value:10.2f}" if isinstance(value, float) else f"{value:7d}   "
            rows.append(f"{indent}{name:{40 - len(indent)}}{shown}")
    return rows
