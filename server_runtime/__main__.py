"""``python -m server_runtime`` is ``qtl-server``."""

from __future__ import annotations

import sys

from server_runtime.cli import main

if __name__ == "__main__":
    sys.exit(main())
