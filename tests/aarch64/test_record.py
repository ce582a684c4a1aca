"""The record in docs/ is a check that went well, and its page is of the same check."""

from __future__ import annotations

import re
from pathlib import Path

import msgspec
import pytest

from tests.aarch64 import record, suite
from tests.aarch64.record import Record


@pytest.fixture(scope="module")
def kept(repo_root: Path) -> Record:
    path = repo_root / "docs" / "aarch64.json"
    if not path.is_file():
        pytest.skip("there is no record: run `make aarch64-check`")
    return record.read(path)


def test_the_kept_record_is_without_faults(kept: Record) -> None:
    assert kept.faults() == []
    assert min(kept.exact()) >= record.WANTED
    assert kept.aarch64.architecture == "aarch64" != kept.x86.architecture
    assert {"numpy", "onnxruntime"} <= kept.aarch64.versions.keys()
    same = kept.aarch64.versions["onnxruntime"] == kept.x86.versions["onnxruntime"]
    assert same, "two onnxruntimes were compared, not two processors"


def test_the_page_is_of_the_kept_record(kept: Record, repo_root: Path) -> None:
    text = (repo_root / "docs" / "aarch64.md").read_text("utf-8")
    assert text == record.page(kept), "docs/aarch64.md and docs/aarch64.json are of two checks"
    assert not re.search(r"/(?:home|tmp|work|root)/", text + record.as_json(kept))


def test_each_fault_is_named_and_shown(kept: Record) -> None:
    tests = suite.Tests(passed=0, skipped=0, failed=["tests/edge/test_x.py::test_y"], left_out={})
    codes = [msgspec.structs.replace(kept.codes[0], fault="9 of 10 codes differ"), *kept.codes[1:]]
    said = [msgspec.structs.replace(kept.selftests[0], problems=["clock: slow"])]
    bad = msgspec.structs.replace(kept, tests=tests, codes=codes, selftests=said)
    faults = bad.faults()
    assert [
        next(word for word in ("9 of 10", "test_y", "no test", "clock") if word in fault) for fault in faults
    ] == [
        "9 of 10",
        "test_y",
        "no test",
        "clock",
    ]
    text = record.page(bad)
    assert "**4 faults**" in text and all(fault in text for fault in faults)
    few = msgspec.structs.replace(kept, codes=kept.codes[:1])
    assert any("are wanted" in fault for fault in few.faults())


def test_what_pytest_says_is_read() -> None:
    output = (
        "....F.s [ 50%]\nE..... [100%]\n=== short test summary info ===\n"
        "SKIPPED [1] tests/edge/test_text.py:89: could not import 'tokenizers'\n"
        "FAILED tests/core/test_a.py::test_b[x-1] - assert 1 == 2\nERROR tests/edge/test_c.py - OSError\n"
        "1 failed, 2,077 passed\n"
        "1 failed, 2077 passed, 20 skipped, 1 deselected, 1 error in 137.77s (0:02:17)\n"
    )
    read = suite.parse([output])
    assert (read.passed, read.skipped) == (2077, 20)
    assert read.failed == ["tests/core/test_a.py::test_b[x-1]", "tests/edge/test_c.py"]
    assert suite.percent(output) == 100
    assert suite.percent("....F.s [ 50%]\n...") == 50
    assert suite.parse(["no tests ran in 0.01s"]).passed == 0
    assert suite.parse([output, "5 passed in 1.00s"]).passed == 2082
