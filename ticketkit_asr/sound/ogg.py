"""Ogg files looked at from outside: does the last page end the stream, is it whole, and where does it begin?

libsndfile says nothing, or stops at the last whole page, when a file is cut short. Layout: RFC 3533.
"""

import mmap
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

_HEADER = 27
_FLAGS = 5
_ENDS_STREAM = 4
_POSITION = slice(6, 14)
_SEGMENTS = 26


@dataclass(frozen=True)
class OggFacts:
    """What the pages of an Ogg file say."""

    lacking: str | None
    """What shows that the file is cut short, if anything does."""
    last_page: int
    """The position at which the sound of the last page begins, in samples as the codec counts them."""


def ogg_facts(path: Path) -> OggFacts:
    """Return what the pages of a file say."""
    stat = path.stat()
    return _facts_of(str(path), stat.st_size, stat.st_mtime_ns)


@lru_cache(maxsize=64)  # utterances of one long file follow each other
def _facts_of(path: str, size: int, _mtime: int) -> OggFacts:
    if not size:
        return facts_of(b"")
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        return facts_of(content)


def facts_of(content: "bytes | mmap.mmap") -> OggFacts:
    """Return `ogg_facts` of a file's content."""
    start, ended, page = 0, False, 0
    position = before = 0
    while content[start : start + 4] == b"OggS":
        page += 1
        end = _end(content, start)
        if end is None or end > len(content):
            return OggFacts(f"its page {page} is not whole", position)
        header = content[start : start + _HEADER]
        ended = bool(header[_FLAGS] & _ENDS_STREAM)
        position, before = max(int.from_bytes(header[_POSITION], "little", signed=True), position), position
        start = end
    return OggFacts(None if ended else "its last page does not end the stream", before)


def _end(content: "bytes | mmap.mmap", start: int) -> int | None:
    """Return where the page that begins at `start` should end, or None when its header is not all there."""
    header = content[start : start + _HEADER]
    if len(header) < _HEADER:
        return None
    segments = content[start + _HEADER : start + _HEADER + header[_SEGMENTS]]
    return start + _HEADER + len(segments) + sum(segments) if len(segments) == header[_SEGMENTS] else None
