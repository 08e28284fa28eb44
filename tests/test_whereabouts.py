"""Paths that hold no ticket: the error says which tickets there are near."""

import json
import shutil
from pathlib import Path

import pytest

from ticketkit import IMP, Plugins, TicketError, load_exported, open_trained
from ticketkit.cli import app
from ticketkit.testing import TINY_NETS
from ticketkit.whereabouts import no_ticket, tickets_of


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Return a run directory with two finished rounds, as the command line writes it."""
    directory = tmp_path / "runs" / "a"
    for _ in IMP(TINY_NETS["mlp"].build(), rounds=1, rate=0.5, run_dir=directory):
        pass
    (directory / "config.json").write_text("{}")
    shutil.copy(directory / "rounds" / "001" / "ticket.safetensors", directory / "best.safetensors")
    return directory


@pytest.mark.parametrize(
    ("wrong", "what"),
    [
        (".", "is a run directory, not a ticket"),
        ("extreme.safetensors", "does not exist"),
        ("rounds/007/ticket.safetensors", "does not exist"),
        ("rounds", "is a directory"),
    ],
)
def test_the_tickets_of_a_run_are_listed_for_what_is_none_of_them(wrong, what, run: Path) -> None:
    message = str(no_ticket(run / wrong))
    assert message.startswith(f"{run / wrong} {what}; the tickets of {run} are:")
    for name, about in (
        ("best.safetensors", ""),
        ("rounds/000/ticket.safetensors", " (100.0% of the weights in scope)"),
        ("rounds/001/ticket.safetensors", " (50.0% of the weights in scope)"),
    ):
        assert f"\n  {name}{about}\n" in message
    assert message.endswith(f"name one, such as {run / 'best.safetensors'}")


def test_a_ticket_whose_record_is_damaged_is_listed_by_its_name(run: Path) -> None:
    (run / "rounds" / "001" / "record.json").write_text("[]")
    assert tickets_of(run)["rounds/001/ticket.safetensors"] == ""


def test_without_a_finished_round_the_run_is_to_go_on(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    assert f"no round of {tmp_path} is finished; go on with: ticketkit resume" in str(no_ticket(tmp_path))


def test_runs_beside_a_path_are_named_and_an_export_is_known(run: Path, tmp_path: Path) -> None:
    assert f"does not exist, and tickets are files in run directories; there are the runs {run}" in str(
        no_ticket(run.parent / "b.safetensors")
    )
    assert "ticketkit run writes them" in str(no_ticket(tmp_path / "x" / "y"))
    (tmp_path / "shipped").mkdir()
    (tmp_path / "shipped" / "export.json").write_text(json.dumps({}))
    assert "is an export, not a ticket: ticketkit.load_exported reads it" in str(no_ticket(tmp_path / "shipped"))


def test_python_says_the_same(run: Path) -> None:
    for use in (open_trained, load_exported):
        with pytest.raises(TicketError, match="is a run directory, not a ticket; the tickets of"):
            use(run, Plugins())


@pytest.mark.parametrize("command", ["inspect", "verify", "export", "bench"])
def test_so_do_the_commands(command, run: Path) -> None:
    options = ("--to", "out") if command == "export" else ()
    with pytest.raises(TicketError, match=r"missing\.safetensors does not exist; the tickets of"):
        app([command, str(run / "missing.safetensors"), *options], standalone_mode=False)
