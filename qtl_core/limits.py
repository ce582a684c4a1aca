"""Sizes that both ends of the wire hold to: numbers only, so that a command line can check them at once."""

from __future__ import annotations

from typing import Final

HEADER_CAP: Final = 16 * 1024
"""Bytes of frame 0 at most: a header with the longest question or answer the limits allow."""
MAX_PAD: Final = HEADER_CAP
"""Bytes of padding at most."""
MAX_MULTIPLE: Final = MAX_PAD // 2
"""Bytes of which frames may be padded to a multiple; ``MAX_PAD`` always reaches one."""
