"""Points: what the runs of a study say, seed beside seed."""

from dataclasses import replace
from pathlib import Path

import pytest

from tests.study.toy_study import done, toy_plugins, toy_study
from ticketkit.errors import RunError
from ticketkit.study.directory import StudyDirectory
from ticketkit.study.examinations import examine, read_examinations
from ticketkit.study.grids import jobs
from ticketkit.study.jobs import OWN, Arm, Job, Test
from ticketkit.study.points import Points, collect

IMP = Arm("mlp", "imp")
KINDS = ("existence", "structure")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[StudyDirectory, list[Job]]:
    return done(tmp_path_factory.mktemp("study"), toy_study(*KINDS), toy_plugins())


@pytest.fixture(scope="module")
def points(finished: tuple[StudyDirectory, list[Job]]) -> Points:
    study, found = finished
    return collect(found, study)


def test_a_ladder_has_a_point_for_every_round_from_dense_to_sparse(points: Points) -> None:
    ladder = points.ladder(IMP)
    assert [point.level for point in ladder] == [0, 1, 2, 3]
    densities = [point.density for point in ladder]
    assert densities == sorted(densities, reverse=True)
    assert densities[0] == 1
    assert all(points.get(IMP, point.level) is point for point in ladder)


def test_a_point_has_every_seed_with_its_own_errors_and_record(
    finished: tuple[StudyDirectory, list[Job]], points: Points
) -> None:
    study, _ = finished
    for point in points.ladder(IMP):
        assert [place.seed for place in point.places] == [0, 1] == list(point.test.seeds)
        for place, errors in zip(point.places, point.test.errors.tolist(), strict=True):
            examination = read_examinations(study.run(place.run), OWN)[point.level]
            assert place.run == f"mlp-imp-s{place.seed}"
            assert errors == list(examination.errors)
            assert point.test.units.tolist() == list(examination.units)
            assert point.test.ids == examination.ids
            assert place.record == study.ledger(place.run).records()[point.level]
        assert point.dev("wer") == tuple(place.record.metrics["wer"] for place in point.places)


def test_rounds_that_are_no_points_are_left_out(points: Points) -> None:
    # 2:4 keeps half at once, which is nearest to two rounds of 0.3
    assert [point.level for point in points.ladder(Arm("mlp", "two_four"))] == [0, 2]
    assert points.ladder(Arm("mlp", "two_four"))[1].density == 0.5


def test_what_is_left_counts_the_whole_model(points: Points) -> None:
    dense, *_, last = points.ladder(IMP)
    records = [place.record for place in last.places]
    assert dense.left == records[0].model_total
    assert dense.left - last.left == sum(record.total - record.kept for record in records) / 2


def test_arms_of_a_variant_are_listed_once(points: Points) -> None:
    assert [arm.name for arm in points.arms("mlp")] == ["imp", "row", "two_four"]
    assert points.arms("other") == []


def test_what_has_not_been_run_is_no_point(points: Points) -> None:
    assert points.get(Arm("mlp", "row"), 9) is None
    assert points.get(IMP, 0, "hard") is None
    assert points.ladder(Arm("mlp", "none")) == []


def test_a_job_that_is_not_done_is_left_out(finished: tuple[StudyDirectory, list[Job]], tmp_path: Path) -> None:
    study, found = finished
    untested = [replace(job, tests={**job.tests, "hard": Test()}) if job.seed == 1 else job for job in found]
    assert {point.test.seeds for point in collect(untested, study).found.values()} == {(0,)}
    assert collect(found, StudyDirectory(tmp_path)).found == {}


def test_the_order_of_jobs_does_not_matter(finished: tuple[StudyDirectory, list[Job]], points: Points) -> None:
    study, found = finished
    again = collect(reversed(found), study)
    assert again.found.keys() == points.found.keys()
    for key, point in points.found.items():
        assert again.found[key].places == point.places
        assert again.found[key].test.errors.tolist() == point.test.errors.tolist()


def test_conditions_are_points_of_their_own(tmp_path: Path) -> None:
    study, found = done(tmp_path, toy_study("noise", seeds=[0]), toy_plugins())
    points = collect(found, study)
    assert [point.level for point in points.ladder(IMP, "hard")] == [0, 2]
    assert [point.level for point in points.ladder(IMP)] == [0, 1, 2, 3]
    assert len(points.ladder(IMP, "hard")[0].test.ids) == 32


def test_seeds_that_were_tested_on_different_examples_are_refused(tmp_path: Path) -> None:
    plugins = toy_plugins()
    study, _ = done(tmp_path, toy_study("existence"), plugins)
    config = study.config()
    found = [
        replace(job, tests={"hard": Test({"corpus": {"name": "majority", "examples": 16 + job.seed}}, frozenset({0}))})
        for job in jobs(config, config.kinds)
    ]
    for job in found:
        examine(study.run(job.id), plugins, "hard", job.tests["hard"])
    with pytest.raises(RunError, match="mlp imp, level 0: its seeds were tested on different examples"):
        collect(found, study)
