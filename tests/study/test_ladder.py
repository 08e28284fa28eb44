"""The runs that all studies are made of."""

from typing import Any

import pytest

from tests.study.toy_study import SETTINGS, toy_plugins
from ticketkit.config import RunConfig, parse_config
from ticketkit.errors import ConfigError
from ticketkit.plugins import Plugins
from ticketkit.schedule import Target, plan
from ticketkit.study.config import StudyConfig, parse_study
from ticketkit.study.jobs import Arm, Job
from ticketkit.study.ladder import at_once, check_levels, ladder, rounds, run_id, single, up_to, variant_settings
from ticketkit.study.overlay import merged

TOTAL = 12_345  # weights in scope


@pytest.fixture(scope="module")
def plugins() -> Plugins:
    return toy_plugins()


def config(**prune: Any) -> StudyConfig:
    return parse_study(merged(SETTINGS, {"base": {"prune": {"rate": 0.2, "rounds": 20, **prune}}}))


def counts(job: Job, plugins: Plugins) -> tuple[int, ...]:
    """Return how many weights each round of a job keeps."""
    prune = run(job, plugins).prune
    schedule = plugins.choose("schedule", prune.schedule).call
    return plan(schedule, TOTAL, Target.of(rate=prune.rate, rounds=prune.rounds, density=prune.density))


def run(job: Job, plugins: Plugins) -> RunConfig:
    return parse_config(job.settings, plugins)


@pytest.mark.parametrize("level", [1, 2, 7, 14, 20])
@pytest.mark.parametrize("rate", [0.2, 0.36, None])
def test_pruning_at_once_to_a_level_keeps_exactly_what_the_ladder_keeps_there(
    level: int, rate: float | None, plugins: Plugins
) -> None:
    study = config(rate=rate)
    job = at_once(study, "mlp", 3, arm="one_shot", level=level)
    assert counts(job, plugins) == (TOTAL, counts(ladder(study, "mlp", 3), plugins)[level])
    assert job.levels == {1: level}


@pytest.mark.parametrize("levels", [[1], [3, 2], [5, 20]])
def test_a_shorter_ladder_is_the_beginning_of_the_longer(levels: list[int], plugins: Plugins) -> None:
    whole = counts(ladder(config(), "mlp", 0), plugins)
    assert counts(ladder(config(), "mlp", 0, up_to(levels)), plugins) == whole[: max(levels) + 1]


def test_a_single_training_is_not_pruned_whatever_the_ladder(plugins: Plugins) -> None:
    for prune in ({}, {"rate": None, "density": 0.1}):
        job = single(config(**prune), "mlp", 0, arm="alone", level=7)
        assert counts(job, plugins) == (TOTAL,)
        assert job.levels == {0: 7}


def test_runs_have_the_settings_of_the_variant_under_their_layers_and_their_own_seed(plugins: Plugins) -> None:
    layer = {"trainer": {"epochs": 7}, "seed": 99}
    made = [
        ladder(config(), "mlp", 5, layer),
        at_once(config(), "mlp", 5, layer, arm="a", level=2),
        single(config(), "mlp", 5, layer, arm="b", level=2),
    ]
    for job in made:
        found = run(job, plugins)
        assert (found.seed, job.seed) == (5, 5)
        assert found.trainer == {"name": "sgd", "epochs": 7}
        assert found.backbone == variant_settings(config(), "mlp")["backbone"]


def test_runs_are_named_after_variant_arm_level_and_seed() -> None:
    assert run_id("v", "a", 3) == "v-a-s3"
    assert ladder(config(), "mlp", 3).id == run_id("mlp", "imp", 3)
    assert at_once(config(), "mlp", 3, arm="a", level=2).id == run_id("mlp", "a", 3, 2)
    moved = single(config(), "mlp", 3, arm="a", level=2, named="mlp@there")
    assert (moved.id, moved.arm) == ("mlp@there-a-k2-s3", Arm("mlp@there", "a"))


def test_a_ladder_that_does_not_say_how_long_it_is_is_refused() -> None:
    for prune in ({"rounds": None, "density": 0.1}, {"rounds": "many"}):
        with pytest.raises(ConfigError, match="says how long the ladder is"):
            rounds(variant_settings(config(**prune), "mlp"))


def test_levels_beyond_the_end_are_refused_and_the_end_is_not() -> None:
    check_levels(config(), "mlp", [1, 20])
    with pytest.raises(ConfigError, match=r"levels \[21\] lie beyond the ladder of 'mlp', which has 20 rounds"):
        check_levels(config(), "mlp", [20, 21])


@pytest.mark.parametrize("prune", [{"rate": None, "density": 0.05}, {"schedule": "cubic"}, {"schedule": "one_shot"}])
def test_levels_of_a_ladder_whose_rounds_do_not_take_equal_shares_are_refused(prune: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="levels are rounds that each take the same share"):
        check_levels(config(**prune), "mlp", [2])


@pytest.mark.parametrize("schedule", ["geometric", {"name": "geometric"}])
def test_the_schedule_that_is_the_default_may_be_said(schedule: object) -> None:
    check_levels(config(schedule=schedule), "mlp", [2])
