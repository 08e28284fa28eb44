"""Structure: what do blocks, rows, N:M and units cost against single weights, and what do they save?"""

from ticketkit.study.evidence import Evidence, percents
from ticketkit.study.findings import Answer, Chapter, Figure, HeatMap, Table
from ticketkit.study.jobs import Arm
from ticketkit.study.judging import Judgement, probability, share
from ticketkit.study.ladder import IMP
from ticketkit.study.points import Point

CLAIM = (
    "Tickets survive block sparsity: on TED-LIUM, with 1×4 blocks at 4.4 % of the weights WER is 15.66, with single "
    "weights 15.70."
)


def chapter(evidence: Evidence) -> Chapter:
    """Return the chapter on structure."""
    section = evidence.config.structure
    if section is None:
        return Chapter("structure", "What does structure cost?", CLAIM)
    ladders = {name: _points(evidence, section.variant, name) for name in section.granularities}
    judged = evidence.judge.family(
        {
            (name, point.level): (point.test, single.test)
            for name, points in ladders.items()
            for point in _compared(points, section.levels)
            if (single := evidence.points.get(Arm(section.variant, IMP), point.level)) is not None
        }
    )
    if not judged:
        return Chapter("structure", "What does structure cost?", CLAIM)
    parts: list[Table | Figure | HeatMap] = [_table(evidence, ladders, judged), _figure(evidence, ladders)]
    return Chapter("structure", "What does structure cost?", CLAIM, _answers(judged), parts)


def _points(evidence: Evidence, variant: str, name: str) -> list[Point]:
    return [point for point in evidence.points.ladder(Arm(variant, name)) if point.level > 0]


def _compared(points: list[Point], levels: list[int]) -> list[Point]:
    """Return the points at the levels of the study; of a granularity with a density of its own, its only one."""
    return [point for point in points if point.level in levels or len(points) == 1]


def _answers(judged: dict[tuple[str, int], Judgement]) -> list[Answer]:
    answers = []
    for name in dict.fromkeys(name for name, _ in judged):
        found = {level: one for (own, level), one in judged.items() if own == name}
        last = max(found)
        said = "; ".join(
            f"round {level}: {one.word}, p (worse by more than the margin) = {probability(one.p_match)}"
            for level, one in found.items()
        )
        question = f"Are tickets of {name} as good as those of single weights, at the sparsest level (round {last})?"
        answers.append(Answer(question, found[last].as_good, f"{said[0].upper()}{said[1:]}."))
    return answers


def _table(evidence: Evidence, ladders: dict[str, list[Point]], judged: dict[tuple[str, int], Judgement]) -> Table:
    section, judge = evidence.config.structure, evidence.judge
    variant = section.variant if section else ""
    levels = section.levels if section else []
    singles = [point for level in levels if (point := evidence.points.get(Arm(variant, IMP), level))]
    rows = [_row(evidence, "weight", point, None) for point in singles]
    for name, points in ladders.items():
        compared = _compared(points, levels)
        rows += [_row(evidence, name, point, judged.get((name, point.level))) for point in compared]
    sizes = ("granularity", "round", "scope left", "model left", "MACs", "time of a pass")
    headings = (*sizes, f"test {judge.unit}", "against single weights", "p (match)", "verdict")
    dense = evidence.dense(variant)
    note = (
        f"Dense: {judge.mean(dense.test) if dense else '–'}. MACs: zeros skipped, share of dense. Time: a forward pass "
        "of one training batch in plain torch, which multiplies zeros too, over the dense network's, medians of passes "
        "taken in turn: a mask alone makes nothing faster. p corrected (Holm) for all rows."
    )
    return Table("structure", f"{variant}: granularities at equal densities", headings, rows, note)


def _row(evidence: Evidence, name: str, point: Point, found: Judgement | None) -> tuple[str, ...]:
    judge, place = evidence.judge, point.places[0]
    costs = evidence.costs.get(place.run)
    seconds = costs.seconds if costs else {}
    ratio = seconds[place.record.index] / seconds[0] if place.record.index in seconds and 0 in seconds else None
    return (
        name,
        str(point.level),
        share(point.density),
        share(point.left / place.record.model_total),
        share(costs.share(place.record.densities)) if costs else "–",
        "–" if ratio is None else f"{ratio:.2f}",
        judge.mean(point.test),
        judge.difference(found.comparison) if found else "",
        probability(found.p_match) if found else "",
        found.word if found else "",
    )


def _figure(evidence: Evidence, ladders: dict[str, list[Point]]) -> Figure:
    section = evidence.config.structure
    variant, end = (section.variant, max(section.levels)) if section else ("", 0)
    singles = [point for point in evidence.points.ladder(Arm(variant, IMP)) if 0 < point.level <= end]
    series = [evidence.series("weight", singles, percents(singles))]
    there = {name: points for name, points in ladders.items() if points}
    series += [evidence.series(name, points, percents(points), dashed=True) for name, points in there.items()]
    dense = evidence.dense(variant)
    return Figure(
        "structure_curve",
        f"{variant}: error against remaining weights, by granularity",
        "remaining weights of the scope, %",
        f"test {evidence.judge.unit}",
        series,
        log_x=True,
        reversed_x=True,
        level=None if dense is None else ("dense", evidence.judge.scaled(dense.test.rate)),
    )
