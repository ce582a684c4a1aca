"""What a server counted since it started, and the line it logs about it."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field


@dataclass
class Counts:
    """Running totals; only the front writes them.

    Attributes:
        answered: Answers computed and sent, or kept because their client had gone.
        replayed: Retries answered from what was already computed.
        errors: Error replies by code.
        rejected: Refused handshakes by reason.
        busy: Questions sent away because of credits or a full queue.
        lost: Connections that ended without Bye: a stranger, a network cut, a crash, or libzmq dropping the
            peer because of an oversized frame. libzmq does not tell which.
        bad_handshakes: Connections that never spoke ZeroMQ, or whose key was refused.
        unsent: Replies whose peer had gone, or did not read.
        bytes_in: Bytes of whole messages received, ZMTP framing included.
        bytes_out: Bytes of whole messages sent.
    """

    answered: int = 0
    replayed: int = 0
    errors: Counter[str] = field(default_factory=Counter)
    rejected: Counter[str] = field(default_factory=Counter)
    busy: int = 0
    lost: int = 0
    bad_handshakes: int = 0
    unsent: int = 0
    bytes_in: int = 0
    bytes_out: int = 0

    def line(self, sessions: int) -> str:
        """One line for the log."""
        return (
            f"{sessions} sessions, {self.answered} answered, {self.replayed} replayed, {self.busy} busy, "
            f"{_total(self.errors)} errors, {_total(self.rejected)} rejected, {self.lost} connections lost, "
            f"{self.bad_handshakes} bad handshakes, {self.unsent} unsent, "
            f"{self.bytes_in} bytes in, {self.bytes_out} bytes out"
        )


def _total(counter: Counter[str]) -> str:
    kinds = ", ".join(f"{name} {number}" for name, number in sorted(counter.items()))
    total = sum(counter.values())
    return f"{total} ({kinds})" if kinds else str(total)
