"""How a client introduces itself: the HELLO that belongs to a client half."""

from __future__ import annotations

import qtl_core
from qtl_core import messages as m
from qtl_core.bundle import Manifest
from qtl_core.entropy import Tables


def hello(manifest: Manifest, tables: Tables | None) -> m.Hello:
    """The HELLO of a client with this half.

    Args:
        manifest: of the client half.
        tables: of its entropy coder; None where it has none.
    """
    own = m.CODECS[manifest.cut.codec]
    return m.Hello(
        protocol=m.PROTOCOL,
        fingerprint=manifest.fingerprint_bytes,
        codecs=(own,) if tables is None else (own, m.CODEC_RANS),
        text=manifest.text.mode,
        agent=f"edge_runtime/{qtl_core.__version__}",
        capabilities=(m.CAN_PAD,) if tables is None else (m.CAN_RANS, m.CAN_PAD),
        tables=b"" if tables is None else tables.digest,
    )
