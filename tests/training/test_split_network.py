"""Training across a network that is late, cut, or passes messages twice and in another order."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import pytest
import zmq

from benchmarks.link import Link
from qtl_core import sockets
from qtl_core.messages import Weights
from qtl_core.wire import frame_codes, join
from tests.training.shuffler import Shuffler
from tests.training.test_split_run import Run, train_in_a_process, weights, write


class FarRun(Run):
    """A run whose client reaches its server through something."""

    through = ""

    def arguments(self, side: str) -> list[str]:
        found = super().arguments(side)
        if side == "client":
            found[found.index("--server") + 1] = self.through
        return found


def trained_through(
    tmp_path: Path, env: dict[str, str], steps: int, trouble: Callable[[FarRun, Link], None]
) -> tuple[Shuffler, dict[str, bytes], dict[str, bytes]]:
    """Weights of a run through a link and a shuffler, and those of one process."""
    recipe = write(tmp_path, steps=steps, bits=4)
    run = FarRun(recipe, tmp_path, env)
    try:
        run.start("serve")
        server = run.address.read_text().strip()
        with Shuffler(server, seed=3) as shuffler, Link(shuffler.endpoint, delay=0.02) as link:
            run.through = link.endpoint
            run.start("client")
            trouble(run, link)
            run.result("client")
            run.result("serve")
    finally:
        run.close()
    local = train_in_a_process(recipe, tmp_path / "local", env)
    return shuffler, weights(tmp_path / "serve" / "checkpoint"), weights(local)


def test_a_bad_network_changes_nothing(tmp_path: Path, source_env: dict[str, str]) -> None:
    def trouble(run: FarRun, link: Link) -> None:
        run.wait_for(lambda: run.steps() >= 2, "step 2")
        link.cut_for(2)
        run.wait_for(lambda: run.steps() >= 4, "step 4")
        link.reset()
        run.wait_for(lambda: run.steps() >= 6, "step 6")
        link.cut()
        link.reset()
        run.wait_for(lambda: run.processes["client"].poll() is None, "the client")
        link.cut_for(1)
        assert run.steps() < 12

    shuffler, split, local = trained_through(tmp_path, source_env, 6, trouble)
    assert split == local
    assert shuffler.repeated > 10 and shuffler.overtaken > 10


@pytest.mark.slow
def test_a_minute_without_network(tmp_path: Path, source_env: dict[str, str]) -> None:
    def trouble(run: FarRun, link: Link) -> None:
        run.wait_for(lambda: run.steps() >= 5, "step 5")
        link.cut_for(60)
        assert run.steps() < 20

    _, split, local = trained_through(tmp_path, source_env, 20, trouble)
    assert split == local


@pytest.mark.slow
def test_connections_ended_at_random_times(tmp_path: Path, source_env: dict[str, str]) -> None:
    draw = random.Random(5)

    def trouble(run: FarRun, link: Link) -> None:
        run.wait_for(lambda: run.steps() >= 1, "step 1")
        while run.processes["client"].poll() is None and run.steps() < 70:
            draw.choice([link.reset, lambda: link.cut_for(draw.uniform(0, 1))])()
            link.cut_for(draw.uniform(0, 0.05))
            done = run.steps()
            run.wait_for(lambda done=done: run.steps() > done or run.steps() >= 70, "a step")

    _, split, local = trained_through(tmp_path, source_env, 40, trouble)
    assert split == local


@pytest.mark.slow
def test_weights_that_take_longer_than_heartbeats_wait() -> None:
    """24 seconds for one message, in which no other passes; both ends give up on a connection after 20."""
    data = bytes(6_000_000)
    frames = join(Weights(1, (frame_codes("w", data),)), [data])
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    server, client = sockets.router(context, max_payload=len(data)), sockets.dealer(context)
    try:
        server.bind("tcp://127.0.0.1:*")
        with Link(server.getsockopt_string(zmq.LAST_ENDPOINT).rstrip("\0"), delay=0.02, rate=2e6) as link:
            client.connect(link.endpoint)
            assert client.poll(20_000, zmq.POLLOUT)
            client.send_multipart(frames)
            assert server.poll(90_000)
            assert server.recv_multipart()[1:] == frames
    finally:
        for end in (server, client):
            end.close(linger=0)
        context.term()
