"""A ticket of a run with the network that was trained with its mask."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ticketkit.building import made
from ticketkit.config import RunConfig
from ticketkit.errors import ConfigError
from ticketkit.experiment import CONFIG_FILE, read_config
from ticketkit.export import export
from ticketkit.ledger import Ledger
from ticketkit.plugins import Plugins
from ticketkit.rng import seeded
from ticketkit.roles import Bundle, Corpus
from ticketkit.ticket import Ticket
from ticketkit.whereabouts import no_ticket


@dataclass(frozen=True, eq=False)
class TrainedTicket:
    """A ticket of a run with its trained network: what is exported, evaluated, used."""

    ticket: Ticket
    bundle: Bundle
    config: RunConfig
    directory: Path

    @property
    def run(self) -> dict[str, Any]:
        """What the run names as its backbone and its corpus."""
        return self.config.model_dump(mode="json", include={"backbone", "corpus"})

    def export(self, to: str | Path, *, runtime: str = "auto", plugins: Plugins, **options: Any) -> dict[str, Any]:
        """Write the network into a new folder in the form that an exporter gives it; return what `export.json` says.

        `runtime` is the exporter's name, `options` its options, such as `dtype="fp16"`; `ticketkit.load_exported` reads
        the folder. Raises what `ticketkit export` prints: `ConfigError`, `StorageError`, `TicketError`.
        """
        exporter = plugins.choose("exporter", {"name": runtime, **options})
        return export(self.bundle, self.ticket, Path(to), exporter, run=self.run)

    def corpus(self, plugins: Plugins) -> Corpus:
        """Open the corpus that the run was trained on."""
        opened: Corpus = made(self.config.chosen(plugins, "corpus"), "corpus")
        return opened


def open_trained(path: Path, plugins: Plugins) -> TrainedTicket:
    """Return the ticket in a file of a run directory, with the network that was trained with its mask.

    The backbone is built as the run's config says. Raises `TicketError` with the tickets near a path that is no file,
    and `ConfigError` if the file is not in a run directory, or no finished round there has its mask.
    """
    if not path.is_file():
        raise no_ticket(path)
    ticket = Ticket.load(path)
    directory = next((parent for parent in path.absolute().parents if (parent / CONFIG_FILE).is_file()), None)
    if directory is None:
        raise ConfigError(
            f"{path} is in no run directory, so nobody knows its trained weights; name a ticket of a run, such as "
            "runs/fsdd/extreme.safetensors"
        )
    config, ledger = read_config(directory, plugins), Ledger(directory)
    found = [record for record in ledger.records() if record.mask_digest == ticket.mask.digest]
    if not found:
        raise ConfigError(f"none of the rounds in {directory} has the mask of {path}; was it copied there?")
    with seeded(config.seed):
        bundle: Bundle = made(config.chosen(plugins, "backbone"), "backbone")  # its fresh weights are overwritten
    ledger.trained(found[-1]).restore_tensors(bundle.module)
    return TrainedTicket(ticket, bundle, config, directory)
