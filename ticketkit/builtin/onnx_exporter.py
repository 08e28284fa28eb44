"""The exporter `onnx`: a file for ONNX Runtime, kept only if it computes there what torch computes."""

import copy
import inspect
import logging
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from ticketkit.errors import ConfigError, RunError
from ticketkit.roles import Bundle, ExampleBundle
from ticketkit.ticket import Ticket

MODEL_FILE = "model.onnx"
EXPORTED = (0.5, 2)
"""Seconds and batch size of the example that is exported: not among `CHECKED`, and a batch of one would stay one."""
CHECKED = ((0.3, 1), (0.3, 3), (1.2, 1), (1.2, 3))
"""Seconds and batch sizes of the examples that are compared."""
TOLERANCE = 1e-4
"""The most that a number may deviate, as a share of the largest of its output; whole numbers may not."""
LARGEST_FILE = 2**31 - 2**24
"""Bytes of weights that protobuf takes beside their graph; more get a file of their own."""
_SILENT = 4
"""Severity from which ONNX Runtime prints; what fails is in its exceptions too."""

Inputs = tuple[Tensor, ...]
Dimensions = Sequence[Sequence[int]]


@runtime_checkable
class _Obstructed(Protocol):
    def graph_obstacle(self) -> str:
        """Return why the network is no single graph from inputs to outputs, and what to do instead; "" if it is one."""
        ...


def onnx(bundle: Bundle, ticket: Ticket, directory: Path) -> None:
    """An ONNX file, compared in ONNX Runtime with torch at two lengths and two batch sizes before it is kept.

    torch's newer exporter is tried, then its older one. Raises `ConfigError` if the bundle has no `example` or a
    package is missing, and `RunError`, saying how each attempt went, if neither file computes what the network does. A
    bundle whose network is no single graph may say so in `graph_obstacle`, which is a `ConfigError` too.
    """
    if not isinstance(bundle, ExampleBundle):
        raise ConfigError(
            f"exporter 'onnx' needs example inputs, which {type(bundle).__name__} does not give: add a method "
            "example(seconds: float, batch: int) to it that returns the tuple of tensors to call bundle.module with"
        )
    if isinstance(bundle, _Obstructed) and (obstacle := bundle.graph_obstacle()):
        raise ConfigError(f"exporter 'onnx' writes one graph: {obstacle}")
    for package in ("onnx", "onnxscript", "onnxruntime"):
        _required(package)
    module = copy.deepcopy(bundle.module).cpu()  # exporting rebinds the weights of LSTMs, and GPUs round otherwise
    exported = _example(bundle, *EXPORTED)
    checked = [(*size, _example(bundle, *size)) for size in CHECKED]
    dynamic = _changing([exported, *(inputs for *_, inputs in checked)])
    failures = []
    for name, way in (("torch.export", _by_export), ("TorchScript", _by_tracing)):
        try:
            with _quiet(), torch.no_grad():
                _write(way(module, exported, dynamic), ticket, directory)
                for seconds, batch, inputs in checked:
                    _compare(module, directory / MODEL_FILE, inputs, f"at {seconds} s in a batch of {batch}")
        except Exception as error:  # torch raises anything
            failures.append(f"by {name}: {_first_line(_cause(error))}")
            for file in directory.iterdir():
                file.unlink()
        else:
            return
    raise RunError("the network cannot be exported to ONNX;\n  " + "\n  ".join(failures))


def _by_export(module: nn.Module, exported: Inputs, dynamic: Dimensions) -> Any:
    """Return the graph that torch.export captures; of named dimensions it would silently freeze some behind an LSTM."""
    shapes = tuple(dict.fromkeys(sizes, torch.export.Dim.AUTO) for sizes in dynamic)
    names = _names(module, exported)
    program = torch.onnx.export(module, exported, dynamo=True, dynamic_shapes=shapes, verbose=False, **names)
    return program.model  # type: ignore[union-attr]


def _by_tracing(module: nn.Module, exported: Inputs, dynamic: Dimensions) -> Any:
    """Return the graph of the operators that ran on the example; sizes that went through Python are frozen."""
    names = _names(module, exported)
    axes = {
        name: {size: f"{name}_{size}" for size in sizes}
        for name, sizes in zip(names["input_names"], dynamic, strict=True)
    }
    with tempfile.TemporaryDirectory() as folder:
        file = str(Path(folder) / MODEL_FILE)
        torch.onnx.export(module, exported, file, dynamo=False, dynamic_axes=axes, **names)
        ir = import_module("onnx_ir")
        model = ir.load(file)
        ir.external_data.load_to_model(model)
    return model


def _names(module: nn.Module, inputs: Inputs) -> dict[str, Any]:
    """Return what inputs and outputs are called in the file: parameters of `forward`, and output_0, output_1, …"""
    parameters = inspect.signature(module.forward).parameters.values()
    named = [parameter.name for parameter in parameters if parameter.kind is not inspect.Parameter.VAR_POSITIONAL]
    outputs = len(tree_leaves(module(*inputs)))
    inputs_named = [named[index] if index < len(named) else f"input_{index}" for index in range(len(inputs))]
    return {"input_names": inputs_named, "output_names": [f"output_{index}" for index in range(outputs)]}


def _write(model: Any, ticket: Ticket, directory: Path) -> None:
    """Write a graph without the places in files that it was made from, which are nobody's business."""
    for node in model.graph.all_nodes():
        node.metadata_props.clear()
        node.doc_string = None
    for value in (*model.graph.inputs, *model.graph.initializers.values()):
        value.metadata_props.clear()
    model.graph.metadata_props.clear()
    model.metadata_props.clear()
    model.metadata_props["ticket"] = ticket.digest
    size = sum(value.const_value.nbytes for value in model.graph.initializers.values())
    beside = {"external_data": f"{MODEL_FILE}.data"} if size > LARGEST_FILE else {}
    import_module("onnx_ir").save(model, directory / MODEL_FILE, **beside)


def _compare(module: nn.Module, file: Path, inputs: Inputs, where: str) -> None:
    """Raise `RunError` if a file and its network give different outputs for the inputs."""
    runtime = import_module("onnxruntime")
    options = runtime.SessionOptions()
    options.log_severity_level = _SILENT
    options.intra_op_num_threads = torch.get_num_threads()
    where += f" ({', '.join(str(tuple(tensor.shape)) for tensor in inputs)})"
    expected = tree_leaves(module(*inputs))
    try:
        session = runtime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
        names = [tensor.name for tensor in session.get_inputs()]
        given = {name: tensor.numpy() for name, tensor in zip(names, inputs, strict=True)}
        came = [torch.from_numpy(array) for array in session.run(None, given)]
    except Exception as error:  # its exceptions have no common base
        raise RunError(f"ONNX Runtime fails {where}: {_first_line(error)}") from error
    for index, (want, got) in enumerate(zip(expected, came, strict=True)):
        if want.shape != got.shape:
            raise RunError(f"output {index} is {tuple(got.shape)} and not {tuple(want.shape)} {where}")
        deviation, allowed = _deviation(want, got), TOLERANCE if want.is_floating_point() else 0.0
        if not deviation <= allowed:
            raise RunError(
                f"output {index} deviates by {deviation:.2g} of its largest number {where}; {allowed:.2g} is allowed"
            )


def _deviation(want: Tensor, got: Tensor) -> float:
    """Return the largest difference as a share of the largest finite number wanted; NaN is like nothing."""
    want, got = want.double(), got.double()
    difference = (want - got).abs().masked_fill(want == got, 0)
    largest = want.abs()[want.isfinite()].max().item() if want.isfinite().any() else 0.0
    return float(difference.max()) / (largest or 1.0) if difference.numel() else 0.0


def _example(bundle: ExampleBundle, seconds: float, batch: int) -> Inputs:
    """Return a bundle's example on the CPU; raises `ConfigError` if it is not a tuple of tensors."""
    inputs: Any = bundle.example(seconds, batch)
    if not isinstance(inputs, tuple) or not inputs or not all(isinstance(tensor, Tensor) for tensor in inputs):
        raise ConfigError(
            f"{type(bundle).__name__}.example({seconds}, {batch}) must return the tensors to call the network with, as "
            f"a tuple; it returned {'one tensor' if isinstance(inputs, Tensor) else repr(inputs)}"
        )
    return tuple(tensor.detach().cpu() for tensor in inputs)


def _changing(examples: Sequence[Inputs]) -> Dimensions:
    """Return, of each input, the dimensions whose size is not the same in all examples."""
    shapes = [[tensor.shape for tensor in tensors] for tensors in zip(*examples, strict=True)]
    return [
        [dim for dim, sizes in enumerate(zip(*of_input, strict=True)) if len(set(sizes)) > 1] for of_input in shapes
    ]


def _required(package: str) -> None:
    try:
        import_module(package)
    except ModuleNotFoundError as error:
        if error.name != package:
            raise
        raise ConfigError(f"exporter 'onnx' needs {package}, not installed: pip install 'ticketkit[onnx]'") from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep warnings and logs of exporters to ourselves: the comparison says whether they matter."""
    disabled = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)


def _cause(error: BaseException) -> BaseException:
    """Return what an error was first raised for: exporters wrap it in advice."""
    while error.__cause__ is not None and not isinstance(error, RunError):
        error = error.__cause__
    return error


def _first_line(error: BaseException) -> str:
    """Return the kind of an error and the first line that it says, which may be the first of hundreds."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if isinstance(error, RunError):
        return lines[0]
    return f"{type(error).__name__}: {lines[0][:300]}" if lines else type(error).__name__
