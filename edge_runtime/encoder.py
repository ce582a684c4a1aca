"""The client partition: one ONNX graph in onnxruntime, from pixels to the payload that crosses the cut."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from qtl_core.bundle import Half
from qtl_core.errors import BundleError, HostError, InputError
from qtl_core.upgrades import remedy

from .picture import Pixels

INPUT: Final = "picture"
"""The graph's input: uint8 [batch, height, width, 3]."""
CPU: Final = "CPUExecutionProvider"

# What the one output may be: packed bytes; for the 16-bit baseline also the half-precision features
# themselves, since ONNX cannot turn them into bytes before opset 26.
_PACKED: Final = ("tensor(uint8)",)
_FEATURES: Final = ("tensor(uint8)", "tensor(float16)")
_SEVERE_ONLY: Final = 3


class Encoder:
    """Runs the client half's graph.

    Args:
        half: a checked client half.
        graph: which of its graphs; "" for the manifest's own.
        threads: threads one run may use; 0 leaves it to onnxruntime.
        providers: execution providers, best first; empty means the CPU.

    Raises:
        InputError: a provider that this onnxruntime does not have.
        BundleError: a graph that cannot be loaded, or whose input or output is not the manifest's.
        HostError: onnxruntime is not installed.
    """

    def __init__(
        self, half: Half, *, graph: str = "", threads: int = 0, providers: Sequence[str] = ()
    ) -> None:
        self._cut = half.manifest.cut
        self._picture = half.manifest.picture
        self._path = half.file(graph or half.manifest.graph)
        runtime = onnxruntime_module()
        known = runtime.get_available_providers()
        unknown = [name for name in providers if name not in known]
        if unknown:
            raise InputError(
                f"this onnxruntime has no execution provider {unknown[0]!r}; it has {', '.join(known)}"
            )
        self._session = open_graph(half, self._path, threads=threads, providers=providers)
        self._output = self._check_signature()
        first = self._session.get_inputs()[0].shape[0]
        self._batch = first if isinstance(first, int) and first > 0 else None

    @property
    def provider(self) -> str:
        """What runs the graph: the CPU, where onnxruntime could not start the one that was wanted."""
        return str(self._session.get_providers()[0])

    def run(self, batch: Pixels) -> list[bytes]:
        """Pictures to payloads.

        Args:
            batch: uint8 [B, height, width, 3], B at least 1.

        Returns:
            One payload of ``cut.payload_bytes`` bytes for each picture.

        Raises:
            InputError: an array of another type or shape.
            BundleError: the graph fails, or returns something else than the manifest says.
        """
        expected = (self._picture.height, self._picture.width, 3)
        if batch.dtype != np.uint8 or batch.ndim != 4 or batch.shape[1:] != expected or not len(batch):
            raise InputError(
                f"the graph takes uint8 [B, {', '.join(map(str, expected))}], "
                f"not {batch.dtype} {list(batch.shape)}"
            )
        array = np.concatenate([self._run(part)[: len(batch) - at] for at, part in self._parts(batch)])
        rows = array.astype(array.dtype.newbyteorder("<"), copy=False).reshape(len(array), -1)
        payloads = [row.tobytes() for row in rows]
        sizes = {len(payload) for payload in payloads}
        if len(payloads) != len(batch) or sizes != {self._cut.payload_bytes}:
            raise BundleError(
                f"the graph {self._path} made {len(payloads)} payloads of {sorted(sizes)} bytes for "
                f"{len(batch)} pictures; the manifest says {self._cut.payload_bytes}: export the bundle again"
            )
        return payloads

    def _parts(self, batch: Pixels) -> Iterator[tuple[int, Pixels]]:
        """The pictures as the graph takes them, each part with its place: all, or by its fixed batch."""
        step = self._batch or len(batch)
        for at in range(0, len(batch), step):
            part = batch[at : at + step]
            # The last picture again and again, until the part is full.
            yield at, part if len(part) == step else part[np.minimum(np.arange(step), len(part) - 1)]

    def _run(self, batch: Pixels) -> npt.NDArray[Any]:
        try:
            return np.asarray(self._session.run([self._output], {INPUT: np.ascontiguousarray(batch)})[0])
        except Exception as error:
            raise BundleError(
                f"the graph {self._path} failed: {first_line(error)}; export it again"
            ) from error

    def _check_signature(self) -> str:
        """The name of the output, if the graph takes and returns what the manifest says."""
        inputs, outputs = self._session.get_inputs(), self._session.get_outputs()
        fits = (
            len(inputs) == len(outputs) == 1
            and inputs[0].name == INPUT
            and inputs[0].type == "tensor(uint8)"
            and _agree(inputs[0].shape, [None, self._picture.height, self._picture.width, 3])
            and outputs[0].type in (_PACKED if self._cut.quantized else _FEATURES)
        )
        if not fits:
            found = "; ".join(f"{each.name} {each.type} {each.shape}" for each in (*inputs, *outputs))
            raise BundleError(
                f"the graph {self._path} does not fit its manifest (it has {found}); export the bundle again"
            )
        return str(outputs[0].name)


def open_graph(half: Half, path: Path, *, threads: int = 0, providers: Sequence[str] = ()) -> Any:
    """An onnxruntime session of one of a half's graphs.

    Args:
        half: a checked half.
        path: of the graph.
        threads: threads one run may use; 0 leaves it to onnxruntime.
        providers: execution providers, best first, which this onnxruntime has; empty means the CPU.

    Raises:
        BundleError: onnxruntime cannot load it.
        HostError: onnxruntime is not installed.
    """
    runtime = onnxruntime_module()
    options = runtime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = _SEVERE_ONLY
    # Between two pictures a device should rest, and leave its cores to others.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    try:
        return runtime.InferenceSession(str(path), sess_options=options, providers=list(providers) or [CPU])
    except Exception as error:  # onnxruntime's errors share no public base class
        raise BundleError(
            f"onnxruntime {runtime.__version__} cannot load {path}: {first_line(error)}; "
            + remedy(
                half.manifest,
                {"onnxruntime": str(runtime.__version__)},
                "install a newer onnxruntime or export the bundle again",
            )
        ) from error


def _agree(shape: Sequence[Any], expected: Sequence[int | None]) -> bool:
    """Whether a graph's shape, with names where it is free, can be ``expected`` (None: any)."""
    return len(shape) == len(expected) and all(
        want is None or not isinstance(have, int) or have == want
        for have, want in zip(shape, expected, strict=True)
    )


def onnxruntime_module() -> ModuleType:
    """onnxruntime, imported when it is first needed.

    Raises:
        HostError: it is not installed, or does not load.
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise HostError(
            f"onnxruntime cannot be imported ({error}); install it with: pip install onnxruntime. There is "
            "none for 32-bit systems: a Raspberry Pi needs the 64-bit system"
        ) from error
    module: ModuleType = onnxruntime
    return module


def first_line(error: Exception) -> str:
    """The first line of what an error says."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
