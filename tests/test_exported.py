"""Networks in the folders of exports: what was written comes back, or nothing does."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from ticketkit import (
    IMP,
    ConfigError,
    ExportedTicket,
    Plugins,
    StorageError,
    TicketError,
    TicketkitError,
    hookimpl,
    load_exported,
)
from ticketkit.export import FACTS_FILE, export
from ticketkit.exported import is_export
from ticketkit.plugins import PluginFacts
from ticketkit.runtime.saving import RUNTIME, TENSORS

EXPORTERS: dict[str, dict[str, Any]] = {
    "weights": {"name": "weights"},
    "compressed": {"name": "compressed"},
    "deflated": {"name": "compressed", "deflate": True},
    "dense": {"name": "dense"},
    "sparse": {"name": "sparse"},
    "auto": {"name": "auto"},
    "sparse int8": {"name": "sparse", "dtype": "int8"},
}
RUN = {"backbone": {"name": "toy"}, "corpus": {"name": "nothing"}}


class Bundle:
    """A network that knows what it is called with."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module

    def example(self, seconds: float, batch: int) -> tuple[Tensor, ...]:
        return (torch.ones(batch, 6),)


def network(width: int) -> nn.Module:
    return nn.Sequential(nn.Linear(6, width), nn.BatchNorm1d(width), nn.ReLU(), nn.Linear(width, 3))


class Toy:
    """A plugin with a small network, a wider one, and a single layer in two kinds of bundles."""

    @staticmethod
    @hookimpl
    def ticketkit_register_backbones(register: Any) -> None:
        register("toy", lambda: Bundle(network(16)))
        register("wide", lambda: Bundle(network(17)))
        register("layer", lambda: Bundle(nn.Linear(6, 16)))
        register("simple", lambda: SimpleNamespace(module=nn.Linear(6, 16)))


PLUGINS = Plugins()
PLUGINS.add(Toy(), PluginFacts("toy", "toy", "toy", "0"))


def exported(chosen: Mapping[str, Any], directory: Path, *, backbone: str = "toy", wrap: Any = None) -> nn.Module:
    """Export a pruned network with statistics of its own; return it, in evaluation mode."""
    torch.manual_seed(3)
    bundle = PLUGINS.choose("backbone", {"name": backbone}).call()
    bundle.module(torch.randn(8, 6))
    if wrap is not None:
        bundle.module = wrap(bundle.module)
    imp = IMP(bundle.module, rate=0.8, rounds=1, allocation="uniform")
    for _ in imp:
        pass
    export(
        bundle,
        imp.tickets[1],
        directory,
        PLUGINS.choose("exporter", dict(chosen)),
        run={**RUN, "backbone": {"name": backbone}},
    )
    return bundle.module.eval()


def outputs(module: nn.Module) -> Tensor:
    with torch.no_grad():
        result: Tensor = module(torch.randn(5, 6, generator=torch.Generator().manual_seed(1)))
    return result


@pytest.mark.parametrize("name", EXPORTERS)
def test_what_was_exported_is_loaded_with_its_outputs_and_facts(name, tmp_path: Path) -> None:
    module = exported(EXPORTERS[name], tmp_path / "out")
    random = torch.get_rng_state()
    loaded = load_exported(tmp_path / "out", PLUGINS)
    assert torch.equal(torch.get_rng_state(), random)
    assert isinstance(loaded, ExportedTicket)
    assert is_export(loaded.directory)
    assert loaded.run == RUN
    assert not any(layer.training for layer in loaded.bundle.module.modules())
    came, expected = outputs(loaded.bundle.module), outputs(module)
    if name in ("weights", "compressed", "deflated", "dense"):
        assert torch.equal(came, expected) or name == "dense"
    assert (came - expected).abs().max() <= (0.05 if "int8" in name else 1e-6) * expected.abs().max()


@pytest.mark.parametrize("backbone", ["layer", "simple"])
def test_a_network_that_is_a_single_layer_comes_back_in_its_bundle(backbone, tmp_path: Path) -> None:
    module = exported(EXPORTERS["sparse"], tmp_path / "out", backbone=backbone)
    bundle = load_exported(tmp_path / "out", PLUGINS).bundle
    assert (outputs(bundle.module) - outputs(module)).abs().max() < 1e-6


def test_a_wrapped_network_is_exported_as_what_it_wraps(tmp_path: Path) -> None:
    exported(EXPORTERS["sparse"], tmp_path / "plain")
    exported(EXPORTERS["sparse"], tmp_path / "wrapped", wrap=nn.DataParallel)
    for name in (TENSORS, RUNTIME):
        assert (tmp_path / "plain" / name).read_bytes() == (tmp_path / "wrapped" / name).read_bytes()


@pytest.mark.parametrize("name", ["weights", "sparse", "compressed", "deflated"])
@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_byte_that_was_changed_anywhere_in_any_file_never_gives_another_result(name, data, tmp_path: Path) -> None:
    origin = tmp_path / "origin"
    if not origin.exists():
        exported(EXPORTERS[name], origin)
    before = outputs(load_exported(origin, PLUGINS).bundle.module)
    folder = tmp_path / "changed"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(origin, folder)
    tensors = next(path for path in folder.iterdir() if path.name in (TENSORS, "ticket.safetensors", "ticket.planes"))
    path = data.draw(st.sampled_from([tensors, *sorted(folder.iterdir())]))
    content = bytearray(path.read_bytes())
    content[data.draw(st.integers(0, len(content) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    path.write_bytes(bytes(content))
    try:
        loaded = load_exported(folder, PLUGINS)
    except TicketkitError:
        return
    assert path.name == FACTS_FILE  # of which not all matters
    assert torch.equal(outputs(loaded.bundle.module), before)


@pytest.mark.parametrize("name", ["weights", "compressed", "deflated", "sparse"])
def test_files_that_are_missing_or_cut_short_are_named(name, tmp_path: Path) -> None:
    exported(EXPORTERS[name], tmp_path / "out")
    for path in sorted((tmp_path / "out").iterdir()):
        content = path.read_bytes()
        path.write_bytes(content[: len(content) // 2])
        with pytest.raises(StorageError, match=path.name):
            load_exported(tmp_path / "out", PLUGINS)
        path.unlink()
        with pytest.raises(StorageError, match=path.name):
            load_exported(tmp_path / "out", PLUGINS)
        path.write_bytes(content)
    load_exported(tmp_path / "out", PLUGINS)


@pytest.mark.parametrize("name", ["weights", "compressed", "sparse"])
def test_an_export_is_not_loaded_into_another_model(name, tmp_path: Path) -> None:
    exported(EXPORTERS[name], tmp_path / "out")
    edit(tmp_path / "out", run={**RUN, "backbone": {"name": "wide"}})
    with pytest.raises(TicketError):
        load_exported(tmp_path / "out", PLUGINS)


def edit(folder: Path, **changes: Any) -> None:
    facts = json.loads((folder / FACTS_FILE).read_text())
    (folder / FACTS_FILE).write_text(
        json.dumps({key: value for key, value in {**facts, **changes}.items() if value is not None})
    )


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"run": None}, ConfigError, "does not say which backbone it is of"),
        ({"run": 3}, ConfigError, "does not say which backbone it is of"),
        ({"run": {"backbone": {"name": "no_such"}}}, ConfigError, "no_such"),
        ({"files": []}, StorageError, FACTS_FILE),
        ({"files": {"model.safetensors": {}}}, StorageError, FACTS_FILE),
        ({"files": {"other": {"sha256": "0"}}}, StorageError, "other is not the file that was exported"),
    ],
)  # fmt: skip
def test_foreign_facts_are_refused_with_what_is_wrong(changes, error, message, tmp_path: Path) -> None:
    exported(EXPORTERS["sparse"], tmp_path / "out")
    edit(tmp_path / "out", **changes)
    with pytest.raises(error, match=message):
        load_exported(tmp_path / "out", PLUGINS)


def test_what_torch_cannot_run_is_refused_by_the_name_of_its_exporter(tmp_path: Path) -> None:
    exported(EXPORTERS["sparse"], tmp_path / "out")
    for name in (RUNTIME, TENSORS):
        (tmp_path / "out" / name).unlink()
    edit(tmp_path / "out", files=None)
    with pytest.raises(ConfigError, match="builtin:sparse and holds nothing that torch can run"):
        load_exported(tmp_path / "out", PLUGINS)


def test_a_folder_that_is_no_export_is_refused(tmp_path: Path) -> None:
    assert not is_export(tmp_path)
    with pytest.raises(StorageError, match=FACTS_FILE):
        load_exported(tmp_path, PLUGINS)
