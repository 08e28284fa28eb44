"""Who holds a lock: a process of a machine, told from every other one."""

import os
import socket
from contextlib import suppress
from dataclasses import astuple, dataclass
from functools import cache
from hashlib import sha256
from pathlib import Path
from secrets import token_hex
from typing import Self

STOPPED, ENDED = "tT", "ZX"  # states of a process in Linux's /proc


@dataclass(frozen=True)
class Holder:
    """Who holds a lock, as the name of its file says."""

    host: str
    pid: int
    started: int
    """When the process began, in ticks of its machine: a process that got the same id later began at another."""
    machine: str
    """A digest of the host's name, this start of it and the container: within one, a process id means one process."""
    token: str
    takeovers: int
    """How many holders before this one were gone without giving the lock back."""
    beat: int
    file: int = 0
    """The number of the lock's file on its file system: in a copy of the directory it is another; 0 if unknown."""

    @classmethod
    def here(cls, takeovers: int = 0, file: int = 0) -> Self:
        """Return this process, as a new holder."""
        host, pid = socket.gethostname(), os.getpid()
        plain = "".join(letter if letter.isalnum() or letter in "-." else "-" for letter in host)[:64]
        return cls(plain, pid, _process(pid)[1], _machine(host), token_hex(4), takeovers, 0, file)

    @classmethod
    def of(cls, name: str) -> Self:
        """Return the holder that a file's name says; raises `ValueError` for another name."""
        host, pid, started, machine, token, takeovers, beat, file = name.split(",")
        return cls(host, int(pid), int(started), machine, token, int(takeovers), int(beat), int(file))

    @property
    def name(self) -> str:
        """The name of the file while it is held so."""
        return ",".join(map(str, astuple(self)))

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}"

    def is_gone(self) -> bool:
        """Say whether the process is known to have ended; of another machine's, nothing is known."""
        if self.machine != _machine(socket.gethostname()):
            return False
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return True
        except PermissionError:
            return False  # another user's, so it is there
        state, started = _process(self.pid)
        return bool(state) and (state in ENDED or started != self.started)

    def is_at_work(self) -> bool:
        """Say whether the process is known to go on: on this machine, there, and not stopped."""
        if self.machine != _machine(socket.gethostname()) or self.is_gone():
            return False
        return _process(self.pid)[0] not in STOPPED


def _process(pid: int) -> tuple[str, int]:
    """Return state and start of a process, where the system tells it in Linux's way; else "" and 0."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
        return fields[0], int(fields[19])
    except (OSError, IndexError, ValueError):
        return "", 0


@cache
def _machine(host: str) -> str:
    """Return a digest of a host, its start and the container this process is in."""
    start, container = "", 0
    with suppress(OSError):
        start = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii")
    with suppress(OSError):
        container = Path("/proc/self/ns/pid").stat().st_ino
    return sha256(f"{host} {start} {container}".encode()).hexdigest()[:8]
