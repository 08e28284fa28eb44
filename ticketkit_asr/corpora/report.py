"""What a corpus holds and what is wrong with it, as JSON and as a page to read."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

_IDS_SHOWN = 10
"""Ids that the page shows of each reason; the JSON has all."""


@dataclass(frozen=True)
class SplitReport:
    """Facts of one split. Sums are over the utterances that can be used."""

    utterances: int
    seconds: float
    shortest: float
    """Seconds."""
    longest: float
    """Seconds."""
    speakers: int
    words: int
    characters: int
    out_of_alphabet: Mapping[str, int]
    """Characters that the alphabet lacks, and how often each occurs."""
    silent: tuple[str, ...]
    """Ids of utterances whose samples are all 0."""
    dropped: Mapping[str, tuple[str, ...]]
    """Reason -> ids, left out when the corpus was opened."""
    faulty: Mapping[str, Mapping[str, str]]
    """Reason -> id -> what is wrong with it, found when it was read."""

    @property
    def hours(self) -> float:
        """Hours of sound."""
        return self.seconds / 3600


@dataclass(frozen=True)
class Overlap:
    """What two splits share although they should not."""

    kind: str
    """Ids, or speakers."""
    splits: tuple[str, str]
    names: tuple[str, ...]


@dataclass(frozen=True)
class Report:
    """Facts of a corpus, found by reading all of it."""

    corpus: str
    sample_rate: int
    splits: Mapping[str, SplitReport]
    skipped: tuple[str, ...] = ()
    """Files left out when the corpus was opened, since they cannot be used."""
    shared: tuple[Overlap, ...] = ()
    facts: Mapping[str, Any] = field(default_factory=dict)
    """What the corpus says of itself."""

    def unusable(self) -> list[str]:
        """Return a sentence for each utterance that cannot be used."""
        return [
            f"{split} {name}: {said}"
            for split, facts in self.splits.items()
            for faults in facts.faulty.values()
            for name, said in faults.items()
        ]

    def warnings(self) -> list[str]:
        """Return a sentence for each thing that is odd, although every utterance can be used."""
        shared = [f"{'/'.join(o.splits)} share {len(o.names)} {o.kind}: {_some(o.names)}" for o in self.shared]
        return shared + [
            f"{split}: {len(facts.silent)} utterances are digital silence: {_some(facts.silent)}"
            for split, facts in self.splits.items()
            if facts.silent
        ]

    def to_json(self) -> str:
        """Return all facts as JSON; equal reports give equal texts."""
        facts = {**asdict(self), "warnings": self.warnings()}
        return json.dumps(facts, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n"

    def to_markdown(self) -> str:
        """Return a page: a table of the splits, what is left out and why, and what is odd."""
        return "\n".join([*self._head(), *self._losses(), *self._oddities()]) + "\n"

    def _head(self) -> Iterator[str]:
        yield f"# Corpus {self.corpus}, {self.sample_rate} Hz\n"
        rows = [
            (split, f"{s.hours:.2f}", s.utterances, s.speakers, s.words, f"{s.shortest:.2f} to {s.longest:.2f}")
            for split, s in self.splits.items()
        ]
        yield from _table(("split", "hours", "utterances", "speakers", "words", "seconds each"), rows)

    def _losses(self) -> Iterator[str]:
        yield "\n## Left out\n"
        rows = [
            (split, reason, len(ids), _some(list(ids)))
            for split, facts in self.splits.items()
            for reason, ids in [*facts.dropped.items(), *facts.faulty.items()]
        ]
        yield from _table(("split", "why", "utterances", "which"), rows) if rows else ["Nothing."]
        for split, facts in self.splits.items():
            for faults in facts.faulty.values():
                yield from (f"- {split} {name}: {said}" for name, said in list(faults.items())[:_IDS_SHOWN])

    def _oddities(self) -> Iterator[str]:
        yield "\n## Characters that the alphabet lacks\n"
        rows = [
            (split, f"`{character}`", count)
            for split, facts in self.splits.items()
            for character, count in sorted(facts.out_of_alphabet.items(), key=lambda item: (-item[1], item[0]))
        ]
        yield from _table(("split", "character", "times"), rows) if rows else ["None."]
        yield "\n## Warnings\n"
        yield from [f"- {warning}" for warning in self.warnings()] or ["None."]


def _table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> Iterator[str]:
    yield _row(head)
    yield _row(["---"] * len(head))
    yield from map(_row, rows)


def _row(cells: Sequence[object]) -> str:
    return "| " + " | ".join(str(cell).replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"


def _some(names: Sequence[str]) -> str:
    """Return the first names, and how many more there are."""
    more = len(names) - _IDS_SHOWN
    return ", ".join(names[:_IDS_SHOWN]) + (f" and {more} more" if more > 0 else "")
