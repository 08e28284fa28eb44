"""The run directory: what a run is, what each finished round found, and everything needed to go on after a crash.

run.json                         what the run is; a run of another kind is refused
init.safetensors                 the snapshot that every round is rewound to
rounds/003/ticket.safetensors    the mask of round 3 with its facts and metrics
rounds/003/trained.safetensors   the network at the end of round 3, from which the next mask is computed
rounds/003/record.json           the record; written last: a round without it never happened
lock                             held by the process that works here
"""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from pydantic import BaseModel, ConfigDict, ValidationError

from ticketkit.errors import ConfigError, StorageError
from ticketkit.rewind import Snapshot
from ticketkit.storage import PARTIAL, canonical_json, file_digest, write_text_atomically
from ticketkit.ticket import Ticket

FORMAT = 1


class RoundRecord(BaseModel):
    """What one round was and found; every density says of what it is a share."""

    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="strings")

    index: int
    kept: int
    total: int
    model_total: int
    densities: dict[str, float]
    metrics: dict[str, float]
    seconds: float
    mask_digest: str
    ticket_file: str | None = None
    trained_file: str | None = None

    @property
    def density(self) -> float:
        """Kept weights as a share of the scope."""
        return self.kept / self.total

    @property
    def model_density(self) -> float:
        """Weights not pruned as a share of the whole model, out-of-scope parameters included."""
        return (self.model_total - self.total + self.kept) / self.model_total

    @property
    def emptiest(self) -> tuple[str, float]:
        """The parameter in scope with the smallest share of its weights left, and that share."""
        return min(self.densities.items(), key=lambda item: item[1])


class Ledger:
    """The rounds of one run in one directory, written atomically and used by one process at a time."""

    def __init__(self, directory: Path):
        self.directory = Path(directory)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the directory; raises `StorageError` if another process does or the directory cannot be made."""
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            lock = FileLock(self.directory / "lock", timeout=0)
            lock.acquire()
        except Timeout as error:
            raise StorageError(
                f"another process is working in {self.directory}; wait for it or choose another"
            ) from error
        except OSError as error:
            raise StorageError(f"cannot use {self.directory} as a run directory: {error}") from error
        try:
            self._remove_leftovers()
            yield
        finally:
            lock.release()

    def _remove_leftovers(self) -> None:
        """Delete the unfinished files of a process that was killed while it wrote here."""
        for leftover in [*self.directory.glob(f".*{PARTIAL}"), *self.directory.glob(f"rounds/*/.*{PARTIAL}")]:
            leftover.unlink(missing_ok=True)

    def identify(self, identity: Mapping[str, Any]) -> None:
        """Note what the run is, or raise `ConfigError` listing every setting on which the directory's run differs."""
        path = self.directory / "run.json"
        wanted = json.loads(canonical_json({"format": FORMAT, **identity}))
        if not path.exists():
            write_text_atomically(path, canonical_json(wanted))
            return
        found = _read_json(path)
        differing = [key for key in sorted(wanted.keys() | found.keys()) if wanted.get(key) != found.get(key)]
        if differing:
            lines = [f"{key}: there {_short(found.get(key))}, here {_short(wanted.get(key))}" for key in differing]
            raise ConfigError(
                f"{self.directory} holds a run of another configuration; choose another directory, or the same "
                "settings:\n  " + "\n  ".join(lines)
            )

    def snapshot(self) -> Snapshot | None:
        """Return the snapshot of the run, if it was taken."""
        path = self.directory / "init.safetensors"
        return Snapshot.load(path) if path.exists() else None

    def keep_snapshot(self, snapshot: Snapshot) -> None:
        """Write the snapshot of the run."""
        snapshot.save(self.directory / "init.safetensors")

    def records(self) -> list[RoundRecord]:
        """Return the records of the finished rounds, in order, without a gap."""
        records: list[RoundRecord] = []
        while (path := self._round(len(records)) / "record.json").exists():
            try:
                records.append(RoundRecord.model_validate_json(path.read_bytes()))
            except (OSError, ValidationError) as error:
                raise StorageError(
                    f"{path} is damaged: {error}; delete it to train round {len(records)} again"
                ) from error
        return records

    def commit(self, ticket: Ticket, trained: Snapshot, record: RoundRecord) -> RoundRecord:
        """Write a finished round, its record last; return the record with the digests of both files."""
        folder = self._round(record.index)
        ticket.save(folder / "ticket.safetensors")
        trained.save(folder / "trained.safetensors")
        complete = record.model_copy(
            update={
                "ticket_file": file_digest(folder / "ticket.safetensors"),
                "trained_file": file_digest(folder / "trained.safetensors"),
            }
        )
        write_text_atomically(folder / "record.json", complete.model_dump_json(indent=1))
        return complete

    def ticket(self, record: RoundRecord) -> Ticket:
        """Return the ticket of a finished round; raises `StorageError` if the file is not the one that was written."""
        return Ticket.load(self._verified(record, "ticket.safetensors", record.ticket_file))

    def trained(self, record: RoundRecord) -> Snapshot:
        """Return the network at the end of a finished round, verified likewise."""
        return Snapshot.load(self._verified(record, "trained.safetensors", record.trained_file))

    def _verified(self, record: RoundRecord, name: str, digest: str | None) -> Path:
        path = self._round(record.index) / name
        if not path.exists():
            raise StorageError(f"{path} has vanished; delete {path.parent} and later rounds to train them again")
        if file_digest(path) != digest:
            raise StorageError(
                f"{path} is not the file that round {record.index} wrote; restore it, or delete {path.parent} and "
                "later rounds to train them again"
            )
        return path

    def _round(self, index: int) -> Path:
        return self.directory / "rounds" / f"{index:03d}"


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise StorageError(f"cannot read {path}: {error}") from error
    if not isinstance(content, dict):
        raise StorageError(f"{path} does not hold a run's settings")
    return content


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 120 else text[:117] + "..."
