"""Timing in turns, what may be chosen and what not, on a clock that only the fakes move."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from edge_runtime.bench import (
    MAX_ROUNDS,
    Candidate,
    Runner,
    Timing,
    best_of_each,
    candidates,
    fastest,
    fit_together,
    loader,
    measure,
    pictures_for,
)
from edge_runtime.encoder import CPU
from edge_runtime.golden import Bounds, Difference, Golden, difference, golden_of
from edge_runtime.picture import Pixels
from edge_runtime.variants import Variant
from qtl_core.bundle import Half, open_half
from qtl_core.errors import BundleError
from tests.edge import tiny

GPU = "CUDAExecutionProvider"
GOLDEN = Golden(
    np.stack([tiny.scene(seed) for seed in range(4)]),
    tuple(tiny.payload(tiny.scene(seed)) for seed in range(4)),
)


class Clock:
    """Seconds that pass only when told to."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class Fake:
    """A graph that takes so many seconds, and gets every nth code wrong by so many levels."""

    def __init__(
        self,
        clock: Clock,
        seconds: float,
        *,
        provider: str = CPU,
        wrong: int = 0,
        by: int = 1,
        breaks: bool = False,
    ) -> None:
        self.provider = provider
        self._clock, self._seconds, self._wrong, self._by, self._breaks = clock, seconds, wrong, by, breaks

    def run(self, batch: Pixels) -> list[bytes]:
        if self._breaks:
            raise BundleError("it is broken")
        self._clock.now += self._seconds
        codes = np.frombuffer(tiny.payload(batch[0]), np.uint8).copy()
        # Two bits a code: the lowest code of a byte, moved without leaving 0..3.
        for index in range(self._wrong):
            low = int(codes[index] & 3)
            moved = low + self._by if low + self._by <= 3 else low - self._by
            codes[index] = (codes[index] & 0xFC) | moved
        return [codes.tobytes()]


def a_candidate(name: str = "fp32", provider: str = CPU, threads: int = 1, size: int = 100) -> Candidate:
    return Candidate(Variant(name=name, graph=f"{name}.onnx", bytes=size, sha256="0"), provider, threads)


def timed(
    runners: dict[Candidate, Callable[[Clock], Runner]], *, seconds: float = 0.0, keep: bool = True
) -> tuple[list[Timing], list[Candidate]]:
    clock, loads = Clock(), list[Candidate]()

    def load(one: Candidate) -> Runner:
        loads.append(one)
        return runners[one](clock)

    cut = tiny.cut()
    return measure(list(runners), load, GOLDEN, cut, seconds=seconds, keep=keep, clock=clock), loads


def test_the_fastest_acceptable_one_wins() -> None:
    slow, quick, wrong, off = (a_candidate(name) for name in ("fp32", "int8", "int4", "int3"))
    timings, loads = timed(
        {
            slow: lambda clock: Fake(clock, 0.3),
            quick: lambda clock: Fake(clock, 0.2, wrong=1),
            wrong: lambda clock: Fake(clock, 0.1, wrong=9),
            off: lambda clock: Fake(clock, 0.1, wrong=1, by=2),
        }
    )
    assert [one.median_ms for one in timings] == pytest.approx([300, 200, 100, 100])
    assert [len(one.ms) for one in timings] == [4] * 4
    assert loads == [slow, quick, wrong, off]
    assert [one.refused for one in timings] == [
        "",
        "",
        "36 of 192 codes differ, 19 may",
        "a code differs by 2 levels, 1 is allowed",
    ]
    assert timings[1].codes == Difference(compared=192, differ=4, largest=1.0)
    assert fastest(timings) is timings[1]


def test_full_precision_on_the_cpu_has_the_bounds_of_validation() -> None:
    full, other = a_candidate(), a_candidate(provider=GPU, threads=0)
    timings, _ = timed(
        {
            full: lambda clock: Fake(clock, 0.1, wrong=1),
            other: lambda clock: Fake(clock, 0.2, wrong=1, provider=GPU),
        }
    )
    assert timings[0].refused == "4 of 192 codes differ, 1 may"
    assert fastest(timings) is timings[1]


def test_what_does_not_run_here_is_said_and_not_chosen() -> None:
    fell, broken, fine = a_candidate(provider=GPU), a_candidate("int8"), a_candidate()
    timings, loads = timed(
        {
            fell: lambda clock: Fake(clock, 0.1),
            broken: lambda clock: Fake(clock, 0.1, breaks=True),
            fine: lambda clock: Fake(clock, 0.5),
        }
    )
    assert "fell back to CPUExecutionProvider" in timings[0].failed
    assert timings[1].failed == "it is broken"
    assert fastest(timings) is timings[2]
    assert loads == [fell, broken, fine]
    assert [one.candidate for one in best_of_each(timings)] == [fine]
    assert fastest(timings[:2]) is None


def test_turns_go_round_until_the_time_is_up() -> None:
    first, second = a_candidate(threads=1), a_candidate(threads=2)
    runners: dict[Candidate, Callable[[Clock], Runner]] = {
        first: lambda clock: Fake(clock, 1.0),
        second: lambda clock: Fake(clock, 0.5),
    }
    # Each is warmed up once; then a round takes 1.5 s.
    timings, _ = timed(runners, seconds=1.5 * 7)
    assert [len(one.ms) for one in timings] == [7, 7]
    timings, _ = timed(runners, seconds=1e9)
    assert [len(one.ms) for one in timings] == [MAX_ROUNDS] * 2
    assert [one.candidate.threads for one in best_of_each(timings)] == [2]


def test_a_small_memory_holds_one_graph_at_a_time() -> None:
    first, second = a_candidate("fp32"), a_candidate("int8")
    runners: dict[Candidate, Callable[[Clock], Runner]] = {
        first: lambda clock: Fake(clock, 1.0),
        second: lambda clock: Fake(clock, 0.5),
    }
    timings, loads = timed(runners, keep=False)
    assert loads == [first, second] * 4
    assert [one.median_ms for one in timings] == pytest.approx([1000, 500])
    assert fit_together([a_candidate(size=100)] * 2, 601)
    assert not fit_together([a_candidate(size=100)] * 2, 600)
    assert not fit_together([a_candidate()], None)


@pytest.fixture
def opened(tmp_path: Path) -> Half:
    files = {
        "client.near.onnx": tiny.variant("near"),
        "client.far.onnx": tiny.variant("far"),
        "golden.npz": tiny.golden(),
    }
    tiny.write_client(tmp_path / "client", files=files)
    return open_half(tmp_path / "client", "client")


def test_candidates(opened: Half) -> None:
    every = candidates(opened, ["AzureExecutionProvider", GPU, CPU], 6)
    assert len(every) == 3 * (1 + 4)
    assert [one.threads for one in every if one.variant.full and one.provider == CPU] == [1, 2, 4, 6]
    assert [one.threads for one in every if one.provider == GPU] == [0, 0, 0]
    assert [one.threads for one in candidates(opened, [CPU], 1, names=["near"])] == [1]
    few = candidates(opened, [GPU, CPU], 4, names=["far"], providers=[CPU], threads=[3])
    assert [str(one) for one in few] == ["far on CPUExecutionProvider, 3 threads"]


def test_real_graphs_are_judged_by_their_codes(opened: Half) -> None:
    every = candidates(opened, [CPU], 1)
    golden = golden_of(opened)
    assert golden is not None
    timings = measure(every, loader(opened), golden, opened.manifest.cut, seconds=0.01, keep=True)
    found = {one.candidate.variant.name: one for one in timings}
    assert found["fp32"].codes == Difference(compared=192, differ=0, largest=0.0)
    assert found["near"].codes is not None
    assert 0 < found["near"].codes.differ < 20
    assert found["near"].acceptable
    assert "by 2 levels" in found["far"].refused


def test_without_golden_pictures_the_graph_on_the_cpu_says_what_is_right(tmp_path: Path) -> None:
    tiny.write_client(tmp_path / "client")
    half = open_half(tmp_path / "client", "client")
    assert golden_of(half) is None
    made = pictures_for(half)
    assert [tiny.payload(one) for one in made.pictures] == list(made.payloads)
    assert len({one.tobytes() for one in made.pictures}) == len(made.pictures)


@pytest.mark.parametrize("damage", [b"nothing", tiny.golden()[:-200], b""])
def test_damaged_golden_pictures(tmp_path: Path, damage: bytes) -> None:
    tiny.write_client(tmp_path / "client", files={"golden.npz": damage})
    with pytest.raises(BundleError, match=r"golden\.npz cannot be read"):
        golden_of(open_half(tmp_path / "client", "client"))


def test_golden_pictures_of_another_cut(tmp_path: Path) -> None:
    tiny.write_client(tmp_path / "client", bits=16, files={"golden.npz": tiny.golden()})
    with pytest.raises(BundleError, match="does not fit the manifest"):
        golden_of(open_half(tmp_path / "client", "client"))


def test_features_are_compared_by_their_size() -> None:
    cut = tiny.cut(16)
    want = np.linspace(-2, 2, cut.tokens * cut.code_dim).astype("<f2")
    assert difference(cut, [want.tobytes()], [want.tobytes()]).differ == 0
    have = want.copy()
    have[3] += np.float16(0.1)
    apart = difference(cut, [want.tobytes()], [have.tobytes()])
    assert apart.differ == 1
    assert apart.largest == pytest.approx(0.05, rel=0.02)
    assert apart.fault(cut, Bounds.full(cut)) == "a feature is off by 0.05 of the largest, 0.001 is allowed"
    assert apart.fault(cut, Bounds.reduced(cut)) == ""
    assert apart.fault(cut, Bounds.reduced(cut, 0.01)) == "1 of 48 features differ, 0 may"
    have[3] = np.nan
    assert difference(cut, [want.tobytes()], [have.tobytes()]).differ == 1
