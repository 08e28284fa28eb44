"""An export, ready to use: the backbone built anew, with the layers and values that were written."""

import json
import tempfile
from collections import Counter
from collections.abc import Mapping
from copy import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_model

from ticketkit.building import made
from ticketkit.errors import ConfigError, StorageError, TicketError
from ticketkit.experiment import CONFIG_FILE
from ticketkit.export import FACTS_FILE
from ticketkit.planes import inflated
from ticketkit.plugins import Plugins
from ticketkit.rng import seeded
from ticketkit.roles import Bundle, Corpus
from ticketkit.runtime.saving import RUNTIME, TENSORS, load_, read_facts
from ticketkit.storage import file_digest
from ticketkit.ticket import Ticket
from ticketkit.whereabouts import no_ticket

TICKET, PLANES = "ticket.safetensors", "ticket.planes"


@dataclass(frozen=True, eq=False)
class ExportedTicket:
    """A network that was exported, with what `export.json` says of it."""

    bundle: Bundle
    facts: Mapping[str, Any]
    directory: Path

    @property
    def run(self) -> dict[str, Any]:
        """What the run that it came from names as its backbone and its corpus."""
        return dict(self.facts["run"])

    @property
    def forms(self) -> str:
        """The forms of its layers, counted, such as `10 csr, 3 dense`; for exports of other kinds, nothing."""
        if not (self.directory / RUNTIME).is_file():
            return ""
        counted = Counter(layer["form"] for layer in read_facts(self.directory)["layers"].values())
        return ", ".join(f"{count} {form}" for form, count in sorted(counted.items()))

    def corpus(self, plugins: Plugins) -> Corpus:
        """Open the corpus that the network was trained on."""
        opened: Corpus = made(plugins.choose("corpus", self.run["corpus"]), "corpus")
        return opened


def is_export(path: Path) -> bool:
    """Say whether a path is a folder that an exporter has written."""
    return (path / FACTS_FILE).is_file()


def load_exported(directory: Path, plugins: Plugins) -> ExportedTicket:
    """Return the network in the folder of an export, in evaluation mode.

    Raises `StorageError` for damaged files, `ConfigError` for exports that torch cannot run or that do not say which
    backbone they are of, and `TicketError` with its tickets for a run directory.
    """
    if (directory / CONFIG_FILE).is_file() and not is_export(directory):
        raise no_ticket(directory)
    facts = check_files(directory)
    try:
        backbone = facts["run"]["backbone"]
    except (KeyError, TypeError) as error:
        raise ConfigError(f"{directory} does not say which backbone it is of; use ticketkit export") from error
    with seeded(0):
        bundle: Any = made(plugins.choose("backbone", backbone), "backbone")
    if (directory / RUNTIME).is_file():
        module = load_(bundle.module, directory)
        if module is not bundle.module:
            bundle = copy(bundle)
            object.__setattr__(bundle, "module", module)
    elif (directory / TICKET).is_file():
        Ticket.load(directory / TICKET).apply_(bundle.module)
    elif (directory / PLANES).is_file():
        _inflated_ticket(directory / PLANES).apply_(bundle.module)
    elif (directory / TENSORS).is_file():
        _load_weights(bundle, directory / TENSORS)
    else:
        what = facts.get("exporter", {}).get("entry", "an exporter")
        raise ConfigError(f"{directory} was written by {what} and holds nothing that torch can run")
    bundle.module.eval()
    return ExportedTicket(bundle, facts, directory)


def check_files(directory: Path) -> dict[str, Any]:
    """Return what `export.json` says of the files in its folder; raise `StorageError` naming one that has changed."""
    try:
        facts: dict[str, Any] = json.loads((directory / FACTS_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise StorageError(f"cannot read {directory / FACTS_FILE}: {error}; export the ticket again") from error
    try:
        digests = {name: file["sha256"] for name, file in facts.get("files", {}).items()}
    except (AttributeError, KeyError, TypeError) as error:
        raise StorageError(f"{directory / FACTS_FILE} is damaged: {error!r}; export the ticket again") from error
    for name, digest in digests.items():
        path = directory / name
        if not path.is_file() or file_digest(path) != digest:
            raise StorageError(f"{path} is not the file that was exported; export the ticket again")
    return facts


def _inflated_ticket(path: Path) -> Ticket:
    with tempfile.TemporaryDirectory() as folder:
        content = Path(folder) / TICKET
        content.write_bytes(inflated(path.read_bytes()))
        return Ticket.load(content)


def _load_weights(bundle: Bundle, path: Path) -> None:
    try:
        load_model(bundle.module, path)
    except (OSError, SafetensorError) as error:
        raise StorageError(f"cannot read {path}: {error}") from error
    except RuntimeError as error:
        raise TicketError(f"{path} is of another model: {error}") from error
