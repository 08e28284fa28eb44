import json
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from tests.runtime.masked import flat
from ticketkit import ConfigError, StorageError, TicketError
from ticketkit.runtime.choosing import Choice, applied, choose
from ticketkit.runtime.preparing import prepared
from ticketkit.runtime.saving import RUNTIME, TENSORS, load_, save
from ticketkit.testing import TINY_NETS

RUNTIMES = ("dense", "sparse", "compact", "auto", "bsr")


class Scaled(nn.Module):
    """A norm whose parameter is called as the scales of 8-bit integers are."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(8, 8)
        self.scale = nn.Parameter(torch.randn(8))

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.inner(x) * self.scale
        return result


NETS: dict[str, tuple[Callable[[], nn.Module], Callable[[], Tensor]]] = {
    **{name: (net.build, net.inputs) for name, net in TINY_NETS.items()},
    "scaled": (Scaled, lambda: torch.randn(2, 8)),
    "a layer": (lambda: nn.GRU(8, 8), lambda: torch.randn(3, 2, 8)),
    "encoder": (
        lambda: nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 12, batch_first=True), 2),
        lambda: torch.randn(2, 3, 8),
    ),
}


def pruned(name: str) -> nn.Module:
    """Return a network without some rows and half of the other weights, in evaluation mode."""
    module = NETS[name][0]().eval()
    for parameter in module.parameters():
        if parameter.dim() > 1:
            parameter.data.mul_(torch.rand(parameter.shape) < 0.5)[::3] = 0
    return module


def written(module: nn.Module, runtime: Any, folder: Path, *, dtype: Any = "fp32") -> nn.Module:
    """Save a module with its layers in a runtime's forms, and return what was saved."""
    folder.mkdir(exist_ok=True)
    choices = choose(module, "sparse" if runtime == "bsr" else runtime)
    if runtime == "bsr":
        choices = {path: Choice("bsr" if it.form == "csr" else "dense", it.density) for path, it in choices.items()}
    made = applied(deepcopy(module), choices).requires_grad_(False)  # which torch's LSTM rounds differently with
    save(made, choices, folder, dtype=dtype)
    return made


def shipped(module: nn.Module, runtime: Any, folder: Path, *, dtype: Any = "fp32", example: Any = None) -> nn.Module:
    """Save a module as an exporter does, its structure changed too, and return what was saved."""
    if runtime == "bsr":
        return written(module, runtime, folder, dtype=dtype)
    folder.mkdir(exist_ok=True)
    made, choices, structure = prepared(deepcopy(module), runtime, example)
    made.requires_grad_(False)
    save(made, choices, folder, structure=structure, dtype=dtype)
    return made


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize("name", NETS)
def test_what_is_loaded_computes_what_was_saved_bit_for_bit(name, runtime, tmp_path: Path) -> None:
    build, inputs = NETS[name]
    x = inputs()
    made = shipped(pruned(name), runtime, tmp_path, example=(x,))
    loaded = load_(build(), tmp_path)
    assert not any(layer.training for layer in loaded.modules())
    with torch.no_grad():
        assert all(map(torch.equal, flat(loaded(x)), flat(made(x))))


@pytest.mark.parametrize("name", NETS)
def test_8_bits_of_a_dense_network_move_its_outputs_a_little(name, tmp_path: Path) -> None:
    build, inputs = NETS[name]
    module, x = pruned(name), inputs()
    written(module, "dense", tmp_path, dtype="int8")
    with torch.no_grad():
        for came, expected in zip(flat(load_(build(), tmp_path)(x)), flat(module(x)), strict=True):
            assert 0 < (came - expected).abs().max() < 0.05 * expected.abs().max()


@pytest.mark.parametrize("runtime", ["sparse", "compact"])
@pytest.mark.parametrize("name", NETS)
def test_smaller_types_round_each_value_by_no_more_than_their_precision(name, runtime, tmp_path: Path) -> None:
    module = pruned(name)
    for dtype in ("fp32", "fp16", "int8"):
        written(module, runtime, tmp_path / dtype, dtype=dtype)
    loaded = {dtype: load_(NETS[name][0](), tmp_path / dtype).state_dict() for dtype in ("fp32", "fp16", "int8")}
    changed = 0
    for key, exact in loaded["fp32"].items():
        if not exact.is_floating_point() or not exact.numel():
            assert all(torch.equal(tensors[key], exact) for tensors in loaded.values())
            continue
        most = float(exact.abs().max())
        assert loaded["int8"][key].dtype == loaded["fp16"][key].dtype == exact.dtype
        assert ((loaded["fp16"][key] - exact).abs() <= exact.abs() * 2**-11 + 2**-25).all()
        assert ((loaded["int8"][key] - exact).abs() <= most / 254 * 1.001).all()
        assert not loaded["int8"][key][exact == 0].any()
        changed += not torch.equal(loaded["int8"][key], exact)
    assert changed


def test_files_shrink_with_the_type_and_with_the_zeros(tmp_path: Path) -> None:
    module = nn.Sequential(nn.Linear(64, 64), nn.LSTM(64, 64))
    for parameter in module.parameters():
        parameter.data.mul_(torch.rand(parameter.shape) < 0.05)
    sizes = {}
    for runtime in ("dense", "sparse"):
        for dtype in ("fp32", "fp16", "int8"):
            written(module, runtime, tmp_path / f"{runtime}{dtype}", dtype=dtype)
            sizes[runtime, dtype] = (tmp_path / f"{runtime}{dtype}" / TENSORS).stat().st_size
    for runtime in ("dense", "sparse"):
        assert sizes[runtime, "fp32"] > sizes[runtime, "fp16"] > sizes[runtime, "int8"]
    assert sizes["sparse", "fp32"] < sizes["dense", "fp32"] / 5


def test_values_that_half_precision_cannot_hold_are_refused(tmp_path: Path) -> None:
    module = nn.Linear(2, 2)
    module.weight.data.fill_(1e5)
    with pytest.raises(ConfigError, match="beyond half precision"):
        written(module, "dense", tmp_path, dtype="fp16")


@pytest.mark.parametrize("dtype", ["fp32", "fp16", "int8"])
@pytest.mark.parametrize("runtime", ["sparse", "compact"])
def test_a_layer_without_any_weight_left_comes_back(runtime, dtype, tmp_path: Path) -> None:
    module = nn.Sequential(nn.Linear(5, 5), nn.GRU(5, 5))
    for parameter in module.parameters():
        if parameter.dim() > 1:
            nn.init.zeros_(parameter)
    x = torch.randn(2, 1, 5)
    made = written(module, runtime, tmp_path, dtype=dtype)
    loaded = load_(nn.Sequential(nn.Linear(5, 5), nn.GRU(5, 5)), tmp_path)
    assert torch.equal(loaded(x)[0], made(x)[0])


def net(width: int = 6, kind: type[nn.Module] = nn.Linear) -> nn.Module:
    return nn.Sequential(kind(width, width), nn.Linear(width, width))


@pytest.mark.parametrize("runtime", ["dense", "sparse", "compact", "bsr"])
@pytest.mark.parametrize(
    "other",
    [
        net(7),
        nn.Sequential(nn.Linear(6, 6)),
        nn.Sequential(*net(), nn.Linear(6, 6)),
        nn.Sequential(nn.Linear(6, 6, bias=False), nn.Linear(6, 6)),
        net(kind=nn.LSTM),
        nn.Sequential(nn.Embedding(6, 6), nn.Linear(6, 6)),
        nn.Linear(6, 6),
        nn.Sequential(nn.Identity(), nn.Linear(6, 6)),
    ],
    ids=["wider", "shorter", "longer", "no bias", "LSTM", "embedding", "layer", "identity"],
)
def test_another_model_is_refused(runtime, other, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    module = net()
    for layer in module:
        layer.weight.data[::2] = 0
    written(module, runtime, tmp_path)
    same_names = "no bias" in request.node.name and runtime != "dense"  # no bias is a bias of zeros there
    if same_names:
        assert torch.equal(load_(deepcopy(other), tmp_path)[0](torch.zeros(6)), module[0].bias)
        return
    with pytest.raises(TicketError):
        load_(deepcopy(other), tmp_path)


DAMAGE: dict[str, Any] = {
    "out of range": ("columns", lambda t: t + 100),
    "far out of range": ("columns", lambda t: torch.full_like(t, 2**31 - 1)),
    "negative": ("columns", lambda t: t - 100),
    "not rising": ("columns", lambda t: t.flip(0)),
    "rows that fall": ("rows", lambda t: t.flip(0)),
    "rows out of range": ("rows", lambda t: t + 1),
    "floats": ("columns", lambda t: torch.full(t.shape, float("nan"))),
    "no values": ("values", lambda t: t[:0]),
    "values in a square": ("values", lambda t: t[None].repeat(2, *[1] * t.dim())),
    "fewer columns": ("columns", lambda t: t[1:]),
}


@pytest.mark.parametrize("runtime", ["sparse", "bsr", "compact"])
@pytest.mark.parametrize("damage", DAMAGE)
def test_indices_that_point_elsewhere_are_refused_and_never_followed(runtime, damage, tmp_path: Path) -> None:
    module = net()
    for layer in module:
        layer.weight.data[::2] = 0
    written(module, runtime, tmp_path)
    name, change = DAMAGE[damage]
    if runtime == "compact":
        name = {"values": "matrix"}.get(name, name)
    stored = load_file(tmp_path / TENSORS)
    stored[f"0.product.{name}"] = change(stored[f"0.product.{name}"]).contiguous()
    save_file(stored, tmp_path / TENSORS)
    with pytest.raises((StorageError, TicketError), match=r"0(\.product)? |0\.product\."):
        load_(net(), tmp_path)


@pytest.mark.parametrize(
    "facts",
    ["", "[]", "{}", '"no"', '{"format": 1}', '{"format": 1, "layers": []}', '{"format": 1, "layers": {"0": 3}}',
     '{"format": 1, "layers": {"0": {"form": "csr"}}}', '{"format": 2, "layers": {}}', '{"format": 3, "layers": {}}',
     '{"format": 2, "layers": {}, "apart": 3, "removed": []}', '{"format": 2, "layers": {}, "apart": {"0": 3}}',
     '{"format": 2, "layers": {}, "apart": {}, "removed": [{"makers": []}]}',
     '{"format": 1, "layers": {"0": {"form": "csr", "density": 1, "more": 2}}}'],
)  # fmt: skip
def test_facts_that_are_none_are_refused(facts, tmp_path: Path) -> None:
    written(net(), "dense", tmp_path)
    (tmp_path / RUNTIME).write_text(facts)
    with pytest.raises(StorageError, match=RUNTIME):
        load_(net(), tmp_path)


@pytest.mark.parametrize("layers", [{"0": {"form": "coo", "density": 1}}, {"a.b": {"form": "csr", "density": 1}}])
def test_forms_and_layers_that_are_not_there_are_refused(layers, tmp_path: Path) -> None:
    written(net(), "dense", tmp_path)
    (tmp_path / RUNTIME).write_text(json.dumps({"format": 1, "layers": layers}))
    with pytest.raises(TicketError, match="another model"):
        load_(net(), tmp_path)


def test_missing_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=RUNTIME):
        load_(net(), tmp_path)
    written(net(), "dense", tmp_path)
    (tmp_path / TENSORS).unlink()
    with pytest.raises(StorageError, match=TENSORS):
        load_(net(), tmp_path)
    (tmp_path / TENSORS).write_bytes(b"no tensors")
    with pytest.raises(StorageError, match=TENSORS):
        load_(net(), tmp_path)
