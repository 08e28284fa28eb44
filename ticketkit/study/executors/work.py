"""What executors are: they start workers of a study on some machine, and say what became of them."""

import signal
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from ticketkit.plugins import Plugins
from ticketkit.study.config import Kind
from ticketkit.study.directory import StudyDirectory
from ticketkit.study.grids import jobs
from ticketkit.study.worker import work


@dataclass(frozen=True)
class Work:
    """What every worker of a study does: all jobs of some of its studies that it can have, one after another."""

    study: Path
    kinds: tuple[Kind, ...]
    threads: int
    """Of each run: what a worker needs of a machine at least."""
    plugins: tuple[Path, ...] = ()
    """Plugins in single files."""

    def __call__(self) -> None:
        """Do it here; return when nothing is left that can be begun."""
        plugins = Plugins.discover()
        for path in self.plugins:
            plugins.add_file(path)
        study = StudyDirectory(self.study)
        config = study.config()
        work(study, jobs(config, self.kinds), plugins, threads=config.threads, stay=False, say=_say)

    @property
    def command(self) -> list[str]:
        """The command that does it in a process of its own, and waits for what other workers are at."""
        options = [option for path in self.plugins for option in ("--plugin", str(path))]
        return [sys.executable, "-m", "ticketkit", "study", "work", str(self.study), *self.kinds, *options]


class Worker(Protocol):
    """A worker that was started; as a string, what it is called where it runs."""

    def ended(self) -> str | None:
        """Return what ended it early, "" if nothing was left to begin, None while it goes on."""

    def stop(self) -> None:
        """Make it leave; what it is at goes on from its last epoch, if its trainer saves the middle of a round."""


class Executor(Protocol):
    """A way to start workers."""

    def start(self, work: Work, count: int) -> Sequence[Worker]:
        """Return workers that have been started, or wait for room; raises `RunError` if that is refused."""


class _Leave(BaseException):
    """A worker was told to leave."""


def until_told(work: Callable[[], None], *numbers: signal.Signals) -> bool:
    """Work until it is done or one of these signals comes, and say whether one came; what is held is given back."""

    def leave(number: int, frame: object) -> None:
        raise _Leave

    before = {number: signal.signal(number, leave) for number in numbers}
    try:
        work()
    except _Leave:
        return True
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    return False


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()
