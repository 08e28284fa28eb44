"""The directory of a study: where everything is, and what has been done in it.

study.json                  the config; a directory holds one study
runs/<id>/                  a run directory as `ticketkit run` makes them, for each job
runs/<id>/examinations/     what each test condition says of its rounds, example by example
runs/<id>/start.safetensors, weights.safetensors   what the run takes from another
trainings/<digest>.json     which round of which run a training was done in, so that it is done once
failures/<id>.json          why a run failed last
locks/<id>/                 the lock of the process at work on a run
report.html, report.md, *.csv
"""

import json
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ticketkit.errors import ConfigError, StorageError
from ticketkit.ledger import Ledger
from ticketkit.locks import Lock
from ticketkit.results import RESULTS_FILE
from ticketkit.storage import file_system_errors, write_text_atomically
from ticketkit.study.config import StudyConfig, parse_study
from ticketkit.study.examinations import is_examined
from ticketkit.study.jobs import Job

CONFIG_FILE = "study.json"


@dataclass(frozen=True)
class Failure:
    """Why a run failed."""

    error: str
    traceback: str


@dataclass(frozen=True)
class StudyDirectory:
    """One study's directory."""

    path: Path
    _locks: dict[str, Lock] = field(default_factory=dict, compare=False, repr=False)
    """Of each job that was looked at: a lock remembers what it has seen of its holder."""

    def claim(self, config: StudyConfig) -> None:
        """Write the config; raise `ConfigError` if another study, whose runs would not fit, is there."""
        found = self._read() if self.exists() else None
        wanted = config.model_dump(mode="json")  # in the config's own order, which is that of the report
        if found is not None and any(found.get(key) != wanted[key] for key in ("base", "threads")):
            raise ConfigError(f"{self.path} holds a study with another base; choose another --out")
        if json.dumps(found) != json.dumps(wanted):
            write_text_atomically(self.path / CONFIG_FILE, json.dumps(wanted, indent=1))

    def exists(self) -> bool:
        """Say whether there is a study here."""
        return (self.path / CONFIG_FILE).exists()

    def config(self) -> StudyConfig:
        """Return the study's config; raises `ConfigError` if there is none."""
        if not self.exists():
            raise ConfigError(f"{self.path} holds no study ({CONFIG_FILE} is missing); start one with: ticketkit study")
        try:
            return parse_study(self._read())
        except ConfigError as error:
            raise ConfigError(f"{self.path / CONFIG_FILE}: {error}") from error

    def run(self, run_id: str) -> Path:
        """Return the directory of a run."""
        return self.path / "runs" / run_id

    def ledger(self, run_id: str) -> Ledger:
        """Return the ledger of a run."""
        return Ledger(self.run(run_id))

    def is_done(self, job: Job) -> bool:
        """Say whether a job's rounds are all trained and tested under all its conditions."""
        directory = self.run(job.id)
        return (directory / RESULTS_FILE).exists() and all(
            is_examined(directory, name, test) for name, test in job.tests.items()
        )

    def failure(self, job: Job) -> Failure | None:
        """Return why a job failed last, if it did."""
        path = self._failure(job)
        if not path.exists():
            return None
        try:
            return Failure(**_read(path))
        except TypeError as error:
            raise StorageError(f"{path} is damaged ({error}); delete it to write it again") from error

    def note_failure(self, job: Job, error: Exception) -> None:
        """Write down why a job failed."""
        facts = {"error": f"{type(error).__name__}: {error}", "traceback": "".join(traceback.format_exception(error))}
        write_text_atomically(self._failure(job), json.dumps(facts, indent=1))

    def forget_failure(self, job: Job) -> None:
        """Forget that a job failed: it is tried again."""
        path = self._failure(job)
        with file_system_errors(path):
            if path.exists():
                path.unlink(missing_ok=True)

    @contextmanager
    def taken(self, job: Job) -> Iterator[Lock | None]:
        """Hold a job inside the block; the value is its lock, or None if another process is at work on it."""
        lock = self.lock(job)
        if not lock.acquire():
            yield None
            return
        try:
            yield lock
        finally:
            lock.release()

    def lock(self, job: Job) -> Lock:
        """Return the lock of a job, always the same object."""
        return self._locks.setdefault(job.id, Lock(self.path / "locks" / job.id))

    def is_taken(self, job: Job) -> bool:
        """Say whether a process is at work on a job."""
        return self.lock(job).holder() is not None

    def _failure(self, job: Job) -> Path:
        return self.path / "failures" / f"{job.id}.json"

    def _read(self) -> Mapping[str, Any]:
        return _read(self.path / CONFIG_FILE)


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise StorageError(f"{path} cannot be read: {error}; delete it to write it again") from error
    if not isinstance(content, dict):
        raise StorageError(f"{path} is damaged; delete it to write it again")
    return content
