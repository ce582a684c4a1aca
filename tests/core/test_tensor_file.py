"""Named arrays as safetensors without the library."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from qtl_core.errors import InputError
from qtl_core.tensor_file import dump, load

ARRAYS: dict[str, NDArray[Any]] = {
    "a": np.arange(6, dtype=np.float32).reshape(2, 3),
    "half": np.array([[1.5]], np.float16),
    "step": np.array(3.0, np.float32),
    "none": np.empty((0, 4), np.uint8),
    "long": np.array([2**40, -1]),
    "ünïcode": np.array([1, 2, 3], np.uint8),
}


def test_what_is_written_is_read() -> None:
    found = load(dump(ARRAYS), "it")
    assert set(found) == set(ARRAYS)
    for name, value in ARRAYS.items():
        assert found[name].dtype == value.dtype and found[name].shape == value.shape
        np.testing.assert_array_equal(found[name], value)
        assert found[name].flags.writeable
    assert load(dump({}), "it") == {}


def test_the_library_reads_and_writes_the_same() -> None:
    safetensors = pytest.importorskip("safetensors.numpy")
    found = safetensors.load(dump(ARRAYS))
    contiguous = {name: np.ascontiguousarray(value) for name, value in ARRAYS.items()}
    theirs = load(safetensors.save(contiguous), "it")
    for name, value in ARRAYS.items():
        np.testing.assert_array_equal(found[name], value)
        np.testing.assert_array_equal(theirs[name], value)


def test_types_that_no_weights_have() -> None:
    with pytest.raises(KeyError):
        dump({"it": np.array([1j])})


def test_every_truncation_is_refused() -> None:
    data = dump({"a": ARRAYS["a"], "half": ARRAYS["half"]})
    for end in range(len(data)):
        with pytest.raises(InputError, match="it holds no tensors that can be read"):
            load(data[:end], "it")


@pytest.mark.parametrize(
    "entry",
    [
        '{"dtype":"F32","shape":[2],"data_offsets":[0,4]}',
        '{"dtype":"F32","shape":[-1],"data_offsets":[0,4]}',
        '{"dtype":"F32","shape":[-1,-1],"data_offsets":[0,4]}',
        '{"dtype":"BF16","shape":[2],"data_offsets":[0,4]}',
        '{"dtype":"F32","shape":[1],"data_offsets":[-4,0]}',
        '{"dtype":"F32","shape":[1],"data_offsets":[4,8]}',
        '{"dtype":"F32"}',
        "[1]",
        "7",
    ],
)
def test_headers_that_do_not_fit(entry: str) -> None:
    text = f'{{"a":{entry}}}'.encode()
    with pytest.raises(InputError, match="damaged"):
        load(len(text).to_bytes(8, "little") + text + b"\0" * 4, "it")
