"""What one check found, as JSON for scripts and as a page for people."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import msgspec

from edge_runtime.variants import FULL
from tests.aarch64.comparing import ACROSS, Compared, line
from tests.aarch64.every import FOLDER as EVERY
from tests.aarch64.plan import FEW_LEVELS
from tests.aarch64.suite import Machine, Selftest, Size, Tests

SCHEMA: Final = 1
WANTED: Final = 1_000_000
"""Codes that DESIGN.md's bounds are about, on either side of 16 levels."""


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """One check.

    Attributes:
        schema: of this record.
        date: the day, UTC.
        command: what wrote it.
        emulator: its name and version.
        aarch64: the emulated system.
        x86: this machine; "x86_64" unless the check ran elsewhere.
        codes: every comparison.
        tests: the device's tests.
        selftests: the device's own commands, one bundle each.
        install: the size of the device's install.
        minutes: what it took; of a resumed check, since it was resumed.
        resumed: whether it went on with what an interrupted run had encoded.
    """

    schema: int = SCHEMA
    date: str
    command: str
    emulator: str
    aarch64: Machine
    x86: Machine
    codes: list[Compared]
    tests: Tests
    selftests: list[Selftest]
    install: Size
    minutes: int
    resumed: bool = False

    def faults(self) -> list[str]:
        """What is not as it should be, each in a few words; empty if all is well."""
        found = [line(row) for row in self.codes if row.fault]
        found += [f"test failed: {name}" for name in self.tests.failed]
        if not self.tests.passed:
            found.append("no test ran")
        for one in self.selftests:
            found += [f"selftest of {one.bundle}: {fault}" for fault in one.faults]
            found += [f"doctor about {one.bundle}: {problem}" for problem in one.problems]
        few, many = self.exact()
        for codes, where in ((few, f"up to {FEW_LEVELS} levels"), (many, f"over {FEW_LEVELS} levels")):
            if codes < WANTED:
                found.append(f"{codes:,} codes {where} were compared, {WANTED:,} are wanted")
        return found

    def exact(self) -> tuple[int, int]:
        """Codes compared at full precision: up to 16 levels, and above."""
        rows = [row for row in self.codes if row.variant == FULL and row.against == ACROSS]
        few = sum(row.codes for row in rows if row.levels <= FEW_LEVELS)
        return few, sum(row.codes for row in rows) - few


def write(record: Record, json_file: Path, page_file: Path) -> None:
    """Writes both."""
    for path, content in ((json_file, as_json(record)), (page_file, page(record))):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content, "utf-8")


def as_json(record: Record) -> str:
    """The record for scripts."""
    return msgspec.json.format(msgspec.json.encode(record), indent=1).decode() + "\n"


def read(path: Path) -> Record:
    """A record that was written."""
    return msgspec.json.decode(path.read_bytes(), type=Record)


def page(record: Record) -> str:
    """The record for people, in Markdown."""
    faults = record.faults()
    few, many = record.exact()
    tests, size = record.tests, record.install
    lines = [
        "# The device's install on aarch64, emulated",
        "",
        f"<!-- Written by `{record.command}`; the same for scripts is in aarch64.json. -->",
        "",
        f"`{record.command}` on {record.date}, in {record.minutes} minutes"
        + (" after it was resumed: " if record.resumed else ": ")
        + ("all as it should be." if not faults else f"**{len(faults)} faults**."),
        "",
        *(f"- **{fault}**" for fault in faults),
        *([""] if faults else []),
        f"{record.emulator} interprets {record.aarch64.system} for {record.aarch64.architecture}.",
        "The plain install from aarch64 wheels runs there, beside the same versions on "
        f"{record.x86.architecture}.",
        "This proves what is computed, not how fast. Under the emulator onnxruntime does not learn which",
        "instructions the processor has, so its kernels for ARM's dot products (int8 on a Raspberry Pi 5) do",
        "not run: `edge_runtime selftest` on a board tests these.",
        "",
        "## Codes",
        "",
        "The shipped model, picture by picture. *every* is one graph with the tower and the quantizers of",
        f"{_list(record)}; the others are bundles as `qtl-export` writes them. At full precision",
        f"{few:,} codes up to {FEW_LEVELS} levels and {many:,} above stand beside those of x86-64.",
        "int8 is dynamic quantization of the 2-bit graph.",
        "",
        "| graph | levels | beside | pictures | codes | differ | share | bound | largest |",
        "|---|---:|---|---:|---:|---:|---:|---:|---:|",
    ]
    for cells in _rows(record):
        lines.append(f"| {' | '.join(cells)} |")
    farthest = [row.farthest for row in record.codes if row.farthest is not None]
    if farthest:
        lines += ["", f"Features whose codes differ lie at most {max(farthest):.2g} levels from a boundary."]
    lines += [
        "",
        "## The device's own commands and tests",
        "",
        *(
            f"- `edge_runtime doctor` and `selftest` of {one.bundle}, all its graphs: "
            f"{one.differ} of {one.compared:,} golden codes differ, "
            + ("passed" if one.passed and not one.problems else "**failed**")
            for one in record.selftests
        ),
        f"- tests/core and tests/edge: {tests.passed:,} passed, {len(tests.failed)} failed, {tests.skipped} "
        "skipped for want of what no device has.",
        *(f"- Left out, {why}: {names}." for why, names in _by_reason(tests.left_out).items()),
        "",
        "## Versions and size",
        "",
        f"| | {record.aarch64.architecture} | {record.x86.architecture} |",
        "|---|---|---|",
        f"| system | {record.aarch64.system} | {record.x86.system} |",
        *(
            f"| {name} | {version} | {record.x86.versions.get(name, '')} |"
            for name, version in record.aarch64.versions.items()
        ),
        "",
        f"The install takes {size.megabytes:.0f} MB on aarch64, "
        f"{size.megabytes_without_bytecode:.0f} MB without bytecode: "
        + ", ".join(
            f"{name} {megabytes:.1f}"
            for name, megabytes in sorted(size.by_package.items(), key=lambda each: -each[1])
        )
        + ".",
    ]
    return "\n".join(lines) + "\n"


def _by_reason(left_out: dict[str, str]) -> dict[str, str]:
    found: dict[str, list[str]] = {}
    for name, why in left_out.items():
        found.setdefault(why, []).append(f"`{name.rpartition('::')[2]}`")
    return {why: ", ".join(names) for why, names in found.items()}


def _list(record: Record) -> str:
    own = sorted(row.levels for row in record.codes if row.bundle == EVERY and not row.quantizer)
    others = [row.quantizer for row in record.codes if row.bundle == EVERY and row.quantizer]
    return f"{len(own)} level counts from {own[0]} to {own[-1]}, " + " and ".join(
        f"`{name}`" for name in others
    )


def _rows(record: Record) -> list[list[str]]:
    """The table's: a line for each comparison, those of ``every`` with the same bound together."""
    groups: dict[tuple[str, ...], list[Compared]] = {}
    for row in record.codes:
        side = "" if row.bundle != EVERY else row.quantizer or str(row.levels <= FEW_LEVELS)
        groups.setdefault((row.bundle, row.variant, row.against, side), []).append(row)
    rows = []
    for same in groups.values():
        first, codes, differ = same[0], sum(row.codes for row in same), sum(row.differ for row in same)
        levels = sorted({row.levels for row in same})
        name = (
            f"{first.bundle} {first.quantizer}" if first.bundle == EVERY and first.quantizer else first.bundle
        )
        if first.variant != FULL:
            name += f", {first.variant}"
        rows.append(
            [
                name,
                str(levels[0]) if len(levels) == 1 else f"{levels[0]} to {levels[-1]}",
                first.against,
                f"{first.pictures:,}",
                f"{codes:,}",
                f"{differ:,}",
                f"{differ / codes:.2g}",
                f"{first.share_bound:g}",
                str(max(row.largest for row in same)),
            ]
        )
    return rows
