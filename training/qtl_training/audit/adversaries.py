"""Who the adversaries are, in the words every number of the audit is labelled with."""

from __future__ import annotations

from typing import Final

SERVER: Final = "the server (holds its own half and knows the client's: white box)"
EAVESDROPPER: Final = "an eavesdropper under CURVE (sees only lengths and times)"
STRANGER: Final = "a stranger on the port"
CLIENT: Final = "another client"
