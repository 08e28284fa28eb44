"""The whole path on a tiny corpus: recordings on disk → training → pruning → tickets → report."""

import json
from pathlib import Path
from typing import Any

import pytest

from ticketkit import Plugins, Progress, Ticket
from ticketkit.config import parse_config
from ticketkit.experiment import run_experiment
from ticketkit.results import Results

EPOCHS = 5

TINY = {
    "preset": "small",
    "features": {"kind": "log_spectrogram"},
    "convs": [{"channels": 8, "kernel": [5, 5], "stride": [1, 1]}],
    "hidden": 32,
    "layers": 1,
}


def settings(root: Path, **corpus: Any) -> dict[str, Any]:
    sizes = {"train_utterances": 60, "dev_utterances": 12, "test_utterances": 12, "digits": [1, 2]}
    return {
        "corpus": {"name": "fsdd", "root": str(root), **sizes, **corpus},
        "backbone": {"name": "cnn_lstm", **TINY},
        "trainer": {"name": "asr", "epochs": EPOCHS, "batch_size": 4, "lr": 0.02},
        "prune": {"rate": 0.3, "rounds": 2, "criterion": "magnitude_over_init"},
        "tolerance": 0.1,
    }


class InterruptedRunError(Exception):
    """The power cut of the second run."""


def run(root: Path, directory: Path, *, stop_after: int | None = None) -> tuple[Results | None, list[Progress]]:
    """Run or go on with the experiment in a directory; return its results and the epochs that were trained."""
    plugins = Plugins.discover()
    epochs: list[Progress] = []

    def watch(progress: Progress) -> None:
        epochs.append(progress)
        if len(epochs) == stop_after:
            raise InterruptedRunError

    try:
        results = run_experiment(parse_config(settings(root), plugins), directory, plugins, watch)
    except InterruptedRunError:
        results = None
    return results, epochs


@pytest.fixture
def finished(fsdd_root: Path, tmp_path: Path) -> tuple[Path, Results]:
    results, epochs = run(fsdd_root, tmp_path / "run")
    assert results is not None
    assert len(epochs) == 3 * EPOCHS
    for first, last in ((0, EPOCHS - 1), (2 * EPOCHS, 3 * EPOCHS - 1)):  # the dense round and the last
        assert epochs[last].loss < epochs[first].loss / 3
    return tmp_path / "run", results


def test_tones_are_learnt_pruned_and_reported(finished: tuple[Path, Results], fsdd_root: Path, tmp_path: Path) -> None:
    directory, results = finished
    assert [row.kept / results.scope_total for row in results.rows] == pytest.approx([1, 0.7, 0.49], abs=1e-3)
    assert json.loads((directory / "test.json").read_text()).keys() == {"0", "1", "2"}
    assert results.corpus["splits"]["train"]["utterances"] == 60
    for index in range(3):
        ticket = Ticket.load(directory / "rounds" / f"{index:03d}" / "ticket.safetensors")
        ticket.verify_file(directory / "rounds" / f"{index:03d}" / "trained.safetensors")

    _, epochs = run(fsdd_root, tmp_path / "other", stop_after=EPOCHS + 3)  # in the middle of round 1
    assert len(epochs) == EPOCHS + 3
    resumed, epochs = run(fsdd_root, tmp_path / "other")
    assert len(epochs) == 2 * EPOCHS - 2  # two epochs of round 1 were saved
    assert resumed is not None
    for index in range(3):
        for name in ("ticket.safetensors", "trained.safetensors"):
            path = Path("rounds") / f"{index:03d}" / name
            assert (directory / path).read_bytes() == (tmp_path / "other" / path).read_bytes(), path
    assert [row.test for row in resumed.rows] == [row.test for row in results.rows]
