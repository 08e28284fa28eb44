"""Where a run keeps its tickets, for whoever names a path that holds none."""

import json
from pathlib import Path

from ticketkit.errors import TicketError
from ticketkit.experiment import CONFIG_FILE
from ticketkit.export import FACTS_FILE
from ticketkit.ledger import TICKET

CHOSEN = ("best.safetensors", "extreme.safetensors")


def no_ticket(path: Path) -> TicketError:
    """Return the error for a path that is no file: what is there, which tickets are near, what to do next.

    Near is the run directory that the path is or lies in, or else the run directories beside it and in `runs`.
    """
    if (path / FACTS_FILE).is_file():
        return TicketError(
            f"{path} is an export, not a ticket: ticketkit.load_exported reads it; name the ticket of its run instead"
        )
    run = next((place for place in (path, *path.parents) if (place / CONFIG_FILE).is_file()), None)
    what = "is a directory" if path.is_dir() else "does not exist"
    if run is None:
        return TicketError(f"{path} {what}, and tickets are files in run directories; {_runs_near(path)}")
    what = "is a run directory, not a ticket" if path == run else what
    found = tickets_of(run)
    if not found:
        return TicketError(f"{path} {what}, and no round of {run} is finished; go on with: ticketkit resume {run}")
    listed = "".join(f"\n  {name}{about}" for name, about in found.items())
    return TicketError(f"{path} {what}; the tickets of {run} are:{listed}\nname one, such as {run / next(iter(found))}")


def tickets_of(run: Path) -> dict[str, str]:
    """Return the tickets in a run directory by their paths in it, and what a record says of each."""
    found = {name: "" for name in CHOSEN if (run / name).is_file()}
    for path in sorted(run.glob(f"rounds/*/{TICKET}")):
        found[str(path.relative_to(run))] = _left(path.parent / "record.json")
    return found


def _left(record: Path) -> str:
    """Return how much of its scope a round has left; nothing where its record does not say."""
    try:
        facts = json.loads(record.read_text(encoding="utf-8"))
        return f" ({facts['kept'] / facts['total']:.1%} of the weights in scope)"
    except (OSError, ValueError, KeyError, TypeError, ZeroDivisionError):
        return ""


def _runs_near(path: Path) -> str:
    near = {config.parent for place in (path, path.parent, Path("runs")) for config in place.glob(f"*/{CONFIG_FILE}")}
    if not near:
        return "ticketkit run writes them"
    return f"there are the runs {', '.join(str(run) for run in sorted(near))}"
