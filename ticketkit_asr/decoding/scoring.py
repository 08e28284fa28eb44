"""How wrong recognised texts are, utterance by utterance, and how sure a rate is."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from ticketkit import DataError
from ticketkit_asr.extras import require
from ticketkit_asr.text.alphabet import normalise

RESAMPLES = 10_000


@dataclass(frozen=True)
class Scored:
    """One utterance: what was said, what was recognised, and the edits between them, in words and in characters."""

    id: str
    reference: str
    hypothesis: str
    words: int
    substitutions: int
    deletions: int
    insertions: int
    characters: int
    character_edits: int

    @property
    def word_edits(self) -> int:
        """Substitutions, deletions and insertions of words."""
        return self.substitutions + self.deletions + self.insertions


@dataclass(frozen=True)
class Summary:
    """The rates of a set of utterances, as fractions; the interval of the WER holds 95 % of bootstrap resamples."""

    utterances: int
    words: int
    wer: float
    wer_low: float
    wer_high: float
    cer: float
    substitutions: int
    deletions: int
    insertions: int

    def to_json(self) -> dict[str, Any]:
        """Return the summary as plain values."""
        return asdict(self)


def score(ids: Sequence[str], references: Sequence[str], hypotheses: Sequence[str]) -> list[Scored]:
    """Return each utterance with its edits; both texts are normalised first (upper case, single spaces).

    Raises `DataError` naming utterances whose reference holds no word: their rate would be undefined.
    """
    jiwer = require("jiwer", extra="asr")
    expected, found = [normalise(text) for text in references], [normalise(text) for text in hypotheses]
    empty = [name for name, text in zip(ids, expected, strict=True) if not text]
    if empty or not expected:
        raise DataError(
            f"word error rates need references with words; without any: {_named(empty) or 'the whole split'}"
        )
    by_word, by_character = jiwer.process_words(expected, found), jiwer.process_characters(expected, found)
    scored = []
    for i, name in enumerate(ids):
        edits = _edits(by_word.alignments[i])
        characters = _edits(by_character.alignments[i])
        scored.append(
            Scored(
                id=name,
                reference=expected[i],
                hypothesis=found[i],
                words=len(expected[i].split()),
                substitutions=edits["substitute"],
                deletions=edits["delete"],
                insertions=edits["insert"],
                characters=len(expected[i]),
                character_edits=sum(characters.values()),
            )
        )
    return scored


def error_rates(scored: Sequence[Scored]) -> dict[str, float]:
    """Return `wer` and `cer` as fractions: the sum of edits over the sum of reference words or characters.

    Characters that the recogniser cannot write stay in the reference and count as errors.
    """
    edits, characters = sum(one.word_edits for one in scored), sum(one.character_edits for one in scored)
    return {
        "wer": edits / sum(one.words for one in scored),
        "cer": characters / sum(one.characters for one in scored),
    }


def summarise(scored: Sequence[Scored], *, seed: int = 0, resamples: int = RESAMPLES) -> Summary:
    """Return the rates: the sum of edits over the sum of words, with a percentile bootstrap over utterances.

    Efron & Tibshirani 1993, chapter 13; Bisani & Ney 2004 for word error rates. Without resamples the interval is the
    rate itself. Raises `DataError` for no utterance.
    """
    if not scored:
        raise DataError("there is no utterance to score")
    edits = np.array([one.word_edits for one in scored])
    words = np.array([one.words for one in scored])
    low, high = bootstrap_interval(edits, words, seed=seed, resamples=resamples)
    return Summary(
        **error_rates(scored),
        utterances=len(scored),
        words=int(words.sum()),
        wer_low=low,
        wer_high=high,
        substitutions=sum(one.substitutions for one in scored),
        deletions=sum(one.deletions for one in scored),
        insertions=sum(one.insertions for one in scored),
    )


def bootstrap_interval(
    edits: Any, words: Any, *, seed: int = 0, resamples: int = RESAMPLES, confidence: float = 0.95
) -> tuple[float, float]:
    """Return the percentile interval of sum(edits) / sum(words) over resampled utterances."""
    random = np.random.default_rng(seed)
    rates = [] if resamples else [edits.sum() / words.sum()]
    for _ in range(resamples):
        drawn = random.integers(0, len(edits), len(edits))
        rates.append(edits[drawn].sum() / words[drawn].sum())
    tail = (1 - confidence) / 2
    low, high = np.quantile(rates, [tail, 1 - tail])
    return float(low), float(high)


def _named(ids: Sequence[str], most: int = 20) -> str:
    return ", ".join(ids[:most]) + (f" and {len(ids) - most} more" if len(ids) > most else "")


def _edits(alignment: Sequence[Any]) -> Mapping[str, int]:
    """Return how many words or characters each kind of edit of an alignment concerns."""
    counts = {"substitute": 0, "delete": 0, "insert": 0}
    for chunk in alignment:
        if chunk.type == "insert":
            counts["insert"] += chunk.hyp_end_idx - chunk.hyp_start_idx
        elif chunk.type != "equal":
            counts[chunk.type] += chunk.ref_end_idx - chunk.ref_start_idx
    return counts
