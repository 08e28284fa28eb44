"""What the observer sends, read back from a store, in runs that name it through the entry point."""

import random
import shutil
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import ticketkit
from ticketkit.testing import mlp

for package in ("mlflow", "sqlalchemy", "alembic"):
    pytest.importorskip(package, reason="the tests need a store: pip install 'ticketkit-mlflow[sqlite]'")
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:unclosed database:ResourceWarning")

ROOT = Path(__file__).parents[1]
Discover = Callable[[], ticketkit.Plugins]


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a store with its tables once; that takes seconds."""
    path = tmp_path_factory.mktemp("store") / "mlflow.db"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
        Store(f"sqlite:///{path}").client.search_experiments()
    return path


@pytest.fixture
def plugins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Discover:
    """Discover the plugins of an environment where this one is installed: its module and its entry point are there."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    site = tmp_path / "site"
    info = site / "ticketkit_mlflow-0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n")
    points = "".join(f"{name} = {value}\n" for name, value in project["entry-points"]["ticketkit"].items())
    (info / "entry_points.txt").write_text(f"[ticketkit]\n{points}")
    monkeypatch.setenv("TICKETKIT_LOAD_PLUGINS", "mlflow")
    monkeypatch.setenv("TICKETKIT_CHECK_OBSERVERS", "1")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.delenv("TICKETKIT_MLFLOW_EXPERIMENT", raising=False)
    monkeypatch.delitem(sys.modules, "ticketkit_mlflow", raising=False)
    monkeypatch.syspath_prepend(ROOT)
    monkeypatch.syspath_prepend(site)
    return ticketkit.Plugins.discover


@pytest.fixture
def module(plugins: Discover) -> ModuleType:
    import ticketkit_mlflow

    return ticketkit_mlflow


class Store:
    """A store, read through MLflow's own client."""

    def __init__(self, uri: str):
        from mlflow.tracking import MlflowClient

        self.uri, self.client = uri, MlflowClient(tracking_uri=uri)

    def runs(self) -> list[Any]:
        """Return the runs of the experiment, the first one first."""
        found = self.client.get_experiment_by_name("tickets")
        return self.client.search_runs([found.experiment_id], order_by=["attributes.start_time ASC"]) if found else []

    def history(self, run: Any) -> dict[str, list[tuple[int, float]]]:
        """Return every value that was sent, as (step, value)."""
        sent = {key: self.client.get_metric_history(run.info.run_id, key) for key in run.data.metrics}
        return {key: sorted((m.step, m.value) for m in metrics) for key, metrics in sent.items()}


@pytest.fixture
def store(
    plugins: Discover, module: ModuleType, empty_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Store:
    shutil.copy(empty_store, tmp_path / "mlflow.db")
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    monkeypatch.setenv("TICKETKIT_MLFLOW_EXPERIMENT", "tickets")
    return Store(uri)


class Killed(BaseException):
    """Ends a process without a word to anyone, as a signal would."""


class Training:
    """A training whose metrics are known, and which fails where a test wants it to."""

    def __init__(self, *, fails_in: int | None = None, error: type[BaseException] = RuntimeError, scale: float = 1.0):
        self.fails_in, self.error, self.scale = fails_in, error, scale

    def __call__(self, model: torch.nn.Module) -> None:
        # Draws from all generators, so that an observer that draws as well changes the result.
        jitter = random.random() + float(np.random.rand()) + float(torch.rand(()))
        optimizer = torch.optim.SGD(model.parameters(), lr=self.scale * jitter)
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
    assert run.data.tags["ticketkit.mask.3"] == imp.tickets[3].mask.digest


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
    before = (tmp_path / "mlflow.db").read_bytes(), sorted(tmp_path.iterdir())
    training = Training()
    training.run(training.imp(plugins()))
    assert ((tmp_path / "mlflow.db").read_bytes(), sorted(tmp_path.iterdir())) == before


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
        for seed in (random.seed, np.random.seed, torch.manual_seed):
            seed(0)
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
    plugins.watch(module.MLflow(store.uri, "tickets"))
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
@pytest.mark.parametrize("fails_in", [1, 3])
def test_an_interrupted_run_goes_on_in_its_mlflow_run_without_duplicates(
    fails_in: int, error: type[BaseException], status: str, plugins: Discover, store: Store, tmp_path: Path
) -> None:
    other = Training(scale=3.0)  # a run of the same plan that was interrupted in the same round: not this one
    for training, name in ((other, "other"), (Training(), "run"), (other, "third")):
        training.fails_in, training.error = fails_in, error
        with pytest.raises(error):
            training.run(training.imp(plugins(), run_dir=tmp_path / name))
    training = Training()
    imp = training.run(training.imp(plugins(), run_dir=tmp_path / "run"))
    first, own, third = store.runs()
    check_complete(store, own, imp)
    for run in (first, third):
        assert run.info.status == status
        assert [step for step, _ in store.history(run)["wer"]] == list(range(fails_in))


class KilledBefore:
    """Another observer, which ends the process when a certain event comes, before this one sees it."""

    def __init__(self, event: str, times: int):
        self.event, self.left = event, times

    def _seen(self, event: str) -> None:
        self.left -= event == self.event
        if self.left == 0:
            raise Killed

    @ticketkit.hookimpl(tryfirst=True)
    def ticketkit_round_start(self) -> None:
        self._seen("round_start")

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
    ("event", "times"), [("round_start", 3), ("ticket_saved", 2), ("round_end", 2), ("round_end", 4), ("run_end", 1)]
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


def test_a_run_killed_before_it_had_a_mask_of_its_own_is_complete_in_another(
    plugins: Discover, store: Store, tmp_path: Path
) -> None:
    training, watched = Training(), plugins()
    watched.watch(KilledBefore("round_end", 1))
    with pytest.raises(Killed):
        training.run(training.imp(watched, run_dir=tmp_path / "run"))
    imp = training.run(training.imp(plugins(), run_dir=tmp_path / "run"))
    first, second = store.runs()
    assert first.data.metrics == {}
    check_complete(store, second, imp)


def test_going_through_a_finished_run_again_sends_nothing(plugins: Discover, store: Store, tmp_path: Path) -> None:
    training = Training()
    training.run(training.imp(plugins(), run_dir=tmp_path / "run"))
    imp = training.run(training.imp(plugins(), run_dir=tmp_path / "run"))
    (run,) = store.runs()
    check_complete(store, run, imp)


def test_a_store_that_stops_answering_ends_no_run_and_gets_the_rest_at_the_end(
    plugins: Discover, store: Store, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    database, away = tmp_path / "mlflow.db", tmp_path / "away.db"
    training = Training()
    imp = training.imp(plugins())
    for round in imp:
        if round.index == 1:  # rounds 1 and 2 happen while somebody has moved the tables away
            _execute(database, "ALTER TABLE metrics RENAME TO away")
        if round.index == 3:
            _execute(database, "ALTER TABLE away RENAME TO metrics")
        training(imp.model)
        round.log(wer=metric(round.index))
    assert not away.exists()
    assert "MLflow refused" in caplog.text
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
        plugins.watch(module.MLflow(store.uri, "tickets"))
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


ROUNDS = st.integers(0, 4)


@given(length=ROUNDS, index=ROUNDS, other=st.booleans())
def test_only_the_run_with_these_masks_is_recognised(length: int, index: int, other: bool) -> None:
    """A run noted the masks of rounds 0 to `length`; an `other` one shares only the dense mask."""
    import ticketkit_mlflow

    masks = {k: "dense" if k == 0 else f"mask {k}" for k in range(6)}
    noted = {k: "dense" if k == 0 else f"{'other' if other else 'mask'} {k}" for k in range(length + 1)}
    same = ticketkit_mlflow.is_same_run(noted, {k: masks[k] for k in (index - 1, index) if k >= 0}, index)
    knew_it = index <= length and (index == 0 or not other)
    killed_before = index == length + 1 and length > 0 and not other
    assert same == (knew_it or killed_before)


def test_only_the_first_process_of_a_group_sends(module: ModuleType, store: Store) -> None:
    from torch import distributed
    from torch.testing._internal.distributed.fake_pg import FakeStore

    for rank, sent in ((1, 0), (0, 1)):
        distributed.init_process_group("fake", store=FakeStore(), rank=rank, world_size=2)
        try:
            module.MLflow(store.uri, "tickets").ticketkit_run_start(plan=(2, 1), finished=0)
        finally:
            distributed.destroy_process_group()
        assert len(store.runs()) == sent
