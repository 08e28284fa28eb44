"""A corpus for ticketkit: YesNo, sixty recordings of one man who says "yes" or "no" in Hebrew, eight times each.

Source: https://www.openslr.org/1 (waves_yesno.tar.gz), 8 kHz, 16-bit WAV. The file name is the transcript:
`0_0_1_1_0_1_1_0.wav` says no, no, yes, yes, no, yes, yes, no.
"""

import os
import re
import wave
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from numpy.typing import NDArray
from pydantic import Field

import ticketkit

SAMPLE_RATE = 8_000
"""The rate of every recording, in Hz."""
WORDS = ("NO", "YES")
"""What the digits 0 and 1 of a file name say."""
DEV_EVERY = 5
"""Of the recordings that are not test, the fifth, tenth, … are dev."""
WHOLE = 60
"""How many recordings the corpus has."""

_NAME = re.compile(r"[01](_[01]){7}\.wav")
_SHOWN = 10
_HOW_TO_GET_IT = (
    "download waves_yesno.tar.gz from https://www.openslr.org/1 and unpack it, then set the corpus option root, or the "
    "environment variable TICKETKIT_DATA, to the folder that holds waves_yesno"
)


class YesNoOptions(ticketkit.Options):
    """Where the recordings are, and how many must be there."""

    root: Path | None = None
    """The folder that holds `waves_yesno`, or is it; by default the environment variable TICKETKIT_DATA."""
    recordings: int = Field(default=WHOLE, ge=2 * DEV_EVERY)
    """How many recordings the folder must hold; the whole corpus has 60."""


@dataclass(frozen=True, eq=False)
class Recording:
    """The sound of one utterance: float32 samples in [-1, 1), shape (samples,), at `SAMPLE_RATE`."""

    waveform: NDArray[np.float32]

    @property
    def samples(self) -> int:
        """The number of samples."""
        return len(self.waveform)

    def read(self) -> NDArray[np.float32]:
        """Return the samples."""
        return self.waveform


@dataclass(frozen=True, eq=False)
class Utterance:
    """Eight words; `id` is the name of its file without the suffix."""

    id: str
    audio: Recording
    text: str
    speaker: str = "yesno"


@dataclass(frozen=True, eq=False)
class YesNoCorpus:
    """The utterances of each split, as speech trainers take them: `split(name)` and `sample_rate`."""

    splits: Mapping[str, Sequence[Utterance]]
    name: str = "yesno"
    sample_rate: int = SAMPLE_RATE

    def split(self, name: str) -> Sequence[Utterance]:
        """Return the utterances of `train`, `dev` or `test`; raises `ConfigError` for any other name."""
        if name not in self.splits:
            raise ticketkit.ConfigError(f"corpus 'yesno' has no split {name!r}; it has {', '.join(self.splits)}")
        return self.splits[name]

    def describe(self) -> dict[str, Any]:
        """Return JSON-able facts: sample rate, a digest of the content, and the size of each split."""
        return {
            "name": self.name,
            "sample_rate": self.sample_rate,
            "digest": self.digest,
            "splits": {
                name: {
                    "utterances": len(utterances),
                    "words": sum(len(utterance.text.split()) for utterance in utterances),
                    "hours": round(sum(utterance.audio.samples for utterance in utterances) / SAMPLE_RATE / 3600, 4),
                    "speakers": 1,
                }
                for name, utterances in self.splits.items()
            },
        }

    @cached_property
    def digest(self) -> str:
        """SHA-256 over split, id, text and samples of every utterance, in order."""
        content = sha256()
        for name, utterances in self.splits.items():
            for utterance in utterances:
                head = (name, utterance.id, utterance.text, str(utterance.audio.samples))
                content.update("\0".join(head).encode() + b"\0")
                content.update(utterance.audio.waveform.astype("<f4").tobytes())
        return content.hexdigest()


@ticketkit.hookimpl
def ticketkit_register_corpora(register: Callable[..., None]) -> None:
    """Register the corpus under its name."""
    register("yesno", open_yesno, options=YesNoOptions)


@ticketkit.hookimpl
def ticketkit_register_commands(cli: typer.Typer) -> None:
    """Add the command `ticketkit yesno check`."""
    commands = typer.Typer(help="The corpus YesNo.", no_args_is_help=True)
    commands.command()(check)
    cli.add_typer(commands, name="yesno")


def check(
    root: Annotated[Path, typer.Argument(help="the folder that holds waves_yesno, or is it")],
    recordings: Annotated[int, typer.Option(min=2 * DEV_EVERY, help="how many there must be")] = WHOLE,
) -> None:
    """Read every recording of YesNo, and show what each split holds; faults are named, with exit code 2."""
    facts = open_yesno(options=YesNoOptions(root=root, recordings=recordings)).describe()
    typer.echo(f"{recordings_folder(root)}: {recordings} recordings, all of them whole")
    for split, of in facts["splits"].items():
        typer.echo(f"{split:<5} {of['utterances']:>3} recordings {of['words']:>4} words {of['hours']:.4f} hours")
    typer.echo(f"digest {facts['digest']}")


def open_yesno(*, options: YesNoOptions) -> YesNoCorpus:
    """YesNo (OpenSLR 1): one man says eight Hebrew words, each yes or no, in each of sixty recordings.

    Raises `DataError` when the folder is missing, when a name or the number of recordings is not the corpus's, and for
    recordings that are damaged or of another format; all of them are named.
    """
    paths = find_recordings(recordings_folder(options.root), expected=options.recordings)
    waveforms, faults = {}, []
    for path in paths:
        try:
            waveforms[path.name] = read_recording(path)
        except ticketkit.DataError as error:
            faults.append(str(error))
    if faults:
        raise ticketkit.DataError(
            f"corpus 'yesno': {len(faults)} of {len(paths)} recordings cannot be used: {_listed(faults, '; ')}"
        )
    splits = split_names([path.name for path in paths])
    return YesNoCorpus(
        {
            split: [
                Utterance(name.removesuffix(".wav"), Recording(waveforms[name]), transcript(name)) for name in names
            ]
            for split, names in splits.items()
        }
    )


def transcript(name: str) -> str:
    """Return what a recording says, by its file name.

    >>> transcript("0_0_1_1_0_1_1_0.wav")
    'NO NO YES YES NO YES YES NO'
    """
    return " ".join(WORDS[int(digit)] for digit in name.removesuffix(".wav").split("_"))


def split_names(names: Sequence[str]) -> dict[str, list[str]]:
    """Return the names of each split: in the order of names, the second half is test, as in Kaldi's recipe `yesno`.

    Of the first half, every fifth recording is dev and the others train: of 60 recordings 24, 6 and 30.
    """
    ordered = sorted(names)
    first, test = ordered[: len(ordered) // 2], ordered[len(ordered) // 2 :]
    dev = first[DEV_EVERY - 1 :: DEV_EVERY]
    return {"train": [name for name in first if name not in dev], "dev": dev, "test": test}


def recordings_folder(root: Path | None) -> Path:
    """Return `waves_yesno` below `root` or TICKETKIT_DATA, or `root` itself if that is its name.

    Raises `DataError` saying how to get the recordings if the folder is not there.
    """
    base = root or Path(os.environ.get("TICKETKIT_DATA", ""))
    folder = base if base.name == "waves_yesno" else base / "waves_yesno"
    if not folder.is_dir():
        raise ticketkit.DataError(
            f"corpus 'yesno' needs the folder {folder.absolute()}, which is missing; {_HOW_TO_GET_IT}"
        )
    return folder


def find_recordings(folder: Path, *, expected: int) -> list[Path]:
    """Return the WAV files of a folder in the order of their names.

    Raises `DataError` when a name is not eight digits 0 or 1, or when there are not `expected` files.
    """
    paths = sorted(folder.glob("*.wav"), key=lambda path: path.name)
    if odd := [path.name for path in paths if not _NAME.fullmatch(path.name)]:
        raise ticketkit.DataError(
            f"corpus 'yesno' expects names like 0_0_1_1_0_1_1_0.wav (eight words, 0 is no and 1 is yes); "
            f"{folder} holds {_listed(odd, ', ')}"
        )
    if len(paths) != expected:
        raise ticketkit.DataError(
            f"corpus 'yesno' found {len(paths)} recordings in {folder}; {expected} are expected: unpack the archive "
            "again, or set the corpus option recordings if you mean to use another number"
        )
    return paths


def read_recording(path: Path) -> NDArray[np.float32]:
    """Return the samples of a recording, float32 in [-1, 1), shape (samples,).

    Raises `DataError` naming the file when it is not a WAV file of one channel with 16 bits at `SAMPLE_RATE`, is empty,
    or holds fewer samples than its header promises.
    """
    try:
        with wave.open(str(path), "rb") as file:
            found = (file.getnchannels(), 8 * file.getsampwidth(), file.getframerate())
            promised, content = file.getnframes(), file.readframes(file.getnframes())
    except (wave.Error, EOFError, OSError) as error:
        reason = str(error) or "it ends too early"
        raise ticketkit.DataError(f"{path.name} cannot be read as a WAV file: {reason}") from error
    if found != (1, 16, SAMPLE_RATE):
        channels, bits, rate = found
        raise ticketkit.DataError(
            f"{path.name} has {channels} channel(s) of {bits} bits at {rate} Hz; "
            f"1 of 16 bits at {SAMPLE_RATE} Hz is needed"
        )
    if len(content) != 2 * promised:
        raise ticketkit.DataError(
            f"{path.name} is cut short: {len(content) // 2} of the {promised} samples of its header are there"
        )
    if not content:
        raise ticketkit.DataError(f"{path.name} holds no samples")
    return np.frombuffer(content, dtype="<i2").astype(np.float32) / np.float32(32768)


def _listed(items: Sequence[str], separator: str) -> str:
    """Return the first of the items, and how many more there are."""
    rest = f"{separator}and {len(items) - _SHOWN} more" if len(items) > _SHOWN else ""
    return separator.join(items[:_SHOWN]) + rest
