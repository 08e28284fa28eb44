"""Text as a recogniser sees it: an alphabet of labels, text to label indices, indices to text."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol


class Alphabet(Protocol):
    """The labels that a recogniser writes: characters, or pieces of words (`ticketkit_asr.text.bpe`)."""

    @property
    def blank(self) -> int:
        """The label that stands for no text."""
        ...

    @property
    def size(self) -> int:
        """The number of labels, blank included."""
        ...

    def encode(self, text: str) -> list[int]:
        """Return the labels of the normalised text, leaving out what `unknown` counts."""
        ...

    def decode(self, labels: Iterable[int]) -> str:
        """Return the text of `labels`, none of which may be the blank."""
        ...

    def unknown(self, texts: Sequence[str]) -> dict[str, int]:
        """Return the characters of the normalised texts that no label writes, sorted, and how often each occurs."""
        ...


@dataclass(frozen=True)
class Characters:
    """Characters as labels: 1, 2, … in their order; label 0 is the blank.

    >>> Characters("AB").encode("ab?"), Characters("AB").decode([2, 1])
    ([1, 2], 'BA')
    """

    characters: str

    @property
    def blank(self) -> int:
        """The label that stands for no character."""
        return 0

    @property
    def size(self) -> int:
        """The number of labels, blank included."""
        return 1 + len(self.characters)

    def encode(self, text: str) -> list[int]:
        """Return the labels of the normalised text, leaving out what `unknown` counts."""
        return [1 + self.characters.index(c) for c in normalise(text) if c in self.characters]

    def decode(self, labels: Iterable[int]) -> str:
        """Return the text of `labels`, none of which may be the blank."""
        return "".join(self.characters[label - 1] for label in labels)

    def unknown(self, texts: Sequence[str]) -> dict[str, int]:
        """Return the characters of the normalised texts that the alphabet lacks, sorted, and how often each occurs."""
        counts = Counter(c for text in texts for c in normalise(text) if c not in self.characters)
        return dict(sorted(counts.items()))


ENGLISH = Characters("'ABCDEFGHIJKLMNOPQRSTUVWXYZ ")
"""The paper's 29 labels: blank, apostrophe, A to Z, space."""


def normalise(text: str) -> str:
    """Return the text in upper case with single spaces between its words.

    >>> normalise(" don't  stop ")
    "DON'T STOP"
    """
    return " ".join(text.upper().split())
