"""A study's report: every part on one page, in Markdown and CSV, and answers that follow from the numbers."""

import csv
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.study.toy_study import done, toy_plugins, toy_study
from ticketkit.plugins import Plugins
from ticketkit.study.chapters import existence
from ticketkit.study.config import KINDS, StudyConfig
from ticketkit.study.directory import StudyDirectory
from ticketkit.study.evidence import Evidence
from ticketkit.study.findings import Table
from ticketkit.study.grids import jobs
from ticketkit.study.jobs import OWN, Arm
from ticketkit.study.points import Point, Points, collect
from ticketkit.study.report import judge_of, write_report
from ticketkit.study.statistics import Sample


@pytest.fixture(scope="module")
def plugins() -> Plugins:
    return toy_plugins()


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, plugins: Plugins) -> StudyDirectory:
    study, _ = done(tmp_path_factory.mktemp("whole"), toy_study(*KINDS), plugins)
    write_report(study, plugins)
    return study


def table(study: StudyDirectory, name: str) -> list[dict[str, str]]:
    with (study.path / f"{name}.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_the_page_needs_nothing_else_and_has_every_chapter(whole: StudyDirectory) -> None:
    page = (whole.path / "report.html").read_text(encoding="utf-8")
    assert not re.findall(r'(?:src|href)="(?!#)[^"]*"', re.sub(r"<svg.*?</svg>", "", page, flags=re.S))
    assert "<script" not in page
    for kind in KINDS:
        assert f'<section id="{kind}">' in page
    assert page.count("<svg") == len(list(whole.path.glob("*_curve*.csv"))) + len(
        list(whole.path.glob("*_layers.csv"))
    ) + len(list(whole.path.glob("*_trainings.csv")))
    for job in jobs(whole.config(), KINDS):
        assert f"<td>{job.id}</td>" in page
        last = whole.ledger(job.id).records()[-1]
        assert last.mask_digest in page
        assert str(last.digest) in page


def test_the_page_is_the_same_whenever_it_is_written(whole: StudyDirectory, plugins: Plugins) -> None:
    before = {path: path.read_bytes() for path in whole.path.glob("report.*")}
    write_report(whole, plugins)
    assert {path: path.read_bytes() for path in whole.path.glob("report.*")} == before


def test_no_part_overwrites_another(whole: StudyDirectory, plugins: Plugins) -> None:
    names = [path.name for path in write_report(whole, plugins)]
    assert len(names) == len(set(names))


def test_the_ladders_table_agrees_with_the_records(whole: StudyDirectory) -> None:
    rows = table(whole, "existence_mlp")
    ladder = collect(jobs(whole.config(), ("existence",)), whole).ladder(Arm("mlp", "imp"))
    assert [int(row["round"]) for row in rows] == [0, 1, 2, 3]
    for row, point in zip(rows, ladder, strict=True):
        assert row["scope left"] == f"{100 * point.density:.1f} %"
        assert row["test wer %"].startswith(f"{100 * np.mean(point.test.rates):.2f}")
        assert int(row["parameters"].replace(",", "")) == round(point.left)
        assert int(row["bytes"].replace(",", "")) > 0
    assert [row["MACs"] for row in rows] == [row["scope left"] for row in rows]  # a weight of an mlp is used once


def test_controls_compare_networks_of_one_size(whole: StudyDirectory) -> None:
    rows = table(whole, "controls_mlp")
    for level in ("1", "2"):
        same = {row["network"]: row for row in rows if row["round"] == level}
        left = {row["scope left"] for name, row in same.items() if not name.startswith("small")}
        assert len(left) == 1
        assert set(same) == {
            "ticket (IMP)", "standard", "one_shot", "random_global", "random_layers", "random_ticket", "small_dense",
            "small_dense_long",
        }  # fmt: skip


def test_what_is_not_finished_is_named_and_left_out(tmp_path: Path, plugins: Plugins) -> None:
    study, _ = done(tmp_path, toy_study("existence", seeds=[0]), plugins)
    study.claim(toy_study("existence", "structure", seeds=[0, 1]))
    write_report(study, plugins)
    text = (tmp_path / "report.md").read_text()
    assert "Not finished: mlp-imp-s1." in text
    assert "mlp-row-s0" in text
    assert "1 of 6 runs" in (tmp_path / "report.html").read_text()


def constructed(config: StudyConfig, rates: dict[int, float], dev: dict[int, float], base: Points) -> Points:
    """Return points of a ladder whose networks err as said, on the places of real runs."""
    found = {}
    generator = np.random.default_rng(0)
    for (arm, level, condition), point in base.found.items():
        errors = (generator.random((len(config.seeds), 400)) < rates[level]).astype(np.int64)
        places = tuple(
            type(place)(place.seed, place.run, place.record.model_copy(update={"metrics": {"wer": dev[level]}}))
            for place in point.places
        )
        sample = Sample(point.test.seeds, tuple(map(str, range(400))), errors, np.ones(400, dtype=np.int64))
        found[arm, level, condition] = Point(arm, level, condition, places, sample)
    return Points(found)


@pytest.mark.parametrize(
    ("rates", "dev", "verdicts"),
    [
        ({0: 0.2, 1: 0.2, 2: 0.05, 3: 0.5}, {0: 0.2, 1: 0.2, 2: 0.1, 3: 0.5}, ["yes", "yes"]),
        ({0: 0.2, 1: 0.2, 2: 0.2, 3: 0.6}, {0: 0.2, 1: 0.2, 2: 0.2, 3: 0.1}, ["no", "no"]),
        ({0: 0.2, 1: 0.2, 2: 0.21, 3: 0.5}, {0: 0.2, 1: 0.25, 2: 0.2, 3: 0.5}, ["not decided", "not decided"]),
        ({0: 0.2, 1: 0.2, 2: 0.2, 3: 0.2}, {0: 0.2, 1: 0.5, 2: 0.5, 3: 0.5}, ["no", "not decided"]),
    ],
)
def test_dev_selects_and_test_confirms(
    whole: StudyDirectory, rates: dict[int, float], dev: dict[int, float], verdicts: list[str]
) -> None:
    config = toy_study("existence")
    base = collect(jobs(config, ("existence",)), whole)
    points = constructed(config, rates, dev, base)
    chapter = existence.chapter(Evidence(config, points, judge_of(config), whole, {}))
    assert [answer.verdict for answer in chapter.answers[1:]] == verdicts


def test_tables_mark_what_dev_chose(whole: StudyDirectory) -> None:
    config = toy_study("existence")
    rates, dev = {0: 0.2, 1: 0.1, 2: 0.3, 3: 0.4}, {0: 0.2, 1: 0.1, 2: 0.2, 3: 0.4}
    points = constructed(config, rates, dev, collect(jobs(config, ("existence",)), whole))
    chapter = existence.chapter(Evidence(config, points, judge_of(config), whole, {}))
    ladder = next(part for part in chapter.parts if isinstance(part, Table))
    assert ladder.marked == {1, 2}
    assert "best 70.0 %, extreme 49.2 %" in ladder.note
    assert points.get(Arm("mlp", "imp"), 1, OWN) is not None


@pytest.mark.parametrize(("rate", "verdict"), [(0.05, "yes"), (0.6, "no"), (0.21, "not decided")])
def test_a_ticket_as_sparse_as_the_papers_is_looked_for_in_the_whole_ladder(
    whole: StudyDirectory, rate: float, verdict: str
) -> None:
    config = toy_study("existence")
    base = collect(jobs(config, ("existence",)), whole)
    points = constructed(config, {0: 0.2, 1: 0.2, 2: 0.2, 3: rate}, dict.fromkeys(range(4), 0.2), base)
    thin = points.found[Arm("mlp", "imp"), 3, OWN]
    kept = [replace(one, record=one.record.model_copy(update={"kept": one.record.total // 6})) for one in thin.places]
    found = {**points.found, (thin.arm, 3, OWN): replace(thin, places=tuple(kept))}
    chapter = existence.chapter(Evidence(config, Points(found), judge_of(config), whole, {}))
    assert "at most 21.0 % of the scope" in chapter.answers[0].question
    assert chapter.answers[0].verdict == verdict
