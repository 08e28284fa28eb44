"""MP3 files looked at from outside: how many frames are there, and is the last one whole?

libsndfile reads a cut MP3 file short without an error, and guesses the length of one that does not tell it.
Layout: ISO 11172-3 and 13818-3 (Layer III), the Xing/Info frame as LAME and FFmpeg write it.
"""

import mmap
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

_KILOBITS_1 = (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320)
_KILOBITS_2 = (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160)
_RATES = (44_100, 48_000, 32_000)
_RATE_DIVISOR = {3: 1, 2: 2, 0: 4}  # MPEG 1, 2, 2.5
_LAYER_3 = 1
_TAGS = (b"TAG", b"APETAGEX", b"LYRICSBEGIN")
"""What may follow the last frame."""


@dataclass(frozen=True)
class MpegFacts:
    """What the frames of an MP3 file say."""

    frames: int
    """Whole frames of sound."""
    samples: int
    """Samples of a channel in these frames."""
    promised: int | None
    """The frames that the file says it has, where it says so."""
    ends_within_frame: bool
    """The file ends before its last frame does."""

    @property
    def cut(self) -> bool:
        """Whether some of the sound is missing."""
        return self.ends_within_frame or (self.promised is not None and self.frames < self.promised)


@dataclass(frozen=True)
class _Frame:
    start: int
    size: int
    samples: int


def mpeg_facts(path: Path) -> MpegFacts | None:
    """Return what the frames of a file say, or None when it is not Layer III from its first frame to its last."""
    stat = path.stat()
    return _facts_of(str(path), stat.st_size, stat.st_mtime_ns)


@lru_cache(maxsize=64)  # utterances of one long file follow each other
def _facts_of(path: str, size: int, _mtime: int) -> MpegFacts | None:
    if not size:
        return None
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        return facts_of(content)


def facts_of(content: "bytes | mmap.mmap") -> MpegFacts | None:
    """Return `mpeg_facts` of a file's content."""
    frames = list(_frames(content, _after_tag(content)))
    if not frames:
        return None
    end = frames[-1].start + frames[-1].size
    if end < len(content) and not _may_follow(content[end:]):
        return None
    first = content[frames[0].start : frames[0].start + frames[0].size]
    informs = _informs(first)
    whole = max(len(frames) - informs - (end > len(content)), 0)
    return MpegFacts(
        frames=whole,
        samples=whole * frames[0].samples,
        promised=_promised(first) if informs else None,
        ends_within_frame=end > len(content) or content[end : end + 1] == b"\xff",
    )


def _after_tag(content: "bytes | mmap.mmap") -> int:
    """Return where the ID3 tag at the start of a file ends."""
    if content[:3] != b"ID3" or len(content) < 10:
        return 0
    size = 0
    for seven_bits in content[6:10]:
        size = size << 7 | seven_bits
    return 10 + size


def _frames(content: "bytes | mmap.mmap", start: int) -> Iterator[_Frame]:
    """Yield the frames that follow each other without a gap; the last one may end after the file does."""
    while start + 4 <= len(content):
        frame = _frame(start, int.from_bytes(content[start : start + 4], "big"))
        if frame is None:
            return
        yield frame
        start += frame.size


def _frame(start: int, header: int) -> _Frame | None:
    """Return the frame with a header of 32 bits, or None when no Layer III frame has such a header."""
    version, layer = header >> 19 & 3, header >> 17 & 3
    kilobits, rate, padding = header >> 12 & 15, header >> 10 & 3, header >> 9 & 1
    if header >> 21 != 0x7FF or version == 1 or layer != _LAYER_3 or kilobits in (0, 15) or rate == 3:
        return None
    hertz = _RATES[rate] // _RATE_DIVISOR[version]
    bits = 1000 * (_KILOBITS_1 if version == 3 else _KILOBITS_2)[kilobits]
    samples = 1152 if version == 3 else 576
    return _Frame(start, samples // 8 * bits // hertz + padding, samples)


def _may_follow(rest: bytes) -> bool:
    """Return whether this may come after the last frame: a tag, zeros, or the first bytes of a header cut short."""
    return rest.startswith(_TAGS) or not rest.strip(b"\0") or (len(rest) < 4 and rest.startswith(b"\xff"))


def _informs(frame: bytes) -> bool:
    """Return whether a first frame holds no sound but facts about the rest."""
    return frame.find(b"Xing", 0, 64) >= 0 or frame.find(b"Info", 0, 64) >= 0


def _promised(frame: bytes) -> int | None:
    """Return the number of frames that a Xing or Info frame states."""
    at = max(frame.find(b"Xing", 0, 64), frame.find(b"Info", 0, 64)) + 4
    states_frames = frame[at + 3 : at + 4] and frame[at + 3] & 1
    return int.from_bytes(frame[at + 4 : at + 8], "big") if states_frames else None
