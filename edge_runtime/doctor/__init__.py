"""What keeps this device from answering: one finding for each thing that is needed, with its remedy.

Nothing here needs a package to be importable: what is missing is what the doctor is asked about. The checks
that do need some are loaded once these are found.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edge_runtime.heat import Heat, feel
from edge_runtime.machine import Machine, look
from qtl_core.errors import QtlError

from . import device
from .finding import Finding, Patient, problem

if TYPE_CHECKING:
    from qtl_core.bundle import Half

__all__ = ["Examination", "Finding", "Patient", "as_json_object", "examine"]


@dataclass(frozen=True, kw_only=True)
class Examination:
    """Everything that was found, and the machine it was found on."""

    machine: Machine
    heat: Heat
    findings: tuple[Finding, ...]

    @property
    def exit_code(self) -> int:
        """The exit code of the first problem; 0 without any."""
        return next((one.exit_code for one in self.findings if not one.well), 0)


def examine(
    patient: Patient,
    *,
    root: Path = Path("/"),
    now: Callable[[], float] = time.time,
    each: Callable[[Finding], None] = lambda finding: None,
) -> Examination:
    """Looks at everything; no finding stops it but a machine on which nothing can run.

    Args:
        patient: what is asked about.
        root: where the system's files are.
        now: seconds since 1970.
        each: called with each finding as it is made.
    """
    machine, heat = look(root), feel(root)
    findings = []
    for finding in _findings(patient, machine, heat, now):
        findings.append(finding)
        each(finding)
    return Examination(machine=machine, heat=heat, findings=tuple(findings))


def _findings(patient: Patient, machine: Machine, heat: Heat, now: Callable[[], float]) -> Iterator[Finding]:
    found = device.machine_of(machine)
    yield found
    if not found.well:
        return  # no package would help: their remedies would mislead
    yield device.python_of(machine)
    packages = [device.package(name) for name in device.OLDEST]
    yield from packages
    yield device.heat_of(heat)
    if any(not one.well for one in packages):
        return  # the rest needs them all
    from . import bundle, link

    half: Half | None = None
    try:
        half = bundle.open_client(patient)
    except QtlError as error:
        yield problem("bundle", error)
    else:
        yield bundle.described(half)
        yield bundle.fits(half, machine)
        yield bundle.chosen(half, machine)
    yield device.clock(now(), [] if half is None else [half.file(name) for name in half.manifest.files])
    yield link.keys_of(patient)
    if half is not None:
        yield link.server(patient, half)


def as_json_object(examination: Examination) -> dict[str, Any]:
    """The examination for a script."""
    return {
        "machine": asdict(examination.machine),
        "heat": asdict(examination.heat),
        "checks": [{**asdict(one), "ok": one.well} for one in examination.findings],
        "problems": sum(not one.well for one in examination.findings),
        "exit_code": examination.exit_code,
    }
