"""Manifests: JSON lines that say which stretch of which file is an utterance, and what is said in it.

One line: {"id": "a-1", "path": "a.flac", "start": 0.0, "duration": 2.5, "text": "...", "speaker": "ann"}, and where
wanted "channel" (a number from 0, or "mix"), "lang", "sha256" (of the file). Paths are absolute, or relative to the
manifest. Lines as NeMo writes them (audio_filepath, offset, duration, text) are read as well.
"""

import json
import reprlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields
from functools import cache
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from ticketkit import DataError
from ticketkit_asr.storage import replacing

UNKNOWN_SPEAKER = "unknown"
"""The speaker of lines that do not name one."""

_Text = Annotated[str, Field(strict=True)]
_Name = Annotated[str, Field(strict=True, min_length=1)]
_Start = Annotated[float, Field(strict=True, ge=0, allow_inf_nan=False)]
_Duration = Annotated[float, Field(strict=True, gt=0, allow_inf_nan=False)]


@dataclass(frozen=True, slots=True)
class Line:
    """One utterance of a manifest."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    id: _Name
    path: _Name
    text: _Text
    speaker: _Name = UNKNOWN_SPEAKER
    start: _Start = 0.0
    """Seconds into the file."""
    duration: _Duration | None = None
    """Seconds; to the end of the file when not given."""
    channel: Annotated[int, Field(strict=True, ge=0)] | Literal["mix"] | None = None
    lang: _Text | None = None
    sha256: Annotated[str, Field(strict=True, pattern=r"^[0-9a-f]{64}$")] | None = None
    """Digest of the file when the manifest was written, so that the corpus is known without looking at its files."""


_FIELDS = tuple(field.name for field in fields(Line))


class _NemoLine(BaseModel):
    """A line as NeMo writes it; it may hold much else, so a misspelt name goes unseen: the duration is required."""

    model_config = ConfigDict(extra="ignore", strict=True)

    audio_filepath: _Name
    duration: _Duration
    text: str
    offset: _Start = 0.0
    speaker: str | int | None = None
    lang: str | None = None

    def line(self) -> Line:
        """Return the line in our words; its id is the path, with the offset where there is one."""
        at = f"@{self.offset!r}" if self.offset else ""
        return Line(
            id=f"{self.audio_filepath}{at}",
            path=self.audio_filepath,
            text=self.text,
            speaker=UNKNOWN_SPEAKER if self.speaker in (None, "") else str(self.speaker),
            start=self.offset,
            duration=self.duration,
            lang=self.lang,
        )


def read_manifest(path: Path) -> list[Line]:
    """Return the lines of a manifest, blank ones apart, with the paths as they are written there.

    Raises `DataError` naming every bad line by its number and fault: not JSON, a field that is missing, unknown, of the
    wrong kind or out of range, an id used before. Also when the file cannot be read, or holds no utterance.
    """
    faults: list[str] = []
    lines: list[Line] = []
    first_use: dict[str, int] = {}
    for number, raw in _raw_lines(path):
        try:
            line = parse_line(raw)
        except ValueError as error:
            faults.append(f"line {number}: {_said(error)}")
            continue
        if first_use.setdefault(line.id, number) != number:
            faults.append(f"line {number}: id {line.id!r} was used in line {first_use[line.id]}")
        lines.append(line)
    if faults:
        raise DataError(f"manifest {path} has {len(faults)} bad lines: " + "; ".join(faults))
    if not lines:
        raise DataError(f"manifest {path} holds no utterance; write one JSON object a line")
    return lines


def parse_line(raw: bytes | str) -> Line:
    """Return a line of JSON as a `Line`; raises `ValueError` saying what is wrong with it.

    >>> parse_line('{"audio_filepath": "a.wav", "offset": 1.5, "duration": 2, "text": "hi"}').id
    'a.wav@1.5'
    """
    content = json.loads(raw)
    if not isinstance(content, dict):
        raise ValueError(f"a JSON object is needed, {type(content).__name__} came")
    if "audio_filepath" in content:
        return _NemoLine.model_validate(content).line()
    return _adapter().validate_python(content)


def write_manifest(path: Path, lines: Iterable[Line]) -> None:
    """Write the lines, one at a time; the file is whole or as it was before. Equal lines give equal bytes.

    Raises `StorageError` when the file system refuses.
    """
    with replacing(path) as file:
        for line in lines:
            file.write(line_bytes(line))


def line_bytes(line: Line) -> bytes:
    """Return the one spelling of a line: sorted keys, no spaces, UTF-8, nothing for what is None, a line feed."""
    content = {name: value for name in _FIELDS if (value := getattr(line, name)) is not None}
    spelt = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return spelt.encode() + b"\n"


@cache
def _adapter() -> TypeAdapter[Line]:
    return TypeAdapter(Line)


def _raw_lines(path: Path) -> Iterator[tuple[int, bytes]]:
    try:
        with path.open("rb") as file:
            for number, raw in enumerate(file, start=1):
                if raw.strip():
                    yield number, raw
    except OSError as error:
        raise DataError(f"manifest {path} cannot be read: {error}") from error


def _said(error: ValueError) -> str:
    """Return in one line what is wrong."""
    if isinstance(error, ValidationError):
        return ", ".join(_field_fault(dict(fault)) for fault in error.errors(include_url=False))
    if isinstance(error, UnicodeDecodeError):
        return f"not UTF-8 ({error.reason} at byte {error.start})"
    if isinstance(error, json.JSONDecodeError):
        return f"not JSON ({error.msg} at character {error.pos + 1})"
    return str(error)


def _field_fault(fault: dict[str, Any]) -> str:
    name = ".".join(str(part) for part in fault["loc"][:1])
    if fault["type"] == "missing":
        return f"{name} is missing"
    if fault["type"] in ("unexpected_keyword_argument", "extra_forbidden"):
        return f"{name} is unknown"
    return f"{name}: {fault['msg']}, got {reprlib.repr(fault['input'])}"
