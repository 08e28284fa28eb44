"""A study's report: every chapter written as one page, as Markdown and as CSV."""

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import yaml

from ticketkit.errors import DataError
from ticketkit.plugins import Plugins
from ticketkit.results import environment
from ticketkit.storage import write_text_atomically
from ticketkit.study.chapters import controls, existence, noise, structure, transfer
from ticketkit.study.config import Kind, StudyConfig
from ticketkit.study.costs import Costs, costs
from ticketkit.study.directory import StudyDirectory
from ticketkit.study.evidence import Evidence
from ticketkit.study.findings import Chapter, Figure, HeatMap, Table
from ticketkit.study.grids import jobs
from ticketkit.study.jobs import Job
from ticketkit.study.judging import Judge
from ticketkit.study.ladder import IMP
from ticketkit.study.pages.html import Run, html
from ticketkit.study.pages.markdown import figure_csv, heat_map_csv, markdown, table_csv
from ticketkit.study.points import collect

CHAPTERS: Mapping[Kind, Callable[[Evidence], Chapter]] = {
    "existence": existence.chapter,
    "controls": controls.chapter,
    "transfer": transfer.chapter,
    "structure": structure.chapter,
    "noise": noise.chapter,
}


def write_report(study: StudyDirectory, plugins: Plugins) -> list[Path]:
    """Write `report.html`, `report.md` and a CSV for each table and figure; return their paths.

    Runs that are not done are named and left out. Costs that were not measured yet are measured first.
    """
    config = study.config()
    found = jobs(config, config.kinds)
    done = [job for job in found if study.is_done(job)]
    judge = judge_of(config)
    evidence = Evidence(config, collect(done, study), judge, study, _costs(config, done, study, plugins))
    chapters = [_chapter(kind, evidence, config, study) for kind in config.kinds]
    facts = _facts(config, found, done, study)
    page = html(
        chapters,
        title=config.title,
        subtitle=f"{len(done)} of {len(found)} runs, seeds {', '.join(map(str, config.seeds))}",
        rules=rules(config, judge),
        facts=facts,
        runs=[_run(job, study) for job in done],
        config=yaml.safe_dump(config.model_dump(mode="json", exclude_defaults=True), sort_keys=False, width=110),
    )
    files = {"report.html": page, "report.md": markdown(config.title, chapters, facts)}
    for chapter in chapters:
        files |= {f"{part.name}.csv": _csv(part) for part in chapter.parts}
    for name, text in files.items():
        write_text_atomically(study.path / name, text)
    return [study.path / name for name in files]


def judge_of(config: StudyConfig) -> Judge:
    """Return the rules by which a study judges."""
    metric, percent = str(config.base.get("metric", "wer")), bool(config.base.get("percent", True))
    return Judge(metric, percent, config.margin, config.confidence, config.resamples)


def rules(config: StudyConfig, judge: Judge) -> str:
    """Return how answers come about, in words."""
    points = " points" if judge.percent else ""
    return (
        f"Dev selects, test confirms. A network matches another when it is worse by less than "
        f"{judge.number(config.margin)}{points} of {judge.metric}; this, and being better, must be shown at "
        f"{config.confidence:.0%} by a paired bootstrap over seeds and examples ({config.resamples:,} resamples) "
        "and by a t-test that knows how few the seeds are. One-sided p-values are corrected by Holm's method within a "
        "table, for matching, being better and being worse apart. What is shown neither way is not decided."
    )


def _chapter(kind: Kind, evidence: Evidence, config: StudyConfig, study: StudyDirectory) -> Chapter:
    missing = tuple(job.id for job in jobs(config, (kind,)) if not study.is_done(job))
    return replace(CHAPTERS[kind](evidence), missing=missing)


def _costs(config: StudyConfig, done: Sequence[Job], study: StudyDirectory, plugins: Plugins) -> dict[str, Costs]:
    """Return what the networks of one seed of each ladder cost, by run."""
    structure = config.structure
    arms = {IMP, *(structure.granularities if structure else ())}
    chosen = [job for job in done if job.seed == config.seeds[0] and job.arm.name in arms and job.levels != {0: 0}]
    rounds = [0, *(structure.levels if structure else ())]
    measured = {}
    for job in chosen:
        try:
            found = costs(study.run(job.id), plugins, rounds=[*rounds, *(job.levels or ())])
        except DataError as error:
            warnings.warn(f"{job.id}: its costs are left out of the report: {error}", stacklevel=2)
            continue
        if found is not None:
            measured[job.id] = found
    return measured


def _facts(
    config: StudyConfig, found: Sequence[Job], done: Sequence[Job], study: StudyDirectory
) -> list[tuple[str, str]]:
    seconds = sum(record.seconds for job in done for record in study.ledger(job.id).records())
    trainings = sum(len(study.ledger(job.id).records()) for job in done)
    facts = [(name, str(value)) for name, value in environment().items() if name != "threads"]
    return [
        ("command", f"ticketkit study all --config … --out {study.path.name}"),
        ("runs", f"{len(done)} of {len(found)}, with {trainings} trained rounds"),
        ("training and dev", f"{seconds / 3600:.1f} hours of one process"),
        ("threads of a run", str(config.threads)),
        *facts,
    ]


def _run(job: Job, study: StudyDirectory) -> Run:
    records = study.ledger(job.id).records()
    last = records[-1]
    return Run(job.id, len(records), f"ticketkit resume runs/{job.id}", last.digest or "", last.mask_digest)


def _csv(part: Table | Figure | HeatMap) -> str:
    if isinstance(part, Table):
        return table_csv(part)
    return figure_csv(part) if isinstance(part, Figure) else heat_map_csv(part)
