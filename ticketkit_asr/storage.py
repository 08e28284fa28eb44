"""Files that are whole or absent, and files that are read only when nothing is wrong with them."""

import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, TypeVar
from uuid import uuid4

from filelock import FileLock
from safetensors import SafetensorError

from ticketkit import StorageError

_log = logging.getLogger(__name__)

Loaded = TypeVar("Loaded")

DAMAGED = (SafetensorError, ValueError, OSError)
"""What reading a file raises that is missing, cut short, altered, or not what its name promises."""

PARTIAL = ".part"
"""Ends the name of a file that is still being written."""


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """Yield a new file that takes the place of `path` when all went well; otherwise nothing changes.

    Several processes may do so at once: the last one to finish wins. Raises `StorageError` when the file system
    refuses.
    """
    temporary = path.with_name(f".{path.name}.{uuid4().hex}{PARTIAL}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("xb+") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        raise StorageError(f"cannot write {path}: {error}; free some space or choose another folder") from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


@contextmanager
def made_by_one(path: Path) -> Iterator[None]:
    """Let one process at a time into the block that makes `path`; what writers left behind that were killed is removed.

    Raises `StorageError` when the folder cannot be written to.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        held = FileLock(path.with_name(f".{path.name}.lock")).acquire()
    except (OSError, NotImplementedError) as error:
        raise StorageError(f"cannot make {path}: {error}; choose another folder") from error
    with held:
        for unfinished in left_behind(path):
            unfinished.unlink(missing_ok=True)
        yield


def left_behind(path: Path) -> list[Path]:
    """Return the unfinished files of writers of `path` that were killed, or are still at it."""
    return sorted(path.parent.glob(f".{path.name}.*{PARTIAL}"))


def loaded(path: Path, load: Callable[[Path], Loaded]) -> Loaded | None:
    """Return what `load(path)` does, or None when there is no such file or it is `DAMAGED`, which is logged."""
    if not path.exists():
        return None
    try:
        return load(path)
    except DAMAGED as error:
        _log.warning("%s cannot be used (%s); making it again", path, error)
        return None
