"""The bundle: whether it is whole, what of it fits into memory, and what bench chose."""

from __future__ import annotations

from typing import Final

from edge_runtime.choice import stored
from edge_runtime.encoder import onnxruntime_module
from edge_runtime.golden import FILE
from edge_runtime.machine import Machine, megabytes
from edge_runtime.variants import variants
from qtl_core.bundle import Half, open_half
from qtl_core.errors import HostError
from qtl_core.shipped import BUNDLE

from .finding import Finding, Patient

RESIDENT: Final = 1.4
"""What a graph takes in memory at most, over its file; beside it the runtime itself takes ``_RUNTIME``."""
_RUNTIME: Final = 100_000_000


def open_client(patient: Patient) -> Half:
    return open_half(BUNDLE if patient.bundle is None else patient.bundle, "client")


def described(half: Half) -> Finding:
    """What the bundle is; opening it has checked its hashes."""
    manifest = half.manifest
    graphs = ", ".join(
        f"{one.name} {megabytes(one.bytes)}{' (over its bounds at export)' if one.forced else ''}"
        for one in variants(half)
    )
    golden = "" if FILE in manifest.files else "; no golden pictures (selftest needs them)"
    tiles = f"; a picture has up to {manifest.picture.most_tiles} tiles" if manifest.picture.tiled else ""
    said = (
        f"{manifest.model}, fingerprint {manifest.fingerprint}, hashes right; graphs: {graphs}{golden}{tiles}"
    )
    return Finding(name="bundle", said=said)


def fits(half: Half, machine: Machine) -> Finding:
    free = machine.available
    needs = {one.name: RESIDENT * one.bytes + _RUNTIME for one in variants(half)}
    fitting = [name for name, need in needs.items() if free is None or need <= free]
    said = ", ".join(f"{name} needs {megabytes(int(need))}" for name, need in needs.items())
    said += f"; {megabytes(free)} are free"
    if fitting:
        rest = [name for name in needs if name not in fitting]
        return Finding(name="memory", said=said + (f"; too large: {', '.join(rest)}" if rest else ""))
    remedy = "no graph of this bundle fits: close other programs, or export a smaller tower or int8 variants"
    return Finding(name="memory", said=said, remedy=remedy, exit_code=HostError.exit_code)


def chosen(half: Half, machine: Machine) -> Finding:
    found = stored(half, onnxruntime=onnxruntime_module().__version__, machine=machine.key)
    if found.choice is not None:
        return Finding(name="bench", said=f"chose {found.choice}, {found.choice.ms:.1f} ms a picture")
    # No problem: everything works without, at the defaults.
    return Finding(
        name="bench", said=found.why_not or "not run yet: `edge_runtime bench` finds what is fastest here"
    )
