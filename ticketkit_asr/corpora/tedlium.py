"""TED-LIUM, releases 1 to 3: talks in English, 118 to 452 hours, from https://www.openslr.org/7, /19 and /51.

SPHERE files of whole talks, and STM files that say when what is said (Rousseau et al. 2012, 2014; Hernandez et al.
2018). Licence CC BY-NC-ND 3.0.
"""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

from pydantic import NonNegativeFloat, PositiveFloat, model_validator

from ticketkit import DataError
from ticketkit_asr.corpora.assembly import Listing, Reasons, assemble
from ticketkit_asr.corpora.corpus import SPLITS, SpeechCorpus
from ticketkit_asr.corpora.file_options import FileCorpusOptions
from ticketkit_asr.corpora.folders import find_folder, text_lines
from ticketkit_asr.corpora.manifest import Line
from ticketkit_asr.corpora.stm import Segment, read_stm
from ticketkit_asr.text.rules import TextRules

_FOLDERS = {1: "TEDLIUM_release1", 2: "TEDLIUM_release2", 3: "TEDLIUM_release-3"}
_IGNORED = "ignore_time_segment_in_scoring"
_UNKNOWN_WORD = "<unk>"
_HALF = r"'(?:s|t|d|m|re|ve|ll)\b"
"""The second half of it's, don't, I'd, I'm, we're, I've, we'll."""

_MARK = re.compile(rf"<unk>(?:\s*{_HALF})?|<[^>\s]*>|\{{[^}}]*\}}|\[[^\]]*\]|\([^)\s]*\)", re.IGNORECASE)
"""Unknown words, silence, fillers, noises, pronunciation variants, the segment's name at the end of its line."""

_APART = re.compile(rf"(?<=\w)\s+(?={_HALF})", re.IGNORECASE)
"""The space before such a half."""

_WITHIN_TALK = re.compile(r"S\d+")
"""Speaker labels that start again with each talk."""


class TedLiumOptions(FileCorpusOptions):
    """Which release and partition, and how transcripts are cleaned; training keeps the paper's limits of 1 to 15 s.

    Of a transcript, tokens in <>, {}, [] and () are left out (silence, fillers, noises, pronunciation variants, names
    of segments), halves of contractions are joined (it 's), all is put in upper case, punctuation but apostrophes is
    dropped. Segments marked as ignored in scoring are left out.
    """

    root: Path | None = None
    """The folder that holds the release's folder, or is it; by default the environment variable TICKETKIT_DATA."""
    release: Literal[1, 2, 3] = 1
    """The paper's 118 hours are release 1."""
    partition: Literal["legacy", "speaker-adaptation"] = "legacy"
    """Of release 3: dev and test of the releases before, or the partition for speaker adaptation."""
    unknown_words: Literal["leave_out", "drop_segment"] = "leave_out"
    """What to do with words that transcripts give as <unk>: leave out the word, or the whole segment from training.

    Dev and test keep every segment; the number of segments with such words is reported for each split.
    """
    min_seconds: NonNegativeFloat = 1.0
    """Training utterances that are shorter are left out; dev and test stay whole."""
    max_seconds: PositiveFloat | None = 15.0
    """Training utterances that are longer are left out; dev and test stay whole."""
    text: TextRules = TextRules(apostrophes="keep")
    """How transcripts are normalised, once marks are gone."""

    @model_validator(mode="after")
    def _partition_of_release_3(self) -> "TedLiumOptions":
        if self.partition != "legacy" and self.release != 3:
            raise ValueError(f"partition {self.partition!r} is part of release 3 alone; release is {self.release}")
        return self


def open_tedlium(*, options: TedLiumOptions) -> SpeechCorpus:
    """TED-LIUM: talks in English at 16 kHz, cut into segments.

    Raises `DataError` naming folders, lists or talks that are missing, and odd lines of STM files.
    """
    name = _FOLDERS[options.release]
    folder = find_folder(
        "tedlium",
        options.root,
        (name, f"tedlium/{name}", "."),
        holding=SPLITS if options.release < 3 else (options.partition,),
        advice=f"unpack {name}.tar.gz of https://www.openslr.org",
    )
    if (other := folder.resolve().name) != name and other in _FOLDERS.values():
        raise DataError(f"corpus 'tedlium' is to read {name}, and found {other}; choose with the option release")
    listings, unknown = {}, {}
    for split in SPLITS:
        talks = _talks(folder, split, options)
        listings[split], unknown[split] = list_talks(talks, drop_unknown=split == "train" and _drops_unknown(options))
    facts = {"release": options.release, "partition": options.partition, "segments_with_unknown_words": unknown}
    return assemble("tedlium", listings, options, facts=facts)


def _drops_unknown(options: TedLiumOptions) -> bool:
    return options.unknown_words == "drop_segment"


def _talks(folder: Path, split: str, options: TedLiumOptions) -> list[tuple[Path, Path]]:
    """Return the STM file and the SPHERE file of each talk of a split, ordered by name."""
    if options.partition == "speaker-adaptation":
        return _listed_talks(folder, folder / "speaker-adaptation" / f"{split}.lst")
    base = folder / split if options.release < 3 else folder / "legacy" / split
    transcripts = sorted((base / "stm").glob("*.stm"))
    if not transcripts:
        raise DataError(f"corpus 'tedlium' found no .stm file in {base / 'stm'}")
    sounds = {path.stem for path in (base / "sph").glob("*.sph")}
    unnamed = sounds - {path.stem for path in transcripts}
    return [(path, base / "sph" / f"{path.stem}.sph") for path in transcripts] + [
        (base / "stm" / f"{name}.stm", base / "sph" / f"{name}.sph") for name in sorted(unnamed)
    ]


def _listed_talks(folder: Path, listed: Path) -> list[tuple[Path, Path]]:
    """Return the talks that a list names, one a line, from `data` or else from the legacy partition."""
    homes = [folder / "data", *(folder / "legacy" / split for split in SPLITS)]
    talks, missing = [], []
    for name in sorted({Path(line.split()[0]).stem for _, line in text_lines(listed)}):
        home = next((home for home in homes if (home / "stm" / f"{name}.stm").is_file()), None)
        if home is None:
            missing.append(name)
        else:
            talks.append((home / "stm" / f"{name}.stm", home / "sph" / f"{name}.sph"))
    if missing:
        raise DataError(f"{listed} names talks without an .stm file in {homes[0]} or legacy: {', '.join(missing)}")
    return talks


def list_talks(talks: Iterable[tuple[Path, Path]], *, drop_unknown: bool) -> tuple[Listing, int]:
    """Return the segments of some talks (STM file, SPHERE file), and how many hold words that nobody knew.

    Left out are segments that scoring ignores, those that end before they start, talks without transcript, and with
    `drop_unknown` segments that hold unknown words.
    """
    lines: list[Line] = []
    left_out: Reasons = {}
    unknown = 0
    for transcript, sound in talks:
        if not transcript.is_file():
            left_out.setdefault("no transcript", []).append(sound.stem)
            continue
        for segment in read_stm(transcript):
            unknown += _UNKNOWN_WORD in segment.text
            if reason := _reason_to_leave_out(segment, drop_unknown=drop_unknown):
                left_out.setdefault(reason, []).append(_id(segment))
            else:
                lines.append(_line(segment, sound))
    return Listing(lines, left_out), unknown


def spoken(text: str) -> str:
    """Return the words of a transcript: marks left out, halves of contractions joined.

    >>> spoken("it 's a(2) {BREATH} <sil> long [NOISE] talk by <unk> 's friend (Talk_2010-1.0-2.5-F0_M-S1)")
    "it's a long talk by friend"
    """
    return _APART.sub("", " ".join(_MARK.sub(" ", text).split()))


def _reason_to_leave_out(segment: Segment, *, drop_unknown: bool) -> str | None:
    if _IGNORED in segment.text.lower():
        return "ignored in scoring"
    if segment.end <= segment.start:
        return "ends before it starts"
    return "unknown words" if drop_unknown and _UNKNOWN_WORD in segment.text else None


def _line(segment: Segment, sound: Path) -> Line:
    local = _WITHIN_TALK.fullmatch(segment.speaker)
    return Line(
        id=_id(segment),
        path=str(sound),
        text=spoken(segment.text),
        speaker=f"{segment.recording}/{segment.speaker}" if local else segment.speaker,
        start=segment.start,
        duration=round(segment.end - segment.start, 6),
        lang="en",
    )


def _id(segment: Segment) -> str:
    """Return talk, start and end in hundredths of a second, as Kaldi's recipe names segments."""
    return f"{segment.recording}-{round(100 * segment.start):07d}-{round(100 * segment.end):07d}"
