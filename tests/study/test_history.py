"""Epochs, written down as they end and read back."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.study.toy_study import done, toy_plugins, toy_study
from ticketkit.history import FILE, Epoch, read_history, recorded
from ticketkit.roles import Progress
from ticketkit.study.grids import jobs
from ticketkit.study.history import mean_history
from ticketkit.study.jobs import Arm
from ticketkit.study.points import collect


def told(epoch: int, loss: float = 0.5) -> Progress:
    return Progress(epoch, 3, loss, {"wer": loss / 2})


@pytest.fixture
def record(tmp_path: Path) -> Callable[[int, Progress], None]:
    return recorded(lambda progress: None, tmp_path)


def test_epochs_come_back_in_order_and_are_passed_on(tmp_path: Path) -> None:
    passed: list[Progress] = []
    record = recorded(passed.append, tmp_path / "run")
    for index in (0, 1):
        for epoch in (1, 2):
            record(index, told(epoch, index + epoch / 8))
    assert read_history(tmp_path / "run") == [
        Epoch(index, epoch, index + epoch / 8, {"wer": (index + epoch / 8) / 2}) for index in (0, 1) for epoch in (1, 2)
    ]
    assert [progress.epoch for progress in passed] == [1, 2, 1, 2]


def test_numbers_come_back_to_the_bit_even_those_that_are_none(
    tmp_path: Path, record: Callable[[int, Progress], None]
) -> None:
    losses = [0.1 + 0.2, 1e-300, float("inf"), float("nan")]
    for epoch, loss in enumerate(losses):
        record(0, told(epoch, loss))
    assert repr([epoch.loss for epoch in read_history(tmp_path)]) == repr(losses)


def test_of_an_epoch_that_was_trained_again_the_last_training_counts(
    tmp_path: Path, record: Callable[[int, Progress], None]
) -> None:
    for epoch, loss in ((1, 0.9), (2, 0.8), (1, 0.5), (2, 0.4), (3, 0.3)):
        record(1, told(epoch, loss))
    assert [(epoch.epoch, epoch.loss) for epoch in read_history(tmp_path)] == [(1, 0.5), (2, 0.4), (3, 0.3)]


@pytest.mark.parametrize("kept", [1, 20, -1])
def test_a_line_that_was_cut_short_is_left_out_and_spoils_none_after_it(
    kept: int, tmp_path: Path, record: Callable[[int, Progress], None]
) -> None:
    record(0, told(1))
    whole = (tmp_path / FILE).read_text()
    (tmp_path / FILE).write_text(whole + whole.replace('"epoch": 1', '"epoch": 2')[: kept if kept > 0 else -10])
    assert [epoch.epoch for epoch in read_history(tmp_path)] == [1]
    record(0, told(2, 0.25))
    record(0, told(3))
    assert [(epoch.epoch, epoch.loss) for epoch in read_history(tmp_path)] == [(1, 0.5), (2, 0.25), (3, 0.5)]


def test_lines_of_something_else_are_left_out(tmp_path: Path, record: Callable[[int, Progress], None]) -> None:
    record(0, told(1))
    with (tmp_path / FILE).open("a") as file:
        file.write('5\n[1, 2]\n{"round": 0}\n\n{"round": 0, "epoch": 9, "loss": 1, "metrics": {}, "more": 1}\n')
    assert [epoch.epoch for epoch in read_history(tmp_path)] == [1]


def test_a_run_without_the_file_has_no_history(tmp_path: Path) -> None:
    assert read_history(tmp_path) == []


def test_the_history_of_a_point_is_the_mean_over_its_seeds(tmp_path: Path) -> None:
    config = toy_study("existence")
    study, found = done(tmp_path, config, toy_plugins())
    point = collect(found, study).ladder(Arm("mlp", "imp"))[1]
    runs = [
        [epoch for epoch in read_history(study.run(job.id)) if epoch.round == 1] for job in jobs(config, ("existence",))
    ]
    epochs, values = mean_history(study, point, "wer")
    assert epochs == [1.0, 2.0]
    assert values == pytest.approx([sum(run[place].metrics["wer"] for run in runs) / 2 for place in (0, 1)])
    assert mean_history(study, point, "loss") == ([], [])


def test_every_line_is_json_of_its_own(tmp_path: Path, record: Callable[[int, Progress], None]) -> None:
    record(2, told(1))
    assert [json.loads(line) for line in (tmp_path / FILE).read_text().splitlines()] == [
        {"round": 2, "epoch": 1, "loss": 0.5, "metrics": {"wer": 0.25}}
    ]
