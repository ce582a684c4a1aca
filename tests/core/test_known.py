"""Pictures named by number: what was the same, changed or new arrives as it left, in fewer bytes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from qtl_core import differences
from qtl_core.codes import Codes
from qtl_core.crossing import Crossing
from qtl_core.entropy import Tables
from qtl_core.errors import CodeError
from qtl_core.known import Known
from qtl_core.messages import CODEC_FLOAT16, CODEC_KNOWN, CODEC_PACKED, Frame
from qtl_core.range_coder import TOTAL
from qtl_core.wire import frame_codes

SHAPE = (9, 8)
ROOM = 1 << 20


def crossing(shape: tuple[int, int] = SHAPE, tables: dict[int, Tables] | None = None) -> Crossing:
    return Crossing(tables or {}, shape, (4, 6))


def drawn(levels: int, seed: int, pictures: int = 5, shape: tuple[int, int] = SHAPE) -> Codes:
    return np.random.default_rng(seed).integers(0, levels, (pictures, *shape), np.uint8)


def changed(codes: Codes, levels: int, share: float, seed: int) -> Codes:
    """The codes with so many of them a level away."""
    rng = np.random.default_rng(seed)
    step = rng.choice([-1, 1], codes.shape) * (rng.random(codes.shape) < share)
    return np.clip(codes.astype(int) + step, 0, levels - 1).astype(np.uint8)


class Sides:
    """Both sides, and the wire between them."""

    def __init__(self, shape: tuple[int, int] = SHAPE, room: int = ROOM) -> None:
        self.client, self.server = (Known(crossing(shape), room) for _ in range(2))

    def cross(self, pictures: tuple[int, ...], codes: Codes, levels: int, micro: int = 0) -> int:
        frame, data = self.client.up(micro, pictures, codes, levels)
        found = self.server.read(micro, frame, data, levels, len(pictures))
        assert found.dtype == codes.dtype and np.array_equal(found, codes)
        return len(data)

    def step(self, pictures: tuple[int, ...], codes: Codes, levels: int) -> int:
        size = self.cross(pictures, codes, levels)
        self.client.commit()
        self.server.commit()
        return size


@pytest.mark.parametrize("levels", [2, 3, 4, 5, 16, 255, 256])
def test_same_changed_and_new(levels: int) -> None:
    sides, numbers = Sides(), (7, 3, 0, 4000, 2**32 - 1)
    codes = drawn(levels, 0)
    full = sides.step(numbers, codes, levels)
    assert sides.step(numbers, codes, levels) <= 1 + 4 * 5
    some = codes.copy()
    some[1] = changed(codes[1], levels, 0.1, 1)
    some[2] = drawn(levels, 9)[2]
    sizes = sides.step(numbers, some, levels), sides.step(numbers, changed(some, levels, 0.05, 2), levels)
    assert all(size < full for size in sizes)
    assert sides.step((3, 99, 7, 100, 0), drawn(levels, 4), levels) > 0


@given(
    st.integers(2, 256).flatmap(
        lambda levels: st.tuples(
            st.just(levels),
            hnp.arrays(np.uint8, (2, 3, 4), elements=st.integers(0, levels - 1)),
            hnp.arrays(np.uint8, (2, 3, 4), elements=st.integers(0, levels - 1)),
        )
    )
)
def test_any_codes_after_any_others(drawn: tuple[int, Codes, Codes]) -> None:
    levels, first, then = drawn
    sides = Sides((3, 4))
    sides.step((0, 1), first, levels)
    sides.step((1, 0), then, levels)
    sides.step((0, 0), first, levels)
    sides.step((0, 1), then, levels)


@pytest.mark.parametrize("count", [1, differences.SERIAL, differences.SERIAL + 8, 300_000])
def test_differences_of_any_length(count: int) -> None:
    before = drawn(4, 0, 1, (count // 8, 8))[0] if count >= 8 else np.zeros((count, 1), np.uint8)
    codes = changed(before, 4, 0.03, 1)
    share, bits = differences.best_share(codes[None], before[None], 4)
    data = differences.encode(codes, before, 4, share)
    assert np.array_equal(differences.decode(data, before, 4, share), codes)
    lanes = differences.lanes_for(codes.size)
    assert bits[0] / 8 - 1 <= len(data) <= bits[0] / 8 + 4 * lanes + 4


@pytest.mark.parametrize("levels", [2, 3, 4, 16, 256])
def test_tables_sum_and_leave_nothing_out(levels: int) -> None:
    for share in range(differences.SHARES):
        table = differences.frequencies(levels, share)
        assert (table >= 1).all() and (table.sum(axis=1) == TOTAL).all()


def test_nothing_counts_before_the_step_is_taken() -> None:
    sides, codes = Sides(), drawn(4, 0)
    first = sides.cross((0, 1, 2, 3, 4), codes, 4)
    assert sides.cross((0, 1, 2, 3, 4), codes, 4) == first
    sides.client.commit()
    with pytest.raises(CodeError, match=r"picture 0 with 4 levels is not known here"):
        sides.cross((0, 1, 2, 3, 4), codes, 4)


def test_levels_are_kept_apart_and_features_are_not_kept() -> None:
    sides = Sides()
    sides.step((0, 1, 2, 3, 4), drawn(4, 0), 4)
    assert sides.step((0, 1, 2, 3, 4), drawn(3, 0), 3) > 60
    features = np.ones((5, 4, 6), np.float16)
    frame, data = sides.client.up(0, (0, 1, 2, 3, 4), features, 0)
    assert frame.codec == CODEC_FLOAT16
    assert np.array_equal(sides.server.read(0, frame, data, 0, 5), features)


def test_a_full_room_takes_in_nothing_new_on_either_side() -> None:
    sides = Sides(room=2 * (18 + 128) + 10)
    codes = drawn(4, 0)
    full = sides.step((0, 1, 2, 3, 4), codes, 4)
    assert full - 36 - 1 <= sides.step((0, 1, 2, 3, 4), codes, 4) <= full - 36 + 3
    again = changed(codes, 4, 0.05, 1)
    assert sides.step((0, 1, 2, 3, 4), again, 4) < full
    assert sides.step((0, 1, 2, 3, 4), again, 4) < full - 30


def test_no_room_is_the_wire_as_it_was() -> None:
    sides, codes = Sides(room=0), drawn(4, 0)
    frame, data = sides.client.up(0, (0, 1, 2, 3, 4), codes, 4)
    assert frame.codec == CODEC_PACKED and len(data) == 5 * 18
    with pytest.raises(CodeError, match=r"the recipes differ"):
        sides.server.read(0, Frame("v", 1, 0, codec=CODEC_KNOWN), b"\0", 4, 5)


def test_hostile_payloads() -> None:
    sides, codes = Sides(), drawn(3, 0)
    sides.step((0, 1, 2, 3, 4), codes, 3)
    some = codes.copy()
    some[0], some[1] = changed(codes[0], 3, 0.1, 1), drawn(3, 5)[1]
    frame, data = sides.client.up(0, (0, 1, 2, 3, 900), some, 3)

    def refused(data: bytes, match: str) -> None:
        with pytest.raises(CodeError, match=match):
            sides.server.read(0, frame, data, 3, 5)

    for end in range(len(data)):
        refused(data[:end], r".")
    refused(data + b"\0", r".")
    refused(b"", r"numbers do")
    refused(bytes([33]) + bytes(40), r"numbers do")
    refused(bytes([10 | 1 << 6]) + b"\xff" * 6 + b"\x03", r"picture 1023 with 3 levels is not known")
    refused(bytes([1]) + b"\xe0", r"bits behind")
    refused(bytes([0 | 1 << 6]) + b"more", r"4 bytes follow")
    refused(bytes([0 | 2 << 6, 24, 0, 0, 0, 0]), r"share 24")
    refused(bytes([0 | 2 << 6, 3]) + b"\xff" * 4, r"differences do")
    refused(bytes([0, CODEC_KNOWN]) + bytes(90), r"codec 3")
    refused(bytes([0, CODEC_FLOAT16]) + bytes(90), r"codec 1")
    refused(bytes([3 << 6, 0xFF, 0xFF, 0, 0]), r".")
    assert np.array_equal(sides.server.read(0, frame, data, 3, 5), some)


def test_in_full_under_tables() -> None:
    codes = np.minimum(drawn(4, 0, 40), 1).astype(np.uint8)
    tables = {4: Tables.fit(codes, 4, classes=1)}
    client, server = (Known(crossing(tables=tables), ROOM) for _ in range(2))
    frame, data = client.up(0, range(40), codes, 4)
    assert np.array_equal(server.read(0, frame, data, 4, 40), codes)
    assert len(data) < 40 * 18
    assert frame == frame_codes("v", data, codec=CODEC_KNOWN)
