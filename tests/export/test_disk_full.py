"""A disk that fills during export: one line, exit code 9, nothing half-written, the old bundle whole."""

from __future__ import annotations

import errno
import os
import resource
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from qtl_core.bundle import open_half
from qtl_core.errors import StorageError
from qtl_export import graph
from qtl_export.cli import main
from tests.export.test_cli import one_line
from tests.export.test_graph import digests

_PAGE = 4096


class Disk:
    """A real file system that can be made as small as wanted."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.mkdir()
        self._mount("size=64m")

    def _mount(self, options: str) -> None:
        done = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(self.path)],
            capture_output=True, text=True, timeout=30, check=False,
        )  # fmt: skip
        if done.returncode:
            pytest.skip(f"no file system can be mounted here: {done.stderr.strip()}")

    @property
    def used(self) -> int:
        """Bytes in use."""
        of = os.statvfs(self.path)
        return (of.f_blocks - of.f_bfree) * of.f_frsize

    def leave(self, room: int) -> None:
        """Makes the disk so small that ``room`` bytes are free."""
        self._mount(f"remount,size={self.used + room}")

    def close(self) -> None:
        subprocess.run(["umount", str(self.path)], timeout=30, check=True)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    try:
        made = Disk(tmp_path / "disk")
    except FileNotFoundError:
        pytest.skip("there is no mount here")
    yield made
    made.close()


@pytest.fixture
def largest_file() -> Iterator[Callable[[int], None]]:
    """Limits the size of files that this process writes: what a full disk is where nothing can be mounted."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.usefixtures("traced")
def test_a_disk_that_fills_leaves_what_stood_there(
    checkpoint: Path, disk: Disk, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = disk.path / "bundle"
    args = [str(checkpoint), "-o", str(bundle), "--validate", "4"]
    assert main(["--bits", "2", *args]) == 0
    before, size = digests(bundle), disk.used
    full = 0
    # From no room at all to enough, so that it is each of the files in turn that does not fit.
    for room in range(_PAGE, size + 40 * _PAGE, max(_PAGE, size // 12 // _PAGE * _PAGE)):
        disk.leave(room)
        capsys.readouterr()
        code = main(["--bits", "3", *args])
        if code == 0:
            break
        assert code == 9
        assert "the disk is full" in one_line(capsys.readouterr().err)
        assert digests(bundle) == before
        assert [path.name for path in disk.path.iterdir()] == ["bundle"]
        assert disk.used == size
        full += 1
    else:
        pytest.fail("the new bundle never found room")
    assert full >= 6
    assert open_half(bundle, "server").manifest.cut.levels == 8


@pytest.mark.usefixtures("traced")
def test_files_that_must_not_grow_leave_what_stood_there(
    checkpoint: Path,
    tmp_path: Path,
    largest_file: Callable[[int], None],
    capsys: pytest.CaptureFixture[str],
) -> None:
    bundle = tmp_path / "bundle"
    args = [str(checkpoint), "-o", str(bundle), "--validate", "4"]
    assert main(["--bits", "2", *args]) == 0
    before = digests(bundle)
    sizes = sorted(path.stat().st_size for path in bundle.rglob("*") if path.is_file())
    for size in (*{sizes[0] - 1, sizes[len(sizes) // 2], sizes[-2], sizes[-1] - 1},):
        largest_file(size)
        code = main(["--bits", "3", *args])
        largest_file(resource.RLIM_INFINITY)
        assert code == 9
        assert "larger than files may be" in one_line(capsys.readouterr().err)
        assert digests(bundle) == before
        assert [path.name for path in tmp_path.iterdir()] == ["bundle"]


def model_of(numbers: int) -> ir.Model:
    weight = ir.Value(name="weight", const_value=ir.Tensor(np.zeros(numbers, np.float32), name="weight"))
    return ir.Model(ir.Graph([], [], nodes=[], initializers=[weight], opset_imports={"": 18}), ir_version=10)


def test_weights_in_a_file_of_their_own_on_a_full_disk(disk: Disk) -> None:
    disk.leave(100 * _PAGE)
    for largest in (0, 1 << 30):
        with pytest.raises((OSError, StorageError)) as caught:
            graph.save(model_of(1 << 20), disk.path, largest=largest)
        if isinstance(caught.value, StorageError):  # numpy does not say why it wrote less
            assert "client.onnx.data could not be written to the end" in str(caught.value)
            assert "the disk is full" in str(caught.value)
        else:
            assert isinstance(caught.value, OSError) and caught.value.errno == errno.ENOSPC
        (disk.path / "client.onnx").unlink(missing_ok=True)


def test_weights_in_a_file_of_their_own_that_must_not_grow(
    tmp_path: Path, largest_file: Callable[[int], None]
) -> None:
    largest_file(100_000)
    with pytest.raises(StorageError, match=r"client\.onnx\.data could not be written to the end.*free some"):
        graph.save(model_of(1 << 20), tmp_path, largest=0)
