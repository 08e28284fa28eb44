"""AN4, the alphanumeric database of CMU (1991): spelt names, numbers and commands, 16 kHz, an hour in all.

Lists of transcripts `TEXT (id)`, sound files anywhere below `wav`. http://www.speech.cs.cmu.edu/databases/an4/
"""

import re
from collections.abc import Sequence
from pathlib import Path

from ticketkit import DataError
from ticketkit_asr.corpora.assembly import Listing, assemble
from ticketkit_asr.corpora.corpus import SpeechCorpus
from ticketkit_asr.corpora.file_options import FileCorpusOptions, Share
from ticketkit_asr.corpora.folders import find_folder, text_lines
from ticketkit_asr.corpora.held_out import by_speaker
from ticketkit_asr.corpora.manifest import Line

_LISTS = {
    "train": ("etc/an4_train.transcription", "train.transcription"),
    "test": ("etc/an4_test.transcription", "test.transcription"),
}
_SOUND_FOLDERS = {"train": ("wav/an4_clstk", "wav/train"), "test": ("wav/an4test_clstk", "wav/test")}
_AUDIO = (".flac", ".sph", ".wav")
_TRANSCRIPT = re.compile(r"(?P<text>.*?)\s*\((?P<id>[^\s()]+)\)\s*")
_MARK = re.compile(r"</?s>|<sil>|\+\+\w+\+\+")
"""Start and end of a sentence, silence, noises."""


class An4Options(FileCorpusOptions):
    """Where the corpus is, and which of its training speakers make dev, which it has not.

    Transcripts are upper case words and spelt letters without punctuation. They are taken as they are, but for marks of
    silence, noise, start and end.
    """

    root: Path | None = None
    """The folder that holds `wav`, or `an4`; by default the environment variable TICKETKIT_DATA."""
    dev_share: Share = 0.1
    """The share of the training utterances whose speakers make dev, chosen by `seed`."""


def open_an4(*, options: An4Options) -> SpeechCorpus:
    """AN4: spelt names, numbers and commands of 84 speakers; dev are some of the training speakers.

    Raises `DataError` naming lists or files that are missing, and lines of the lists that are not `TEXT (id)`.
    """
    advice = "unpack an4_sphere.tar.gz of http://www.speech.cs.cmu.edu/databases/an4/"
    folder = find_folder("an4", options.root, (".", "an4"), holding=("wav",), advice=advice)
    train, test = (_list_split(folder, split) for split in ("train", "test"))
    splits = by_speaker(train.lines, {"dev": options.dev_share}, seed=options.seed)
    listings = {"train": Listing(splits["train"], train.left_out), "dev": Listing(splits["dev"]), "test": test}
    return assemble("an4", listings, options)


def _list_split(folder: Path, split: str) -> Listing:
    places = [folder / name for name in _LISTS[split]]
    transcripts = next((path for path in places if path.is_file()), None)
    if transcripts is None:
        raise DataError(f"corpus 'an4' has no transcripts of {split}; tried {', '.join(map(str, places))}")
    return list_transcripts(transcripts, [folder / name for name in _SOUND_FOLDERS[split]])


def list_transcripts(transcripts: Path, folders: Sequence[Path]) -> Listing:
    """Return the utterances of a list, with the sound file below `folders` that has the id for its name.

    Left out are sound files that the list does not name. Raises `DataError` naming every odd line by its number.
    """
    sounds = {path.stem: path for folder in folders for path in sorted(folder.rglob("*")) if path.suffix in _AUDIO}
    lines, odd = [], []
    for number, content in text_lines(transcripts):
        if match := _TRANSCRIPT.fullmatch(content):
            name, text = match["id"], " ".join(_MARK.sub(" ", match["text"]).split())
            path = sounds.get(name, folders[0] / f"{name}{_AUDIO[-1]}")
            lines.append(Line(id=name, path=str(path), text=text, speaker=_speaker(name), lang="en"))
        else:
            odd.append(str(number))
    if odd:
        raise DataError(f"{transcripts} should hold lines like 'YES (an22-flrp-b)'; odd are lines {', '.join(odd)}")
    named = {line.id for line in lines}
    return Listing(lines, {"no transcript": [name for name in sounds if name not in named]})


def _speaker(name: str) -> str:
    """Return the speaker in the middle of an id: an22-flrp-b is flrp."""
    parts = name.split("-")
    return parts[1] if len(parts) > 1 else name
