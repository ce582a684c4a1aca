"""The entropy coder's tables: measured on codes, refused where they are none, read from hostile files."""

from __future__ import annotations

import io
import struct
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from qtl_core import bundle, entropy
from qtl_core.codes import packed_size
from qtl_core.entropy_file import NAME, read_tables, tables_name, tables_of, write_tables
from qtl_core.entropy_fit import MIN_SAVING, MIN_TOKENS
from qtl_core.entropy_tables import Tables
from qtl_core.errors import BundleError, CodeError, InputError
from qtl_core.range_coder import TOTAL
from tests.core.test_entropy import draw, make_tables

GOLDEN = Path(__file__).resolve().parents[1] / "golden" / "entropy_tables.npz"

Codes = npt.NDArray[np.uint8]


def grouped(levels: int, groups: int, pictures: int, seed: int = 0) -> Codes:
    """Codes [pictures, 9, 16] of tokens of a few kinds, each with values of its own, and noise."""
    centres = np.random.default_rng(99).uniform(0, levels - 1, (groups, 16))
    rng = np.random.default_rng(seed)
    values = centres[rng.integers(0, groups, (pictures, 9))] + rng.normal(0, 0.05 * levels, (pictures, 9, 16))
    return np.clip(np.round(values), 0, levels - 1).astype(np.uint8)


@pytest.mark.parametrize("levels", [2, 3, 4, 16, 64, 256])
def test_classes_are_found_where_they_pay(levels: int) -> None:
    codes, other = grouped(levels, 12, 300), grouped(levels, 12, 60, seed=1)
    plain, found = Tables.fit(codes, levels, classes=1), Tables.fit(codes, levels)
    assert plain.classes == 1
    assert found.classes >= 8
    assert found.bits(other) < (1 - MIN_SAVING) * plain.bits(other)
    data = entropy.encode(other, found)
    np.testing.assert_array_equal(entropy.decode(data, found, other.shape), other)


def test_as_many_classes_as_there_is_room_for() -> None:
    codes = grouped(4, 40, 200)
    free = Tables.fit(codes, 4)
    assert free.classes >= 32
    capped = Tables.fit(codes, 4, most_entries=20 * 16 * 4 + 63)
    assert capped.digest == Tables.fit(codes, 4, classes=20).digest
    assert Tables.fit(codes, 4, most_entries=free.frequencies.size).digest == free.digest
    assert Tables.fit(codes, 4, most_entries=1).classes == 1


@pytest.mark.parametrize("levels", [2, 4, 256])
def test_one_class_where_channels_are_independent(levels: int) -> None:
    rng = np.random.default_rng(0)
    spread = rng.normal(0.5, 0.15, (100, 9, 16)) * levels
    codes = np.clip(spread, 0, levels - 1).astype(np.uint8)
    assert Tables.fit(codes, levels).classes == 1


def test_measured_tables_come_near_the_entropy_of_what_they_were_measured_on() -> None:
    true = make_tables(5, 8, 1, peak=0.6)
    codes = draw(true, 20_000)
    assert Tables.fit(codes, 5).bits(codes) <= 1.002 * true.bits(codes)


@pytest.mark.parametrize("levels", [16, 256])
def test_few_samples_do_not_blow_up(levels: int) -> None:
    """Codes of the same kind that were not seen take fewer bytes than packed ones, however few were seen."""
    codes, other = grouped(levels, 3, 8), grouped(levels, 3, 200, seed=1)
    coded = sum(map(len, entropy.encode_batch(other, Tables.fit(codes, levels))))
    assert coded < 200 * packed_size(9 * 16, levels)


def test_the_same_codes_give_the_same_tables() -> None:
    codes = grouped(4, 12, 200)
    one, two = Tables.fit(codes, 4), Tables.fit(codes.reshape(-1, 16).astype(np.int64), 4)
    assert one.digest == Tables.fit(codes, 4).digest
    assert one.channels == two.channels == 16
    assert len(one.digest) == 8


def test_a_flat_array_is_one_channel() -> None:
    codes = np.random.default_rng(0).integers(0, 4, 500)
    tables = Tables.fit(codes, 4)
    assert tables.channels == 1
    np.testing.assert_array_equal(entropy.decode(entropy.encode(codes, tables), tables, 500), codes)


def test_too_few_codes_and_how_many_are_needed() -> None:
    with pytest.raises(
        InputError, match=r"63 coded tokens are too few .* at least 64 \(8 pictures of 9 tokens\)"
    ):
        Tables.fit(np.zeros((7, 9, 16), np.uint8), 4)
    with pytest.raises(InputError, match=r"0 coded tokens"):
        Tables.fit(np.zeros((0, 9, 16), np.uint8), 4)
    with pytest.raises(InputError, match=r"0 coded tokens"):
        Tables.fit(np.zeros((9, 0), np.uint8), 4)
    assert Tables.fit(np.zeros((MIN_TOKENS, 16), np.uint8), 4).classes == 1


@pytest.mark.parametrize("classes", [0, -1, 257, 100])
def test_impossible_numbers_of_classes(classes: int) -> None:
    with pytest.raises(InputError, match="classes"):
        Tables.fit(np.zeros((MIN_TOKENS, 2), np.uint8), 4, classes=classes)


@pytest.mark.parametrize(
    "codes",
    [
        np.full((100, 2), 4),
        np.full((100, 2), -1),
        np.full((100, 2), 0.5),
        np.full((100, 2), np.nan),
        np.full((100, 2), True),
    ],
)
def test_what_cannot_be_measured(codes: Any) -> None:
    with pytest.raises(CodeError):
        Tables.fit(codes, 4)


@pytest.mark.parametrize("levels", [-1, 0, 1, 257, 2.0, "4", None, True])
def test_level_counts_that_do_not_exist(levels: Any) -> None:
    with pytest.raises(CodeError, match="levels"):
        Tables.fit(np.zeros((100, 2), np.uint8), levels)
    with pytest.raises(CodeError, match="levels"):
        Tables(levels, [TOTAL], [[[TOTAL - 1, 1]]])


HALF = TOTAL // 2


@pytest.mark.parametrize(
    ("classes", "codes", "says"),
    [
        ([TOTAL], [[[HALF, HALF - 1]]], "sum to 16383"),
        ([TOTAL], [[[HALF, HALF + 1]]], "sum to 16385"),
        ([TOTAL - 1], [[[HALF, HALF]]], "classes sum to 16383"),
        ([HALF, HALF], [[[HALF, HALF]]], "do not fit"),
        ([TOTAL], [[[TOTAL, 0]]], "lie in 1"),
        ([TOTAL], [[[TOTAL + 1, -1]]], "lie in 1"),
        ([TOTAL], [[[HALF, HALF // 2, HALF // 2]]], "do not fit 2 levels"),
        ([TOTAL], [[HALF, HALF]], "do not fit"),
        ([TOTAL], [], "filled array"),
        ([], [[[HALF, HALF]]], "filled array"),
        ([[TOTAL]], [[[HALF, HALF]]], "do not fit"),
        ([float(TOTAL)], [[[HALF, HALF]]], "filled array of integers"),
        ([64] * 256, [[[HALF, HALF]]] * 257, "do not fit"),
    ],
)
def test_tables_that_are_none(classes: Any, codes: Any, says: str) -> None:
    with pytest.raises(CodeError, match=says):
        Tables(2, classes, codes)


def test_tables_of_other_levels_or_channels_do_not_decode() -> None:
    tables = make_tables(4, 5, 2)
    data = entropy.encode(draw(tables, 9), tables)
    with pytest.raises(CodeError, match="5 channels"):
        entropy.decode(data, tables, (9, 6))
    with pytest.raises(CodeError, match=r"0\.\.3, found 7"):
        entropy.encode(np.full((9, 5), 7), tables)


def test_digest_tells_tables_apart() -> None:
    frequencies = [[[HALF, HALF], [HALF - 1, HALF + 1]]]
    first = Tables(2, [TOTAL], frequencies)
    assert first.digest == Tables(2, [TOTAL], frequencies).digest
    others = [
        Tables(2, [TOTAL], [[[HALF - 1, HALF + 1], [HALF, HALF]]]),
        Tables(2, [HALF, HALF], [frequencies[0]] * 2),
        make_tables(3, 2, 1),
    ]
    assert len({first.digest, *(each.digest for each in others)}) == 4


# ------------------------------------------------------------------------------------------------ the file


@pytest.mark.parametrize("classes", [1, 7])
def test_file_round_trip(tmp_path: Path, classes: int) -> None:
    tables = make_tables(16, 5, classes)
    write_tables(tmp_path / "a.npz", tables)
    write_tables(tmp_path / "b.npz", read_tables(tmp_path / "a.npz"))
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()
    assert read_tables(tmp_path / "b.npz").digest == tables.digest


def test_golden_file() -> None:
    tables = read_tables(GOLDEN)
    assert (tables.levels, tables.classes, tables.channels) == (4, 2, 3)
    assert tables.digest.hex() == "474f0dc6b1c255c0"  # the one of docs/protocol.md


def _members(tables: Tables) -> dict[str, bytes]:
    buffer = io.BytesIO()
    np.savez(
        buffer,
        levels=np.array(tables.levels, "<u2"),
        classes=tables.class_frequencies.astype("<u2"),
        codes=tables.frequencies.astype("<u2"),
    )
    with zipfile.ZipFile(buffer) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def _npy(array: Any, **options: Any) -> bytes:
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, np.asarray(array), **options)
    return buffer.getvalue()


def _claim(shape: str) -> bytes:
    """An npy header that claims a shape, and two bytes."""
    text = f"{{'descr': '<u2', 'fortran_order': False, 'shape': {shape}, }}".encode()
    text = text.ljust(117) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + b"ab"


HOSTILE: dict[str, dict[str, bytes | None]] = {
    "no levels": {"levels.npy": None},
    "no codes": {"codes.npy": None},
    "empty member": {"codes.npy": b""},
    "not npy": {"codes.npy": b"PK\x03\x04" * 40},
    "another version": {"codes.npy": _npy(np.ones(3, "<u2"), version=(2, 0))},
    "floats": {"codes.npy": _npy(np.ones((1, 3, 4)))},
    "objects": {"classes.npy": _npy(np.array([{}], dtype=object), allow_pickle=True)},
    "big-endian": {"classes.npy": _npy(np.array([TOTAL], ">u2"))},
    "fortran order": {"codes.npy": _npy(np.asfortranarray(np.ones((2, 3, 4), "<u2")))},
    "levels of two": {"levels.npy": _npy(np.array([4, 4], "<u2"))},
    "levels out of range": {"levels.npy": _npy(np.array(257, "<u2"))},
    "other levels": {"levels.npy": _npy(np.array(5, "<u2"))},
    "sums": {"classes.npy": _npy(np.array([1, 2], "<u2"))},
    "a petabyte claimed": {"codes.npy": _claim("(1073741824, 1048576)")},
    "more than there is": {"codes.npy": _claim("(1, 3, 4)")},
    "negative": {"codes.npy": _claim("(-1, 3, 4)")},
    "code in the header": {"codes.npy": _claim("__import__('os').getpid()")},
}


@pytest.mark.parametrize("changes", HOSTILE.values(), ids=HOSTILE)
def test_hostile_files(tmp_path: Path, changes: dict[str, bytes | None]) -> None:
    members = {**_members(make_tables(4, 3, 2)), **changes}
    path = tmp_path / NAME
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            if data is not None:
                archive.writestr(name, data)
    with pytest.raises(BundleError, match="entropy coder's tables"):
        read_tables(path)


def test_a_bomb_is_not_unpacked(tmp_path: Path) -> None:
    path = tmp_path / NAME
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in _members(make_tables(4, 3, 2)).items():
            archive.writestr(name, data if name != "codes.npy" else bytes(1 << 26))
    with pytest.raises(BundleError, match="more than"):
        read_tables(path)


def test_every_damage_to_a_file_is_said(tmp_path: Path) -> None:
    path = tmp_path / NAME
    write_tables(path, make_tables(4, 3, 2))
    whole, rng = path.read_bytes(), np.random.default_rng(0)
    for length in (*range(0, len(whole), 37), len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(BundleError):
            read_tables(path)
    harmless = 0
    for _ in range(300):
        damaged = bytearray(whole)
        damaged[int(rng.integers(len(whole)))] ^= int(rng.integers(1, 256))
        path.write_bytes(damaged)
        try:
            read_tables(path)
            harmless += 1  # a time stamp, say
        except BundleError as error:
            assert "\n" not in str(error)
    assert harmless < 150


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="cannot be used"):
        read_tables(tmp_path / "absent.npz")


def test_crc_of_a_member_is_looked_at(tmp_path: Path) -> None:
    path = tmp_path / NAME
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for name, data in _members(make_tables(4, 3, 2)).items():
            archive.writestr(name, data)
    whole = path.read_bytes()
    assert zlib.crc32(whole)
    at = whole.index(_members(make_tables(4, 3, 2))["codes.npy"][-8:])
    path.write_bytes(whole[:at] + b"\x01" + whole[at + 1 :])
    with pytest.raises(BundleError):
        read_tables(path)


def _half(folder: Path, tables: Tables | None, digest: str | None = None) -> bundle.Half:
    folder.mkdir()
    if tables is not None:
        write_tables(folder / NAME, tables)
    cut = bundle.Cut(
        tokens=9,
        width=8,
        code_dim=3,
        merge=1,
        levels=4,
        bits=2,
        scaling="image",
        codec="packed",
        payload_bytes=7,
    )
    manifest = bundle.Manifest(
        half="server",
        fingerprint="0" * 32,
        model="m",
        cut=cut,
        picture=bundle.Picture(height=8, width=8, resample="bicubic", fit="square", pad_colour=(0, 0, 0)),
        text=bundle.Text(mode="plain", levels=0, code_dim=0, width=8, max_tokens=7, scaling="none"),
        template=bundle.Template(before_image="", between=" ", after_question=" "),
        files=bundle.hash_files(folder),
        tables=digest if digest is not None else "" if tables is None else tables.digest.hex(),
    )
    bundle.write_manifest(folder, manifest)
    return bundle.open_half(folder, "server")


def test_tables_of_a_half(tmp_path: Path) -> None:
    tables = make_tables(4, 3, 2)
    found = tables_of(_half(tmp_path / "with", tables))
    assert found is not None and found.digest == tables.digest
    assert tables_of(_half(tmp_path / "without", None)) is None
    with pytest.raises(BundleError, match="3 channels of 16 levels"):
        tables_of(_half(tmp_path / "levels", make_tables(16, 3, 2)))
    with pytest.raises(BundleError, match="4 channels of 4 levels"):
        tables_of(_half(tmp_path / "channels", make_tables(4, 4, 2)))
    with pytest.raises(BundleError, match="the manifest says 0123456789abcdef"):
        tables_of(_half(tmp_path / "digest", tables, "0123456789abcdef"))
    with pytest.raises(BundleError, match=r"has no entropy\.npz"):
        tables_of(_half(tmp_path / "missing", None, "0123456789abcdef"))
    with pytest.raises(BundleError, match="no valid manifest"):
        _half(tmp_path / "bad", None, "xyz")


def test_tables_a_checkpoint_brings_are_named_by_their_levels() -> None:
    assert tables_name(4) == "entropy-4-levels.npz"
