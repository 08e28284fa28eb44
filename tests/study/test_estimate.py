"""What a study would take, from one measured epoch."""

from dataclasses import replace
from typing import Any

import pytest

from tests.study.toy_study import SECTIONS, SETTINGS
from ticketkit.study.config import Kind, StudyConfig, parse_study
from ticketkit.study.estimate import Estimate, Rehearsal, base_variant, estimate
from ticketkit.study.grids import jobs
from ticketkit.study.overlay import merged

REHEARSAL = Rehearsal(
    seconds=3.0, hours=0.5, corpus_hours=100.0, epochs=2, parameters=1000, scope=800, peak_bytes=1_000_000
)
ONE = 2 * 100.0  # hours heard in one training: epochs of the whole corpus
VARIANTS = {"other": {"backbone": {"name": "mlp", "hidden": 7}}}


def study(*kinds: Kind, **layer: Any) -> StudyConfig:
    return parse_study(merged(SETTINGS, {kind: SECTIONS[kind] for kind in kinds}, layer))


def estimated(*kinds: Kind, **layer: Any) -> Estimate:
    config = study(*kinds, **layer)
    return estimate(config, jobs(config, config.kinds), {"mlp": REHEARSAL})[0]


def test_a_training_takes_every_epoch_of_the_whole_corpus_at_the_measured_speed() -> None:
    assert REHEARSAL.training_seconds == 3.0 / 0.5 * 100.0 * 2
    assert REHEARSAL.round_bytes == 4 * 1000 + 800 // 8


def test_a_ladder_is_a_training_for_each_round() -> None:
    found = estimated("existence", seeds=[0])
    assert (found.variant, found.runs, found.trainings) == ("mlp", 1, 4)
    assert found.hours == pytest.approx(4 * ONE)
    assert found.seconds == pytest.approx(4 * REHEARSAL.training_seconds)
    assert found.disk_bytes == 5 * REHEARSAL.round_bytes, "every round and the first weights"


@pytest.mark.parametrize("count", [1, 2, 5])
def test_seeds_multiply_all_but_memory(count: int) -> None:
    one, more = (estimated("existence", "controls", seeds=list(range(seeds))) for seeds in (1, count))
    assert (more.runs, more.trainings, more.disk_bytes) == (
        count * one.runs,
        count * one.trainings,
        count * one.disk_bytes,
    )
    assert (more.hours, more.seconds) == pytest.approx((count * one.hours, count * one.seconds))
    assert more.memory_bytes == one.memory_bytes


def test_dense_rounds_that_runs_share_are_counted_once() -> None:
    config = parse_study({**SETTINGS, "seeds": [0], "controls": {"levels": [1, 2]}})
    found = estimate(config, jobs(config, config.kinds), {"mlp": REHEARSAL})[0]
    # the ladder of four; three unrewound; twice at two levels a dense round, which is the ladder's, and a pruned one;
    # twice at two levels one training with a given mask
    assert found.trainings == 4 + 3 + 4 * 1 + 4
    assert found.runs == 2 + 4 + 4
    assert found.disk_bytes == (4 + 3 + 4 * 2 + 4 + found.runs) * REHEARSAL.round_bytes


def test_dense_rounds_of_other_trainers_corpora_and_seeds_are_not_shared() -> None:
    wide = {"wide": {"backbone": {"name": "mlp", "hidden": 20}}}
    config = parse_study({**SETTINGS, "noise": {**SECTIONS["noise"], "dense": wide, "small": None}})
    found = estimate(config, jobs(config, config.kinds), {"mlp": REHEARSAL})[0]
    # for each seed: the ladder of four, the noisy one of three, the clean ticket, a wide network of both conditions;
    # noise trains for three epochs, so no dense round is another's
    assert found.trainings == 2 * (4 + 3 + 1 + 2)
    # for each seed: the ladder of four, rows of three and 2:4 of two, which begin with the same dense round
    assert estimated("structure", seeds=[0, 1]).trainings == 2 * (4 + 2 + 1)


def test_longer_trainings_weigh_more() -> None:
    config = study("existence", seeds=[0])
    found = jobs(config, config.kinds)
    longer = [replace(job, settings=merged(job.settings, {"trainer": {"epochs": 10}})) for job in found]
    plain, slow = (estimate(config, some, {"mlp": REHEARSAL})[0] for some in (found, longer))
    assert (slow.hours, slow.seconds) == pytest.approx((5 * plain.hours, 5 * plain.seconds))
    assert slow.trainings == plain.trainings


def test_trainings_of_unknown_length_weigh_as_much_as_the_variants_own() -> None:
    config = study("existence", seeds=[0], base={"trainer": {"epochs": None}})
    assert estimate(config, jobs(config, config.kinds), {"mlp": REHEARSAL})[0].hours == pytest.approx(4 * ONE)


def test_every_variant_is_estimated_from_its_own_rehearsal() -> None:
    config = study("existence", seeds=[0], variants=VARIANTS)
    slow = replace(REHEARSAL, seconds=30.0, parameters=10_000)
    found = estimate(config, jobs(config, config.kinds), {"mlp": REHEARSAL, "other": slow})
    assert [one.variant for one in found] == ["mlp", "other"]
    assert [one.trainings for one in found] == [4, 4]
    assert found[1].seconds == pytest.approx(10 * found[0].seconds)


def test_memory_is_at_least_that_of_the_optimizer() -> None:
    config = study("existence", seeds=[0])
    large = replace(REHEARSAL, parameters=10**6)
    found = [estimate(config, jobs(config, config.kinds), {"mlp": one})[0] for one in (REHEARSAL, large)]
    assert [one.memory_bytes for one in found] == [10**6, 20 * 10**6]


def test_a_variant_without_jobs_takes_nothing() -> None:
    config = study("existence", seeds=[0], existence={"variants": ["mlp"]}, variants=VARIANTS)
    found = estimate(config, jobs(config, config.kinds), {"other": REHEARSAL})[0]
    assert (found.runs, found.trainings, found.hours, found.seconds, found.disk_bytes) == (0, 0, 0, 0, 0)


@pytest.mark.parametrize("kind", ["transfer", "noise"])
def test_runs_on_other_corpora_and_under_conditions_are_of_their_variant(kind: Kind) -> None:
    config = study(kind)
    found = jobs(config, config.kinds)
    assert {base_variant(job) for job in found} == {"mlp"}
    assert estimate(config, found, {"mlp": REHEARSAL})[0].runs == len(found)
