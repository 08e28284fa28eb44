"""Controls: is the ticket worth more than whatever else has as many weights?"""

from ticketkit.study.evidence import Evidence, percents
from ticketkit.study.findings import Answer, Chapter, Figure, HeatMap, Table
from ticketkit.study.jobs import Arm
from ticketkit.study.judging import Judgement, count, probability, share
from ticketkit.study.ladder import IMP
from ticketkit.study.points import Point

CLAIM = (
    "Tickets owe their worth to mask and first weights together: with random weights in the mask, or random masks, "
    "matching ends earlier (on TED-LIUM a random ticket matches down to 10.7 %, random pruning to 26.2 %, the ticket "
    "to 4.4 %), and pruning without rewinding is worse."
)
WHAT = {
    "standard": "pruned without rewinding, trained on each time",
    "one_shot": "pruned once by the same criterion, rewound",
    "random_global": "random weights of the scope, the same first weights",
    "random_layers": "random weights, as many in each layer as the ticket has (shuffled mask)",
    "random_ticket": "the ticket's mask over fresh weights",
    "small_dense": "a small dense network with as many parameters, trained as long",
    "small_dense_long": "the same, trained as long as the whole search",
}


def chapter(evidence: Evidence) -> Chapter:
    """Return the chapter on controls."""
    section = evidence.config.controls
    answers: list[Answer] = []
    parts: list[Table | Figure | HeatMap] = []
    for variant in (section and section.variants) or list(evidence.config.variants):
        levels = section.levels if section else []
        rivals = _rivals(evidence, variant, levels)
        judged = evidence.judge.family(
            {
                key: (ticket.test, rival.test)
                for key, rival in rivals.items()
                if (ticket := evidence.points.get(Arm(variant, IMP), key[1])) is not None
            }
        )
        if judged:
            answers += _answers(variant, judged)
            parts += [_table(evidence, variant, levels, rivals, judged), _figure(evidence, variant, levels, rivals)]
    return Chapter("controls", "Is it the ticket that matters?", CLAIM, answers, parts)


def _rivals(evidence: Evidence, variant: str, levels: list[int]) -> dict[tuple[str, int], Point]:
    found = {}
    for name in WHAT:
        for level in levels:
            point = evidence.points.get(Arm(variant, name), level)
            if point is not None:
                found[name, level] = point
    return found


def _answers(variant: str, judged: dict[tuple[str, int], Judgement]) -> list[Answer]:
    """Return for each rival whether the ticket is better: yes or no only where every level says so."""
    answers = []
    for name, what in WHAT.items():
        found = {level: one for (rival, level), one in judged.items() if rival == name}
        if not found:
            continue
        words = [one.word for one in found.values()]
        verdict = "yes" if set(words) == {"better"} else "no" if set(words) <= {"matches", "worse"} else "not decided"
        said = "; ".join(
            f"round {level}: {_said(one)}, p (not better) = {probability(one.p_better)}" for level, one in found.items()
        )
        question = f"{variant}: is the ticket better than {name} ({what})?"
        answers.append(Answer(question, verdict, f"{said[0].upper()}{said[1:]}."))  # type: ignore[arg-type]
    return answers


def _said(found: Judgement) -> str:
    return {"better": "better", "matches": "as good", "worse": "worse", "undecided": "undecided"}[found.word]


def _table(
    evidence: Evidence,
    variant: str,
    levels: list[int],
    rivals: dict[tuple[str, int], Point],
    judged: dict[tuple[str, int], Judgement],
) -> Table:
    judge, rows, marked = evidence.judge, [], set()
    dense = evidence.dense(variant)
    if dense is not None:
        rows.append(("0", "dense", "100.0 %", count(dense), judge.mean(dense.test), "", "", ""))
    for level in levels:
        ticket = evidence.points.get(Arm(variant, IMP), level)
        if ticket is None:
            continue
        marked.add(len(rows))
        shown = (share(ticket.density), count(ticket), judge.mean(ticket.test))
        rows.append((str(level), "ticket (IMP)", *shown, "", "", ""))
        for name in WHAT:
            point, found = rivals.get((name, level)), judged.get((name, level))
            if point is not None and found is not None:
                rows.append(
                    (
                        str(level),
                        name,
                        share(point.density),
                        count(point),
                        judge.mean(point.test),
                        judge.difference(found.comparison),
                        probability(found.p_better),
                        _said(found),
                    )
                )
    sizes = ("round", "network", "scope left", "parameters", f"test {judge.unit}")
    headings = (*sizes, "ticket against it", "p (not better)", "the ticket is")
    note = "; ".join(f"{name}: {what}" for name, what in WHAT.items() if any(rival == name for rival, _ in rivals))
    seeds = len(next(iter(rivals.values())).test.seeds)
    note = f"{note}. Means of {seeds} seeds ± standard deviation; p corrected (Holm) for all rivals of the table."
    return Table(f"controls_{variant}", f"{variant}: rivals of equal size", headings, rows, note, frozenset(marked))


def _figure(evidence: Evidence, variant: str, levels: list[int], rivals: dict[tuple[str, int], Point]) -> Figure:
    tickets = [point for point in evidence.points.ladder(Arm(variant, IMP)) if 0 < point.level <= max(levels)]
    series = [evidence.series("ticket (IMP)", tickets, percents(tickets))]
    for name in WHAT:
        points = [rivals[name, level] for level in levels if (name, level) in rivals]
        if points:
            at = [100 * (evidence.points.get(Arm(variant, IMP), point.level) or point).density for point in points]
            series.append(evidence.series(name, points, at, dashed=True))
    dense = evidence.dense(variant)
    return Figure(
        f"controls_{variant}_curve",
        f"{variant}: the ticket and its rivals",
        "remaining weights of the scope, % (small networks: the ticket's)",
        f"test {evidence.judge.unit}",
        series,
        log_x=True,
        reversed_x=True,
        log_y=True,
        level=None if dense is None else ("dense", evidence.judge.scaled(dense.test.rate)),
    )
