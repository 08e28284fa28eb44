"""The peak memory of a job in a process of its own (Linux).

What counts is anonymous memory: all that the process has written itself, whoever allocated it, torch, NumPy or Python.
Pages of mapped files do not count: the kernel has them on disk and takes them back when it needs room. In the child,
malloc returns every block above 64 kB as soon as it is freed, so that the figure is what is alive and not what an
allocator keeps for later. The parent, on a core of its own, reads the kernel's count over and over while the child is
inside `with gauge:`. It is good to a megabyte: a peak of less than some 20 µs can be missed, but writing a megabyte
takes longer, and the kernel adds pages up in small batches.
"""

import ctypes
import os
import time
from collections.abc import Callable
from mmap import ACCESS_READ, mmap
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Self

from processes import started

PAGE = os.sysconf("SC_PAGE_SIZE")
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of glibc's mallopt


class Gauge:
    """The child's end: `zero` sets the level to measure from, `with gauge:` encloses what is measured."""

    def __init__(self, pipe: Connection):
        self._pipe = pipe

    def zero(self) -> None:
        """Measure from the memory in use now."""
        self._say("zero")

    def __enter__(self) -> Self:
        self._say("start")
        return self

    def __exit__(self, *_: object) -> None:
        self._say("stop")

    def _say(self, word: str) -> None:
        self._pipe.send(word)
        self._pipe.recv()


def available() -> bool:
    """Say whether this system counts as the gauge needs it."""
    return Path("/proc/self/statm").exists()


def peak_bytes(job: Callable[..., None], *arguments: Any) -> int:
    """Return by how much memory rose above its zero, at most, while `job(gauge, *arguments)` was inside the gauge."""
    child, pipe = started(_work, job, arguments)
    try:
        with Path(f"/proc/{child.pid}/statm").open("rb", buffering=0) as statm:
            return _watch(pipe, statm.fileno())
    except EOFError:
        raise RuntimeError(
            f"{job.__name__}{arguments} ended before it was measured; its own message is above"
        ) from None
    finally:
        pipe.close()
        child.join()


def _watch(pipe: Connection, statm: int) -> int:
    zero = highest = 0
    while (word := pipe.recv()) != "stop":
        if word == "zero":
            zero = _anonymous(statm)
        pipe.send(None)
        if word == "start":
            while not pipe.poll():
                highest = max(highest, *(_anonymous(statm) for _ in range(32)))
    pipe.send(None)
    return highest - zero


def _anonymous(statm: int) -> int:
    """Return the resident bytes that belong to no file: the second field of /proc/<pid>/statm without the third."""
    _, resident, of_files, *_ = os.pread(statm, 200, 0).split()
    return PAGE * (int(resident) - int(of_files))


def _work(pipe: Connection, job: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    malloc = ctypes.CDLL(None)
    malloc.mallopt(M_MMAP_THRESHOLD, 1 << 16)
    malloc.mallopt(M_TRIM_THRESHOLD, 0)
    job(Gauge(pipe), *arguments)


def fill(gauge: Gauge, size: int, mapped: str | None = None) -> None:
    """Write and hold `size` bytes of memory, or read a file of that size: what the gauge itself is tested with."""
    gauge.zero()
    with gauge:
        if mapped is None:
            held = bytearray(b"x") * size
            time.sleep(0.2)  # until a parent on a busy machine has had its turn to look
            del held
        else:
            with Path(mapped).open("rb") as file, mmap(file.fileno(), size, access=ACCESS_READ) as content:
                content.find(b"x")
