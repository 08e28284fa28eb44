"""LibriSpeech: read English, 960 hours to train on, from https://www.openslr.org/12 (CC BY 4.0).

Folders subset/speaker/chapter with FLAC files, and a list of transcripts in each chapter (Panayotov et al. 2015).
"""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from pydantic import Field, NonNegativeFloat, PositiveFloat, model_validator

from ticketkit import DataError
from ticketkit_asr.corpora.assembly import Listing, assemble
from ticketkit_asr.corpora.corpus import SpeechCorpus
from ticketkit_asr.corpora.file_options import FileCorpusOptions
from ticketkit_asr.corpora.folders import find_folder, text_lines
from ticketkit_asr.corpora.manifest import Line

_ADVICE = "name the subsets that you have with the options train, dev and test, or unpack the archives of https://www.openslr.org/12"
_AUDIO = ".flac"
_TRANSCRIPTS = ".trans.txt"


class LibriSpeechOptions(FileCorpusOptions):
    """Which subsets make which split; by default the official ones, and the paper's limits of 1 to 15 s in training.

    Transcripts are official: upper case, apostrophes the only punctuation, numbers spelt out. They are taken as they
    are.
    """

    root: Path | None = None
    """The folder that holds the subsets, or `LibriSpeech`; by default the environment variable TICKETKIT_DATA."""
    train: tuple[str, ...] = Field(("train-clean-100", "train-clean-360", "train-other-500"), min_length=1)
    """Subsets to train on."""
    dev: tuple[str, ...] = ("dev-clean", "dev-other")
    """Subsets that choose epochs and tickets."""
    test: tuple[str, ...] = ("test-clean", "test-other")
    """Subsets to report on."""
    min_seconds: NonNegativeFloat = 1.0
    """Training utterances that are shorter are left out; dev and test stay whole."""
    max_seconds: PositiveFloat | None = 15.0
    """Training utterances that are longer are left out; dev and test stay whole."""

    @model_validator(mode="after")
    def _once(self) -> "LibriSpeechOptions":
        subsets = Counter([*self.train, *self.dev, *self.test])
        if twice := [subset for subset, uses in subsets.items() if uses > 1]:
            raise ValueError(f"subsets that are named twice: {', '.join(twice)}")
        return self


def open_librispeech(*, options: LibriSpeechOptions) -> SpeechCorpus:
    """LibriSpeech, or some of its subsets: read English at 16 kHz.

    Raises `DataError` naming subsets or files that are missing, and transcripts that cannot be read.
    """
    splits = {"train": options.train, "dev": options.dev, "test": options.test}
    wanted = [subset for subsets in splits.values() for subset in subsets]
    folder = find_folder(
        "librispeech",
        options.root,
        (".", "LibriSpeech", "librispeech/LibriSpeech"),
        holding=wanted,
        advice=_ADVICE,
    )
    return assemble(
        "librispeech",
        {split: list_subsets([folder / subset for subset in subsets]) for split, subsets in splits.items()},
        options,
        facts={"subsets": {split: list(subsets) for split, subsets in splits.items()}},
    )


def list_subsets(subsets: Sequence[Path]) -> Listing:
    """Return the utterances of some subsets: one a line of transcript, ordered by their paths.

    Left out are sound files that no transcript names. Raises `DataError` naming a subset that holds no chapter.
    """
    lines: list[Line] = []
    unnamed: list[str] = []
    for subset in subsets:
        chapters = sorted(folder for folder in subset.glob("*/*") if folder.is_dir())
        if not chapters:
            raise DataError(f"corpus 'librispeech' found no folder speaker/chapter in {subset}; {_ADVICE}")
        for chapter in chapters:
            of_chapter = list_chapter(chapter)
            lines += of_chapter
            named = {line.id for line in of_chapter}
            unnamed += sorted(path.stem for path in chapter.glob(f"*{_AUDIO}") if path.stem not in named)
    return Listing(lines, {"no transcript": unnamed})


def list_chapter(chapter: Path) -> list[Line]:
    """Return the utterances of a chapter; the speaker is the first number of the id."""
    return [
        Line(id=name, path=str(chapter / f"{name}{_AUDIO}"), text=text, speaker=name.partition("-")[0], lang="en")
        for transcripts in sorted(chapter.glob(f"*{_TRANSCRIPTS}"))
        for _, line in text_lines(transcripts)
        for name, _, text in [line.partition(" ")]
    ]
