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
    unable = set() if manifest.picture.tiled else {m.CAN_TILE}
    unable |= {m.CAN_RANS} if tables is None else set()
    return m.Hello(
        protocol=m.PROTOCOL,
        fingerprint=manifest.fingerprint_bytes,
        codecs=(own,) if tables is None else (own, m.CODEC_RANS),
        text=manifest.text.mode,
        agent=f"edge_runtime/{qtl_core.__version__}",
        capabilities=tuple(can for can in m.CAPABILITIES if can not in unable),
        tables=b"" if tables is None else tables.digest,
    )
