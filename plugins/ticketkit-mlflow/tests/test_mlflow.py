"""What the observer sends, read back from a store, in runs that name it through the entry point."""

import contextlib
import json
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import ticketkit
from ticketkit.testing import mlp, plugin_installed

for package in ("mlflow", "sqlalchemy", "alembic"):
    pytest.importorskip(package, reason="the tests need a store: pip install 'ticketkit-mlflow[sqlite]'")
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:unclosed database:ResourceWarning")

PROJECT = Path(__file__).parents[1]
Discover = Callable[[], ticketkit.Plugins]


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with its tables, which take seconds to make; every test has an experiment of its own there."""
    path = tmp_path_factory.mktemp("store") / "mlflow.db"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
        Store(path, "any").client.search_experiments()
    return path


@pytest.fixture(scope="module", autouse=True)
def installed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """An environment where the plugin is installed."""
    with plugin_installed(PROJECT, tmp_path_factory.mktemp("site")):
        yield


@pytest.fixture
def plugins(monkeypatch: pytest.MonkeyPatch) -> Discover:
    """Discover the plugins, of which only this one counts."""
    monkeypatch.setenv("TICKETKIT_LOAD_PLUGINS", "mlflow")
    monkeypatch.setenv("TICKETKIT_CHECK_OBSERVERS", "1")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.delenv("TICKETKIT_MLFLOW_EXPERIMENT", raising=False)
    return ticketkit.Plugins.discover


@pytest.fixture
def module(plugins: Discover) -> ModuleType:
    import ticketkit_mlflow

    return ticketkit_mlflow


class Store:
    """An experiment in a store, read through MLflow's own client."""

    def __init__(self, database: Path, experiment: str):
        from mlflow.tracking import MlflowClient

        self.uri, self.experiment = f"sqlite:///{database}", experiment
        self.client = MlflowClient(tracking_uri=self.uri)

    def runs(self) -> list[Any]:
        """Return the runs of the experiment, the first one first."""
        found = self.client.get_experiment_by_name(self.experiment)
        return self.client.search_runs([found.experiment_id], order_by=["attributes.start_time ASC"]) if found else []

    def history(self, run: Any) -> dict[str, list[tuple[int, float]]]:
        """Return every value that was sent, as (step, value)."""
        sent = {key: self.client.get_metric_history(run.info.run_id, key) for key in run.data.metrics}
        return {key: sorted((m.step, m.value) for m in metrics) for key, metrics in sent.items()}


@pytest.fixture
def store(plugins: Discover, database: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    found = Store(database, tmp_path.name)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", found.uri)
    monkeypatch.setenv("TICKETKIT_MLFLOW_EXPERIMENT", found.experiment)
    return found


class Killed(BaseException):
    """Ends a process without a word to anyone, as a signal would."""


class Training:
    """A training whose metrics are known, and which fails where a test wants it to."""

    def __init__(self, *, fails_in: int | None = None, error: type[BaseException] = RuntimeError):
        self.fails_in, self.error = fails_in, error

    def __call__(self, model: torch.nn.Module) -> None:
        # Draws from all generators, so that an observer that draws as well changes the result.
        jitter = random.random() + float(np.random.rand()) + float(torch.rand(()))
        optimizer = torch.optim.SGD(model.parameters(), lr=jitter)
        model(torch.randn(4, 6)).square().sum().backward()
        optimizer.step()

    def imp(self, plugins: ticketkit.Plugins, **settings: Any) -> ticketkit.IMP:
        return ticketkit.IMP(mlp(), plugins=plugins, rounds=3, rate=0.5, allocation="uniform", **settings)

    def run(self, imp: ticketkit.IMP) -> ticketkit.IMP:
        with imp.watched():
            for round in imp:
                self(imp.model)
                if round.index == self.fails_in:
                    raise self.error("the loss is NaN")
                round.log(wer=metric(round.index))
        return imp


@pytest.fixture(autouse=True)
def seeds() -> None:
    seeded()


def seeded() -> None:
    for seed in (random.seed, np.random.seed, torch.manual_seed):
        seed(0)


def metric(index: int) -> float:
    return 0.5 / (index + 1)


def expected(imp: ticketkit.IMP) -> dict[str, Any]:
    """Return what must be there, computed from the masks of the run and the network."""
    masks = [ticket.mask for ticket in imp.tickets]
    size = sum(parameter.numel() for parameter in imp.model.parameters())
    counts = [{name: int(mask[name].sum()) for name in mask} for mask in masks]
    sizes = {name: masks[0][name].numel() for name in masks[0]}
    pruned = [sum(sizes.values()) - sum(count.values()) for count in counts]
    values = {
        "wer": [metric(index) for index in range(len(masks))],
        "round/kept": [sum(count.values()) for count in counts],
        "density/scope": [sum(count.values()) / sum(sizes.values()) for count in counts],
        "density/model": [1 - gone / size for gone in pruned],
        **{f"parameter_density/{name}": [count[name] / sizes[name] for count in counts] for name in sizes},
    }
    return {key: [(step, pytest.approx(value)) for step, value in enumerate(found)] for key, found in values.items()}


def check_complete(store: Store, run: Any, imp: ticketkit.IMP) -> None:
    sent = store.history(run)
    assert [step for step, _ in sent.pop("round/seconds")] == list(range(len(imp.plan)))
    assert sent == expected(imp)
    assert run.info.status == "FINISHED"


def test_every_round_is_read_back_with_its_step(plugins: Discover, store: Store, tmp_path: Path) -> None:
    training = Training()
    imp = training.run(training.imp(plugins(), run_dir=tmp_path / "run", seed=5, criterion="magnitude_increase"))
    (run,) = store.runs()
    check_complete(store, run, imp)
    params = run.data.params
    assert (params["plan"], params["rounds"], params["seed"]) == ("72 36 18 9", "3", "5")
    assert (params["criterion"], params["allocation"]) == ("builtin:magnitude_increase", "builtin:uniform")
    assert (params["scope_total"], params["model_total"], params["model"]) == ("72", "83", "Sequential")
    masks = [run.data.tags[f"ticketkit.mask.{index}"] for index in range(4)]
    assert masks == [ticket.mask.digest for ticket in imp.tickets]


def test_the_mask_in_training_is_known_before_its_round_has_ended(plugins: Discover, store: Store) -> None:
    training = Training()
    for round in training.imp(plugins()):
        training(round.model)
        if round.index:
            assert store.runs()[0].data.tags[f"ticketkit.mask.{round.index}"] == round.mask.digest


def test_a_run_without_a_directory_is_sent_too(plugins: Discover, store: Store) -> None:
    training = Training()
    imp = training.run(training.imp(plugins()))
    check_complete(store, store.runs()[0], imp)


@pytest.mark.parametrize("experiment", [None, ""])
def test_without_an_experiment_nothing_is_sent(
    experiment: str | None, plugins: Discover, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TICKETKIT_MLFLOW_EXPERIMENT")
    if experiment is not None:
        monkeypatch.setenv("TICKETKIT_MLFLOW_EXPERIMENT", experiment)
    monkeypatch.chdir(tmp_path)
    experiments = len(store.client.search_experiments())
    training = Training()
    training.run(training.imp(plugins(), run_dir="run"))
    assert len(store.client.search_experiments()) == experiments
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run"]
    assert not (tmp_path / "run" / "mlflow.json").exists()


def test_an_experiment_without_a_store_is_refused(
    plugins: Discover, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    training = Training()
    with pytest.raises(ticketkit.ConfigError, match="MLFLOW_TRACKING_URI does not say where"):
        training.run(training.imp(plugins()))


def test_a_missing_mlflow_is_refused_when_the_run_starts(
    plugins: Discover, store: Store, module: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "find_spec", lambda name: None)
    training = Training()
    with pytest.raises(ticketkit.ConfigError, match="pip install mlflow-skinny"):
        training.run(training.imp(plugins()))


def test_watching_changes_no_bit(plugins: Discover, store: Store) -> None:
    def digests(watched: ticketkit.Plugins) -> tuple[list[str], float]:
        seeded()
        training = Training()
        return [ticket.digest for ticket in training.run(training.imp(watched)).tickets], random.random()

    assert digests(plugins()) == digests(ticketkit.Plugins())
    assert len(store.runs()) == 1


def test_what_mlflow_draws_from_the_generator_of_the_training_is_taken_back(
    module: ModuleType, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It draws when it waits before it asks a server again, and for the names of runs."""
    client = type(store.client)
    create, log = client.create_run, client.log_batch
    drawn: list[float] = []

    def drawing(call: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *args, **kwargs: (drawn.append(random.random()), call(*args, **kwargs))[1]

    monkeypatch.setattr(client, "create_run", drawing(create))
    monkeypatch.setattr(client, "log_batch", drawing(log))
    state, plugins = random.getstate(), ticketkit.Plugins()
    plugins.watch(module.MLflow(store.uri, store.experiment))
    for round in Training().imp(plugins):
        torch.optim.SGD(round.model.parameters(), lr=0.1).step()
    assert len(drawn) > 8
    assert random.getstate() == state


# Runs that fail, and go on


def test_a_run_that_fails_is_marked_as_failed(plugins: Discover, store: Store) -> None:
    training = Training(fails_in=1)
    with pytest.raises(RuntimeError):
        training.run(training.imp(plugins()))
    (run,) = store.runs()
    assert run.info.status == "FAILED"
    assert run.data.tags["ticketkit.error"] == "RuntimeError: the loss is NaN"
    assert store.history(run)["wer"] == [(0, metric(0))]


@pytest.mark.parametrize(("error", "status"), [(RuntimeError, "FAILED"), (Killed, "RUNNING")])
@pytest.mark.parametrize("fails_in", [0, 2])
def test_an_interrupted_run_goes_on_in_its_mlflow_run_without_duplicates(
    fails_in: int, error: type[BaseException], status: str, plugins: Discover, store: Store, tmp_path: Path
) -> None:
    for name in ("run", "other"):  # the other run, of the same settings, is not this one
        training = Training(fails_in=fails_in, error=error)
        with pytest.raises(error):
            training.run(training.imp(plugins(), run_dir=tmp_path / name))
    training = Training()
    imp = training.run(training.imp(plugins(), run_dir=tmp_path / "run"))
    own, other = store.runs()
    check_complete(store, own, imp)
    assert other.info.status == status
    assert [step for step, _ in store.history(other).get("wer", [])] == list(range(fails_in))


def test_a_run_that_goes_on_is_running_again_until_it_ends(plugins: Discover, store: Store, tmp_path: Path) -> None:
    interrupted(plugins, tmp_path / "run")
    assert store.runs()[0].info.status == "FAILED"
    training = Training()
    for round in training.imp(plugins(), run_dir=tmp_path / "run"):
        training(round.model)
        assert store.runs()[0].info.status == "RUNNING"
    assert store.runs()[0].info.status == "FINISHED"


class KilledBefore:
    """Another observer, which ends the process when a certain event comes, before this one sees it."""

    def __init__(self, event: str, times: int):
        self.event, self.left = event, times

    def _seen(self, event: str) -> None:
        self.left -= event == self.event
        if self.left == 0:
            raise Killed

    @ticketkit.hookimpl(tryfirst=True)
    def ticketkit_ticket_saved(self) -> None:
        self._seen("ticket_saved")

    @ticketkit.hookimpl(tryfirst=True)
    def ticketkit_round_end(self) -> None:
        self._seen("round_end")

    @ticketkit.hookimpl(tryfirst=True)
    def ticketkit_run_end(self) -> None:
        self._seen("run_end")


@pytest.mark.parametrize(
    ("event", "times"),
    [("ticket_saved", 2), ("round_end", 1), ("round_end", 3), ("round_end", 4), ("run_end", 1)],
)
def test_a_round_that_was_saved_but_not_sent_is_sent_at_the_end(
    event: str, times: int, plugins: Discover, store: Store, tmp_path: Path
) -> None:
    training, watched = Training(), plugins()
    watched.watch(KilledBefore(event, times))
    with pytest.raises(Killed):
        training.run(training.imp(watched, run_dir=tmp_path / "run"))
    imp = training.run(training.imp(plugins(), run_dir=tmp_path / "run"))
    (run,) = store.runs()
    check_complete(store, run, imp)


def test_going_through_a_finished_run_again_sends_nothing(plugins: Discover, store: Store, tmp_path: Path) -> None:
    training = Training()
    training.run(training.imp(plugins(), run_dir=tmp_path / "run"))
    (before,) = store.runs()
    imp = training.run(training.imp(plugins(), run_dir=tmp_path / "run"))
    (run,) = store.runs()
    check_complete(store, run, imp)
    assert run.info.end_time == before.info.end_time


def test_rounds_that_are_trained_again_are_sent_again(plugins: Discover, store: Store, tmp_path: Path) -> None:
    training = Training()
    training.run(training.imp(plugins(), run_dir=tmp_path / "run"))
    shutil.rmtree(tmp_path / "run" / "rounds" / "003")  # as ticketkit says to do with a round that is damaged
    training.run(training.imp(plugins(), run_dir=tmp_path / "run"))
    (run,) = store.runs()
    assert [step for step, _ in store.history(run)["wer"]] == [0, 1, 2, 3, 3]
    assert run.info.status == "FINISHED"


@pytest.mark.parametrize("fails_in", [2, None])
def test_a_run_that_was_not_watched_so_far_is_complete_in_the_end(
    fails_in: int | None, plugins: Discover, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    training = Training(fails_in=fails_in)
    with monkeypatch.context() as patch, contextlib.suppress(RuntimeError):
        patch.delenv("TICKETKIT_MLFLOW_EXPERIMENT")
        training.run(training.imp(plugins(), run_dir=tmp_path / "run"))
    training = Training()
    imp = training.run(training.imp(plugins(), run_dir=tmp_path / "run"))
    (run,) = store.runs()
    check_complete(store, run, imp)


@pytest.mark.parametrize("kept", [True, False])
def test_a_loop_that_was_left_goes_on_in_the_run_that_its_directory_names_and_else_in_a_new_one(
    kept: bool, plugins: Discover, store: Store, tmp_path: Path
) -> None:
    training = Training()
    imp = training.imp(plugins(), run_dir=tmp_path / "run" if kept else None)
    for round in imp:
        if round.index == 2:
            break
        training(imp.model)
        round.log(wer=metric(round.index))
    training.run(imp)
    runs = store.runs()
    assert len(runs) == (1 if kept else 2)
    check_complete(store, runs[-1], imp)


def interrupted(plugins: Discover, directory: Path, **settings: Any) -> None:
    training = Training(fails_in=settings.pop("fails_in", 2))
    with pytest.raises(RuntimeError):
        training.run(training.imp(plugins(), run_dir=directory, **settings))


def test_a_run_that_the_store_has_no_more_gets_a_new_one_with_all_its_rounds(
    plugins: Discover, store: Store, tmp_path: Path
) -> None:
    interrupted(plugins, tmp_path / "run")
    store.client.delete_run(store.runs()[0].info.run_id)
    training = Training()
    imp = training.run(training.imp(plugins(), run_dir=tmp_path / "run"))
    (run,) = store.runs()
    check_complete(store, run, imp)


def test_in_another_store_or_experiment_a_run_is_a_new_one(
    plugins: Discover, store: Store, database: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copied = Path(shutil.copy(database, tmp_path / "other.db"))
    interrupted(plugins, tmp_path / "run")
    (first,) = store.runs()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{copied}")
    interrupted(plugins, tmp_path / "run", fails_in=3)
    (second,) = Store(copied, store.experiment).runs()
    assert first.info.run_id != second.info.run_id
    monkeypatch.setenv("TICKETKIT_MLFLOW_EXPERIMENT", "more")
    training = Training()
    imp = training.run(training.imp(plugins(), run_dir=tmp_path / "run"))
    assert Store(copied, store.experiment).runs()[0].info.status == "FAILED"
    more = Store(copied, "more")
    (run,) = more.runs()
    check_complete(more, run, imp)


def test_a_directory_that_was_left_to_other_settings_before_anything_was_trained_begins_a_new_run(
    plugins: Discover, store: Store, tmp_path: Path
) -> None:
    interrupted(plugins, tmp_path / "run", fails_in=0)
    imp = ticketkit.IMP(mlp(), plugins=plugins(), rounds=2, rate=0.5, allocation="uniform", run_dir=tmp_path / "run")
    Training().run(imp)
    first, second = store.runs()
    assert first.data.params["plan"] == "72 36 18 9"
    assert second.data.params["plan"] == "72 36 18"
    check_complete(store, second, imp)


def test_the_note_in_the_run_directory_holds_no_address(plugins: Discover, store: Store, tmp_path: Path) -> None:
    """An address may hold a password, and run directories are copied and shared."""
    training = Training()
    training.run(training.imp(plugins(), run_dir=tmp_path / "run"))
    (run,) = store.runs()
    assert json.loads((tmp_path / "run" / "mlflow.json").read_text()) == {"run_id": run.info.run_id}


@pytest.mark.parametrize("content", ["", "[]", '{"folder": 1}'])
def test_a_note_that_cannot_be_read_is_refused_by_name(
    content: str, plugins: Discover, store: Store, tmp_path: Path
) -> None:
    training = Training()
    imp = training.imp(plugins(), run_dir=tmp_path / "run")
    (tmp_path / "run").mkdir(exist_ok=True)
    (tmp_path / "run" / "mlflow.json").write_text(content)
    with pytest.raises(ticketkit.StorageError, match=r"mlflow\.json is damaged: .*; delete it"):
        training.run(imp)


def test_a_store_that_stops_answering_ends_no_run_and_gets_the_rest_at_the_end(
    plugins: Discover, store: Store, database: Path, caplog: pytest.LogCaptureFixture
) -> None:
    training = Training()
    imp = training.imp(plugins())
    for round in imp:
        if round.index == 1:  # rounds 1 and 2 happen while somebody has moved the tables away
            _execute(database, "ALTER TABLE metrics RENAME TO away")
        if round.index == 3:
            _execute(database, "ALTER TABLE away RENAME TO metrics")
        training(imp.model)
        round.log(wer=metric(round.index))
    assert caplog.text.count("MLflow refused") == 2
    (run,) = store.runs()
    check_complete(store, run, imp)


def _execute(database: Path, statement: str) -> None:
    import sqlite3

    connection = sqlite3.connect(database)
    connection.execute(statement)
    connection.commit()
    connection.close()


def test_runs_side_by_side_are_kept_apart_by_observers_of_their_own(module: ModuleType, store: Store) -> None:
    training, runs = Training(), []
    for _ in range(2):
        plugins = ticketkit.Plugins()
        plugins.watch(module.MLflow(store.uri, store.experiment))
        runs.append(training.imp(plugins))
    for rounds in zip(*runs, strict=True):
        for round in rounds:
            training(round.model)
            round.log(wer=metric(round.index))
    for run, imp in zip(store.runs(), runs, strict=True):
        check_complete(store, run, imp)


# What is sent


NAMES = st.text(max_size=20)


@given(names=st.lists(NAMES, unique=True, min_size=2, max_size=2))
def test_names_that_mlflow_refuses_are_sent_under_names_of_their_own(names: list[str]) -> None:
    import ticketkit_mlflow

    sent = [ticketkit_mlflow._name(name) for name in names]
    assert all(character.isascii() and (character.isalnum() or character in "_-. /") for character in "".join(sent))
    plain = [name for name in names if "_" not in name]  # a name with "_" may spell another one's code
    assert len({ticketkit_mlflow._name(name) for name in plain}) == len(plain)


def test_only_the_first_process_of_a_group_sends(module: ModuleType, store: Store) -> None:
    from torch import distributed
    from torch.testing._internal.distributed.fake_pg import FakeStore

    for rank, sent in ((1, 0), (0, 1)):
        distributed.init_process_group("fake", store=FakeStore(), rank=rank, world_size=2)
        try:
            module.MLflow(store.uri, store.experiment).ticketkit_run_start(plan=(2, 1), finished=0, directory=None)
        finally:
            distributed.destroy_process_group()
        assert len(store.runs()) == sent
