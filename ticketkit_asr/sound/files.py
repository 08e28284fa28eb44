"""Sound files: opened only when they are whole, and said what is wrong with them when they are not."""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ticketkit_asr.errors import BadAudioError
from ticketkit_asr.extras import require
from ticketkit_asr.sound.mpeg import mpeg_facts
from ticketkit_asr.sound.ogg import ogg_facts

_CUT_SHORT = re.compile(r"^data *: (\d+) \(should be (\d+)\)", re.MULTILINE)
"""What libsndfile notes of a WAV file that ends before its header says; it then reports the frames that are there."""

_LENGTH_UNKNOWN = 0x7FFFF000
"""Lengths from here on are what programs write that stream a WAV file and do not know yet."""

_SPHERE_SAMPLES = re.compile(rb"^sample_count -i (\d+)\s*$", re.MULTILINE)
_SPHERE_HEADER_BYTES = 1024

_FRAMES_UNKNOWN = 2**62
"""libsndfile's count of frames from here on means: the header does not tell (a streamed FLAC file)."""


class Fault(StrEnum):
    """What can be wrong with a sound file, or with a stretch of it."""

    MISSING = "missing file"
    UNREADABLE = "unreadable"
    CUT = "cut short"
    EMPTY = "no samples"
    CHANNELS = "several channels"
    RATE = "another sample rate"
    BEYOND = "beyond the end of the file"
    NOT_FINITE = "NaN or infinite samples"


class FaultyAudioError(BadAudioError):
    """One sound file, or a stretch of it, cannot be used; `fault` says which kind of fault it is."""

    def __init__(self, fault: Fault, message: str) -> None:
        super().__init__(message)
        self.fault = fault


@dataclass(frozen=True)
class SoundFacts:
    """What the header of a sound file says, and its frames where that cannot be trusted."""

    sample_rate: int
    channels: int
    samples: int
    """Samples of one channel."""


@contextmanager
def opened(path: Path) -> Iterator[Any]:
    """Yield an open `soundfile.SoundFile` that shows no sign of being cut short and holds samples.

    Raises `FaultyAudioError` naming the file, here and for what libsndfile raises while it is read.
    """
    soundfile = require("soundfile", extra="asr")
    try:
        if os.path.exists(path) and not path.is_file():  # a pipe would be waited for
            what = "a folder" if path.is_dir() else "no regular file"
            raise FaultyAudioError(Fault.UNREADABLE, f"{path} cannot be read as audio: it is {what}; name a sound file")
        with soundfile.SoundFile(path) as file:
            _check_whole(path, file)
            yield file
    except (soundfile.SoundFileError, OSError) as error:
        if not os.path.exists(path):
            raise FaultyAudioError(Fault.MISSING, f"{path} cannot be read as audio: there is no such file") from error
        if not path.stat().st_size:
            raise FaultyAudioError(Fault.EMPTY, f"{path} cannot be read as audio: it holds no samples") from error
        raise FaultyAudioError(Fault.UNREADABLE, f"{path} cannot be read as audio: {error}") from error


def sound_facts(path: Path) -> SoundFacts:
    """Return sample rate, channels and length of a file, without decoding it; raises `FaultyAudioError` naming it."""
    with opened(path) as file:
        return SoundFacts(file.samplerate, file.channels, sound_length(path, file))


def sound_length(path: Path, file: Any) -> int:
    """Return the samples of a channel in an opened file; of an MP3 that does not tell, those that its frames hold."""
    facts = mpeg_facts(path) if file.format == "MP3" else None
    return facts.samples if facts and facts.promised is None else int(file.frames)


def check_finite(path: Path, samples: NDArray[np.float32]) -> None:
    """Raise `FaultyAudioError` naming the file and the first sample that is NaN or infinite, if there is one."""
    finite = np.isfinite(samples)
    if not finite.all():
        first = int(np.argmin(finite))
        raise FaultyAudioError(
            Fault.NOT_FINITE,
            f"{path} holds {samples.size - finite.sum()} samples that are NaN or infinite; the first at {first}",
        )


def _check_whole(path: Path, file: Any) -> None:
    """Raise `FaultyAudioError` when an opened file is cut short, empty, or of unknown length."""
    if lacking := _lacking(path, file):
        raise FaultyAudioError(Fault.CUT, f"{path} is cut short: {lacking}")
    if file.frames >= _FRAMES_UNKNOWN:
        raise FaultyAudioError(
            Fault.UNREADABLE, f"{path} does not tell how long it is (it was streamed); write it again as a file"
        )
    if not file.frames:
        raise FaultyAudioError(Fault.EMPTY, f"{path} holds no samples")


def _lacking(path: Path, file: Any) -> str | None:
    """Return what shows that an opened file is cut short, or None; a cut FLAC file shows when it is decoded."""
    if file.format == "NIST":
        return _sphere_lacks(path, file.frames)
    if file.format == "MP3":
        return _mpeg_lacks(path, file.frames)
    if file.format == "OGG":
        return ogg_facts(path).lacking
    if cut := _CUT_SHORT.search(file.extra_info):
        promised, found = map(int, cut.groups())
        if found < promised < _LENGTH_UNKNOWN:
            return f"its header promises {promised} bytes of sound, {found} are there"
    return None


def _sphere_lacks(path: Path, samples: int) -> str | None:
    with path.open("rb") as file:
        stated = _SPHERE_SAMPLES.search(file.read(_SPHERE_HEADER_BYTES))
    if stated and samples < int(stated[1]):
        return f"its header promises {int(stated[1])} samples, {samples} are there"
    return None


def _mpeg_lacks(path: Path, samples: int) -> str | None:
    """Return what a cut MP3 file lacks.

    Raises `FaultyAudioError` when libsndfile guesses the length of a file that does not tell it, and guesses so low
    that it would not read all: it never reads beyond its guess.
    """
    facts = mpeg_facts(path)
    if facts is None:
        return None
    if facts.cut:
        expected = f" of {facts.promised}" if facts.promised else ""
        return f"{facts.frames}{expected} frames are whole"
    if facts.promised is None and samples < facts.samples:
        raise FaultyAudioError(
            Fault.UNREADABLE,
            f"{path} cannot be read whole: it does not tell its length, and only {samples} of its {facts.samples} "
            "samples would be read; write it again with a Xing header, or as another format",
        )
    return None
