"""A checkpoint to a bundle: both halves, held against the device's own code, then put in place."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np
import torch

from edge_runtime.encoder import CPU, Encoder
from edge_runtime.text import TextEncoder
from qtl_core import codes as packing
from qtl_core.bundle import HalfName, open_half
from qtl_core.errors import BundleError, CheckpointError
from qtl_core.nn.checkpoint import Checkpoint, load_checkpoint
from qtl_core.nn.client_partition import ClientPartition
from qtl_core.nn.server_partition import ServerPartition, write_server_half
from qtl_export import held_out
from qtl_export.answers import Language, compare_answers
from qtl_export.auto_levels import choose_levels
from qtl_export.calibration import Calibrated, calibrate, check_coding
from qtl_export.card import write_card
from qtl_export.config import ExportConfig
from qtl_export.graph import GRAPH, export_graph
from qtl_export.halves import Agreement, versions, write_golden
from qtl_export.language import write_language
from qtl_export.place import beside, check_target, put
from qtl_export.post_training import PostTraining
from qtl_export.progress import Progress
from qtl_export.report import Exported
from qtl_export.validation import Compared, compare

HALVES: Final[tuple[HalfName, ...]] = ("client", "server")
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
        CheckpointError: the checkpoint is missing, damaged, or cannot be exported.
        BundleError: something else lies where the bundle should go, or validation found it over its bounds
            (nothing is put in place then, unless ``force``).
        PictureError: the pictures to validate or calibrate on.
        InputError: ``auto``, and too few pictures to choose by, or features that are damaged or constant.
        StorageError: the bundle's folder cannot be written, or the disk is full.
    """
    progress = Progress() if progress is None else progress
    target = config.output.resolve()
    check_target(target)
    with progress.stage("loading the checkpoint"):
        checkpoint = load_checkpoint(config.checkpoint, quantizer=config.quantizer)
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
    known = config.pictures is None and (config.checkpoint / held_out.FILE).is_file()
    folder = None if known else pictures
    validate_on = held_out.gather(config.checkpoint, folder, checkpoint.picture, n) if n else None
    with beside(target) as work:
        with progress.stage("exporting the client partition to ONNX"):
            (work / "client").mkdir()
            export_graph(checkpoint, levels, work / "client")
            if config.text == "codes":
                write_language(work / "client", checkpoint, agreement.text.levels)
        with progress.stage("writing the server half"):
            write_server_half(work / "server", checkpoint, agreement.cut, agreement.text)
        agreement.write_tables(work)
        fingerprint = agreement.fingerprint(work)
        validation, faults = _validate(
            work, checkpoint, agreement, fingerprint, validate_on, calibrated, progress
        )
        if faults and not config.force:
            raise BundleError(
                f"validation failed: {'; '.join(faults)}. Nothing was put at {config.output}; "
                "--force puts it there all the same"
            )
        for half in HALVES:
            write_card(work, half, agreement, fingerprint, validation)
            agreement.write_manifest(work, half, fingerprint, validation)
        sizes: dict[str, int] = {half: _bytes(work / half) for half in HALVES}
        sizes["graph"] = (work / "client" / GRAPH).stat().st_size
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
        agreement.picture.most_tiles,
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
    calibrated: Calibrated,
    progress: Progress,
) -> tuple[dict[str, Any], list[str]]:
    """What the manifests will say, and what is over its bounds; writes the golden pictures on the way."""
    if given is None:
        said = calibrated.said(agreement.cut)
        return {"passed": False, "pictures": 0, "source": "not validated", "entropy": said}, []
    # The device opens halves that have a manifest and nothing else, so these get one for the time being.
    for half in HALVES:
        agreement.write_manifest(work, half, fingerprint, {})
    client, server = (open_half(work / half, half) for half in HALVES)
    cut = agreement.cut
    model = checkpoint.model
    # The checkpoint's own quantizer, not the settled one the graph was made of: that is checked here too.
    quantizer = model.vision_quantizer if cut.quantized else None
    part = ClientPartition(model.vision, quantizer, cut.levels or None).eval()
    compared = compare(part, Encoder(client), given.pictures, cut, progress)
    language = (
        Language(TextEncoder(client), checkpoint, agreement.text) if agreement.text.mode == "codes" else None
    )
    answering = ServerPartition.load(server.path, server.manifest)
    answers = compare_answers(answering, compared, given.questions, given.spans, cut, language, progress)
    _golden(work, given, compared)
    faults = compared.report.faults()
    codes = None
    if cut.quantized:
        shape = (cut.tokens, cut.code_dim)
        codes = np.stack([packing.unpack(payload, cut.levels, shape) for payload in compared.device])
        faults += check_coding(client, server, codes)
    made = versions()
    validation = {
        "passed": not faults,
        "pictures": len(given.spans),
        "tiles": len(given.pictures),
        "source": _source(given),
        "device": f"onnxruntime {made['onnxruntime']}, {CPU}, {made['machine']}",
        "against": f"PyTorch {torch.__version__}",
        "codes" if cut.quantized else "features": msgspec.to_builtins(compared.report),
        "answers": {**msgspec.to_builtins(answers), "accuracy": answers.accuracy},
        "entropy": calibrated.said(cut, None if codes is None else codes[: given.originals]),
    }
    return validation, faults


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
