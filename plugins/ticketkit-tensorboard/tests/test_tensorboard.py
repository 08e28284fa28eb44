"""What the observer writes, read back from the event files, in runs that name it through the entry point."""

import contextlib
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

import ticketkit
from ticketkit.testing import mlp, plugin_installed

pytest.importorskip("tensorboard", reason="the observer needs TensorBoard: pip install tensorboard")

PROJECT = Path(__file__).parents[1]
VARIABLE = "TICKETKIT_TENSORBOARD_DIR"
Events = dict[str, list[tuple[int, float]]]
Discover = Callable[[], ticketkit.Plugins]


@pytest.fixture(scope="module", autouse=True)
def installed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """An environment where the plugin is installed."""
    with plugin_installed(PROJECT, tmp_path_factory.mktemp("site")):
        yield


@pytest.fixture
def plugins(monkeypatch: pytest.MonkeyPatch) -> Discover:
    """Discover the plugins, of which only this one counts."""
    monkeypatch.setenv("TICKETKIT_LOAD_PLUGINS", "tensorboard")
    monkeypatch.setenv("TICKETKIT_CHECK_OBSERVERS", "1")
    monkeypatch.delenv(VARIABLE, raising=False)
    return ticketkit.Plugins.discover


@pytest.fixture
def module(plugins: Discover) -> Iterator[ModuleType]:
    import ticketkit_tensorboard

    yield ticketkit_tensorboard
    ticketkit_tensorboard.observer._close()  # of runs that a test left in the middle


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


@pytest.fixture(autouse=True)
def seeds() -> None:
    seeded()


def seeded() -> None:
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


def read(folder: Path) -> Events:
    """Return every scalar as TensorBoard shows it: (step, value) in the order of the files."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder), size_guidance={"scalars": 0, "histograms": 0, "tensors": 0}).Reload()
    found: Events = {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}
    if "density/parameters" in events.Tags()["histograms"]:
        found["histograms"] = [(e.step, e.histogram_value.num) for e in events.Histograms("density/parameters")]
    return found


def counted(folder: Path) -> Events:
    """Return of every parameter how many scores TensorBoard shows: (step, number) in the order of the files."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder / "scores"), size_guidance={"histograms": 0}).Reload()
    return {
        tag: [(e.step, e.histogram_value.num) for e in events.Histograms(tag)] for tag in events.Tags()["histograms"]
    }


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


def check_scores_are_there(folder: Path, imp: ticketkit.IMP) -> None:
    """Before each pruning the criterion scores what the round before has kept."""
    kept = [ticket.mask.counts for ticket in imp.tickets[:-1]]
    expected = {f"scores/{name}": [(i + 1, of[name]) for i, of in enumerate(kept)] for name in kept[0]}
    assert counted(folder) == expected


def folders(base: Path) -> list[str]:
    return sorted(path.name for path in base.iterdir())


def test_every_round_is_read_back_with_its_step(
    plugins: Discover, module: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VARIABLE, str(tmp_path / "tb"))
    training = Training()
    imp = training.run(training.imp(plugins(), run_dir=tmp_path / "run", seed=5, criterion="magnitude_increase"))
    assert folders(tmp_path / "tb") == ["run-001"]
    check_complete(tmp_path / "tb" / "run-001", imp)
    check_scores_are_there(tmp_path / "tb" / "run-001", imp)
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


@pytest.mark.parametrize("value", [None, ""])
def test_without_the_variable_nothing_is_written(
    value: str | None, plugins: Discover, module: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    if value is not None:
        monkeypatch.setenv(VARIABLE, value)
    training = Training()
    training.run(training.imp(plugins(), run_dir="run"))
    assert folders(tmp_path) == ["run"]
    assert not (tmp_path / "run" / "tensorboard.json").exists()


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
@pytest.mark.parametrize("fails_in", [0, 2])
def test_an_interrupted_run_goes_on_in_its_folder_without_duplicates(
    fails_in: int,
    error: type[BaseException],
    plugins: Discover,
    module: ModuleType,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv(VARIABLE, str(tmp_path / "tb"))
    for name in ("run", "other"):  # the other run, of the same settings, is not this one
        training = Training(fails_in=fails_in, error=error)
        with pytest.raises(error):
            training.run(training.imp(plugins(), run_dir=tmp_path / name))
    assert folders(tmp_path / "tb") == ["run-001", "run-002"]
    training = Training()
    imp = training.run(training.imp(plugins(), run_dir=tmp_path / "run"))
    assert folders(tmp_path / "tb") == ["run-001", "run-002"]
    check_complete(tmp_path / "tb" / "run-001", imp)
    check_scores_are_there(tmp_path / "tb" / "run-001", imp)
    written = read(tmp_path / "tb" / "run-002").get("kept", [])
    assert [step for step, _ in written] == list(range(fails_in))


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
    check_scores_are_there(tmp_path / "tb" / "run-001", imp)


def test_going_through_a_finished_run_again_adds_nothing(
    plugins: Discover, module: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VARIABLE, str(tmp_path / "tb"))
    training = Training()
    training.run(training.imp(plugins(), run_dir=tmp_path / "run"))
    before = {path: path.read_bytes() for path in (tmp_path / "tb").rglob("*") if path.is_file()}
    training.run(training.imp(plugins(), run_dir=tmp_path / "run"))
    assert {path: path.read_bytes() for path in (tmp_path / "tb").rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("fails_in", [2, None])
def test_a_run_that_was_not_watched_so_far_is_complete_in_the_end(
    fails_in: int | None, plugins: Discover, module: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    training = Training(fails_in=fails_in)
    with contextlib.suppress(RuntimeError):
        training.run(training.imp(plugins(), run_dir=tmp_path / "run"))
    monkeypatch.setenv(VARIABLE, str(tmp_path / "tb"))
    training = Training()
    imp = training.run(training.imp(plugins(), run_dir=tmp_path / "run"))
    check_complete(tmp_path / "tb" / "run-001", imp)


def test_rounds_that_are_trained_again_are_there_once(
    plugins: Discover, module: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VARIABLE, str(tmp_path / "tb"))
    training = Training()
    training.run(training.imp(plugins(), run_dir=tmp_path / "run"))
    for index in (2, 3):  # as ticketkit says to do with a round that is damaged
        shutil.rmtree(tmp_path / "run" / "rounds" / f"00{index}")
    imp = training.run(training.imp(plugins(), run_dir=tmp_path / "run"))
    assert folders(tmp_path / "tb") == ["run-001"]
    check_complete(tmp_path / "tb" / "run-001", imp)
    check_scores_are_there(tmp_path / "tb" / "run-001", imp)


@pytest.mark.parametrize("kept", [True, False])
def test_a_loop_that_was_left_goes_on_in_the_folder_that_its_directory_names_and_else_in_a_new_one(
    kept: bool, plugins: Discover, module: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VARIABLE, str(tmp_path / "tb"))
    training = Training()
    imp = training.imp(plugins(), run_dir=tmp_path / "run" if kept else None)
    for round in imp:
        if round.index == 2:
            break
        training(imp.model)
        round.log(wer=metric(round.index))
    training.run(imp)
    assert folders(tmp_path / "tb") == (["run-001"] if kept else ["run-001", "run-002"])
    check_complete(tmp_path / "tb" / folders(tmp_path / "tb")[-1], imp)


@pytest.mark.parametrize("moved", ["asked for elsewhere", "deleted", "deleted, and another run has its name"])
def test_a_run_whose_folder_is_not_where_it_is_asked_for_gets_a_new_one_with_all_its_rounds(
    moved: str, plugins: Discover, module: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VARIABLE, str(tmp_path / "tb"))
    training, base, name = Training(fails_in=2), tmp_path / "tb", "run-001"
    with pytest.raises(RuntimeError):
        training.run(training.imp(plugins(), run_dir=tmp_path / "run"))
    if moved == "asked for elsewhere":
        base = tmp_path / "other"
        monkeypatch.setenv(VARIABLE, str(base))
    else:
        shutil.rmtree(base)
    if "another" in moved:
        name = "run-002"
        with pytest.raises(RuntimeError):
            training.run(training.imp(plugins(), run_dir=tmp_path / "another"))
    training = Training()
    imp = training.run(training.imp(plugins(), run_dir=tmp_path / "run"))
    assert folders(base)[-1] == name
    check_complete(base / name, imp)


@pytest.mark.parametrize("content", ["", "[]", '{"run": 1}', '{"folder": 1}'])
def test_a_note_that_cannot_be_read_is_refused_by_name(
    content: str, plugins: Discover, module: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VARIABLE, str(tmp_path / "tb"))
    training = Training()
    imp = training.imp(plugins(), run_dir=tmp_path / "run")
    (tmp_path / "run").mkdir(exist_ok=True)
    (tmp_path / "run" / "tensorboard.json").write_text(content)
    with pytest.raises(ticketkit.StorageError, match=r"tensorboard\.json is damaged: .*; delete it"):
        training.run(imp)


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
    imp = training.imp(plugins := ticketkit.Plugins(), run_dir=tmp_path / "run")
    plugins.watch(module.TensorBoard(tmp_path / "tb"))
    with pytest.raises(RuntimeError):
        training.run(imp)
    check_complete(tmp_path / "tb" / "run-001", Training().run(imp))


# Histograms


NUMBERS = st.floats(-1e300, 1e300)


@given(values=st.lists(NUMBERS, min_size=1, max_size=30), equal=st.booleans())
@example(values=[1.0, float(np.nextafter(1, 2))], equal=False)  # too near for 64 bins
@example(values=[0.0, 5e-324], equal=False)
@example(values=[1e-30, 1e30], equal=False)
def test_bins_count_every_value_once(values: list[float], equal: bool) -> None:
    from ticketkit_tensorboard import content

    array = np.array(values[:1] * len(values) if equal else values)
    edges = content.edges(array)
    assert (np.diff(edges) > 0).all()
    assert len(edges) <= 65
    assert np.histogram(array, edges)[0].sum() == len(array)


@given(kept=st.lists(st.booleans(), max_size=40), shown=st.integers(1, 10))
def test_of_many_scores_evenly_spaced_ones_are_shown(kept: list[bool], shown: int) -> None:
    from ticketkit_tensorboard import content

    scores = torch.arange(len(kept), dtype=torch.float32)
    expected = [index for index, keeps in enumerate(kept) if keeps]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(content, "SHOWN", shown)
        found = content.shown_scores(scores, torch.tensor(kept, dtype=torch.bool)).tolist()
    step = -(-len(expected) // shown) or 1
    assert found == expected[::step]
    assert len(found) <= shown


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_scores_that_are_no_numbers_are_not_shown(dtype: torch.dtype) -> None:
    from ticketkit_tensorboard import content

    scores = torch.tensor([1.0, float("nan"), float("-inf"), 2.0], dtype=dtype)
    assert content.shown_scores(scores, torch.ones(4, dtype=torch.bool)).tolist() == [1.0, 2.0]


def test_parameters_without_a_score_to_show_have_no_histogram(module: ModuleType, tmp_path: Path) -> None:
    masks = {"some": torch.tensor([True, False, True]), "none": torch.zeros(2, dtype=torch.bool)}
    masks["nan"] = torch.ones(2, dtype=torch.bool)
    scores = {"some": torch.ones(3), "none": torch.ones(2), "nan": torch.full((2,), float("nan"))}
    observer = module.TensorBoard(tmp_path)
    observer.ticketkit_run_start(plan=(4, 2), finished=1, directory=None)
    observer.ticketkit_scores_ready(index=1, scores=scores, mask=ticketkit.Mask(masks))
    observer._close()
    assert counted(tmp_path / "run-001") == {"scores/some": [(1, 2)]}


# When it is refused, and who writes


def test_a_missing_tensorboard_is_refused_when_the_run_starts(
    plugins: Discover, module: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VARIABLE, str(tmp_path / "tb"))
    monkeypatch.setattr("ticketkit_tensorboard.hooks.find_spec", lambda name: None)
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
            observer.ticketkit_run_start(plan=(2, 1), finished=0, directory=None)
        finally:
            distributed.destroy_process_group()
            observer._close()
    assert (tmp_path / "0").exists()
    assert not (tmp_path / "1").exists()
