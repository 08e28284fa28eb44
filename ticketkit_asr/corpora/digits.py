"""Connected digits: what the digit corpora share."""

from pydantic import PositiveInt, field_validator

from ticketkit import Options

WORDS = ("ZERO", "ONE", "TWO", "THREE", "FOUR", "FIVE", "SIX", "SEVEN", "EIGHT", "NINE")
"""The word of each digit."""


class ConnectedDigitsOptions(Options):
    """How many utterances of connected digits, and how long."""

    train_utterances: PositiveInt = 600
    dev_utterances: PositiveInt = 200
    test_utterances: PositiveInt = 300
    digits: tuple[PositiveInt, PositiveInt] = (2, 5)
    """The fewest and the most digits in an utterance."""
    seed: int = 0
    """Decides which digits follow each other; apart from the experiment's seed, so that all seeds share one corpus."""

    @field_validator("digits")
    @classmethod
    def _in_order(cls, digits: tuple[int, int]) -> tuple[int, int]:
        if digits[0] > digits[1]:
            raise ValueError(f"the fewest digits come first, then the most; got {digits[0]}, {digits[1]}")
        return digits

    def utterances(self, split: str) -> int:
        """Return the number of utterances asked for in a split."""
        counts = {"train": self.train_utterances, "dev": self.dev_utterances, "test": self.test_utterances}
        return counts[split]
