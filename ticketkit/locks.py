"""Locks that several machines share: taken, kept and taken over by renaming, which a file server does one at a time.

A lock is a directory with one file in it, and the name of this file says who holds the lock: `free`, or a host, a
process and a count that the process raises every `BEAT` seconds. All that ever happens to a lock is that the file is
renamed, from exactly the name that was read. Of several who try, one succeeds; whoever acts on a name that is out of
date, be it from a cache of the file system, fails. So a holder that has raised its count cannot be robbed by one who
read the count before, and a holder that was robbed cannot raise its count, and knows.

A holder is gone when its process is, which only the same machine can see, or when its count has stood still for `LIMIT`
seconds of the clock of whoever looks: the clocks of two machines are never compared.
"""

import errno
import logging
import os
import shutil
import threading
import time
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from secrets import token_hex

from ticketkit.errors import StorageError
from ticketkit.holder import Holder
from ticketkit.storage import file_system_errors

BEAT = 10.0
"""Seconds between two signs of life of a holder."""
LIMIT = 60.0
"""Seconds without a sign of life after which a lock is taken over."""
LOOK = 0.05, 2.0
"""Seconds between two looks at a lock that is waited for: at first, and at most."""

FREE = "free"

logger = logging.getLogger(__name__)


class LostLockError(StorageError):
    """A lock was taken over by another process while this one was suspended or cut off from the file system."""


@dataclass(frozen=True)
class Signs:
    """Who holds a lock, for how many seconds, and how many seconds ago it last showed life, by the file server."""

    holder: Holder
    held: float
    silent: float


class Lock:
    """A lock at a path, which one process at a time can have; threads of one process need a `Lock` each."""

    def __init__(self, path: Path):
        self.path = Path(path)
        self._mine: Holder | None = None
        self._lost = False
        self._before: Holder | None = None
        self._seen: tuple[Holder, float] | None = None
        self._guard = threading.Lock()
        self._over = threading.Event()

    @property
    def is_held(self) -> bool:
        """Whether this object has taken the lock and not given it back; it may have lost it since."""
        return self._mine is not None

    @property
    def before(self) -> Holder | None:
        """The holder that this one took the lock over from, if it was not free."""
        return self._before

    @property
    def takeovers(self) -> int:
        """How many holders in a row were gone without giving the lock back before this one took it."""
        return self._mine.takeovers if self._mine else 0

    def acquire(self) -> bool:
        """Take the lock if it is free or its holder is gone, and say whether it was taken; do not wait.

        A holder of another machine is gone when calls over `LIMIT` seconds saw no sign of its life. Raises
        `StorageError` when the file system refuses.
        """
        if self.is_held:
            return False
        with file_system_errors(self.path):
            asked, found = time.monotonic(), self._read()
            other = self._holder(found)
            if other is not None and not self._is_over(other, asked):
                return False
            mine = self._take(found, other.takeovers + 1 if other else 0)
            if mine is None:
                return False
            with suppress(FileNotFoundError):
                os.utime(self.path / mine.name)  # by the file server's clock: since when it is held
        self._mine, self._before, self._lost, self._over = mine, other, False, threading.Event()
        threading.Thread(target=self._live, args=(self._over,), name=f"{self.path.name} lives", daemon=True).start()
        return True

    def wait(self) -> None:
        """Take the lock as soon as it can be had."""
        pause, longest = LOOK
        while not self.acquire():
            time.sleep(pause)
            pause = min(2 * pause, longest)

    def claim(self) -> Holder | None:
        """Take the lock, or return the holder that is alive: one of this machine at once, else at its next sign."""
        first: Holder | None = None
        while not self.acquire():
            other = self.holder()
            first = first or other
            if other is not None and (other.is_at_work() or other != first):
                return other
            time.sleep(LOOK[1] / 4)
        return None

    def check(self) -> None:
        """Raise `LostLockError` if the lock was held and is no more; ask before writing what the lock protects."""
        with self._guard, file_system_errors(self.path):
            if self._mine is None or (not self._lost and self._beat()):
                return
        raise LostLockError(
            f"{self.path} was taken over ({self.holder() or 'and is free again'}): this process gave no sign of life "
            f"for {LIMIT:g} s, suspended or cut off from the file system; it writes no more, the other goes on"
        )

    def forgive(self) -> None:
        """Forget the holders that were gone before this one, since what they died of is over."""
        with self._guard:
            if self._mine is not None and not self._lost:
                self._beat(takeovers=0)

    def release(self) -> None:
        """Give the lock back; if that fails, it is taken over in time."""
        with self._guard:
            mine, self._mine = self._mine, None
            self._over.set()
            if mine is not None and not self._lost:
                try:
                    os.rename(self.path / (self._still(mine) or mine).name, self.path / FREE)
                except (OSError, StorageError) as error:
                    logger.warning("%s was not given back: %s", self.path, error)

    def holder(self) -> Holder | None:
        """Return who holds the lock; None if it can be had."""
        with file_system_errors(self.path):
            asked, other = time.monotonic(), self._holder(self._read())
        return None if other is None or self._is_over(other, asked) else other

    def signs(self) -> Signs | None:
        """Return what is known of the holder; None if the lock can be had."""
        other = self.holder()
        if other is None:
            return None
        with file_system_errors(self.path):
            now = self._server_time()
            try:
                held, last = (self.path / other.name).stat().st_mtime, self.path.stat().st_mtime
            except FileNotFoundError:  # it has shown life since
                return self.signs()
        return Signs(other, max(0.0, now - held), max(0.0, now - last))

    def _read(self) -> str | None:
        """Return the name of the lock's file; None if there is no lock yet."""
        try:
            names = [name for name in os.listdir(self.path) if not name.startswith(".")]
        except FileNotFoundError:
            return None
        except NotADirectoryError as error:
            raise StorageError(f"{self.path} is a file, and a lock is a directory; delete this file") from error
        return names[0] if names else None

    def _holder(self, name: str | None) -> Holder | None:
        if name is None or name == FREE:
            return None
        try:
            return Holder.of(name)
        except ValueError as error:
            raise StorageError(f"{self.path} is a lock and {name!r} in it no holder; delete this file") from error

    def _is_over(self, other: Holder, asked: float) -> bool:
        """Say whether a holder is gone, as far as this object has watched it; note that it was seen.

        `asked` is the time before the look: while the file server is silent, nobody can show life.
        """
        if other.is_gone() or self._is_copied(other):
            return True
        if self._seen is None or self._seen[0] != other:
            self._seen = other, time.monotonic()
        return asked - self._seen[1] >= LIMIT

    def _is_copied(self, other: Holder) -> bool:
        """Say whether the lock came here with a copy of its directory: its holder holds the original."""
        try:
            return other.file not in (0, (self.path / other.name).stat().st_ino)
        except FileNotFoundError:  # it has shown life since, here
            return False

    def _take(self, found: str | None, takeovers: int) -> Holder | None:
        """Make this process the holder of a lock that was found so, and return it; None if another was faster."""
        if found is None:
            return self._create(Holder.here(takeovers))
        try:
            mine = Holder.here(takeovers, (self.path / found).stat().st_ino)
        except FileNotFoundError:
            return None
        return mine if self._rename(found, mine) else None

    def _rename(self, old: str, new: Holder) -> bool:
        """Give the file its new name, and say whether it had the old one."""
        try:
            os.rename(self.path / old, self.path / new.name)
        except FileNotFoundError:
            return (self.path / new.name).exists()  # NFS asks again when an answer is lost, after it was done
        return True

    def _create(self, new: Holder) -> Holder | None:
        """Make the lock as held by `new` and return that; None if one was there: a full directory is never replaced."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        draft = self.path.with_name(f".{self.path.name}.{new.token}")
        draft.mkdir()
        (draft / FREE).touch()
        new = replace(new, file=(draft / FREE).stat().st_ino)
        os.rename(draft / FREE, draft / new.name)
        try:
            os.rename(draft, self.path)
        except OSError as error:
            shutil.rmtree(draft, ignore_errors=True)
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOENT):
                raise
            return new if (self.path / new.name).exists() else None
        return new

    def _beat(self, takeovers: int | None = None) -> bool:
        """Raise the count, and say whether the lock is still held; call it under the guard."""
        if (mine := self._mine) is None:
            return False
        last: Holder | None = mine
        while last is not None:
            raised = replace(last, beat=last.beat + 1, takeovers=last.takeovers if takeovers is None else takeovers)
            if self._rename(last.name, raised):
                self._mine = raised
                return True
            found = self._still(mine)
            last = found if found != last else None
        self._lost = True
        return False

    def _still(self, mine: Holder) -> Holder | None:
        """Return this holder with the count that the file has: a signal may come before a renaming is noted."""
        found = self._holder(self._read())
        return found if found is not None and found.token == mine.token else None

    def _live(self, over: threading.Event) -> None:
        """Show life until the lock is given back or lost."""
        while not over.wait(BEAT):
            with self._guard:
                if over.is_set():
                    return
                try:
                    if not self._beat():
                        logger.warning("%s was taken over by another process", self.path)
                        return
                except OSError as error:
                    logger.warning("%s does not answer: %s", self.path, error)

    def _server_time(self) -> float:
        """Return the file server's time: that of a file that is made just now."""
        probe = self.path.with_name(f".now.{token_hex(4)}")
        probe.touch()
        try:
            return probe.stat().st_mtime
        finally:
            probe.unlink(missing_ok=True)
