"""``python -m edge_runtime``: the same program as ``edge_runtime``."""

from __future__ import annotations

import sys

from .cli import main

if __name__ == "__main__":
    sys.exit(main())
