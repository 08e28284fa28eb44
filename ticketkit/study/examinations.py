"""What test conditions say of the trained networks of a run: measured once, kept in its run directory."""

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

from ticketkit.building import made
from ticketkit.config import parse_config
from ticketkit.errors import RunError, StorageError
from ticketkit.experiment import build, read_config
from ticketkit.ledger import Ledger
from ticketkit.plugins import Plugins
from ticketkit.rng import seeded
from ticketkit.roles import Corpus, Examination, ExaminingTrainer, Trainer
from ticketkit.storage import write_text_atomically
from ticketkit.study.jobs import Test
from ticketkit.study.overlay import merged

SPLIT = "test"
HEAD = '{"examined": '
"""Begins a file of examinations: its first line says which rounds are in it, so that nobody has to read them all."""


def examine(directory: Path, plugins: Plugins, name: str, test: Test) -> None:
    """Examine the rounds of a finished run that a test condition is about and that it has not seen yet.

    Raises `RunError` for a trainer that cannot examine.
    """
    known, wanted = read_examinations(directory, name), _rounds(directory, test)
    if wanted <= known.keys():
        return
    settings = read_config(directory, plugins).model_dump(mode="json")
    config = parse_config(merged(settings, test.settings), plugins)
    ledger = Ledger(directory)
    with seeded(config.seed):
        bundle = build(config, directory, plugins)
        corpus: Corpus = made(config.chosen(plugins, "corpus"), "corpus")
        trainer: Trainer = made(config.chosen(plugins, "trainer"), "trainer", bundle, corpus, seed=config.seed)
        if not isinstance(trainer, ExaminingTrainer):
            raise RunError(
                f"a study compares networks example by example, and {type(trainer).__name__} has no examine(split); "
                "see ticketkit.ExaminingTrainer"
            )
        found = dict(known)
        for record in ledger.records():
            if record.index in wanted - known.keys():
                ledger.trained(record).restore_tensors(bundle.module)
                found[record.index] = trainer.examine(SPLIT)
    _write(_file(directory, name), found)


def is_examined(directory: Path, name: str, test: Test) -> bool:
    """Say whether all that a test condition is about has been examined."""
    return _rounds(directory, test) <= _examined(directory, name)


def read_examinations(directory: Path, name: str) -> dict[int, Examination]:
    """Return what has been examined under a test condition, by round; nothing, if nothing has."""
    path = _file(directory, name)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return {
            int(index): Examination(one["metrics"], tuple(content["ids"]), tuple(one["errors"]), tuple(one["units"]))
            for index, one in content["rounds"].items()
        }
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise _damaged(path, error) from error


def _examined(directory: Path, name: str) -> set[int]:
    """Return the rounds examined under a test condition, by the file's first line, if it has one that says so."""
    path = _file(directory, name)
    try:
        with path.open(encoding="utf-8") as file:
            first = file.readline()
        if first.startswith(HEAD):
            return set(map(int, json.loads(first.strip().removesuffix(",") + "}")["examined"]))
    except FileNotFoundError:
        return set()
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise _damaged(path, error) from error
    return set(read_examinations(directory, name))


def _damaged(path: Path, error: Exception) -> StorageError:
    return StorageError(f"{path} is damaged: {error!r}; delete it to measure again")


def _rounds(directory: Path, test: Test) -> set[int]:
    """Return the rounds of a run that a test condition is about."""
    there = {int(path.parent.name) for path in directory.glob("rounds/*/record.json")}
    return there if test.rounds is None else there & test.rounds


def _file(directory: Path, name: str) -> Path:
    return directory / "examinations" / f"{name}.json"


def _write(path: Path, found: Mapping[int, Examination]) -> None:
    """Write examinations, the names of the examples once."""
    ids = next(iter(found.values())).ids
    rounds = {}
    for index in sorted(found):
        one = asdict(found[index])
        if one.pop("ids") != ids:
            raise RunError("a trainer's examine(split) must return the examples in one order, always the same")
        rounds[str(index)] = one
    text = json.dumps({"ids": ids, "rounds": rounds})
    write_text_atomically(path, f"{HEAD}{sorted(found)},\n{text[1:]}")
