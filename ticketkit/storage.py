"""Files that are either whole or absent, JSON with one spelling, and SHA-256 digests."""

import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ticketkit.errors import StorageError

PARTIAL = ".partial"  # ends the name of a file that is still being written


def canonical_json(value: Any) -> str:
    """Return the one spelling of a JSON value: sorted keys, no spaces, no NaN.

    >>> canonical_json({"b": 1, "a": [0.2]})
    '{"a":[0.2],"b":1}'
    """
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write(temporary)` produce a file beside `path`, flush it to disk, then rename it into place.

    A crash, a full disk or an exception leaves the previous file as it was and no temporary file behind.
    Raises `StorageError` naming the path when the file system refuses.
    """
    path = Path(path)
    with file_system_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=PARTIAL)
        os.close(handle)
        temporary = Path(name)
        try:
            write(temporary)
            temporary.chmod(0o666 & ~_umask())
            _flush(temporary)
            temporary.replace(path)
            _flush(path.parent)
        finally:
            temporary.unlink(missing_ok=True)


def write_text_atomically(path: Path, text: str) -> None:
    """Write `text` as UTF-8 so that `path` holds all of it or what it held before."""
    write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def file_digest(path: Path) -> str:
    """Return the SHA-256 of a file as 64 hexadecimal digits."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def text_digest(text: str) -> str:
    """Return the SHA-256 of a text's UTF-8 bytes as 64 hexadecimal digits."""
    return hashlib.sha256(text.encode()).hexdigest()


@contextmanager
def file_system_errors(path: Path) -> Iterator[None]:
    """Turn what the file system (or the safetensors writer) raises into a `StorageError` that names the file."""
    from safetensors import SafetensorError

    try:
        yield
    except (OSError, SafetensorError) as error:
        raise StorageError(
            f"cannot write {path}: {error}. The previous file, if there was one, is intact; "
            "free some space or choose another directory, then run again"
        ) from error


def _flush(path: Path) -> None:
    """Force a file's or a directory's content to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
