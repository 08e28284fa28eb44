"""Common Voice: sentences read by volunteers in many languages, from https://commonvoice.mozilla.org (CC0).

One folder for each locale with MP3 clips, and tables (TSV) that say who reads which sentence (Ardila et al. 2020).
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Literal

from pydantic import Field, NonNegativeFloat, PositiveFloat

from ticketkit import DataError
from ticketkit_asr.corpora.assembly import Listing, assemble
from ticketkit_asr.corpora.corpus import SPLITS, SpeechCorpus
from ticketkit_asr.corpora.file_options import FileCorpusOptions, Share
from ticketkit_asr.corpora.folders import find_folder, text_lines
from ticketkit_asr.corpora.held_out import by_speaker
from ticketkit_asr.corpora.manifest import UNKNOWN_SPEAKER, Line
from ticketkit_asr.text.rules import TextRules

_CLIPS = "clips"
_DURATIONS = "clip_durations.tsv"
_NEEDED = ("client_id", "path", "sentence")


class CommonVoiceOptions(FileCorpusOptions):
    """Which language and which tables; training keeps the paper's limits of 1 to 15 s.

    Sentences are put in Unicode NFKC and upper case; punctuation is dropped, but for apostrophes within words. Digits
    and symbols stay, and are counted among the characters that the alphabet lacks.
    """

    root: Path | None = None
    """The folder that holds the locale's folder, or is it; by default the environment variable TICKETKIT_DATA."""
    locale: str = Field("en", pattern=r"^[A-Za-z]+(-[A-Za-z]+)*$")
    """The language, as Common Voice writes it."""
    source: Literal["official", "validated"] = "official"
    """The official tables of train, dev and test, or all of `validated.tsv`, split here by speaker."""
    dev_share: Share = 0.05
    """With `validated`: the share of the clips whose speakers make dev, chosen by `seed`."""
    test_share: Share = 0.05
    """With `validated`: the share of the clips whose speakers make test."""
    min_seconds: NonNegativeFloat = 1.0
    """Training utterances that are shorter are left out; dev and test stay whole."""
    max_seconds: PositiveFloat | None = 15.0
    """Training utterances that are longer are left out; dev and test stay whole."""
    text: TextRules = TextRules()
    """How sentences are normalised."""


def open_common_voice(*, options: CommonVoiceOptions) -> SpeechCorpus:
    """Common Voice in one language: sentences read by volunteers, MP3 of any rate, resampled.

    The length of a clip is what clip_durations.tsv says; clips that it does not name are looked at.
    Raises `DataError` naming tables, columns or clips that are missing, and rows that are too short.
    """
    locale = options.locale
    folder = find_folder(
        "common_voice",
        options.root,
        (locale, f"commonvoice/{locale}", f"common_voice/{locale}", "."),
        holding=(_CLIPS,),
        advice=f"unpack the archive of {locale!r} of https://commonvoice.mozilla.org",
    )
    durations = read_durations(folder / _DURATIONS)
    if options.source == "official":
        listings = {split: Listing(list_table(folder / f"{split}.tsv", durations, locale)) for split in SPLITS}
    else:
        lines = list_table(folder / "validated.tsv", durations, locale)
        shares = {"dev": options.dev_share, "test": options.test_share}
        splits = by_speaker(lines, shares, seed=options.seed)
        listings = {split: Listing(splits[split]) for split in SPLITS}
    return assemble("common_voice", listings, options, facts={"locale": locale, "source": options.source})


def list_table(table: Path, durations: Mapping[str, float], locale: str) -> list[Line]:
    """Return the utterances of a table, in its order; ids are the names of the clips without their ending.

    Clips without a client share one unknown speaker, since two of them may be by one person. Raises `DataError` when
    rows are of another locale.
    """
    lines, others = [], set()
    for row in read_table(table, _NEEDED):
        if row.get("locale", locale) not in ("", locale):
            others.add(row["locale"])
        lines.append(
            Line(
                id=Path(row["path"]).stem,
                path=str(table.parent / _CLIPS / row["path"]),
                text=row["sentence"],
                speaker=row["client_id"] or UNKNOWN_SPEAKER,
                duration=durations.get(row["path"]),
                lang=locale,
            )
        )
    if others:
        raise DataError(f"{table} holds clips of locale {', '.join(sorted(others))}; the option locale is {locale!r}")
    return lines


def read_durations(table: Path) -> dict[str, float]:
    """Return the seconds of each clip that a table of milliseconds names; nothing when there is no such table."""
    if not table.exists():
        return {}
    durations, odd = {}, []
    for row in read_table(table, ("clip", "duration[ms]")):
        milliseconds = row["duration[ms]"]
        if milliseconds.isdecimal() and int(milliseconds) > 0:
            durations[row["clip"]] = int(milliseconds) / 1000
        else:
            odd.append(f"{row['clip']} ({milliseconds!r})")
    if odd:
        raise DataError(f"{table} should hold whole milliseconds above 0; odd are those of {', '.join(odd)}")
    return durations


def read_table(table: Path, needed: tuple[str, ...]) -> Iterator[dict[str, str]]:
    """Yield the rows of a TSV file whose first line names the columns; quotes are characters like any other.

    Raises `DataError` naming the file when it cannot be read or lacks one of the columns `needed`, and every row that
    ends before one of them.
    """
    rows = text_lines(table)
    columns = next((line.split("\t") for _, line in rows), [])
    if missing := [name for name in needed if name not in columns]:
        raise DataError(f"{table} has no column {', '.join(missing)}; it has {', '.join(columns) or 'none'}")
    width = 1 + max(columns.index(name) for name in needed)
    short = []
    for number, line in rows:
        fields = line.split("\t")
        if len(fields) < width:
            short.append(str(number))
        else:
            yield dict(zip(columns, fields, strict=False))
    if short:
        raise DataError(f"{table} has rows with fewer columns than its first line names: {', '.join(short)}")
