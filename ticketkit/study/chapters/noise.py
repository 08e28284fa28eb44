"""Noise: do tickets shrug off noise in training?"""

from collections.abc import Mapping

import numpy as np

from ticketkit.study.config import Noise
from ticketkit.study.evidence import Evidence
from ticketkit.study.findings import Answer, Chapter, Figure, HeatMap, Series, Table
from ticketkit.study.grids import NONE
from ticketkit.study.jobs import Arm
from ticketkit.study.judging import probability, share, together
from ticketkit.study.ladder import IMP
from ticketkit.study.points import Point
from ticketkit.study.statistics import Sample

Rows = dict[str, list[Point | None]]
"""Networks by name, each trained under all conditions, as one test sees them."""

CLAIM = (
    "Tickets shrug off noisy training speech: on TED-LIUM the dense network falls from 15.93 WER to 38.21 when noise "
    "is mixed in at 0.5, the ticket of 4.4 % from 15.70 to 15.82."
)


def chapter(evidence: Evidence) -> Chapter:
    """Return the chapter on noise."""
    section = evidence.config.noise
    if section is None:
        return Chapter("noise", "Do tickets shrug off noise?", CLAIM)
    conditions = [NONE, *section.train]
    parts: list[Table | Figure | HeatMap] = []
    tested: dict[str, Rows] = {}
    for test in section.test:
        rows = {
            name: [_point(evidence, section, condition, name, level, test) for condition in conditions]
            for name, level in _networks(section)
        }
        if rows := {name: points for name, points in rows.items() if any(points)}:
            tested[test] = rows
            parts += [_table(evidence, test, conditions, rows), _figure(evidence, test, conditions, rows)]
    answers = [*_robust(evidence, conditions, tested), *_better(evidence, conditions, tested)]
    return Chapter("noise", "Do tickets shrug off noise?", CLAIM, answers, parts)


def _networks(section: Noise) -> list[tuple[str, int]]:
    """Return what is compared, each with its level: dense, tickets of both kinds, rivals."""
    networks = [("dense", 0)]
    for level in section.levels:
        networks += [(f"own ticket, round {level}", level), (f"clean ticket, round {level}", level)]
    networks += [(name, 0) for name in section.dense]
    if section.small is not None:
        networks += [(f"small dense, round {level}", level) for level in section.levels]
    return networks


def _point(evidence: Evidence, section: Noise, condition: str, name: str, level: int, test: str) -> Point | None:
    """Return the networks of a kind that were trained under a condition, as a test condition sees them."""
    named = f"{section.variant}+{condition}"
    if name.startswith("small dense"):
        return evidence.points.get(Arm(named, "small_dense"), level, test)
    if name in section.dense:
        return evidence.points.get(Arm(named, name), level, test)
    if condition == NONE:  # the ladder on clean speech is the variant's own, and its tickets are the clean ones
        return evidence.points.get(Arm(section.variant, IMP), level, test)
    return evidence.points.get(Arm(named, "clean_ticket" if name.startswith("clean") else IMP), level, test)


def _robust(evidence: Evidence, conditions: list[str], tested: Mapping[str, Rows]) -> list[Answer]:
    """Return whether tickets lose less by the last training condition than dense networks do, in the first test."""
    judge, answers = evidence.judge, []
    for test, rows in list(tested.items())[:1]:
        dense = _change(rows.get("dense", [None]))
        changes = {name: _change(points) for name, points in rows.items() if "ticket" in name}
        pairs = {name: (change, dense) for name, change in changes.items() if change and dense}
        for name, found in judge.family(pairs).items():
            one = found.comparison
            question = (
                f"Tested on {test}: does the {name} lose less than the dense network when training speech goes from "
                f"{conditions[0]} to {conditions[-1]}?"
            )
            said = (
                f"It changes by {judge.signed(one.rate)}, the dense network by {judge.signed(one.rival)} {judge.unit}; "
                f"difference {judge.difference(one)}, p (not less) = {probability(found.p_better)}."
            )
            answers.append(Answer(question, found.superior, said))
    return answers


def _better(evidence: Evidence, conditions: list[str], tested: Mapping[str, Rows]) -> list[Answer]:
    """Return whether tickets trained under the last condition are better than dense networks, for each kind of ticket.

    Yes or no only where all tests say so; p-values are corrected for all tests and tickets.
    """
    judge = evidence.judge
    pairs = {
        (name, test): (own.test, dense.test)
        for test, rows in tested.items()
        for name, points in rows.items()
        if "ticket" in name and (own := points[-1]) and (dense := rows.get("dense", [None])[-1])
    }
    judged, answers = judge.family(pairs), []
    for name in dict.fromkeys(name for name, _ in judged):
        found = {test: one for (own, test), one in judged.items() if own == name}
        said = "; ".join(
            f"on {test}: {one.word}, {judge.difference(one.comparison)}, p = {probability(one.p_better)}"
            for test, one in found.items()
        )
        question = f"Trained on {conditions[-1]}: is the {name} better than the dense network in every test?"
        answers.append(
            Answer(question, together([one.superior for one in found.values()]), f"{said[0].upper()}{said[1:]}.")
        )
    return answers


def _change(points: list[Point | None]) -> Sample | None:
    """Return the change from the first training condition to the last, example by example."""
    first, last = points[0], points[-1]
    if first is None or last is None:
        return None
    seeds = tuple(seed for seed in first.test.seeds if seed in last.test.seeds)
    if not seeds:
        return None
    before, after = first.test.of_seeds(seeds), last.test.of_seeds(seeds)
    return Sample(seeds, before.ids, np.subtract(after.errors, before.errors), before.units)


def _table(evidence: Evidence, test: str, conditions: list[str], rows: Rows) -> Table:
    judge = evidence.judge
    shown = []
    for name, points in rows.items():
        there = [point for point in points if point is not None]
        left = share(there[0].left / there[0].places[0].record.model_total) if "small" not in name else "100.0 %"
        shown.append((name, left, *(judge.mean(point.test) if point else "–" for point in points)))
    headings = ("network", "model left", *(f"trained: {condition}" for condition in conditions))
    seeds = max(len(point.test.seeds) for points in rows.values() for point in points if point)
    note = f"Test {judge.unit}: means of up to {seeds} seeds ± standard deviation between them."
    return Table(f"noise_{test}", f"Tested on: {test}", headings, shown, note)


def _figure(evidence: Evidence, test: str, conditions: list[str], rows: Rows) -> Figure:
    series = []
    for name, points in rows.items():
        at = [(place, point) for place, point in enumerate(points) if point is not None]
        line = evidence.series(name, [point for _, point in at], [float(place) for place, _ in at])
        bare = name != "dense" and "ticket" not in name
        series.append(Series(line.label, line.x, line.y, None if bare else line.low, None if bare else line.high, bare))
    return Figure(
        f"noise_{test}_curve",
        f"Tested on {test}: error by training condition",
        "training condition",
        f"test {evidence.judge.unit}",
        series,
        log_y=True,
        ticks=[(float(place), condition) for place, condition in enumerate(conditions)],
    )
