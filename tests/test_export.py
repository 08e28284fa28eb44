import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from ticketkit import IMP, PluginError, Plugins, StorageError, Ticket, TicketError, enforced
from ticketkit.export import export
from ticketkit.storage import file_digest
from ticketkit.testing import TINY_NETS


def trained(name: str = "tied_gru") -> tuple[Any, Ticket]:
    """Return a bundle whose network holds the ticket of a pruned round."""
    model = TINY_NETS[name].build()
    imp = IMP(model, rate=0.5, rounds=1)
    for _ in imp:
        pass
    return SimpleNamespace(module=model), imp.tickets[1]


def exporter(call: Any) -> Any:
    return Plugins().choose("exporter", call)


@pytest.mark.parametrize("name", TINY_NETS)
def test_weights_are_those_of_the_network_and_the_mask_that_of_the_ticket(name: str, tmp_path: Path) -> None:
    bundle, ticket = trained(name)
    export(bundle, ticket, tmp_path / "out", exporter("weights"))
    stored = load_file(tmp_path / "out" / "model.safetensors")
    for key, tensor in stored.items():
        assert torch.equal(tensor, bundle.module.state_dict()[key])
    assert stored.keys() | {"output.weight", "embedding.weight"} >= bundle.module.state_dict().keys()
    assert Ticket.load(tmp_path / "out" / "mask.safetensors").mask == ticket.mask


def test_facts_name_the_ticket_the_exporter_and_every_file(tmp_path: Path) -> None:
    bundle, ticket = trained()
    facts = export(bundle, ticket, tmp_path / "out", exporter("weights"))
    assert json.loads((tmp_path / "out" / "export.json").read_text()) == facts
    assert (facts["ticket"], facts["mask"], facts["kept"]) == (ticket.digest, ticket.mask.digest, ticket.mask.kept)
    assert facts["exporter"]["entry"] == "builtin:weights"
    assert facts["files"].keys() == {"model.safetensors", "mask.safetensors"}
    for name, file in facts["files"].items():
        path = tmp_path / "out" / name
        assert file == {"bytes": path.stat().st_size, "sha256": file_digest(path)}


def test_an_exporter_sees_evaluation_mode_and_flags_come_back(tmp_path: Path) -> None:
    bundle, ticket = trained("convnet")
    bundle.module.train()
    bundle.module[1].eval()  # somebody froze the norm

    def look(bundle: Any, ticket: Ticket, directory: Path) -> None:
        assert not any(module.training for module in bundle.module.modules())
        (directory / "seen").touch()

    export(bundle, ticket, tmp_path / "out", exporter(look))
    assert [module.training for module in bundle.module.children()] == [True, False, True, True, True, True]


def test_what_fails_leaves_nothing_behind(tmp_path: Path) -> None:
    bundle, ticket = trained()

    def half(bundle: Any, ticket: Ticket, directory: Path) -> None:
        (directory / "half").write_text("half")
        raise RuntimeError("no more")

    with pytest.raises(RuntimeError, match="no more"):
        export(bundle, ticket, tmp_path / "out", exporter(half))
    with pytest.raises(PluginError, match="wrote no file"):
        export(bundle, ticket, tmp_path / "out", exporter(lambda bundle, ticket, directory: None))
    assert list(tmp_path.iterdir()) == []


def test_a_place_that_is_taken_is_refused_untouched(tmp_path: Path) -> None:
    bundle, ticket = trained()
    (tmp_path / "out").mkdir()
    with pytest.raises(StorageError, match=r"out exists already; choose another place"):
        export(bundle, ticket, tmp_path / "out", exporter("weights"))
    (tmp_path / "file").touch()
    with pytest.raises(StorageError):
        export(bundle, ticket, tmp_path / "file" / "out", exporter("weights"))
    assert list((tmp_path / "out").iterdir()) == []


def test_a_network_that_does_not_hold_the_ticket_is_refused(tmp_path: Path) -> None:
    bundle, ticket = trained("mlp")
    nn.init.ones_(bundle.module[0].weight)
    with pytest.raises(TicketError, match="pruned weights"):
        export(bundle, ticket, tmp_path / "out", exporter("weights"))
    with enforced(bundle.module, ticket.mask):
        export(bundle, ticket, tmp_path / "out", exporter("weights"))
