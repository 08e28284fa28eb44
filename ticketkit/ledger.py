"""The run directory: what a run is, what each finished round found, and everything needed to go on after a crash.

run.json                         what the run is; a run of another kind is refused
init.safetensors                 the snapshot of the state before the first round
rewind.safetensors               the snapshot that later rounds go back to, where that is another (rewind="step:500")
rounds/003/checkpoint.safetensors  the middle of round 3, as its loop last saved it; gone when the round is finished
rounds/003/ticket.safetensors    the mask of round 3 with its facts and metrics
rounds/003/trained.safetensors   the network at the end of round 3, from which the next mask is computed
rounds/003/record.json           the record; written last: a round without it never happened
held/                            the lock of the process that works here

A record names its files and the record before it by their SHA-256, and carries its own: whatever was changed is found.
"""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, ValidationError

from ticketkit.distributed import not_joined, once, rank
from ticketkit.errors import ConfigError, StorageError
from ticketkit.locks import Lock
from ticketkit.snapshot import Snapshot
from ticketkit.storage import PARTIAL, canonical_json, file_digest, text_digest, write_text_atomically
from ticketkit.ticket import Ticket

FORMAT = 2
INIT, REWIND = "init.safetensors", "rewind.safetensors"
CHECKPOINT, TICKET, TRAINED = "checkpoint.safetensors", "ticket.safetensors", "trained.safetensors"


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
    snapshots: dict[str, str] = {}
    """SHA-256 of the files of the run that later rounds go back to."""
    rewound: tuple[str, ...] = ()
    """The parts of the contract that go back before each pruned round."""
    parent: str | None = None
    """The digest of the record before this one."""
    digest: str | None = None
    """SHA-256 of this record without this field; there once the round is committed."""

    @property
    def density(self) -> float:
        """Kept weights as a share of the scope."""
        return self.kept / self.total

    @property
    def model_density(self) -> float:
        """Weights not pruned as a share of the whole model, out-of-scope parameters included."""
        return (self.model_total - self.total + self.kept) / self.model_total

    def sealed(self, parent: str | None) -> Self:
        """Return the record with the digest of the one before it and its own."""
        linked = self.model_copy(update={"parent": parent, "digest": None})
        return linked.model_copy(update={"digest": linked._content_digest()})

    def is_intact_after(self, parent: str | None) -> bool:
        """Say whether the record is as it was sealed, behind the record with the digest `parent`."""
        return self.parent == parent and self.digest == self.model_copy(update={"digest": None})._content_digest()

    def _content_digest(self) -> str:
        return text_digest(self.model_dump_json())

    @property
    def emptiest(self) -> tuple[str, float]:
        """The parameter in scope with the smallest share of its weights left, and that share."""
        return min(self.densities.items(), key=lambda item: item[1])


class Ledger:
    """The rounds of one run in one directory, written atomically and used by one process, or one group, at a time.

    In a process group rank 0 writes, the others wait for it and read.
    """

    def __init__(self, directory: Path):
        self.directory = Path(directory)
        self._lock = Lock(self.directory / "held")

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the directory; raises `StorageError` if another process does or the directory cannot be made.

        A process that loses it, since it was suspended for long, gets a `LostLockError` before it writes again.
        """
        once(self._acquire)
        try:
            once(self._remove_leftovers)
            yield
        finally:
            if rank() == 0:
                self._lock.release()

    def _acquire(self) -> None:
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StorageError(f"cannot use {self.directory} as a run directory: {error}") from error
        if other := self._lock.claim():
            way_out = not_joined() or "wait for it or choose another"
            raise StorageError(f"another process is working in {self.directory}: {other}; {way_out}")

    def _remove_leftovers(self) -> None:
        """Delete what a process that was killed here left behind: unfinished files, middles of finished rounds."""
        for leftover in [*self.directory.glob(f".*{PARTIAL}"), *self.directory.glob(f"rounds/*/.*{PARTIAL}")]:
            leftover.unlink(missing_ok=True)
        for record in self.directory.glob("rounds/*/record.json"):
            (record.parent / CHECKPOINT).unlink(missing_ok=True)

    def identify(self, identity: Mapping[str, Any]) -> None:
        """Note what the run is, or raise `ConfigError` listing every setting on which the directory's run differs."""
        once(lambda: self._identify(identity))

    def _identify(self, identity: Mapping[str, Any]) -> None:
        path = self.directory / "run.json"
        wanted = json.loads(canonical_json({"format": FORMAT, **identity}))
        if not path.exists():
            self._lock.check()
            write_text_atomically(path, canonical_json(wanted))
            return
        found = _read_json(path)
        if found != wanted and not [*self._round_files("record.json"), *self._round_files(CHECKPOINT)]:
            for name in (REWIND, INIT):  # nothing was trained here yet that other settings could spoil
                (self.directory / name).unlink(missing_ok=True)
            write_text_atomically(path, canonical_json(wanted))
            return
        differing = [key for key in sorted(wanted.keys() | found.keys()) if wanted.get(key) != found.get(key)]
        if differing:
            lines = [f"{key}: there {_short(found.get(key))}, here {_short(wanted.get(key))}" for key in differing]
            raise ConfigError(
                f"{self.directory} holds a run of another configuration; choose another directory, or the same "
                "settings:\n  " + "\n  ".join(lines)
            )

    def snapshot(self, name: str = INIT) -> Snapshot | None:
        """Return the run's snapshot of that name (`INIT` or `REWIND`), mapped into memory, if it was taken."""
        path = self.directory / name
        return Snapshot.load(path) if path.exists() else None

    def keep_snapshot(self, snapshot: Snapshot, name: str = INIT) -> None:
        """Write a snapshot of the run."""
        collected = snapshot.collected()
        once(lambda: self._save(collected, self.directory / name))

    def checkpoint(self, index: int) -> Snapshot | None:
        """Return the middle of an unfinished round, as it was last saved, if it was."""
        path = self._round(index) / CHECKPOINT
        return Snapshot.load(path) if path.exists() else None

    def keep_checkpoint(self, index: int, snapshot: Snapshot) -> None:
        """Write the middle of a round, in place of the one before."""
        collected = snapshot.collected()
        once(lambda: self._save(collected, self._round(index) / CHECKPOINT))

    def _save(self, snapshot: Snapshot, path: Path) -> None:
        self._lock.check()
        snapshot.save(path)

    def records(self) -> list[RoundRecord]:
        """Return the records of the finished rounds, in order, without a gap."""
        records: list[RoundRecord] = []
        while (path := self._round(len(records)) / "record.json").exists():
            again = f"delete {path.parent} and later rounds to train them again"
            try:
                record = RoundRecord.model_validate_json(path.read_bytes())
            except (OSError, ValidationError) as error:
                faults = error.error_count() if isinstance(error, ValidationError) else error
                raise StorageError(f"{path} is damaged ({faults} faults); {again}") from error
            if record.index != len(records) or not record.is_intact_after(records[-1].digest if records else None):
                raise StorageError(
                    f"{path} is not the record that round {len(records)} wrote after the one before it; {again}"
                )
            records.append(record)
        if beyond := [path for path in self._round_files("record.json") if int(path.parent.name) > len(records)]:
            raise StorageError(
                f"{self._round(len(records))} has vanished, but {beyond[0].parent} is there; restore it, or delete the "
                "later rounds to train them again"
            )
        return records

    def commit(self, ticket: Ticket, trained: Snapshot, record: RoundRecord) -> RoundRecord:
        """Write a finished round after the one before it, its record last; return the record with all digests."""
        collected = trained.collected()
        return once(lambda: self._commit(ticket, collected, record))

    def _commit(self, ticket: Ticket, trained: Snapshot, record: RoundRecord) -> RoundRecord:
        before = self.records()[: record.index]
        if len(before) < record.index:
            raise StorageError(f"{self.directory} lacks round {len(before)}; round {record.index} cannot follow on it")
        folder = self._round(record.index)
        self._lock.check()
        ticket.save(folder / TICKET)
        trained.save(folder / TRAINED)
        files = {"ticket_file": file_digest(folder / TICKET), "trained_file": file_digest(folder / TRAINED)}
        snapshots = {name: file_digest(path) for name in (INIT, REWIND) if (path := self.directory / name).exists()}
        complete = record.model_copy(update={**files, "snapshots": snapshots}).sealed(
            before[-1].digest if before else None
        )
        self._lock.check()
        write_text_atomically(folder / "record.json", complete.model_dump_json(indent=1))
        (folder / CHECKPOINT).unlink(missing_ok=True)
        return complete

    def ticket_path(self, record: RoundRecord) -> Path:
        """Return where the ticket of a round is."""
        return self._round(record.index) / TICKET

    def ticket(self, record: RoundRecord) -> Ticket:
        """Return the ticket of a finished round; raises `StorageError` if the file is not the one that was written."""
        return Ticket.load(self._verified(record, TICKET, record.ticket_file))

    def trained(self, record: RoundRecord) -> Snapshot:
        """Return the network at the end of a finished round, verified likewise."""
        return Snapshot.load(self._verified(record, TRAINED, record.trained_file))

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

    def check_snapshots(self) -> None:
        """Raise `StorageError` if a snapshot is not the one that the last finished round saw."""
        records = self.records()
        for name, digest in records[-1].snapshots.items() if records else ():
            path = self.directory / name
            if not path.exists():
                raise StorageError(f"{path} has vanished; later rounds go back to it, so start the run anew elsewhere")
            if file_digest(path) != digest:
                raise StorageError(f"{path} is not the file that this run wrote; restore it, or start anew elsewhere")

    def _round_files(self, name: str) -> list[Path]:
        return sorted(self.directory.glob(f"rounds/*/{name}"))

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
