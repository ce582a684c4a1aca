"""Variants of the graph: made, measured, refused beyond their bounds, and run by the device."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
import pytest

from edge_runtime.bench import candidates, fastest, loader, measure
from edge_runtime.encoder import CPU, Encoder
from edge_runtime.golden import Bounds, golden_of
from edge_runtime.variants import variant, variants
from qtl_core import shipped
from qtl_core.bundle import Cut, open_half
from qtl_core.errors import BundleError, InputError
from qtl_export import exporter, held_out
from qtl_export.answers import Answers
from qtl_export.cli import main
from qtl_export.config import ExportConfig
from qtl_export.exporter import export
from qtl_export.graph import GRAPH
from qtl_export.progress import Progress
from qtl_export.report import Exported
from qtl_export.variants import NAMES, batch_of, bounds, checked
from qtl_export.variants.bounds import bounds_of
from qtl_export.variants.half_precision import to_half
from qtl_export.variants.int8 import KINDS, quantize
from qtl_export.variants.judging import Measured, Yardstick, judge
from qtl_export.variants.making import _better
from qtl_export.variants.nodes import encoder_nodes, normalising_nodes
from tests.export.conftest import CODE_DIM, PICTURES, SIDE, TOKENS, Export, smooth

ALL = (*NAMES, "static-3")


@pytest.fixture(scope="module")
def made(
    exported: Export, checkpoint: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Exported]:
    """The tiny checkpoint at 2 bits with every variant there is."""
    bundle = tmp_path_factory.mktemp("variants") / "bundle"
    config = ExportConfig(checkpoint=checkpoint, levels=4, output=bundle, validate=20, variants=ALL)
    return bundle, export(config)


@pytest.fixture
def graph(exported: Export) -> Path:
    return exported(4)[0] / "client" / GRAPH


def test_every_variant_is_listed_with_what_was_measured(made: tuple[Path, Exported]) -> None:
    bundle, _ = made
    half = open_half(bundle, "client")
    entries = half.manifest.variants
    assert tuple(entries) == ALL
    assert open_half(bundle, "server").manifest.variants == {}
    for name, entry in entries.items():
        assert entry.graph == f"client.{name}.onnx"
        assert half.manifest.files[entry.graph].size == entry.measured["bytes"]
        assert entry.passed, entry
        assert entry.measured["compared"] == 20 * TOKENS * CODE_DIM
        assert entry.measured["share"] <= entry.share_bound
        assert (entry.measured["answers_asked"], entry.measured["answers_known"]) == (8, 8)
        assert entry.measured["ms"] > 0
        others = entry.measured.get("other_kinds", {})
        kinds = {entry.measured.get("kind"), *others}
        assert kinds == (set(KINDS) if name.startswith("int8-") else {None})
        assert all(one["compared"] == entry.measured["compared"] for one in others.values())
    assert (entries["static"].share_bound, entries["static"].measured["differ"]) == (1e-4, 0)
    assert entries["int8-arm64"].share_bound == bounds.SHARES["int8-"]
    assert not [path for path in bundle.iterdir() if path.name not in ("client", "server")]


def test_variants_do_not_touch_the_pair(made: tuple[Path, Exported], exported: Export) -> None:
    assert made[1].fingerprint == exported(4)[1].fingerprint


def test_the_report_and_the_card_have_a_row_for_each(made: tuple[Path, Exported]) -> None:
    bundle, said = made
    entries = json.loads(said.as_json())["variants"]
    assert list(entries) == list(ALL)
    text = said.as_text()
    card = (bundle / "client" / "README.md").read_text("utf-8")
    for name, entry in entries.items():
        kind = entry["measured"].get("kind")
        label = f"{name}, {kind}" if kind else name
        assert f"    {label} " in text
        assert f"| {label} |" in card
        for other in entry["measured"].get("other_kinds", {}):
            assert f"{name}, {other}, not taken" in text
    assert "## Variants" not in (bundle / "server" / "README.md").read_text("utf-8")


def test_int8_leaves_the_encoder_alone(made: tuple[Path, Exported], graph: Path) -> None:
    before = onnx.load(graph)
    kept = encoder_nodes(before)
    products = [node for node in before.graph.node if node.name in kept and node.op_type == "MatMul"]
    assert len(products) == 1  # in_proj
    weight = next(each for each in before.graph.initializer if each.name == products[0].input[1])
    assert tuple(weight.dims) == (16 * 4, CODE_DIM)
    for name in ("int8-arm64", "int8-avx2"):
        model = onnx.load(made[0] / "client" / f"client.{name}.onnx")
        after = {node.name: node.op_type for node in model.graph.node}
        assert all(after[node.name] == node.op_type for node in before.graph.node if node.name in kept)
        bytes_of = {each.name: each.data_type for each in model.graph.initializer}
        small = {onnx.TensorProto.INT8, onnx.TensorProto.UINT8}
        assert sum(kind in small for kind in bytes_of.values()) >= 6
        assert bytes_of[weight.name] == onnx.TensorProto.FLOAT
        assert model.ir_version <= 10
        assert {each.domain: each.version for each in model.opset_import}[""] == 18


def test_half_precision_rounds_and_packs_in_full(made: tuple[Path, Exported], graph: Path) -> None:
    model = onnx.load(made[0] / "client" / "client.fp16.onnx")
    dtypes = {each.name: each.data_type for each in model.graph.initializer}
    apart = {*encoder_nodes(onnx.load(graph)), *normalising_nodes(onnx.load(graph))}
    half, full = onnx.TensorProto.FLOAT16, onnx.TensorProto.FLOAT
    for node in model.graph.node:
        kinds = {dtypes[name] for name in node.input if name in dtypes} & {half, full}
        assert kinds <= ({full} if node.name in apart else {half}), node
    assert list(dtypes.values()).count(half) > 10
    names = [node.name for node in model.graph.node]
    assert len(names) == len(set(names))


def test_the_device_runs_each_variant(made: tuple[Path, Exported]) -> None:
    half = open_half(made[0], "client")
    golden = golden_of(half)
    assert golden is not None
    every = candidates(half, [CPU], 1)
    assert [one.variant.name for one in every] == ["fp32", *sorted(ALL)]
    timings = measure(every, loader(half), golden, half.manifest.cut, seconds=0, keep=True)
    assert [one.refused or one.failed for one in timings] == [""] * len(every)
    best = fastest(timings)
    assert best is not None and best.acceptable


@pytest.mark.parametrize(("n", "name"), [(1, "static"), (4, "static"), (4, "static-3"), (3, "static-3")])
def test_a_fixed_batch_takes_any_number_of_pictures(n: int, name: str, made: tuple[Path, Exported]) -> None:
    half = open_half(made[0], "client")
    pictures = smooth(n, 5)
    shape = onnx.load(half.path / f"client.{name}.onnx").graph.input[0].type.tensor_type.shape
    assert [each.dim_value for each in shape.dim] == [batch_of(name), SIDE, SIDE, 3]
    assert Encoder(half, graph=f"client.{name}.onnx").run(pictures) == Encoder(half).run(pictures)


@pytest.mark.parametrize("name", ["int8-arm64", "static"])
def test_weights_in_a_file_of_their_own(name: str, checkpoint: Path, tmp_path: Path, exported: Export,
                                        monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    source = onnx.load(exported(4)[0] / "client" / GRAPH)

    def large(_: object, levels: int, folder: Path) -> Path:
        onnx.save_model(
            source, folder / GRAPH, save_as_external_data=True, location=f"{GRAPH}.data", size_threshold=256
        )
        return folder / GRAPH

    monkeypatch.setattr(exporter, "export_graph", large)
    config = ExportConfig(
        checkpoint=checkpoint, levels=4, output=tmp_path / "b", validate=4, variants=(name,)
    )
    export(config)
    half = open_half(tmp_path / "b", "client")
    entry, files = half.manifest.variants[name], half.manifest.files
    shared = name == "static"
    assert entry.weights == (f"{GRAPH}.data" if shared else f"client.{name}.onnx.data")
    assert (f"client.{name}.onnx.data" in files) != shared
    one = variant(half, name)
    assert one.bytes == files[entry.graph].size + files[entry.weights].size == entry.measured["bytes"]
    assert len(Encoder(half, graph=one.graph).run(smooth(2, 5))) == 2


@pytest.mark.parametrize("level_count", [0, 256])
def test_unquantized_and_many_levels(level_count: int, exported: Export, tmp_path: Path) -> None:
    half = open_half(exported(level_count)[0], "client")
    cut, full = half.manifest.cut, Encoder(half)
    pictures = smooth(6, 8)
    payloads = [full.run(one[np.newaxis])[0] for one in pictures]
    yardstick = Yardstick(cut, pictures, payloads, full, None, None)
    for name in ("int8-avx512", "fp16"):
        target = tmp_path / f"client.{name}.onnx"
        if name == "fp16":
            to_half(half.file(GRAPH), target)
        else:
            quantize(half.file(GRAPH), target, "avx512", "dynamic")
        files = {target.name: half.manifest.files[GRAPH]}
        manifest = msgspec.structs.replace(half.manifest, files=files)
        encoder = Encoder(dataclasses.replace(half, path=tmp_path, manifest=manifest), graph=target.name)
        found = judge(
            encoder, yardstick, bounds_of(name, cut), name=name, batch=1, size=1, progress=Progress()
        )
        assert found.faults == ()
        assert found.largest <= bounds_of(name, cut).largest
        assert found.largest > 0 or name == "fp16"
        assert (found.answers_asked, found.right) == (0, None)


def test_beyond_its_bounds(
    traced: None, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setitem(bounds.SHARES, "fp16", 0.0)
    monkeypatch.setattr("qtl_export.variants.making.to_half", _as_bad_as_can_be)
    args = [str(checkpoint), "--levels", "4", "-o", str(tmp_path / "b"), "--validate", "4"]
    args += ["--variant", "fp16", "--variant", "static"]
    assert main(args) == 4
    line = capsys.readouterr().err.splitlines()[-1]
    assert "variant fp16: " in line and " codes differ, 0 may" in line and "--force" in line
    assert "variant static" not in line
    assert list(tmp_path.iterdir()) == []
    assert main([*args, "--force"]) == 0
    out, err = capsys.readouterr()
    assert err == "warning: over its bounds and put in place by --force: fp16\n"
    assert "fp16, over its bounds" in out
    half = open_half(tmp_path / "b", "client")
    assert (half.manifest.variants["fp16"].passed, half.manifest.variants["static"].passed) == (False, True)
    assert half.manifest.validation["passed"]
    assert {one.name: one.forced for one in variants(half)} == {"fp32": False, "fp16": True, "static": False}
    golden = golden_of(half)
    assert golden is not None
    timings = measure(
        candidates(half, [CPU], 1, names=["fp16"]), loader(half), golden, half.manifest.cut,
        seconds=0, keep=True, tolerance=1.0,
    )  # fmt: skip
    assert timings[0].refused == "validation at export found it over its bounds"


def _as_bad_as_can_be(source: Path, target: Path) -> None:
    """The same graph with the last product's weights halved and one code in two another."""
    model = onnx.load(source)
    kept = encoder_nodes(model)
    product = next(node for node in model.graph.node if node.name in kept and node.op_type == "MatMul")
    weight = next(each for each in model.graph.initializer if each.name == product.input[1])
    array = onnx.numpy_helper.to_array(weight) + np.float32(0.05) * np.sign(
        onnx.numpy_helper.to_array(weight)
    )
    weight.CopyFrom(onnx.numpy_helper.from_array(array, weight.name))
    onnx.save_model(model, target)


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--variant", "int4"], "int8-arm64, int8-avx2, int8-avx512, int8-avx512_vnni, fp16, static"),
        (["--variant", "static-0"], "no variant 'static-0'"),
        (["--variant", "fp16", "--validate", "0"], "validate on one picture or more"),
    ],
)
def test_what_is_no_variant(
    args: list[str], words: str, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(checkpoint), "--bits", "2", "-o", str(tmp_path / "b"), *args]) == 3
    assert words in capsys.readouterr().err.splitlines()[-1]
    assert list(tmp_path.iterdir()) == []


def test_names() -> None:
    assert checked(["fp16", "static-12", "fp16"]) == ("fp16", "static-12")
    assert [batch_of(name) for name in ("static", "static-12", "fp16")] == [1, 12, None]
    with pytest.raises(InputError, match="there is no variant 'fp32'"):
        checked(["fp32"])


def test_static_quantization_needs_pictures(graph: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="calibration pictures"):
        quantize(graph, tmp_path / "out.onnx", "arm64", "static")


def test_calibration_sees_none_of_the_pictures_compared(checkpoint: Path) -> None:
    spec = open_spec(checkpoint)
    given = held_out.gather(checkpoint, None, spec, 20)
    others = held_out.others(given, 8)
    assert (len(others), given.originals) == (8, PICTURES)
    assert not {one.tobytes() for one in others} & {one.tobytes() for one in given.pictures}


def open_spec(checkpoint: Path) -> Any:
    from qtl_core.nn.checkpoint import load_checkpoint

    return load_checkpoint(checkpoint).picture


def a_cut(levels: int) -> Cut:
    from qtl_core.codes import bits_of, packed_size

    return Cut(
        tokens=4, width=8, code_dim=8, merge=1, levels=levels, bits=bits_of(levels) if levels else 16,
        scaling="image" if levels else "none", codec="packed" if levels else "float16",
        payload_bytes=packed_size(32, levels) if levels else 64,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("name", "levels", "share", "largest"),
    [
        ("int8-arm64", 2, 0.1, 1),
        ("int8-arm64", 4, 0.1, 1),
        ("int8-arm64", 16, 0.5, 3),
        ("int8-arm64", 256, 1.0, 39),
        ("fp16", 4, 0.01, 1),
        ("fp16", 256, 0.85, 6),
        ("static", 4, 1e-4, 1),
        ("static-8", 256, 1e-3, 1),
        ("int8-avx2", 0, 1.0, 0.1),
        ("static", 0, 0.0, 1e-3),
    ],
)
def test_bounds_grow_with_the_levels(name: str, levels: int, share: float, largest: float) -> None:
    found = bounds_of(name, a_cut(levels))
    assert found.share == pytest.approx(share)
    assert found.largest == largest


def test_answers_decide(exported: Export) -> None:
    half = open_half(exported(4)[0], "client")
    encoder, pictures = Encoder(half), smooth(2, 5)

    def ask(right: int) -> Any:
        return lambda payloads: Answers(
            asked=400, differ=9, known=300, right=right, text_codes=0, text_codes_differ=0
        )

    def faults(right: int) -> tuple[str, ...]:
        yardstick = Yardstick(half.manifest.cut, pictures, encoder.run(pictures), encoder, 200, ask(right))
        return judge(
            encoder, yardstick, Bounds.full(half.manifest.cut), name="x", batch=1, size=1, progress=Progress()
        ).faults

    assert faults(197) == ()
    assert faults(196) == ("196 of 300 answers are right, 200 are in fp32 and 197 must be",)


def test_the_better_kind() -> None:
    plain = Measured(
        pictures=4, compared=100, differ=1, share=0.01, largest=1, ms=9, full_ms=10, bytes=1, answers_asked=0,
        answers_differ=0, answers_known=0, right=None, full_right=None, faults=(),
    )  # fmt: skip
    change = msgspec.structs.replace
    noisy = change(plain, share=0.02)
    assert _better({"dynamic": plain, "static": noisy}) == "dynamic"
    assert _better({"dynamic": plain, "static": change(noisy, ms=8.5)}) == "dynamic"
    assert _better({"dynamic": plain, "static": change(noisy, ms=8.0)}) == "static"
    assert _better({"dynamic": plain, "static": change(noisy, ms=8.0, faults=("off",))}) == "dynamic"
    # A machine that was busy during one of them was so for its fp32 graph as well.
    assert _better({"dynamic": plain, "static": change(noisy, ms=16, full_ms=20)}) == "static"


@pytest.mark.slow
@pytest.mark.parametrize("levels", [4, 16])
def test_the_shipped_checkpoint(levels: int, tmp_path: Path) -> None:
    config = ExportConfig(checkpoint=shipped.digits(), levels=levels, output=tmp_path / "b", variants=NAMES)
    said = export(config)
    print(said.as_text())
    assert [name for name, entry in said.variants.items() if entry.passed] == list(NAMES)
    for entry in said.variants.values():
        measured = entry.measured
        assert measured["answers_known"] == 240
        assert measured["right"] >= measured["full_right"] - 2
        assert measured["share"] < entry.share_bound / 2


def test_a_refused_variant_leaves_the_old_bundle(
    made: tuple[Path, Exported],
    checkpoint: Path,
    tmp_path: Path,
    traced: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    target = tmp_path / "b"
    export(ExportConfig(checkpoint=checkpoint, levels=4, output=target, validate=4))
    before = open_half(target, "client").manifest
    monkeypatch.setitem(bounds.SHARES, "fp16", 0.0)
    monkeypatch.setattr("qtl_export.variants.making.to_half", _as_bad_as_can_be)
    config = ExportConfig(checkpoint=checkpoint, levels=4, output=target, validate=4, variants=("fp16",))
    with pytest.raises(BundleError, match="variant fp16: "):
        export(config)
    assert open_half(target, "client").manifest == before
    assert [path.name for path in tmp_path.iterdir()] == ["b"]
