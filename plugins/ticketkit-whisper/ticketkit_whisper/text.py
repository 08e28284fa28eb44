"""Text as the recogniser sees it, and how wrong a recognised text is."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from ticketkit import DataError

PAD, START, END = 0, 1, 2
"""Labels that stand for no character."""


@dataclass(frozen=True)
class Characters:
    """Labels of characters: 3, 4, … in the order of `written`, after padding, start and end.

    >>> Characters("AB ").encode("b  a?"), Characters("AB ").decode([4, 5, 3])
    ([4, 5, 3], 'B A')
    """

    written: str

    @property
    def size(self) -> int:
        """The number of labels."""
        return END + 1 + len(self.written)

    def encode(self, text: str) -> list[int]:
        """Return the labels of the normalised text, leaving out characters that have none."""
        return [END + 1 + self.written.index(c) for c in normalise(text) if c in self.written]

    def decode(self, labels: Iterable[int]) -> str:
        """Return the text of labels, up to the first end."""
        text = []
        for label in labels:
            if label == END:
                break
            if label > END:
                text.append(self.written[label - END - 1])
        return "".join(text)

    def unknown(self, texts: Iterable[str]) -> str:
        """Return the characters of the normalised texts that have no label, sorted."""
        return "".join(sorted({c for text in texts for c in normalise(text)} - set(self.written)))


def normalise(text: str) -> str:
    """Return the text in upper case with single spaces between its words."""
    return " ".join(text.upper().split())


def edits(reference: Sequence[str], hypothesis: Sequence[str]) -> int:
    """Return the fewest substitutions, deletions and insertions between two sequences (Levenshtein 1966).

    >>> edits("KITTEN", "SITTING")
    3
    """
    row = list(range(len(hypothesis) + 1))
    for i, expected in enumerate(reference, start=1):
        diagonal, row[0] = row[0], i
        for j, found in enumerate(hypothesis, start=1):
            diagonal, row[j] = row[j], min(diagonal + (expected != found), row[j] + 1, row[j - 1] + 1)
    return row[-1]


def error_rates(references: Sequence[str], hypotheses: Sequence[str]) -> dict[str, float]:
    """Return `wer` and `cer` as fractions: all edits over all reference words, or characters, of normalised texts.

    Raises `DataError` when the references hold no word: a rate would be undefined.
    """
    expected, found = [normalise(text) for text in references], [normalise(text) for text in hypotheses]
    words = sum(len(text.split()) for text in expected)
    if not words:
        raise DataError(f"error rates need references with words; these {len(expected)} have none")
    pairs = list(zip(expected, found, strict=True))
    return {
        "wer": sum(edits(e.split(), f.split()) for e, f in pairs) / words,
        "cer": sum(edits(e, f) for e, f in pairs) / sum(map(len, expected)),
    }
