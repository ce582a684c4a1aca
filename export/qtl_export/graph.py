"""The client partition as one ONNX graph: dynamo exporter, pinned opset and IR version, same bytes always."""

from __future__ import annotations

import copy
import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import onnx_ir as ir
import torch
from torch import nn
from torch.onnx.errors import OnnxExporterError

from qtl_core.bundle import Picture
from qtl_core.errors import CheckpointError, StorageError
from qtl_core.nn.checkpoint import Checkpoint
from qtl_core.nn.client_partition import ClientPartition
from qtl_core.nn.quantizer import Quantizer

OPSET: Final = 18
"""The newest opset the dynamo exporter writes without conversion; onnxruntime 1.19 reads up to 21."""
IR_VERSION: Final = 10
"""The newest IR version onnxruntime 1.19 reads."""
INPUT: Final = "picture"
OUTPUT: Final = "packed"
GRAPH: Final = "client.onnx"
WEIGHTS: Final = "client.onnx.data"

# In a file of their own weights are written one by one, and onnxruntime maps them; a graph with weights in it
# is in memory three times over while it is written.
_LARGEST_IN_ONE_FILE: Final = 2**26


def export_graph(
    checkpoint: Checkpoint, levels: int, folder: Path, *, largest: int = _LARGEST_IN_ONE_FILE
) -> Path:
    """Writes ``client.onnx``: input "picture" uint8 [batch, height, width, 3], output "packed".

    The output is uint8 [batch, payload bytes], or float16 [batch, tokens * width] unquantized.

    Args:
        checkpoint: the model.
        levels: L; 0 for no quantizer.
        folder: where to.
        largest: bytes of weights that still lie in the graph's own file; more go into ``client.onnx.data``.

    Raises:
        CheckpointError: PyTorch cannot export this model.
    """
    quantizer = settled(checkpoint.model.vision_quantizer, levels) if levels else None
    part = ClientPartition(checkpoint.model.vision, quantizer, levels or None)
    model = trace(part.eval(), example(checkpoint.picture), INPUT, OUTPUT)
    path = save(model, folder, largest=largest)
    for value in model.graph.initializers.values():
        value.const_value = None  # somebody in PyTorch's exporter keeps the graph
    return path


def settled(quantizer: Quantizer, levels: int) -> Quantizer:
    """The same quantizer with its k at ``levels`` as a plain number: interpolating is no work for a graph."""
    fixed = copy.deepcopy(quantizer)
    fixed.k = nn.Parameter(quantizer.k_for(levels).detach().clone().reshape(-1), requires_grad=False)
    fixed.k_levels = torch.zeros(0, dtype=torch.int64)
    return fixed.eval()


def example(picture: Picture) -> torch.Tensor:
    """Two pictures to trace with: a batch of one would be taken for a constant."""
    return torch.zeros(2, picture.height, picture.width, 3, dtype=torch.uint8)


def trace(module: nn.Module, sample: torch.Tensor, input_name: str, output_name: str) -> ir.Model:
    """A module of one input as an ONNX model whose first axis is free.

    Raises:
        CheckpointError: PyTorch cannot export it.
    """
    return trace_all(module, (sample,), [input_name], [output_name], ({0: torch.export.Dim("batch")},))


def trace_all(
    module: nn.Module,
    samples: tuple[Any, ...],
    input_names: Sequence[str],
    output_names: Sequence[str],
    free: Any,
) -> ir.Model:
    """A module as an ONNX model.

    Args:
        module: of a fixed number of arguments, each a tensor or a list of them.
        samples: its arguments, no tensor of which shares memory with another.
        input_names: of all tensors given, in their order.
        output_names: likewise.
        free: which axes are free, shaped like ``samples``; as ``torch.export``'s ``dynamic_shapes``.

    Raises:
        CheckpointError: PyTorch cannot export it.
    """
    try:
        with _quiet(), torch.inference_mode():
            program = torch.onnx.export(
                module,
                samples,
                dynamo=True,
                opset_version=OPSET,
                input_names=list(input_names),
                output_names=list(output_names),
                dynamic_shapes=free,
                verbose=False,
            )
    except OnnxExporterError as error:
        cause = error.__cause__ or error
        raise CheckpointError(
            f"PyTorch {torch.__version__} cannot export this model's client partition: {_first_line(cause)}"
        ) from error
    if program is None:
        raise CheckpointError(
            f"PyTorch {torch.__version__} exported nothing; install the version in constraints.txt"
        )
    model = program.model
    _anonymise(model)
    model.ir_version = IR_VERSION
    if model.opset_imports.get("") != OPSET:
        raise CheckpointError(
            f"PyTorch {torch.__version__} wrote opset {model.opset_imports.get('')}, not {OPSET}; "
            "install the version in constraints.txt"
        )
    return model


def save(model: ir.Model, folder: Path, *, name: str = GRAPH, largest: int = _LARGEST_IN_ONE_FILE) -> Path:
    """Writes a model, its weights in a file of their own only if they are too large for one."""
    path, apart = folder / name, f"{name}.data"
    values = model.graph.initializers.values()
    weights = sum(value.const_value.nbytes for value in values if value.const_value is not None)
    if weights > largest:
        with writing(folder / apart):
            ir.save(model, path, external_data=apart)
    else:
        path.write_bytes(ir.serde.serialize_model(model).SerializeToString(deterministic=True))
    return path


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Says that a disk is full where the library that writes arrays to ``path`` does not.

    numpy reports that it wrote less than it was given, and not why.

    Raises:
        StorageError: it wrote less.
    """
    try:
        yield
    except OSError as error:
        if error.errno is not None:
            raise
        raise StorageError(
            f"{path.name} could not be written to the end ({error}): the disk is full, or a file must not "
            "be so large there; free some space, or give another folder with -o"
        ) from error


def _anonymise(model: ir.Model) -> None:
    """Drops what the exporter notes down for its developers: stack traces with this machine's paths."""
    model.metadata_props.clear()
    model.doc_string = None
    graphs: list[Any] = [model.graph, *model.functions.values()]
    for graph in graphs:
        graph.metadata_props.clear()
        graph.doc_string = None
        for node in graph.all_nodes():
            _forget(node)
            for value in node.outputs:
                _forget(value)
        for value in graph.inputs:
            _forget(value)
    for value in model.graph.initializers.values():
        _forget(value)


def _forget(thing: Any) -> None:
    thing.metadata_props.clear()
    thing.doc_string = None


@contextmanager
def _quiet() -> Iterator[None]:
    """Keeps the exporter's log and warnings off: they are about its own insides, and errors are raised."""
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
