"""What the observer writes, read back from the event files, in runs that name it through the entry point."""

import random
import sys
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import ticketkit
from ticketkit.testing import mlp

pytest.importorskip("tensorboard", reason="the observer needs TensorBoard: pip install tensorboard")

ROOT = Path(__file__).parents[1]
VARIABLE = "TICKETKIT_TENSORBOARD_DIR"
Events = dict[str, list[tuple[int, float]]]


@pytest.fixture
def plugins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], ticketkit.Plugins]:
    """Discover the plugins of an environment where this one is installed: its module and its entry point are there."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    site = tmp_path / "site"
    info = site / "ticketkit_tensorboard-0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n")
    points = "".join(f"{name} = {value}\n" for name, value in project["entry-points"]["ticketkit"].items())
    (info / "entry_points.txt").write_text(f"[ticketkit]\n{points}")
    monkeypatch.setenv("TICKETKIT_LOAD_PLUGINS", "tensorboard")
    monkeypatch.setenv("TICKETKIT_CHECK_OBSERVERS", "1")
    monkeypatch.delenv(VARIABLE, raising=False)
    monkeypatch.delitem(sys.modules, "ticketkit_tensorboard", raising=False)
    monkeypatch.syspath_prepend(ROOT)
    monkeypatch.syspath_prepend(site)
    return ticketkit.Plugins.discover


@pytest.fixture
def module(plugins: object) -> Iterator[ModuleType]:
    import ticketkit_tensorboard

    yield ticketkit_tensorboard
    ticketkit_tensorboard.observer._close()  # of runs that a test left in the middle


class Killed(BaseException):
    """Ends a process without a word to anyone, as a signal would."""


class Training:
    """A training whose metrics are known, and which fails where a test wants it to."""

    def __init__(self, *, fails_in: int | None = None, error: type[BaseException] = RuntimeError, scale: float = 1.0):
        self.fails_in, self.error, self.scale, self.trained = fails_in, error, scale, 0

    def __call__(self, model: torch.nn.Module) -> None:
        # Draws from all generators, so that an observer that draws as well changes the result.
        jitter = random.random() + float(np.random.rand()) + float(torch.rand(()))
        optimizer = torch.optim.SGD(model.parameters(), lr=self.scale * jitter)
        model(torch.randn(4, 6)).square().sum().backward()
        optimizer.step()

    def imp(self, plugins: ticketkit.Plugins, **settings: object) -> ticketkit.IMP:
        return ticketkit.IMP(mlp(), plugins=plugins, rounds=3, rate=0.5, allocation="uniform", **settings)

    def run(self, imp: ticketkit.IMP) -> ticketkit.IMP:
        with imp.watched():
            for round in imp:
                self(imp.model)
                if round.index == self.fails_in:
                    raise self.error("the loss is | NaN")
                round.log(wer=metric(round.index))
        return imp


def metric(index: int) -> float:
    return 0.5 / (index + 1)


def seeded() -> None:
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


def read(folder: Path) -> Events:
    """Return every scalar as TensorBoard shows it: (step, value) in the order of the files."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder), size_guidance={"scalars": 0, "histograms": 0, "tensors": 0}).Reload()
    found: Events = {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}
    found["histograms"] = [(e.step, e.histogram_value.num) for e in events.Histograms("density/parameters")]
    return found


def texts(folder: Path, tag: str) -> dict[int, str]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder), size_guidance={"tensors": 0}).Reload()
    return {e.step: e.tensor_proto.string_val[0].decode() for e in events.Tensors(f"{tag}/text_summary")}


def expected(imp: ticketkit.IMP) -> Events:
    """Return what must be there, computed from the masks of the run and the network."""
    masks = [ticket.mask for ticket in imp.tickets]
    size = sum(parameter.numel() for parameter in imp.model.parameters())
    counts = [{name: int(mask[name].sum()) for name in mask} for mask in masks]
    sizes = {name: masks[0][name].numel() for name in masks[0]}
    pruned = [sum(sizes.values()) - sum(count.values()) for count in counts]
    values = {
        "metrics/wer": [metric(index) for index in range(len(masks))],
        "kept": [sum(count.values()) for count in counts],
        "density/scope": [sum(count.values()) / sum(sizes.values()) for count in counts],
        "density/model": [1 - gone / size for gone in pruned],
        **{f"parameter_density/{name}": [count[name] / sizes[name] for count in counts] for name in sizes},
        "histograms": [len(sizes)] * len(masks),
    }
    return {tag: [(step, pytest.approx(value)) for step, value in enumerate(found)] for tag, found in values.items()}


def check_complete(folder: Path, imp: ticketkit.IMP) -> None:
    found = read(folder)
    assert [step for step, _ in found.pop("seconds")] == list(range(len(imp.plan)))
    assert found == expected(imp)


def folders(base: Path) -> list[str]:
    return sorted(path.name for path in base.iterdir())


Discover = Callable[[], ticketkit.Plugins]


def test_every_round_is_read_back_with_its_step(
    plugins: Discover, module: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VARIABLE, str(tmp_path / "tb"))
    training = Training()
    imp = training.run(training.imp(plugins(), run_dir=tmp_path / "run", seed=5, criterion="magnitude_increase"))
    assert folders(tmp_path / "tb") == ["run-001"]
    check_complete(tmp_path / "tb" / "run-001", imp)
    table = texts(tmp_path / "tb" / "run-001", "settings")[0]
    assert "| plan | 72 36 18 9 |" in table
    assert "| criterion | builtin:magnitude_increase |" in table
    assert "| seed | 5 |" in table


def test_the_hparams_page_lists_settings_and_metrics(module: ModuleType, tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    plugins = ticketkit.Plugins()
    plugins.watch(module.TensorBoard(tmp_path / "tb"))
    training = Training()
    training.run(training.imp(plugins))
    events = EventAccumulator(str(tmp_path / "tb" / "run-001")).Reload()
    content = events.PluginTagToContent("hparams")
    assert {"_hparams_/experiment", "_hparams_/session_start_info"} <= content.keys()
    assert b"metrics/wer" in content["_hparams_/experiment"]
    assert b"72 36 18 9" in content["_hparams_/session_start_info"]


def test_without_the_variable_nothing_is_written(plugins: Discover, module: ModuleType, tmp_path: Path) -> None:
    before = sorted(tmp_path.rglob("*"))
    for value in (None, ""):
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(tmp_path)
            if value is not None:
                patch.setenv(VARIABLE, value)
            training = Training()
            training.run(training.imp(plugins()))
    assert [path for path in sorted(tmp_path.rglob("*")) if "__pycache__" not in path.parts] == before


@pytest.mark.parametrize("asked", [False, True])
def test_watching_changes_no_bit(
    asked: bool, plugins: Discover, module: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def digests(watched: ticketkit.Plugins) -> tuple[list[str], float]:
        seeded()
        training = Training()
        return [ticket.digest for ticket in training.run(training.imp(watched)).tickets], random.random()

    alone = digests(ticketkit.Plugins())
    if asked:
        monkeypatch.setenv(VARIABLE, str(tmp_path / "tb"))
    assert digests(plugins()) == alone
    assert (tmp_path / "tb").exists() == asked


# Runs that are interrupted


@pytest.mark.parametrize("error", [RuntimeError, Killed])
@pytest.mark.parametrize("fails_in", [1, 2, 3])
def test_an_interrupted_run_goes_on_in_its_folder_without_duplicates(
    fails_in: int,
    error: type[BaseException],
    plugins: Discover,
    module: ModuleType,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv(VARIABLE, str(tmp_path / "tb"))
    other = Training(scale=3.0)  # a run of the same plan that was interrupted in the same round: not this one
    for training, name in ((other, "other"), (Training(), "run"), (other, "third")):
        training.fails_in, training.error = fails_in, error
        with pytest.raises(error):
            training.run(training.imp(plugins(), run_dir=tmp_path / name))
    assert folders(tmp_path / "tb") == ["run-001", "run-002", "run-003"]
    training = Training()
    imp = training.run(training.imp(plugins(), run_dir=tmp_path / "run"))
    assert folders(tmp_path / "tb") == ["run-001", "run-002", "run-003"]
    check_complete(tmp_path / "tb" / "run-002", imp)
    assert [step for step, _ in read(tmp_path / "tb" / "run-001")["kept"]] == list(range(fails_in))


def test_an_error_is_noted_in_the_round_it_ended(
    plugins: Discover, module: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VARIABLE, str(tmp_path / "tb"))
    training = Training(fails_in=2)
    with pytest.raises(RuntimeError):
        training.run(training.imp(plugins()))
    assert texts(tmp_path / "tb" / "run-001", "error") == {2: "`RuntimeError`: the loss is | NaN"}


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
def test_a_round_that_was_saved_but_not_written_is_written_in_order_at_the_end(
    event: str, times: int, plugins: Discover, module: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VARIABLE, str(tmp_path / "tb"))
    training, watched = Training(), plugins()
    watched.watch(KilledBefore(event, times))
    with pytest.raises(Killed):
        training.run(training.imp(watched, run_dir=tmp_path / "run"))
    imp = training.run(training.imp(plugins(), run_dir=tmp_path / "run"))
    assert folders(tmp_path / "tb") == ["run-001"]
    check_complete(tmp_path / "tb" / "run-001", imp)


def test_a_run_killed_before_it_had_a_mask_of_its_own_goes_on_in_a_new_folder_and_is_complete_there(
    plugins: Discover, module: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VARIABLE, str(tmp_path / "tb"))
    training, watched = Training(), plugins()
    watched.watch(KilledBefore("round_end", 1))
    with pytest.raises(Killed):
        training.run(training.imp(watched, run_dir=tmp_path / "run"))
    imp = training.run(training.imp(plugins(), run_dir=tmp_path / "run"))
    assert folders(tmp_path / "tb") == ["run-001", "run-002"]
    check_complete(tmp_path / "tb" / "run-002", imp)


def test_going_through_a_finished_run_again_adds_nothing(
    plugins: Discover, module: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VARIABLE, str(tmp_path / "tb"))
    training = Training()
    training.run(training.imp(plugins(), run_dir=tmp_path / "run"))
    imp = training.run(training.imp(plugins(), run_dir=tmp_path / "run"))
    assert folders(tmp_path / "tb") == ["run-001"]
    check_complete(tmp_path / "tb" / "run-001", imp)


def test_a_run_that_began_without_the_variable_is_complete_in_the_end(
    plugins: Discover, module: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    training = Training(fails_in=2)
    with pytest.raises(RuntimeError):
        training.run(training.imp(plugins(), run_dir=tmp_path / "run"))
    monkeypatch.setenv(VARIABLE, str(tmp_path / "tb"))
    training = Training()
    imp = training.run(training.imp(plugins(), run_dir=tmp_path / "run"))
    check_complete(tmp_path / "tb" / "run-001", imp)


def test_a_loop_that_was_left_goes_on_in_its_folder(
    plugins: Discover, module: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VARIABLE, str(tmp_path / "tb"))
    training = Training()
    imp = training.imp(plugins())
    for round in imp:
        if round.index == 2:
            break
        training(imp.model)
        round.log(wer=metric(round.index))
    training.run(imp)
    assert folders(tmp_path / "tb") == ["run-001"]
    check_complete(tmp_path / "tb" / "run-001", imp)


def test_every_new_run_has_a_folder_of_its_own(
    plugins: Discover, module: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VARIABLE, str(tmp_path / "tb"))
    training = Training()
    runs = [training.run(training.imp(plugins())) for _ in range(3)]
    assert folders(tmp_path / "tb") == ["run-001", "run-002", "run-003"]
    for name, imp in zip(folders(tmp_path / "tb"), runs, strict=True):
        check_complete(tmp_path / "tb" / name, imp)


def test_runs_side_by_side_are_kept_apart_by_observers_of_their_own(module: ModuleType, tmp_path: Path) -> None:
    training, runs = Training(), {}
    for name in ("a", "b"):
        plugins = ticketkit.Plugins()
        plugins.watch(module.TensorBoard(tmp_path / name))
        runs[name] = training.imp(plugins)
    for rounds in zip(*runs.values(), strict=True):
        for round in rounds:
            training(round.model)
            round.log(wer=metric(round.index))
    for name, imp in runs.items():
        check_complete(tmp_path / name / "run-001", imp)


@pytest.mark.parametrize("number", range(7, 11))
def test_files_of_one_second_are_read_in_the_order_they_were_written(
    number: int, module: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Names end in the number of the writer in its process, and as text the tenth comes before the ninth."""
    from tensorboard.summary.writer import event_file_writer

    counter = type(event_file_writer._global_uid)(number)
    monkeypatch.setattr(event_file_writer, "_global_uid", counter)
    training = Training(fails_in=1)
    imp = training.imp(plugins := ticketkit.Plugins())
    plugins.watch(module.TensorBoard(tmp_path / "tb"))
    with pytest.raises(RuntimeError):
        training.run(imp)
    check_complete(tmp_path / "tb" / "run-001", Training().run(imp))


# What is written where


ROUNDS = st.integers(0, 4)


@given(length=ROUNDS, index=ROUNDS, known=st.booleans(), other=st.booleans())
def test_only_the_run_with_these_masks_is_recognised(length: int, index: int, known: bool, other: bool) -> None:
    """A run noted the masks of rounds 0 to `length`; an `other` one shares only the dense mask."""
    import ticketkit_tensorboard

    masks = {k: "dense" if k == 0 else f"mask {k}" for k in range(6)}
    noted = {k: "dense" if k == 0 else f"{'other' if other else 'mask'} {k}" for k in range(length + 1)}
    same = ticketkit_tensorboard.is_same_run(noted, {k: masks[k] for k in (index - 1, index) if k >= 0}, index)
    knew_it = index <= length and (index == 0 or not other)
    killed_before = index == length + 1 and length > 0 and not other
    assert same == (knew_it or killed_before)


def test_a_missing_tensorboard_is_refused_when_the_run_starts(
    plugins: Discover, module: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VARIABLE, str(tmp_path / "tb"))
    monkeypatch.setattr(module, "find_spec", lambda name: None)
    training = Training()
    with pytest.raises(ticketkit.ConfigError, match="pip install tensorboard"):
        training.run(training.imp(plugins()))


def test_only_the_first_process_of_a_group_writes(module: ModuleType, tmp_path: Path) -> None:
    from torch import distributed
    from torch.testing._internal.distributed.fake_pg import FakeStore

    for rank in (0, 1):
        observer = module.TensorBoard(tmp_path / str(rank))
        distributed.init_process_group("fake", store=FakeStore(), rank=rank, world_size=2)
        try:
            observer.ticketkit_run_start(plan=(2, 1), finished=0)
        finally:
            distributed.destroy_process_group()
            observer._close()
    assert (tmp_path / "0").exists()
    assert not (tmp_path / "1").exists()
