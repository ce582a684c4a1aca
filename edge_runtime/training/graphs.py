"""The training graphs of a client half in onnxruntime."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_runtime.encoder import first_line, open_graph
from qtl_core.bundle import Half
from qtl_core.errors import BundleError

Arrays = dict[str, NDArray[Any]]


class Graphs:
    """Runs graphs by name; each is loaded when it is first needed.

    Args:
        half: a checked client half.
        threads: threads one run may use; 0 leaves it to onnxruntime.
    """

    def __init__(self, half: Half, *, threads: int = 0) -> None:
        self._half, self._threads = half, threads
        self._sessions: dict[str, tuple[Any, list[str], list[str]]] = {}

    def run(self, name: str, given: Mapping[str, NDArray[Any]]) -> Arrays:
        """What a graph makes of its inputs; what it has no input for is left out.

        Raises:
            BundleError: no such graph, or one that cannot be loaded or fails.
        """
        session, inputs, outputs = self._session(name)
        try:
            feeds = {key: np.ascontiguousarray(given[key]) for key in inputs}
            return dict(zip(outputs, map(np.asarray, session.run(outputs, feeds)), strict=True))
        except KeyError as error:
            raise BundleError(
                f"the graph {name} has an input {error} that no training step has; export the bundle again"
            ) from error
        except Exception as error:  # onnxruntime's errors share no public base class
            raise BundleError(f"the graph {name} failed: {first_line(error)}; export it again") from error

    def _session(self, name: str) -> tuple[Any, list[str], list[str]]:
        if name not in self._sessions:
            session = open_graph(self._half, self._half.file(name), threads=self._threads)
            inputs = [one.name for one in session.get_inputs()]
            self._sessions[name] = (session, inputs, [one.name for one in session.get_outputs()])
        return self._sessions[name]
