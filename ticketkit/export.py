"""A ticket that ships: an exporter writes the trained network, whole or not at all."""

import json
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from ticketkit.errors import PluginError, StorageError
from ticketkit.registry import Choice
from ticketkit.roles import Bundle
from ticketkit.storage import PARTIAL, file_digest, file_system_errors
from ticketkit.ticket import Ticket

FACTS_FILE = "export.json"


class Exporter(Protocol):
    """Writes a trained ticket in some form; one registered with an options model is called with `options=` too."""

    def __call__(self, bundle: Any, ticket: Ticket, directory: Path) -> None:
        """Write files into an empty directory; `bundle.module` is trained, masked and in evaluation mode."""
        ...


def export(
    bundle: Bundle, ticket: Ticket, directory: Path, exporter: Choice, *, run: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Write a trained network into a new directory and return its facts, which `export.json` there holds too.

    `run` says what the network is, by the config of its run: its backbone, so that it can be built again.

    `bundle.module` has its trained weights, and every weight that the ticket pruned must be zero (`TicketError` if
    not). The directory appears when the exporter is done, or not at all. Raises `StorageError` if something is there
    already or cannot be written, and `PluginError` if the exporter fails or writes nothing.
    """
    ticket.verify(bundle.module)
    if directory.exists():
        raise StorageError(f"{directory} exists already; choose another place for the export")
    training = {module: module.training for module in bundle.module.modules()}
    with file_system_errors(directory):
        directory.absolute().parent.mkdir(parents=True, exist_ok=True)
        name = tempfile.mkdtemp(dir=directory.absolute().parent, prefix=f".{directory.name}.", suffix=PARTIAL)
    partial = Path(name)
    try:
        bundle.module.eval()
        exporter.call(bundle, ticket, partial)
        facts = {**_facts(ticket, exporter, partial), **({} if run is None else {"run": dict(run)})}
        with file_system_errors(directory):
            (partial / FACTS_FILE).write_text(json.dumps(facts, indent=1), encoding="utf-8")
            for path in partial.rglob("*"):
                path.chmod(0o755 if path.is_dir() else 0o644)
            partial.chmod(0o755)
            partial.rename(directory)
    finally:
        for module, flag in training.items():
            module.training = flag
        shutil.rmtree(partial, ignore_errors=True)
    return facts


def _facts(ticket: Ticket, exporter: Choice, directory: Path) -> dict[str, Any]:
    """Return what was exported by whom, and every file with its size in bytes and its digest."""
    files = sorted(path for path in directory.rglob("*") if path.is_file())
    if not files:
        raise PluginError(f"{exporter.culprit or exporter.provenance.entry} wrote no file")
    return {
        "ticket": ticket.digest,
        "mask": ticket.mask.digest,
        "kept": ticket.mask.kept,
        "total": ticket.mask.total,
        "exporter": exporter.provenance.model_dump(mode="json"),
        "facts": ticket.facts.model_dump(mode="json", exclude_defaults=True),
        "files": {
            str(path.relative_to(directory)): {"bytes": path.stat().st_size, "sha256": file_digest(path)}
            for path in files
        },
    }
