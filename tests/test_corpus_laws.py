"""`check_corpus` refuses every kind of bad corpus, and says why."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ticketkit import ConfigError, DataError
from ticketkit.testing import ConformanceError, check_corpus


@dataclass(frozen=True)
class Spoken:
    id: str


class Words:
    """A good corpus; mutants override a part."""

    def __init__(self) -> None:
        self.splits: dict[str, list[Any]] = {
            name: [Spoken(f"{name}-{index}") for index in range(3)] for name in ("train", "dev", "test")
        }

    def describe(self) -> Any:
        return {"name": "words", "hours": 0.5, "splits": {name: len(split) for name, split in self.splits.items()}}

    def split(self, name: str) -> Any:
        if name not in self.splits:
            raise ConfigError(f"corpus 'words' has no split {name!r}; it has {', '.join(self.splits)}")
        return self.splits[name]


def test_a_good_corpus_passes() -> None:
    check_corpus(Words)


def test_other_splits_are_said() -> None:
    class TwoSplits(Words):
        def __init__(self) -> None:
            super().__init__()
            del self.splits["test"]

    check_corpus(TwoSplits, splits=("train", "dev"))
    with pytest.raises(ConformanceError, match=r"give its splits .*; say splits=.*\n  where: split\('test'\)"):
        check_corpus(TwoSplits)


def told(facts: Callable[[], Any]) -> Callable[[], Words]:
    """Return a corpus that says other things of itself."""

    class Told(Words):
        def describe(self) -> Any:
            return facts()

    return Told


def split_into(**splits: list[Any]) -> Callable[[], Words]:
    """Return a corpus with other splits."""

    class Split(Words):
        def __init__(self) -> None:
            super().__init__()
            self.splits.update(splits)

    return Split


class Growing(Words):
    def split(self, name: str) -> Any:
        super().split(name).append(Spoken(f"{name}-{len(self.splits[name])}"))
        return list(self.splits[name])


class Mute(Words):
    describe = None  # type: ignore[assignment]


class Generous(Words):
    def split(self, name: str) -> Any:
        return self.splits.get(name, [])


class Blunt(Words):
    def split(self, name: str) -> Any:
        return self.splits[name]


class Evasive(Words):
    def split(self, name: str) -> Any:
        if name not in self.splits:
            raise DataError("no such data")
        return self.splits[name]


class Seeding(Words):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)


class Drawing(Words):
    def __init__(self) -> None:
        super().__init__()
        np.random.rand()


class Opened(Words):
    """Says how often it has been opened."""

    times = 0

    def __init__(self) -> None:
        super().__init__()
        Opened.times += 1
        self.number = Opened.times

    def describe(self) -> Any:
        return {**super().describe(), "opened": self.number}


class Asked(Words):
    """Says how often it has been asked."""

    asked = 0

    def describe(self) -> Any:
        self.asked += 1
        return {**super().describe(), "asked": self.asked}


def missing() -> Words:
    raise DataError("the folder /data/words is missing; download it from example.org")


def turned_round() -> Callable[[], Words]:
    """Return a corpus whose second opening has other utterances."""
    calls: list[None] = []

    def corpus() -> Words:
        calls.append(None)
        found = Words()
        if len(calls) > 1:
            found.splits["train"] = found.splits["train"][::-1]
        return found

    return corpus


class Counted(Words):
    def __init__(self) -> None:
        self.splits = {"train": [1, 2], "dev": [3], "test": [4]}


def test_utterances_without_ids_are_only_counted() -> None:
    check_corpus(Counted)


MUTANTS: dict[str, tuple[Callable[[], Any], str]] = {
    "a path": (
        told(lambda: {"root": Path("words")}),
        r"describe itself in JSON.*\n.*\['root'\]\n.*which JSON cannot say",
    ),
    "NaN": (told(lambda: {"hours": float("nan")}), r"describe itself in JSON.*\n.*\['hours'\]\n.*Out of range float"),
    "a tuple": (told(lambda: {"digits": (2, 5)}), r"describe itself in JSON.*\n.*\['digits'\]\n.*which comes back as"),
    "a number as a key": (told(lambda: {"takes": {1: 2}}), r"describe itself in JSON.*\n.*\['takes'\]\n.*\{'1': 2\}"),
    "no mapping": (told(lambda: ["words"]), r"describe itself in JSON: a mapping.*\n.*\n  came: a list"),
    "no description": (Mute, r"return a corpus, which has describe\(\)\n.*\n  came: a Mute"),
    "a bug": (told(lambda: {}["name"]), r"raise nothing but a TicketkitError.*\n.*\n  came: KeyError"),
    "other facts when opened again": (
        Opened,
        r"say the same of itself each time.*\n.*opened again\n  came: 'opened': \d",
    ),
    "other facts when asked again": (Asked, r"say the same of itself each time.*\n  where: describe\(\) called again"),
    "a generator reset": (Seeding, r"leave the global random generators alone"),
    "a generator moved": (Drawing, r"leave the global random generators alone"),
    "data missing": (missing, r"open, with no other arguments than its options\n.*\n  came: DataError: the folder"),
    "an empty split": (
        split_into(dev=[]),
        r"have something in every split, or raise DataError.*\n  where: split\('dev'\)",
    ),
    "an id twice": (
        split_into(dev=[Spoken("a"), Spoken("a")]),
        r"have every id once.*\n  where: split\('dev'\)\n.*in 'dev'",
    ),
    "training data tested": (
        split_into(test=[Spoken("train-1")]),
        r"have every id once.*\n  where: split\('test'\)\n  came: id 'train-1', which is in 'train' already",
    ),
    "another order when opened again": (
        turned_round(),
        r"the same utterances in the same order.*\n.*'train'\), opened again",
    ),
    "more when asked again": (
        Growing,
        r"the same utterances in the same order.*\n.*'train'\), asked again\n.*4 utt.*5 utt",
    ),
    "an unknown split that is empty": (Generous, r"raise ConfigError for a split that there is not\n.*\n  came: \[\]"),
    "an unknown split with a bug": (Blunt, r"raise nothing but a TicketkitError.*\n.*a_split.*\n  came: KeyError"),
    "an unknown split, wrong error": (Evasive, r"raise ConfigError for a split that there is not\n.*\n.*DataError"),
}


@pytest.mark.parametrize("name", MUTANTS)
def test_a_bad_corpus_is_refused(name: str) -> None:
    corpus, message = MUTANTS[name]
    with pytest.raises(ConformanceError, match=message):
        check_corpus(corpus)
