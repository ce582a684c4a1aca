"""Quantizers made after training, from pictures alone: closed form beside fine-tuned, at several settings.

    python -m benchmarks.post_training --each-type 240 --json build/post.json --page docs/calibration.md

takes the shipped checkpoint as if it had no quantizer. Pictures are scenes of the training split, without
questions or answers; the test questions are asked of the 16-bit model, of quantizers fitted in closed form
(`qtl-export --calibrate`), and of the same fine-tuned (`qtl-train quantizer`), with its general prompts and
with wordings of this task. `--quick` takes fewer pictures, steps and questions.
"""

from __future__ import annotations

import hashlib
import json
import platform
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

import click
import msgspec
import numpy as np
import torch
from PIL import Image

from qtl_core import shipped
from qtl_core.codes import bits_of, packed_size
from qtl_core.exits import run
from qtl_core.nn.checkpoint import load_checkpoint
from qtl_training.answering import answered_right
from qtl_training.digits.dataset import QuestionSet, question_set, share_right
from qtl_training.digits.questions import every_wording
from qtl_training.digits.scenes import render, sample
from qtl_training.distillation.report import Trained
from qtl_training.distillation.run import train_quantizer
from qtl_training.distillation.settings import DistillSettings
from qtl_training.features import tower_features

SETTINGS: Final = ((2, 128, False), (4, 128, False), (8, 128, False), (4, 16, True))
"""L, codes a token, and whether to fine-tune with the task's own prompts too: where there is most to gain."""
_START, _END = "<!-- post-training:start -->", "<!-- post-training:end -->"
_PACKAGES = ("torch", "transformers", "numpy")
_SEED: Final = 60_451
_WORDINGS: Final = 64
_ANSWER_TOKENS: Final = 8  # this model's answers are short


@click.command()
@click.option("--quick", is_flag=True, help="Fewer pictures, steps and questions; the JSON says so.")
@click.option("--split", type=click.Choice(["validation", "test"]), default="test", show_default=True)
@click.option("--each-type", type=int, default=480, show_default=True, help="Questions of each type.")
@click.option("--pictures", type=int, default=1000, show_default=True, help="Training scenes.")
@click.option("--steps", type=int, default=100, show_default=True, help="Of fine-tuning.")
@click.option(
    "--work", type=click.Path(path_type=Path), metavar="DIR", help="Keep what is made here, to go on from."
)
@click.option(
    "--json", "json_file", type=click.Path(path_type=Path), metavar="FILE", help="Write the numbers here."
)
@click.option("--page", type=click.Path(path_type=Path), metavar="FILE", help="Renew the table in this file.")
def cli(
    quick: bool,
    split: str,
    each_type: int,
    pictures: int,
    steps: int,
    work: Path | None,
    json_file: Path | None,
    page: Path | None,
) -> None:
    """Closed form beside fine-tuned quantizers of the shipped model's 16-bit features."""
    if quick:
        each_type, pictures, steps = min(each_type, 40), min(pictures, 160), min(steps, 20)
    with tempfile.TemporaryDirectory(prefix="qtl-post-training-") as temporary:
        folder = Path(temporary) if work is None else work
        rows, whole, asked = measure(folder, split, each_type, pictures, steps)
    result = {
        "quick": quick,
        "weights": "the shipped checkpoint (trained), without its quantizers",
        "split": split,
        "n": asked,
        "pictures": pictures,
        "steps": steps,
        "accuracy_16bit": whole,
        "rows": rows,
        "versions": {"python": platform.python_version(), **{name: version(name) for name in _PACKAGES}},
        "machine": platform.machine(),
    }
    click.echo(table(result))
    if json_file is not None:
        json_file.parent.mkdir(parents=True, exist_ok=True)
        json_file.write_text(json.dumps(result, indent=1) + "\n", "utf-8")
    if page is not None:
        renew(page, result)


def measure(
    folder: Path, split: str, each_type: int, pictures: int, steps: int
) -> tuple[list[dict[str, Any]], dict[str, float], int]:
    """Makes and measures every quantizer: rows, the 16-bit model's accuracy, and how many questions."""
    scenes, prompts = folder / "scenes", folder / "prompts.txt"
    scenes.mkdir(parents=True, exist_ok=True)
    for index, one in enumerate(render(sample("train", pictures, _SEED), slice(None))):
        file = scenes / f"{index:05}.png"
        if not file.exists():  # the features that are kept are those of this very file
            Image.fromarray(one).save(file)
    wordings = np.random.default_rng(_SEED).choice(sorted(every_wording()), _WORDINGS, replace=False)
    prompts.write_text("\n".join(wordings) + "\n", "utf-8")
    data = question_set(split, each_type=each_type)
    checkpoint = load_checkpoint(shipped.digits())
    tower = tower_features(checkpoint.model.vision, data.scenes, progress=sys.stderr.isatty())
    rows = []
    for levels, code_dim, task_prompts in SETTINGS:
        row: dict[str, Any] = {"levels": levels, "bits": bits_of(levels), "code_dim": code_dim}
        for name, more in (
            ("closed_form", {"steps": 0}),
            ("general_prompts", {"steps": steps}),
            ("task_prompts", {"steps": steps, "prompts": prompts}),
        )[: 2 + task_prompts]:
            settings: dict[str, Any] = {"levels": levels, "code_dim": code_dim, **more}
            trained = train_quantizer(
                DistillSettings(
                    checkpoint=shipped.digits(),
                    pictures=scenes,
                    output=folder / f"{levels}-{code_dim}-{name}",
                    cache=folder / "cache",
                    max_pictures=pictures,
                    answer_tokens=_ANSWER_TOKENS,
                    **settings,
                ),
                progress=sys.stderr.isatty(),
            )
            row[name] = _measured(trained, tower, data)
            said = f"L = {levels}, {code_dim} codes a token, {name}: {row[name]['accuracy']['macro']:.2f} %"
            click.echo(said, err=True)
        row["fixed_bytes"] = packed_size(trained.tokens * code_dim, levels)
        rows.append(row)
    right = answered_right(checkpoint, tower, data.questions, None)
    return rows, share_right(data.questions, right)[0], len(data.questions)


def _measured(trained: Trained, tower: torch.Tensor, data: QuestionSet) -> dict[str, Any]:
    asked = hashlib.sha256(repr(data.questions).encode()).hexdigest()[:16]
    kept = Path(trained.output) / f"right-{asked}.json"
    if not kept.exists():
        right = answered_right(load_checkpoint(trained.output), tower, data.questions, trained.levels)
        kept.write_text(json.dumps(share_right(data.questions, right)[0]), "utf-8")
    return {
        "fitted": msgspec.to_builtins(trained.fitted),
        "tuned": msgspec.to_builtins(trained.tuned),
        "accuracy": json.loads(kept.read_text("utf-8")),
    }


def table(result: dict[str, Any]) -> str:
    """The numbers as a Markdown table."""
    lines = [
        "| bits | codes a token | packed, B | over noise, dB: closed form | fine-tuned | "
        "task prompts | right, %: closed form | fine-tuned | task prompts |",
        "|---:|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    kinds = ("closed_form", "general_prompts", "task_prompts")
    for row in result["rows"]:
        noise = " | ".join(f"{row[kind]['tuned']['snr_db']:.1f}" if kind in row else "" for kind in kinds)
        right = " | ".join(f"{row[kind]['accuracy']['macro']:.2f}" if kind in row else "" for kind in kinds)
        lines.append(f"| {row['bits']} | {row['code_dim']} | {row['fixed_bytes']:,} | {noise} | {right} |")
    whole = result["accuracy_16bit"]["macro"]
    lines.append(f"| 16 | | 9,216 | | | | {whole:.2f} | | |")
    return "\n".join(lines)


def renew(page: Path, result: dict[str, Any]) -> None:
    """Puts the table between the page's marks."""
    before, start, rest = page.read_text("utf-8").partition(_START)
    _, end, after = rest.partition(_END)
    if not start or not end:
        raise click.ClickException(f"{page} has no {_START} ... {_END} to fill")
    said = (
        f"The shipped model's 16-bit features, {result['pictures']:,} training scenes, {result['steps']} "
        f"steps; macro accuracy on {result['n']:,} {result['split']} questions. *Over noise*: the ratio of "
        "signal to noise on scenes aside. *Fine-tuned* with the general prompts, *task prompts* with "
        f"{_WORDINGS} wordings of this task's questions."
    )
    page.write_text(f"{before}{start}\n{said}\n\n{table(result)}\n{end}{after}", "utf-8")


if __name__ == "__main__":
    sys.exit(run(lambda: cli.main(standalone_mode=False)))
