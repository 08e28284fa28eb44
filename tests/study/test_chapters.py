"""Chapters, whatever part of a study is done."""

from pathlib import Path
from random import Random

import pytest

from tests.study.toy_study import SETTINGS, done, toy_plugins, toy_study
from ticketkit.study.config import KINDS, Kind
from ticketkit.study.directory import StudyDirectory
from ticketkit.study.evidence import Evidence
from ticketkit.study.findings import Chapter, Table
from ticketkit.study.jobs import Arm, Job
from ticketkit.study.points import collect
from ticketkit.study.report import CHAPTERS, judge_of

Finished = tuple[StudyDirectory, list[Job]]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    base = {**SETTINGS["base"], "trainer": {"name": "sgd", "epochs": 1}, "prune": {"rate": 0.3, "rounds": 2}}
    config = toy_study(*KINDS, base=base, controls={"levels": [2]})
    return done(tmp_path_factory.mktemp("study"), config, toy_plugins())


def written(study: StudyDirectory, part: list[Job], *kinds: Kind) -> dict[Kind, Chapter]:
    config = study.config()
    evidence = Evidence(config, collect(part, study), judge_of(config), study, {})
    return {kind: CHAPTERS[kind](evidence) for kind in kinds or KINDS}


def tables(chapter: Chapter) -> dict[str, Table]:
    return {part.name: part for part in chapter.parts if isinstance(part, Table)}


@pytest.mark.parametrize("draw", range(12))
def test_any_part_of_a_study_can_be_reported(draw: int, finished: Finished) -> None:
    study, found = finished
    part = [job for job in found if Random(f"{draw} {job.id}").random() < (draw + 1) / 14]
    for chapter in written(study, part).values():
        for table in tables(chapter).values():
            assert {len(row) for row in table.rows} <= {len(table.headings)}


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_done_is_nothing_said(kind: Kind, finished: Finished) -> None:
    chapter = written(finished[0], [], kind)[kind]
    assert (list(chapter.answers), list(chapter.parts)) == ([], [])
    assert chapter.claim


def test_networks_without_a_common_seed_are_shown_and_not_compared(finished: Finished) -> None:
    study, found = finished
    own = Arm("mlp@many", "imp")
    part = [job for job in found if job.arm.variant != "mlp@many" or (job.arm == own) == (job.seed == 0)]
    chapter = written(study, part, "transfer")["transfer"]
    rows = {row[0]: row for row in tables(chapter)["transfer_many"].rows}
    assert rows["its own ticket"][-1] != ""
    assert rows["mask and first weights"][-3:] == ("", "", "")
    assert not any("match the dense network" in answer.question for answer in chapter.answers)


def test_a_corpus_that_is_source_and_target_is_not_compared_with_itself(tmp_path: Path) -> None:
    layer = {"corpus": {"name": "majority", "examples": 48}}
    section = {"variant": "mlp", "levels": [1], "sources": {"few": layer}, "targets": {"few": layer, "many": {}}}
    study, found = done(tmp_path, toy_study("transfer", seeds=[0], transfer=section), toy_plugins())
    overlap = tables(written(study, found, "transfer")["transfer"])["transfer_overlap"]
    assert [row[:2] for row in overlap.rows] == [("few", "many")]
