"""Existence: is there a ticket that does as well as the dense network, and how sparse is it?"""

from collections.abc import Mapping
from itertools import combinations
from statistics import mean

from ticketkit.comparison import overlap
from ticketkit.study.evidence import Evidence, percents
from ticketkit.study.findings import Answer, Chapter, Figure, HeatMap, Series, Table
from ticketkit.study.history import mean_history
from ticketkit.study.jobs import Arm
from ticketkit.study.judging import Judgement, count, probability, share
from ticketkit.study.ladder import IMP
from ticketkit.study.points import Point

PAPERS_DENSEST = 0.21
"""What is left in the densest of the paper's extreme tickets, the CNN-LSTM's on LibriSpeech."""
CLAIM = (
    "Tickets of 4 to 21 % of the weights, found by iterative magnitude pruning and rewound to their first weights, "
    "match the dense network: CNN-LSTM 21.0 %, Conformer 16.8 %, RNN-T 10.7 % on LibriSpeech, CNN-LSTM 4.4 % on "
    "TED-LIUM."
)


def chapter(evidence: Evidence) -> Chapter:
    """Return the chapter on existence."""
    section = evidence.config.existence
    variants = (section and section.variants) or list(evidence.config.variants)
    answers: list[Answer] = []
    parts: list[Table | Figure | HeatMap] = []
    ladders = {variant: evidence.points.ladder(Arm(variant, IMP)) for variant in variants}
    ladders = {variant: ladder for variant, ladder in ladders.items() if len(ladder) > 1}
    if ladders:
        parts.append(_overview(evidence, ladders))
    for variant, ladder in ladders.items():
        judged = evidence.judge.judged(
            {point.level: evidence.judge.compare(point.test, ladder[0].test) for point in ladder[1:]}
        )
        answers.append(_sparse_enough(evidence, variant, ladder, judged))
        answers += _answers(evidence, variant, ladder)
        parts += [
            _table(evidence, variant, ladder, judged),
            _curve(evidence, variant, ladder),
            _layers(variant, ladder),
            _overlaps(evidence, variant, ladder),
            _trainings(evidence, variant, ladder),
        ]
    return Chapter("existence", "Is there a ticket?", CLAIM, answers, parts)


def _sparse_enough(evidence: Evidence, variant: str, ladder: list[Point], judged: Mapping[int, Judgement]) -> Answer:
    """Return whether some ticket as sparse as the paper's matches the dense network, corrected for the whole ladder."""
    sparse = [point for point in ladder[1:] if round(point.density, 3) <= PAPERS_DENSEST and point.level in judged]
    matching = [point for point in sparse if judged[point.level].as_good == "yes"]
    question = (
        f"{variant}: does a ticket of at most {share(PAPERS_DENSEST)} of the scope match the dense network on test?"
    )
    if not matching:
        worse = bool(sparse) and all(judged[point.level].as_good == "no" for point in sparse)
        return Answer(question, "no" if worse else "not decided", f"None of {len(sparse)} is shown to match.")
    last = matching[-1]
    said = (
        f"The sparsest that is shown to has {share(last.density)}: {evidence.judge.mean(last.test)} against "
        f"{evidence.judge.mean(ladder[0].test)} {evidence.judge.unit}, p = {probability(judged[last.level].p_match)}, "
        f"corrected for {len(judged)} tickets."
    )
    return Answer(question, "yes", said)


def _answers(evidence: Evidence, variant: str, ladder: list[Point]) -> list[Answer]:
    """Return whether the tickets that dev chose match the dense network on test, corrected for looking at two."""
    judge, (best, extreme) = evidence.judge, evidence.selected(ladder)
    questions = {
        "extreme": (extreme, f"{variant}: does the sparsest ticket that dev accepts match the dense network on test?"),
        "best": (best, f"{variant}: is the ticket that dev likes best better than the dense network on test?"),
    }
    chosen = {name: judge.compare(point.test, ladder[0].test) for name, (point, _) in questions.items() if point}
    judged = judge.judged(chosen)
    answers = []
    for name, (point, question) in questions.items():
        if point is None:
            answers.append(Answer(question, "no", "On dev no ticket is within the margin of the dense network."))
            continue
        found = judged[name]
        said = (
            f"{share(point.density)} of the scope: {judge.mean(point.test)} against {judge.mean(ladder[0].test)} "
            f"{judge.unit} ({found.comparison.seeds} seeds), difference {judge.difference(found.comparison)}; "
        )
        if name == "extreme":
            said += f"p (worse by more than {judge.number(judge.margin)}) = {probability(found.p_match)}."
            answers.append(Answer(question, found.as_good, said))
        else:
            said += f"p (not better) = {probability(found.p_better)}."
            answers.append(Answer(question, found.superior, said))
    return answers


def _overview(evidence: Evidence, ladders: dict[str, list[Point]]) -> Figure:
    series = []
    for variant, ladder in ladders.items():
        base = evidence.judge.scaled(ladder[0].test.rate)
        rates = [evidence.judge.scaled(point.test.rate) / base if base else float("nan") for point in ladder]
        series.append(Series(f"{variant} ({len(ladder[0].test.seeds)} seeds)", percents(ladder), rates))
    return Figure(
        "existence_curves",
        "All variants: the ticket's test error over the dense network's",
        "remaining weights of the scope, %",
        f"{evidence.judge.metric} over that of dense",
        series,
        log_x=True,
        reversed_x=True,
        log_y=True,
        level=("as good as dense", 1.0),
    )


def _table(evidence: Evidence, variant: str, ladder: list[Point], judged: dict[int, Judgement]) -> Table:
    judge, costs = evidence.judge, evidence.costs.get(ladder[0].places[0].run)
    best, extreme = evidence.selected(ladder)
    rows = []
    for point in ladder:
        found = judged.get(point.level)
        record = point.places[0].record
        rows.append(
            (
                str(point.level),
                share(point.density),
                share(point.left / record.model_total),
                count(point),
                share(costs.share(record.densities)) if costs else "–",
                f"{costs.bytes[point.level]:,}" if costs and point.level in costs.bytes else "–",
                judge.number(mean(point.dev(judge.metric))),
                judge.mean(point.test),
                judge.difference(found.comparison) if found else "",
                probability(found.p_match) if found else "",
                found.word if found else "dense",
            )
        )
    sizes = ("round", "scope left", "model left", "parameters", "MACs", "bytes")
    headings = (*sizes, f"dev {judge.unit}", f"test {judge.unit}", "against dense", "p (match)", "verdict")
    marked = frozenset(i for i, point in enumerate(ladder) if point in (best, extreme))
    chosen = ", ".join(
        f"{name} {share(point.density)}" for name, point in (("best", best), ("extreme", extreme)) if point
    )
    note = (
        f"Means of {len(ladder[0].test.seeds)} seeds ± standard deviation between them; differences with "
        f"{judge.confidence:.0%} intervals over seeds and examples; p corrected (Holm) for all tickets of the table. "
        f"MACs: multiply-adds with zeros skipped, as a share of dense. Bytes: mask and surviving values of seed "
        f"{ladder[0].test.seeds[0]}. Dev chose: {chosen or 'none'}."
    )
    return Table(f"existence_{variant}", f"{variant}: the ladder", headings, rows, note, marked)


def _curve(evidence: Evidence, variant: str, ladder: list[Point]) -> Figure:
    judge = evidence.judge
    x = percents(ladder)
    dev = Series("dev", x, [judge.scaled(mean(point.dev(judge.metric))) for point in ladder], dashed=True)
    return Figure(
        f"existence_{variant}_curve",
        f"{variant}: error against remaining weights",
        "remaining weights of the scope, %",
        judge.unit,
        [evidence.series("test", ladder, x), dev],
        log_x=True,
        reversed_x=True,
        log_y=True,
        level=("dense, test", judge.scaled(ladder[0].test.rate)),
        note=f"Band: {judge.confidence:.0%} interval over seeds and examples.",
    )


def _layers(variant: str, ladder: list[Point]) -> HeatMap:
    names = list(ladder[0].places[0].record.densities)
    values = [[mean(place.record.densities[name] for place in point.places) for point in ladder] for name in names]
    return HeatMap(
        f"existence_{variant}_layers",
        f"{variant}: what is left of each layer",
        names,
        [share(point.density) for point in ladder],
        values,
        "Share of each parameter's weights that is left, mean over seeds; columns are the rounds.",
    )


def _overlaps(evidence: Evidence, variant: str, ladder: list[Point]) -> Table:
    """Return how much the masks of different seeds share, against chance."""
    rows = []
    for point in ladder[1:]:
        masks = [evidence.study.ledger(place.run).ticket(place.record).mask for place in point.places]
        shared = [overlap(a, b) for a, b in combinations(masks, 2)]
        if shared:
            rows.append(
                (
                    str(point.level),
                    share(point.density),
                    f"{mean(one.jaccard for one in shared):.4f}",
                    f"{mean(one.both for one in shared):,.0f}",
                    f"{mean(one.expected for one in shared):,.0f}",
                    f"{mean(one.z for one in shared):.1f}",
                )
            )
    headings = ("round", "scope left", "Jaccard", "both keep", "by chance", "standard deviations above chance")
    note = "Means over all pairs of seeds, which began with different weights; chance keeps every layer's counts."
    return Table(f"existence_{variant}_overlap", f"{variant}: do seeds find the same weights?", headings, rows, note)


def _trainings(evidence: Evidence, variant: str, ladder: list[Point]) -> Figure:
    """Return how dense network and tickets learn."""
    shown = sorted({ladder[0].level, *(point.level for point in ladder[:: max(1, len(ladder) // 4)])})
    series = []
    for point in ladder:
        if point.level in shown:
            epochs, values = mean_history(evidence.study, point, evidence.judge.metric)
            label = "dense" if point.level == 0 else share(point.density)
            series.append(Series(label, epochs, [evidence.judge.scaled(value) for value in values]))
    return Figure(
        f"existence_{variant}_trainings",
        f"{variant}: how they learn",
        "epoch",
        f"dev {evidence.judge.unit}",
        series,
        log_y=True,
        note="Mean over seeds of the dev metric after each epoch; dev chooses the epoch.",
    )
