"""Sums over the utterances of a split."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from ticketkit_asr.corpora.corpus import Utterance
from ticketkit_asr.corpora.listening import Sound
from ticketkit_asr.corpora.report import SplitReport
from ticketkit_asr.text.alphabet import Alphabet


@dataclass
class Tally:
    """Sums over the utterances of a split so far."""

    alphabet: Alphabet
    sample_rate: int
    ids: set[str] = field(default_factory=set)
    speakers: set[str] = field(default_factory=set)
    unknown: Counter[str] = field(default_factory=Counter)
    counts: Counter[str] = field(default_factory=Counter)
    shortest: int | None = None
    longest: int = 0
    silent: list[str] = field(default_factory=list)
    faulty: dict[str, dict[str, str]] = field(default_factory=dict)

    def add(self, utterance: Utterance, sound: Sound) -> bool:
        """Count an utterance; return whether it can be used."""
        if fault := self._fault(utterance, sound):
            self.faulty.setdefault(fault[0], {})[utterance.id] = fault[1]
            return False
        self.ids.add(utterance.id)
        self.speakers.add(utterance.speaker)
        self.unknown.update(self.alphabet.unknown([utterance.text]))
        samples = utterance.audio.samples
        self.counts.update(
            utterances=1, samples=samples, words=len(utterance.text.split()), characters=len(utterance.text)
        )
        self.shortest = samples if self.shortest is None else min(self.shortest, samples)
        self.longest = max(self.longest, samples)
        if sound.silent:
            self.silent.append(utterance.id)
        return True

    def _fault(self, utterance: Utterance, sound: Sound) -> tuple[str, str] | None:
        if sound.fault:
            return sound.fault, sound.said
        if utterance.id in self.ids:
            return "duplicate id", "another utterance of the split has this id"
        return None if utterance.text.strip() else ("empty text", "nothing is said")

    def report(self, dropped: Mapping[str, Sequence[str]]) -> SplitReport:
        """Return the sums, and what was dropped when the corpus was opened."""
        return SplitReport(
            utterances=self.counts["utterances"],
            seconds=self.counts["samples"] / self.sample_rate,
            shortest=(self.shortest or 0) / self.sample_rate,
            longest=self.longest / self.sample_rate,
            speakers=len(self.speakers),
            words=self.counts["words"],
            characters=self.counts["characters"],
            out_of_alphabet=dict(sorted(self.unknown.items())),
            silent=tuple(self.silent),
            dropped={reason: tuple(ids) for reason, ids in dropped.items()},
            faulty=self.faulty,
        )
