"""Connected digits from the Free Spoken Digit Dataset: real voices, single digits joined into utterances.

Source: https://github.com/Jakobovski/free-spoken-digit-dataset (CC BY-SA 4.0), 6 speakers, 50 takes a digit, 8 kHz.
"""

import os
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path
from random import Random
from typing import Annotated

import numpy as np
from pydantic import Field, model_validator

from ticketkit import ConfigError, DataError
from ticketkit_asr.corpora.corpus import SPLITS, InMemory, SpeechCorpus, Utterance
from ticketkit_asr.corpora.digits import WORDS, ConnectedDigitsOptions
from ticketkit_asr.sound.audio import OnBadAudio, Waveform, read_all

SAMPLE_RATE = 8_000
TAKES: Mapping[str, range] = {"train": range(10, 50), "dev": range(5, 10), "test": range(5)}
"""The takes of each split: test is the official one, dev the first five of the official training takes."""

_NAME = re.compile(r"(?P<digit>\d)_(?P<speaker>[^_]+)_(?P<take>\d+)\.wav")
_HOW_TO_GET_IT = (
    "git clone https://github.com/Jakobovski/free-spoken-digit-dataset fsdd, "
    "then set the corpus option root, or the environment variable TICKETKIT_DATA, to the folder that holds fsdd"
)
_Seconds = Annotated[float, Field(ge=0, le=60)]


class FsddOptions(ConnectedDigitsOptions):
    """Where the recordings are, and how utterances are made of them."""

    root: Path | None = None
    """The folder that holds `fsdd/recordings`; by default the environment variable TICKETKIT_DATA."""
    on_bad_audio: OnBadAudio = "fail"
    """Stop at recordings that cannot be read, or go on without them and name them in the report."""
    gap_seconds: tuple[_Seconds, _Seconds] = (0.05, 0.3)
    """The shortest and the longest silence before, between and after the digits."""
    speakers: tuple[str, ...] | None = Field(default=None, min_length=1)
    """Speakers that are used at all, in every split; all by default."""
    dev_speakers: tuple[str, ...] = ()
    """Speakers held out for dev; none by default: every speaker is in every split, in other takes."""
    test_speakers: tuple[str, ...] = ()
    """Speakers held out for test; none by default."""

    @model_validator(mode="after")
    def _check(self) -> "FsddOptions":
        if self.gap_seconds[0] > self.gap_seconds[1]:
            raise ValueError(f"gap_seconds has the shortest first, then the longest; got {self.gap_seconds}")
        if shared := set(self.dev_speakers) & set(self.test_speakers):
            raise ValueError(f"speakers held out for both dev and test: {', '.join(sorted(shared))}")
        return self


@dataclass(frozen=True)
class Recording:
    """One take of one digit, as its file name tells."""

    path: Path
    digit: int
    speaker: str
    take: int


def open_fsdd(*, options: FsddOptions) -> SpeechCorpus:
    """Connected digits composed of real recordings, the Free Spoken Digit Dataset.

    Each utterance joins takes of one speaker and one split, with a fixed seed.

    Raises `DataError` when recordings are missing or (unless skipped) unreadable, `ConfigError` for unknown speakers.
    """
    recordings = find_recordings(recordings_folder(options.root))
    chosen = {split: choose_recordings(recordings, split, options) for split in SPLITS}
    paths = [recording.path for split in chosen.values() for recording in split]
    waveforms, skipped = read_all(paths, sample_rate=SAMPLE_RATE, on_bad_audio=options.on_bad_audio)
    splits = {split: compose(takes, split, waveforms, options) for split, takes in chosen.items()}
    return SpeechCorpus(name="fsdd", sample_rate=SAMPLE_RATE, splits=splits, skipped=skipped)


def recordings_folder(root: Path | None) -> Path:
    """Return `fsdd/recordings` below `root` or TICKETKIT_DATA; raises `DataError` saying how to get it if not there."""
    base = root or Path(os.environ.get("TICKETKIT_DATA", ""))
    folder = base / "fsdd" / "recordings"
    if not folder.is_dir():
        raise DataError(f"corpus 'fsdd' needs the folder {folder.absolute()}, which is missing; {_HOW_TO_GET_IT}")
    return folder


def find_recordings(folder: Path) -> list[Recording]:
    """Return the recordings of a folder, ordered by name; raises `DataError` when there is none or a name is odd."""
    paths = sorted(folder.glob("*.wav"))
    if not paths:
        raise DataError(f"corpus 'fsdd' found no .wav file in {folder}; {_HOW_TO_GET_IT}")
    matches = {path: _NAME.fullmatch(path.name) for path in paths}
    if odd := [path.name for path, match in matches.items() if match is None]:
        raise DataError(
            f"corpus 'fsdd' expects names like 7_theo_12.wav (digit, speaker, take); found {', '.join(odd)}"
        )
    return [
        Recording(path, int(match["digit"]), match["speaker"], int(match["take"]))
        for path, match in matches.items()
        if match is not None
    ]


def choose_recordings(recordings: Sequence[Recording], split: str, options: FsddOptions) -> list[Recording]:
    """Return the recordings whose takes and speakers belong to a split.

    Raises `ConfigError` naming speakers that are chosen but not recorded, `DataError` when nothing belongs to it.
    """
    held_out = {"dev": set(options.dev_speakers), "test": set(options.test_speakers)}
    speakers = {recording.speaker for recording in recordings}
    if unknown := (held_out["dev"] | held_out["test"] | set(options.speakers or ())) - speakers:
        raise ConfigError(
            f"corpus 'fsdd' has no speaker {', '.join(sorted(unknown))}; it has {', '.join(sorted(speakers))}"
        )
    used = speakers if options.speakers is None else set(options.speakers)
    wanted = held_out.get(split) or used - held_out["dev"] - held_out["test"]
    chosen = [r for r in recordings if r.speaker in wanted and r.take in TAKES[split]]
    if not chosen:
        takes = TAKES[split]
        raise DataError(
            f"corpus 'fsdd' has nothing for {split}: no takes {takes.start} to {takes.stop - 1} of "
            f"{', '.join(sorted(wanted)) or 'any speaker, since all are held out'}"
        )
    return chosen


def compose(
    recordings: Sequence[Recording], split: str, waveforms: Mapping[Path, Waveform], options: FsddOptions
) -> list[Utterance]:
    """Return the utterances of a split: speakers in turn, each using all his or her usable takes equally often (±1).

    Raises `DataError` when no take of the split is usable.
    """
    takes = defaultdict(list)
    for recording in recordings:
        if recording.path in waveforms:
            takes[recording.speaker].append(recording)
    if not takes:
        raise DataError(f"corpus 'fsdd': none of the {len(recordings)} recordings for {split} can be used")
    random = Random(f"fsdd/{options.seed}/{split}")
    decks = {speaker: _deal(takes[speaker], random) for speaker in sorted(takes)}
    return [
        _utterance(
            f"{split}-{index:05d}", list(islice(deck, random.randint(*options.digits))), waveforms, options, random
        )
        for index, deck in zip(range(options.utterances(split)), cycle(decks.values()), strict=False)
    ]


def _deal(takes: Sequence[Recording], random: Random) -> Iterator[Recording]:
    """Yield the takes in random order, again and again, each time in another order."""
    while True:
        yield from random.sample(takes, len(takes))


def _utterance(
    name: str, takes: Sequence[Recording], waveforms: Mapping[Path, Waveform], options: FsddOptions, random: Random
) -> Utterance:
    """Return the takes joined by silences of random length, with such a silence at both ends."""
    parts = [_silence(options, random)]
    for take in takes:
        parts += [waveforms[take.path], _silence(options, random)]
    text = " ".join(WORDS[take.digit] for take in takes)
    return Utterance(id=name, audio=InMemory(np.concatenate(parts)), text=text, speaker=takes[0].speaker)


def _silence(options: FsddOptions, random: Random) -> Waveform:
    return np.zeros(round(random.uniform(*options.gap_seconds) * SAMPLE_RATE), dtype=np.float32)
