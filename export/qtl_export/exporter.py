"""A checkpoint to a bundle: both halves, held against the device's own code, then put in place."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np
import torch

from edge_runtime.encoder import CPU, Encoder
from edge_runtime.text import TextEncoder
from qtl_core import codes as packing
from qtl_core.bundle import open_half
from qtl_core.errors import BundleError, CheckpointError
from qtl_core.nn.checkpoint import Checkpoint, load_checkpoint, load_client
from qtl_core.nn.client_partition import ClientPartition
from qtl_core.nn.families.fitted import check_client
from qtl_core.nn.server_partition import WEIGHTS_FILE, ServerPartition, write_server_half
from qtl_core.nn.stored import drop_weights, load_weights
from qtl_core.trainable import FOLDER
from qtl_export import held_out
from qtl_export.answers import Answers, Language, compare_answers, reason_not_to_ask
from qtl_export.auto_levels import choose_levels
from qtl_export.calibration import Calibrated, calibrate, check_coding
from qtl_export.card import write_card
from qtl_export.config import ExportConfig
from qtl_export.expected import Expected, expect
from qtl_export.graph import GRAPH, export_graph
from qtl_export.halves import HALVES, Agreement, versions, write_golden
from qtl_export.language import write_language
from qtl_export.place import beside, check_target, put
from qtl_export.post_training import PostTraining
from qtl_export.progress import Progress
from qtl_export.questions import Questions
from qtl_export.report import Exported
from qtl_export.trainable.writing import trained_from, write_trainable
from qtl_export.validation import Compared, compare
from qtl_export.variants.judging import Yardstick
from qtl_export.variants.making import CALIBRATION, Made
from qtl_export.variants.making import make as make_variants

CODES_WANTED: Final = 1_000_000
"""Codes that validation compares where few enough pictures hold so many."""
MAX_PICTURES: Final = 256
"""Pictures that validation takes when nobody says how many: seconds, not minutes, on two cores."""
_MIN_PICTURES: Final = 4
_MIN_TILED: Final = 2  # pictures with many tiles each take as long as many pictures
_GOLDEN_PICTURES: Final = 4


def export(config: ExportConfig, progress: Progress | None = None) -> Exported:
    """Exports a checkpoint.

    Args:
        config: what to export, and where to.
        progress: where to show how far it is.

    Raises:
        CheckpointError: the checkpoint is missing, damaged, or cannot be exported; or trained, where a recipe
            asks for that.
        BundleError: something else lies where the bundle should go, or validation found it over its bounds
            (nothing is put in place then, unless ``force``).
        PictureError: the pictures to validate or calibrate on, or that questions are about.
        QuestionError: a file of questions that cannot be used.
        InputError: ``auto``, and too few pictures to choose by, or features that are damaged or constant.
        StorageError: the bundle's folder cannot be written, or the disk is full.
    """
    progress = Progress() if progress is None else progress
    target = config.output.resolve()
    check_target(target)
    with progress.stage("loading the checkpoint"):
        checkpoint = load_checkpoint(config.checkpoint, quantizer=config.quantizer, weights=False)
        load_client(checkpoint)
        check_client(checkpoint)
        if config.recipe is not None:
            checkpoint = trained_from(checkpoint, config.recipe)
        if config.text == "codes":  # the device embeds the question
            load_weights(checkpoint.model.decoder.language_model.get_input_embeddings())
    post = fitted = None
    pictures = config.pictures
    if config.calibrate is not None:
        pictures = config.calibrate if pictures is None else pictures
        post = PostTraining(checkpoint, config.calibrate, config.code_dim, progress)
        checkpoint, fitted = post.fitted(config.levels or checkpoint.settings.vision.levels)
    need_quantizer(checkpoint, config)
    chosen = choose_levels(checkpoint, pictures, progress) if config.auto else None
    levels = checkpoint.settings.vision.levels if config.levels is None else config.levels
    if chosen is not None:
        levels = chosen.levels
        if post is not None:
            checkpoint, fitted = post.fitted(levels)
    agreement = Agreement.of(checkpoint, levels, config.text)
    calibrated = calibrate(checkpoint, agreement.cut, pictures, progress)
    agreement = dataclasses.replace(agreement, tables=calibrated.tables)
    n = pictures_to_validate(agreement) if config.validate is None else config.validate
    # Before the long part: a wrong folder should not cost minutes to find out.
    known = config.pictures is None and (checkpoint.path / held_out.FILE).is_file()
    folder = None if known else pictures
    validate_on = held_out.gather(checkpoint.path, folder, checkpoint.picture, n) if n else None
    questions = _questions(config, checkpoint, [] if post is None else post.known, progress)
    with beside(target) as work, ExitStack() as kept:
        with progress.stage("exporting the client partition to ONNX"):
            (work / "client").mkdir()
            export_graph(checkpoint, levels, work / "client")
            if config.text == "codes":
                write_language(work / "client", checkpoint, agreement.text.levels)
        training = None
        if config.recipe is not None:
            training = write_trainable(
                work / "client", checkpoint, config.recipe, config.checkpoint, progress
            )
        expected = None
        if validate_on is not None:
            part = _in_pytorch(checkpoint, agreement)
            expected = kept.enter_context(expect(part, validate_on.pictures, agreement.cut, work, progress))
            del part
        # The graph has them now, and what follows needs the memory.
        drop_weights(checkpoint.model.vision)
        agreement.hashed["server", WEIGHTS_FILE] = write_server_half(
            work / "server",
            checkpoint,
            agreement.cut,
            agreement.text,
            lambda names: progress.bar(names, "writing the server half", len(names), "tensors"),
        )
        agreement.write_tables(work)
        fingerprint = agreement.fingerprint(work)
        validation, faults, made = _validate(
            work,
            checkpoint,
            agreement,
            fingerprint,
            validate_on,
            expected,
            calibrated,
            questions,
            config,
            progress,
        )
        if faults and not config.force:
            raise BundleError(
                f"validation failed: {'; '.join(faults)}. Nothing was put at {config.output}; "
                "--force puts it there all the same"
            )
        for half in HALVES:
            write_card(work, half, agreement, fingerprint, validation, made.entries)
            agreement.write_manifest(work, half, fingerprint, validation, made.entries)
        sizes: dict[str, int] = {half: _bytes(work / half) for half in HALVES}
        if training is not None:
            sizes["training"] = _bytes(work / "client" / FOLDER)
        sizes["graph"] = sum(path.stat().st_size for path in (work / "client").glob(f"{GRAPH}*"))
        put(work, target)
    return Exported(
        config.output,
        fingerprint,
        agreement.model,
        agreement.cut,
        config.text,
        sizes,
        validation,
        chosen,
        fitted,
        made.entries,
        agreement.picture.most_tiles,
        training,
    )


def need_quantizer(checkpoint: Checkpoint, config: ExportConfig) -> None:
    """Refuses codes of a checkpoint that cannot make any, where no quantizer was fitted to pictures.

    Raises:
        CheckpointError: codes are asked for, and the checkpoint has no quantizer for them.
    """
    if config.levels != 0 and not checkpoint.model.quantized:
        raise CheckpointError(
            f"checkpoint {config.checkpoint} ({checkpoint.family}) has no quantizer, and so no codes to "
            "export: fit one to a few hundred pictures with --calibrate DIR, or export its features "
            "unquantized with --bits 16"
        )


def _questions(
    config: ExportConfig, checkpoint: Checkpoint, known: Sequence[Path], progress: Progress
) -> Questions | None:
    """The user's questions; read before the long part, where a wrong file costs nothing yet."""
    if config.questions is None:
        return None
    folder = config.calibrate or config.pictures or config.questions.parent
    return Questions(config.questions, folder, checkpoint, known, progress)


def pictures_to_validate(agreement: Agreement) -> int:
    """How many pictures validation takes by itself: a million codes' worth, but no more than take seconds."""
    tiles = agreement.picture.most_tiles
    codes = tiles * agreement.cut.tokens * agreement.cut.code_dim
    least = _MIN_PICTURES if tiles == 1 else _MIN_TILED
    return min(max(math.ceil(CODES_WANTED / codes), least), MAX_PICTURES)


def _validate(
    work: Path,
    checkpoint: Checkpoint,
    agreement: Agreement,
    fingerprint: str,
    given: held_out.HeldOut | None,
    expected: Expected | None,
    calibrated: Calibrated,
    questions: Questions | None,
    config: ExportConfig,
    progress: Progress,
) -> tuple[dict[str, Any], list[str], Made]:
    """What the manifests will say, and what is over its bounds; writes golden pictures and variants too."""
    if given is None or expected is None:
        said = calibrated.said(agreement.cut)
        return {"passed": False, "pictures": 0, "source": "not validated", "entropy": said}, [], Made()
    # The device opens halves that have a manifest and nothing else, so these get one for the time being.
    for half in HALVES:
        agreement.write_manifest(work, half, fingerprint, {})
    client, server = (open_half(work / half, half) for half in HALVES)
    cut = agreement.cut
    encoder = Encoder(client)
    compared = compare(expected, encoder, given.pictures, progress)
    language = (
        Language(TextEncoder(client), checkpoint, agreement.text) if agreement.text.mode == "codes" else None
    )
    graph = sum(entry.size for name, entry in client.manifest.files.items() if name.startswith(GRAPH))
    # Questions of the user's own are asked whatever the decoder's size.
    why_not = "" if questions is not None else reason_not_to_ask(checkpoint, graph, config.validate_answers)
    answering = why_not or ServerPartition.load(server.path, server.manifest)

    def ask(payloads: list[bytes]) -> Answers:
        asked = dataclasses.replace(compared, device=payloads)
        return compare_answers(answering, asked, given.questions, given.spans, cut, language, progress)

    answers = ask(compared.device)
    accuracy = None
    if questions is not None and not isinstance(answering, str):
        accuracy = questions.ask(encoder, answering, cut, progress)
    _golden(work, given, compared)
    faults = compared.report.faults()
    codes = None
    if cut.quantized:
        shape = (cut.tokens, cut.code_dim)
        codes = np.stack([packing.unpack(payload, cut.levels, shape) for payload in compared.device])
        faults += check_coding(client, server, codes)
    made = Made()
    if not faults and config.variants:
        yardstick = Yardstick(cut, given.pictures, compared.pytorch, encoder, answers.right, ask)
        calibration = held_out.others(given, min(CALIBRATION, len(given.pictures)))
        made = make_variants(config.variants, client, yardstick, calibration, progress)
    with_ = versions()
    validation = {
        "passed": not faults,
        "pictures": len(given.spans),
        "tiles": len(given.pictures),
        "source": _source(given),
        "device": f"onnxruntime {with_['onnxruntime']}, {CPU}, {with_['machine']}",
        "against": f"PyTorch {torch.__version__}",
        "codes" if cut.quantized else "features": msgspec.to_builtins(compared.report),
        "answers": {**msgspec.to_builtins(answers), "accuracy": answers.accuracy},
        "questions": None if accuracy is None else msgspec.to_builtins(accuracy),
        "entropy": calibrated.said(cut, None if codes is None else codes[: given.originals]),
    }
    return validation, [*faults, *made.faults], made


def _in_pytorch(checkpoint: Checkpoint, agreement: Agreement) -> ClientPartition:
    """What the graph is held against.

    With the checkpoint's own quantizer, not the settled one the graph was made of: that is checked here too.
    """
    model, levels = checkpoint.model, agreement.cut.levels
    quantizer = model.vision_quantizer if levels else None
    return ClientPartition(model.vision, quantizer, levels or None).eval()


def _golden(work: Path, given: held_out.HeldOut, compared: Compared) -> None:
    """A few pictures on which the two runtimes agree, so that any third one has a fair target."""
    agreed = [i for i, payload in enumerate(compared.device) if payload == compared.pytorch[i]]
    chosen = (agreed or list(range(len(compared.device))))[:_GOLDEN_PICTURES]
    write_golden(work / "client", given.pictures[chosen], [compared.device[i] for i in chosen])


def _source(given: held_out.HeldOut) -> str:
    variants = len(given.pictures) - given.originals
    if not variants:
        return given.source
    return f"{given.source}: {given.originals}, and {variants} flipped, moved, brighter or darker variants"


def _bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
