"""Test conditions: every round of a run examined once, example by example."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.study.toy_study import done, toy_plugins, toy_study
from ticketkit.errors import RunError, StorageError
from ticketkit.hookspecs import hookimpl
from ticketkit.plugins import LoadedPlugin, Plugins
from ticketkit.results import Results
from ticketkit.study.directory import StudyDirectory
from ticketkit.study.examinations import examine, is_examined, read_examinations
from ticketkit.study.jobs import OWN, Test


@pytest.fixture(scope="module")
def plugins() -> Plugins:
    return toy_plugins()


@pytest.fixture
def run(tmp_path: Path, plugins: Plugins) -> Path:
    return done(tmp_path, toy_study("existence", seeds=[0]), plugins)[0].run("mlp-imp-s0")


def test_an_examination_agrees_with_the_test_metric_of_the_run(run: Path) -> None:
    rows = {row.round: row.test["wer"] for row in Results.read(run).rows}
    found = read_examinations(run, OWN)
    assert {index: sum(one.errors) / sum(one.units) for index, one in found.items()} == rows
    assert {index: one.metrics["wer"] for index, one in found.items()} == rows
    assert len({one.ids for one in found.values()}) == 1


def test_a_condition_changes_what_is_tested_and_not_what_was_trained(run: Path, plugins: Plugins) -> None:
    trained = {path: path.read_bytes() for path in run.glob("rounds/*/*")}
    hard = Test({"corpus": {"name": "majority", "examples": 16}}, frozenset({0, 2}))
    assert not is_examined(run, "hard", hard)
    examine(run, plugins, "hard", hard)
    assert is_examined(run, "hard", hard)
    found = read_examinations(run, "hard")
    assert sorted(found) == [0, 2]
    assert len(found[0].ids) == 16
    assert {path: path.read_bytes() for path in run.glob("rounds/*/*")} == trained


def test_rounds_that_are_asked_for_later_are_added(run: Path, plugins: Plugins) -> None:
    settings = {"corpus": {"name": "majority", "examples": 16}}
    examine(run, plugins, "hard", Test(settings, frozenset({1})))
    before = read_examinations(run, "hard")[1]
    examine(run, plugins, "hard", Test(settings))
    found = read_examinations(run, "hard")
    assert sorted(found) == [0, 1, 2, 3]
    assert found[1] == before


def test_what_is_examined_is_said_by_the_first_line_or_by_the_whole_of_a_file_without_one(run: Path) -> None:
    path = run / "examinations" / f"{OWN}.json"
    first, rest = path.read_text().split("\n")
    assert first == '{"examined": [0, 1, 2, 3],'
    content = json.loads(f"{first}\n{rest}")
    del content["examined"]
    path.write_text(json.dumps(content))
    assert is_examined(run, OWN, Test())
    path.write_text(f"{first}\n not read")
    assert is_examined(run, OWN, Test())
    path.write_text('{"examined": [0, 1],\n not read')
    assert not is_examined(run, OWN, Test())
    path.write_text('{"examined": 7')
    with pytest.raises(StorageError, match=r"test\.json is damaged"):
        is_examined(run, OWN, Test())


def test_a_damaged_file_is_named(run: Path) -> None:
    (run / "examinations" / f"{OWN}.json").write_text('{"rounds": {"0": {}}}')
    with pytest.raises(StorageError, match=r"test\.json is damaged.*delete it to measure again"):
        read_examinations(run, OWN)


def test_examples_in_another_order_are_refused(run: Path, plugins: Plugins) -> None:
    path = run / "examinations" / f"{OWN}.json"
    content = json.loads(path.read_text())
    content["ids"].reverse()
    del content["rounds"]["3"]
    path.write_text(json.dumps(content))
    with pytest.raises(RunError, match="in one order"):
        examine(run, plugins, OWN, Test())


class Blind:
    """A trainer that knows metrics alone."""

    def __init__(self, bundle: Any, corpus: Any, *, seed: int) -> None:
        pass

    def train(self, progress: Any) -> dict[str, float]:
        return {"wer": 1.0}

    def evaluate(self, split: str) -> dict[str, float]:
        return {"wer": 1.0}


class BlindPlugin:
    @hookimpl
    def ticketkit_register_trainers(self, register: Callable[..., None]) -> None:
        register("blind", Blind)


def test_a_trainer_that_cannot_examine_is_named(run: Path) -> None:
    plugins = toy_plugins()
    plugins.add(BlindPlugin(), LoadedPlugin("blind", "blind", "blind-dist", "1.0"))
    with pytest.raises(RunError, match=r"Blind has no examine\(split\); see ticketkit\.ExaminingTrainer"):
        examine(run, plugins, "new", Test({"trainer": {"name": "blind"}}))


def test_nothing_is_there_before_anything_was_examined(tmp_path: Path) -> None:
    assert read_examinations(StudyDirectory(tmp_path).run("x"), OWN) == {}
