"""Jobs, and what becomes of them when several studies ask for the same."""

from typing import Any

import pytest

from ticketkit.errors import ConfigError
from ticketkit.study.jobs import OWN, Arm, Job, MaskOrigin, Resize, Test, WeightsOrigin, described, united

ARM = Arm("mlp", "imp")


def job(name: str = "one", **facts: Any) -> Job:
    return Job(**{"id": name, "arm": ARM, "seed": 0, "settings": {}} | facts)


def test_a_job_that_two_studies_ask_for_is_there_once() -> None:
    other = job("other", arm=Arm("mlp", "other"))
    assert united([job(), other, job()]) == [job(), other]


def test_uniting_is_idempotent_and_keeps_the_order_of_first_mention() -> None:
    found = [job(name, seed=seed) for seed, name in enumerate("cab")]
    assert united([*found, *reversed(found)]) == found
    assert united(united(found)) == found


def test_a_united_job_has_the_tests_of_all_and_every_round_of_each() -> None:
    hard, few, more = {"trainer": {"epochs": 9}}, frozenset({0, 2}), frozenset({2, 3})
    tests = united([job(tests={"hard": Test(hard, few)}), job(tests={"hard": Test(hard, more), OWN: Test()})])[0].tests
    assert tests == {"hard": Test(hard, few | more), OWN: Test()}
    assert united([job(tests={"hard": Test(hard, few)}), job(tests={"hard": Test(hard)})])[0].tests == {
        "hard": Test(hard)
    }
    assert united([job(tests={"hard": Test(hard)}), job(tests={"hard": Test(hard, few)})])[0].tests == {
        "hard": Test(hard)
    }


@pytest.mark.parametrize(
    "facts",
    [
        {"settings": {"seed": 1}},
        {"seed": 1},
        {"arm": Arm("mlp", "other")},
        {"mask": MaskOrigin("x", 1)},
        {"weights": WeightsOrigin("x", 1, "fresh")},
        {"resize": Resize("x", 1, "backbone.hidden")},
    ],
)
def test_one_id_for_different_runs_is_refused(facts: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="different runs by 'one'"):
        united([job(), job(**facts)])


def test_one_name_for_different_tests_is_refused() -> None:
    with pytest.raises(ConfigError, match="different tests by 'hard'"):
        united([job(tests={"hard": Test({"a": 1})}), job(tests={"hard": Test({"a": 2})})])


@pytest.mark.parametrize(("one", "other"), [(None, {0: 2}), ({0: 2}, None), ({0: 2}, {1: 2}), (None, None)])
def test_two_runs_for_one_point_are_refused(one: dict[int, int] | None, other: dict[int, int] | None) -> None:
    with pytest.raises(ConfigError, match="'a' and 'b' would both be mlp imp"):
        united([job("a", levels=one), job("b", levels=other)])


def test_runs_of_one_arm_may_differ_in_level_or_seed() -> None:
    found = [job("a", levels={0: 2}), job("b", levels={0: 3}), job("c", levels={0: 2}, seed=1)]
    assert united(found) == found


def test_a_job_needs_the_runs_that_it_takes_from() -> None:
    origins = {"mask": MaskOrigin("m", 1), "weights": WeightsOrigin("w", 1, "initial"), "resize": Resize("r", 1, "a")}
    assert job(**origins).needs == {"m", "w", "r"}
    assert job().needs == frozenset()


def test_rounds_are_points_at_their_own_level_unless_it_is_said() -> None:
    assert [job().level(index) for index in range(3)] == [0, 1, 2]
    assert [job(levels={1: 7}).level(index) for index in range(3)] == [None, 7, None]


def test_a_role_is_described_by_its_name() -> None:
    settings = {"backbone": {"name": "mlp", "hidden": 3}, "corpus": "majority"}
    assert [described(settings, key) for key in settings] == ["mlp", "majority"]
