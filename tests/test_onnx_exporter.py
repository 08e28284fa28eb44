"""The exporter `onnx`: what ONNX Runtime computes is what torch computes, or there is no file."""

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from ticketkit import IMP, ConfigError, ExampleBundle, Plugins, RunError, Ticket
from ticketkit.builtin import onnx_exporter
from ticketkit.export import export
from ticketkit.testing import TINY_NETS, check_exporter

FRAMES_A_SECOND = 20


@dataclass
class Pair:
    """A network and what it is called with."""

    module: nn.Module
    shape: Callable[[int, int], tuple[int, ...]]

    def example(self, seconds: float, batch: int) -> tuple[Tensor, ...]:
        """Return normal numbers, the same at every call."""
        generator = torch.Generator().manual_seed(0)
        return (torch.randn(self.shape(batch, round(FRAMES_A_SECOND * seconds)), generator=generator),)


SHAPES: dict[str, Callable[[int, int], tuple[int, ...]]] = {
    "mlp": lambda batch, frames: (batch, 6),
    "convnet": lambda batch, frames: (batch, 1, 8, 8),
    "bilstm_tagger": lambda batch, frames: (batch, frames, 6),
    "attention": lambda batch, frames: (batch, frames, 6),
}


def tiny(name: str) -> Pair:
    return Pair(TINY_NETS[name].build(), SHAPES[name])


def over_frames(module: nn.Module) -> Pair:
    return Pair(module, lambda batch, frames: (batch, frames, 6))


def pruned(bundle: Any) -> Ticket:
    """Prune a bundle's network by half and return the ticket."""
    imp = IMP(bundle.module, rate=0.5, rounds=1)
    for _ in imp:
        pass
    return imp.tickets[1]


def exported(bundle: Any, directory: Path) -> dict[str, Any]:
    return export(bundle, pruned(bundle), directory, Plugins().choose("exporter", "onnx"))


def run(file: Path, inputs: tuple[Tensor, ...]) -> list[np.ndarray[Any, Any]]:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    return session.run(None, dict(zip((i.name for i in session.get_inputs()), map(Tensor.numpy, inputs), strict=True)))


@pytest.mark.parametrize("name", SHAPES)
def test_the_file_computes_what_the_network_does_at_sizes_that_nobody_checked(name: str, tmp_path: Path) -> None:
    bundle = tiny(name)
    facts = exported(bundle, tmp_path / "out")
    assert facts["files"].keys() == {"model.onnx"}
    assert facts["exporter"]["entry"] == "builtin:onnx"
    bundle.module.eval()
    for seconds, batch in ((0.15, 7), (3.0, 1), (0.5, 2)):
        inputs = bundle.example(seconds, batch)
        (came,) = run(tmp_path / "out" / "model.onnx", inputs)
        torch.testing.assert_close(torch.from_numpy(came), bundle.module(*inputs), rtol=1e-4, atol=1e-5)


def test_it_keeps_the_laws_of_exporters() -> None:
    bundles = {"mlp": lambda: tiny("mlp"), "convnet": lambda: tiny("convnet")}
    check_exporter("onnx", bundles=bundles, plugins=Plugins())


def test_every_pruned_weight_is_zero_in_the_file_which_names_its_ticket(tmp_path: Path) -> None:
    import onnx

    bundle = tiny("mlp")
    ticket = pruned(bundle)
    export(bundle, ticket, tmp_path / "out", Plugins().choose("exporter", "onnx"))
    model = onnx.load(tmp_path / "out" / "model.onnx")
    assert {entry.key: entry.value for entry in model.metadata_props} == {"ticket": ticket.digest}
    arrays = [onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer]
    zeros = sum(int((array == 0).sum()) for array in arrays if array.ndim == 2)
    assert zeros == ticket.mask.total - ticket.mask.kept > 0


def test_the_file_does_not_say_where_it_was_made(tmp_path: Path) -> None:
    for name in ("mlp", "bilstm_tagger"):
        exported(tiny(name), tmp_path / name)
        content = (tmp_path / name / "model.onnx").read_bytes()
        assert content
        assert [word for word in (b".py", b"site-packages", str(Path.home()).encode()) if word in content] == []


def test_weights_too_many_for_protobuf_lie_beside_the_graph(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx_exporter, "LARGEST_FILE", 0)
    bundle = tiny("convnet")
    facts = exported(bundle, tmp_path / "out")
    assert facts["files"].keys() == {"model.onnx", "model.onnx.data"}
    inputs = bundle.example(1.0, 5)
    (came,) = run(tmp_path / "out" / "model.onnx", inputs)
    torch.testing.assert_close(torch.from_numpy(came), bundle.module.eval()(*inputs), rtol=1e-4, atol=1e-5)


class Frozen(nn.Module):
    """Multiplies by a size of its input as a number of Python's, which no file follows."""

    def __init__(self, dim: int):
        super().__init__()
        self.dim = dim
        self.linear = nn.Linear(6, 3)

    def forward(self, frames: Tensor) -> Tensor:
        scores: Tensor = self.linear(frames) * int(frames.shape[self.dim])
        return scores


@pytest.mark.parametrize(("dim", "deviation"), [(0, 2 / 1 - 1), (1, 10 / 6 - 1)], ids=["batch", "length"])
def test_a_frozen_size_is_an_error_that_says_where_and_by_how_much_and_leaves_nothing(
    dim: int, deviation: float, tmp_path: Path
) -> None:
    with pytest.raises(RunError) as caught:
        exported(over_frames(Frozen(dim)), tmp_path / "out")
    summary, by_export, by_tracing = str(caught.value).splitlines()
    where = "at 0.3 s in a batch of 1 ((1, 6, 6))"
    assert summary == "the network cannot be exported to ONNX;"
    assert by_export.startswith("  by torch.export: ")
    assert where in by_export
    assert by_tracing == (
        f"  by TorchScript: output 0 deviates by {deviation:.2g} of its largest number {where}; 0.0001 is allowed"
    )
    assert list(tmp_path.iterdir()) == []


class NotANumber(nn.Linear):
    """Divides nothing by nothing."""

    def forward(self, frames: Tensor) -> Tensor:
        scores = super().forward(frames)
        return (scores - scores) / (scores - scores)


def test_what_is_not_a_number_agrees_with_nothing(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="deviates by nan"):
        exported(over_frames(NotANumber(6, 3)), tmp_path / "out")


def test_a_bundle_may_say_that_its_network_is_no_single_graph(tmp_path: Path) -> None:
    class Stepwise(Pair):
        obstacle = "it takes one step at a time"

        def graph_obstacle(self) -> str:
            return self.obstacle

    bundle = Stepwise(TINY_NETS["mlp"].build(), SHAPES["mlp"])
    with pytest.raises(ConfigError, match="exporter 'onnx' writes one graph: it takes one step at a time"):
        exported(bundle, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []
    bundle.obstacle = ""
    assert exported(bundle, tmp_path / "out")["files"]


def test_a_bundle_without_example_inputs_is_told_what_to_add(tmp_path: Path) -> None:
    @dataclass
    class Bare:
        module: nn.Module

    with pytest.raises(ConfigError, match=r"Bare does not give: add a method example\(seconds: float, batch: int\)"):
        exported(Bare(nn.Linear(6, 3)), tmp_path / "out")
    assert not isinstance(Bare(nn.Linear(6, 3)), ExampleBundle)
    assert isinstance(tiny("mlp"), ExampleBundle)


def test_an_example_that_is_no_tuple_of_tensors_is_refused(tmp_path: Path) -> None:
    class Single(Pair):
        def example(self, seconds: float, batch: int) -> Any:
            return super().example(seconds, batch)[0]

    with pytest.raises(ConfigError, match=r"Single\.example\(0\.5, 2\) must return .* it returned one tensor"):
        exported(Single(nn.Linear(6, 3), SHAPES["mlp"]), tmp_path / "out")


@pytest.mark.parametrize("package", ["onnx", "onnxscript", "onnxruntime"])
def test_a_missing_package_is_named_with_what_installs_it(
    package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ConfigError, match=rf"needs {package}, .*pip install 'ticketkit\[onnx\]'"):
        exported(tiny("mlp"), tmp_path / "out")


def test_facts_are_those_of_the_file(tmp_path: Path) -> None:
    facts = exported(tiny("mlp"), tmp_path / "out")
    assert json.loads((tmp_path / "out" / "export.json").read_text()) == facts
    assert facts["files"]["model.onnx"]["bytes"] == (tmp_path / "out" / "model.onnx").stat().st_size
