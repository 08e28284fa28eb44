"""What runs take from each other: masks, shuffled or not, first weights, sizes."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.study.toy_study import done, toy_plugins, toy_study
from ticketkit.errors import ConfigError, RunError
from ticketkit.ledger import INIT
from ticketkit.plugins import Plugins
from ticketkit.snapshot import Snapshot
from ticketkit.study.directory import StudyDirectory
from ticketkit.study.jobs import Job, MaskOrigin, Resize, WeightsOrigin
from ticketkit.study.ladder import run_id, single
from ticketkit.study.materials import START, WEIGHTS, prepare
from ticketkit.ticket import Ticket

IMP = "mlp-imp-s0"


@pytest.fixture(scope="module")
def plugins() -> Plugins:
    return toy_plugins()


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory, plugins: Plugins) -> StudyDirectory:
    return done(tmp_path_factory.mktemp("ladder"), toy_study("existence", seeds=[0]), plugins)[0]


def job(arm: str, **origins: object) -> Job:
    plain = single(toy_study("existence"), "mlp", 0, arm=arm, level=2)
    return replace(plain, **origins)


def weights(study: StudyDirectory, made: Job) -> dict[str, torch.Tensor]:
    return Snapshot.load(study.run(made.id) / WEIGHTS).parameters()


def test_a_mask_is_that_of_the_round(study: StudyDirectory, plugins: Plugins) -> None:
    made = job("own", mask=MaskOrigin(IMP, 2))
    config = prepare(made, study, plugins)
    assert config.prune.start == START
    ledger = study.ledger(IMP)
    assert Ticket.load(study.run(made.id) / START).mask == ledger.ticket(ledger.records()[2]).mask


def test_a_shuffled_mask_keeps_every_count_and_differs_by_seed(study: StudyDirectory, plugins: Plugins) -> None:
    own = study.ledger(IMP).ticket(study.ledger(IMP).records()[2]).mask
    masks = []
    for seed in (0, 1):
        made = replace(job(f"shuffled{seed}", mask=MaskOrigin(IMP, 2, shuffle="parameter")), seed=seed)
        prepare(made, study, plugins)
        masks.append(Ticket.load(study.run(made.id) / START).mask)
    assert [mask.counts for mask in masks] == [own.counts, own.counts]
    assert len({own.digest, *(mask.digest for mask in masks)}) == 3


def test_weights_are_those_that_the_run_began_with_ended_in_or_others(study: StudyDirectory, plugins: Plugins) -> None:
    ledger = study.ledger(IMP)
    initial, trained = ledger.snapshot(INIT), ledger.trained(ledger.records()[2])
    assert initial is not None
    found = {}
    for what in ("initial", "trained", "fresh"):
        made = job(what, weights=WeightsOrigin(IMP, 2, what))
        assert prepare(made, study, plugins).initial == WEIGHTS
        found[what] = weights(study, made)
    assert all(tensor.equal(initial.parameters()[name]) for name, tensor in found["initial"].items())
    assert all(tensor.equal(trained.parameters()[name]) for name, tensor in found["trained"].items())
    for name, tensor in found["fresh"].items():
        assert not tensor.equal(initial.parameters()[name])
        assert tensor.std() == pytest.approx(initial.parameters()[name].std(), rel=0.5)


def test_a_job_trains_from_the_weights_it_took(study: StudyDirectory, plugins: Plugins) -> None:
    made = job("from_trained", weights=WeightsOrigin(IMP, 0, "trained"))
    from ticketkit.study.worker import perform

    with study.taken(made) as lock:
        assert lock is not None
        perform(made, study, plugins, lambda told: None, lock)
    began = study.ledger(made.id).snapshot(INIT)
    taken = study.ledger(IMP).trained(study.ledger(IMP).records()[0])
    assert began is not None
    assert all(tensor.equal(taken.tensors[key]) for key, tensor in began.tensors.items())


def test_a_small_network_is_the_largest_that_is_no_larger(study: StudyDirectory, plugins: Plugins) -> None:
    record = study.ledger(IMP).records()[2]
    budget = record.model_total - record.total + record.kept
    config = prepare(job("small", resize=Resize(IMP, 2, "backbone.hidden")), study, plugins)
    assert isinstance(config.backbone, dict)
    hidden = config.backbone["hidden"]

    def parameters(size: int) -> int:
        return 8 * size + size + 2 * size + 2

    assert parameters(hidden) <= budget < parameters(hidden + 1)


def test_impossible_materials_are_refused(study: StudyDirectory, plugins: Plugins) -> None:
    with pytest.raises(RunError, match="has 4 rounds, so none at level 9; finish it first"):
        prepare(job("late", mask=MaskOrigin(IMP, 9)), study, plugins)
    with pytest.raises(RunError, match="has 0 rounds"):
        prepare(job("nobody", mask=MaskOrigin("mlp-nobody-s0", 1)), study, plugins)
    with pytest.raises(ConfigError, match="no such option"):
        prepare(job("strange", resize=Resize(IMP, 2, "backbone.depth")), study, plugins)


def test_a_size_that_cannot_be_small_enough_is_refused(study: StudyDirectory, plugins: Plugins) -> None:
    record = study.ledger(IMP).records()[2]
    tiny = record.model_copy(update={"model_total": 5, "total": 5, "kept": 3})
    from ticketkit.study.materials import resized

    with pytest.raises(ConfigError, match=r"backbone\.hidden: 1 has 13 parameters, more than the 3 of mlp-imp-s0"):
        resized(job("small").settings, Resize(IMP, 2, "backbone.hidden"), tiny, plugins)


def test_what_is_there_is_not_drawn_again(study: StudyDirectory, plugins: Plugins, tmp_path: Path) -> None:
    made = job("again", mask=MaskOrigin(IMP, 1, shuffle="parameter"))
    prepare(made, study, plugins)
    before = (study.run(made.id) / START).read_bytes()
    prepare(made, study, plugins)
    assert (study.run(made.id) / START).read_bytes() == before
    assert run_id("mlp", "again", 0, 2) == made.id
