"""STM, the segment time marks of NIST: one line for each segment of a recording, with who speaks and what is said."""

import re
from dataclasses import dataclass
from pathlib import Path

from ticketkit import DataError
from ticketkit_asr.corpora.folders import text_lines

_SEGMENT = re.compile(
    r"(?P<recording>\S+)\s+(?P<channel>\S+)\s+(?P<speaker>\S+)\s+(?P<start>\d+(?:\.\d*)?)\s+(?P<end>\d+(?:\.\d*)?)"
    r"(?:\s+(?P<label><[^>]*>))?(?:\s+(?P<text>.*))?"
)


@dataclass(frozen=True)
class Segment:
    """A line of an STM file."""

    recording: str
    speaker: str
    start: float
    """Seconds."""
    end: float
    """Seconds."""
    text: str


def read_stm(path: Path) -> list[Segment]:
    """Return the segments of a file, comments (;;) apart, in the order of the file.

    A line is `recording channel speaker start end <label> text`; label and text may be missing. Raises `DataError`
    naming every odd line by its number.
    """
    segments, odd = [], []
    for number, line in text_lines(path):
        if line.lstrip().startswith(";;"):
            continue
        if match := _SEGMENT.fullmatch(line.strip()):
            start, end = float(match["start"]), float(match["end"])
            segments.append(Segment(match["recording"], match["speaker"], start, end, (match["text"] or "").strip()))
        else:
            odd.append(str(number))
    if odd:
        raise DataError(
            f"{path} should hold lines 'recording channel speaker start end <label> text'; odd are lines "
            f"{', '.join(odd)}"
        )
    return segments
