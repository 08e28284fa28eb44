"""Transfer: does a mask that was found on one corpus serve another?"""

from statistics import mean

from ticketkit.comparison import overlap
from ticketkit.study.config import Transfer
from ticketkit.study.evidence import Evidence
from ticketkit.study.findings import Answer, Chapter, Figure, HeatMap, Table
from ticketkit.study.jobs import Arm
from ticketkit.study.judging import probability, share
from ticketkit.study.ladder import IMP
from ticketkit.study.points import Point

CLAIM = (
    "Masks move between corpora: on TED-LIUM a mask from LibriSpeech matches the dense network down to 32.8 % of the "
    "weights and one from Common Voice to 41.0 %, where its own reaches 4.4 %; source-trained weights help (best 11.69 "
    "against 14.04 WER)."
)


def chapter(evidence: Evidence) -> Chapter:
    """Return the chapter on transfer."""
    section = evidence.config.transfer
    answers: list[Answer] = []
    parts: list[Table | Figure | HeatMap] = []
    if section is not None:
        for target in section.targets:
            dense = evidence.dense(f"{section.variant}@{target}")
            if dense is not None:
                answers += _answers(evidence, section, target, dense)
                parts.append(_table(evidence, section, target, dense))
        if (overlaps := _overlaps(evidence, section)).rows:
            parts.append(overlaps)
    return Chapter("transfer", "Does a ticket move?", CLAIM, answers, parts)


def _moved(evidence: Evidence, section: Transfer, target: str) -> dict[tuple[str, str, int], Point]:
    """Return the points on a target that come from a source, by source, what came, and level."""
    found = {}
    for source in section.sources:
        for what in (*section.starts, "shuffled"):
            for level in section.levels:
                arm = Arm(f"{section.variant}@{target}", f"{what}_from_{source}")
                if (point := evidence.points.get(arm, level)) is not None:
                    found[source, what, level] = point
    return found


def _answers(evidence: Evidence, section: Transfer, target: str, dense: Point) -> list[Answer]:
    judge, moved = evidence.judge, _moved(evidence, section, target)
    tickets = {key: point for key, point in moved.items() if key[1] != "shuffled"}
    against_dense = judge.family({key: (point.test, dense.test) for key, point in tickets.items()})
    against_chance = judge.family(
        {
            key: (point.test, moved[key[0], "shuffled", key[2]].test)
            for key, point in tickets.items()
            if key[1] == "initial" and (key[0], "shuffled", key[2]) in moved
        }
    )
    answers = []
    for (source, what, level), found in against_dense.items():
        point = tickets[source, what, level]
        weights = "its first weights" if what == "initial" else "weights trained there"
        said = (
            f"{share(point.density)} of the scope: {judge.mean(point.test)} against {judge.mean(dense.test)} "
            f"{judge.unit}, difference {judge.difference(found.comparison)}; p (match) = {probability(found.p_match)}"
        )
        question = f"Does the mask of {source}, with {weights}, match the dense network on {target}?"
        answers.append(Answer(question, found.as_good, f"{said}."))
    for (source, _, level), found in against_chance.items():
        said = f"Round {level}: difference {judge.difference(found.comparison)}, p = {probability(found.p_better)}."
        question = f"Is the mask of {source} better on {target} than the same mask shuffled within its layers?"
        answers.append(Answer(question, found.superior, said))
    return answers


def _table(evidence: Evidence, section: Transfer, target: str, dense: Point) -> Table:
    judge, variant = evidence.judge, f"{section.variant}@{target}"
    named: list[tuple[str, str, Point]] = [("dense", "", dense)]
    named += [
        ("dense, all weights trained on it", source, point)
        for source in section.sources
        if (point := evidence.points.get(Arm(variant, f"dense_from_{source}"), 0)) is not None
    ]
    named += [
        ("its own ticket", target, point)
        for level in section.levels
        if (point := evidence.points.get(Arm(variant, IMP), level)) is not None
    ]
    words = {"initial": "mask and first weights", "trained": "mask and trained weights", "shuffled": "shuffled mask"}
    named += [(words[what], source, point) for (source, what, _), point in _moved(evidence, section, target).items()]
    judged = judge.family({i: (point.test, dense.test) for i, (*_, point) in enumerate(named) if i})
    rows = []
    for i, (what, source, point) in enumerate(named):
        found = judged.get(i)
        rows.append(
            (
                what,
                source,
                str(point.level),
                share(point.density),
                judge.mean(point.test),
                judge.difference(found.comparison) if found else "",
                probability(found.p_match) if found else "",
                found.word if found else "",
            )
        )
    headings = ("network", "from", "round", "scope left", f"test {judge.unit}", "against dense", "p (match)", "verdict")
    note = f"Trained and tested on {target}; {len(dense.test.seeds)} seeds; p corrected (Holm) for all rows."
    return Table(f"transfer_{target}", f"Trained on {target}", headings, rows, note)


def _overlaps(evidence: Evidence, section: Transfer) -> Table:
    """Return how much the masks of sources and targets share, seed by seed, against chance."""
    rows = []
    for target in section.targets:
        for source in section.sources:
            for level in section.levels:
                points = [
                    evidence.points.get(Arm(f"{section.variant}@{corpus}", IMP), level) for corpus in (source, target)
                ]
                if points[0] is None or points[1] is None or source == target:
                    continue
                masks = [
                    {place.seed: evidence.study.ledger(place.run).ticket(place.record).mask for place in point.places}
                    for point in points
                    if point
                ]
                shared = [overlap(masks[0][seed], masks[1][seed]) for seed in masks[0].keys() & masks[1].keys()]
                if not shared:
                    continue
                rows.append(
                    (
                        source,
                        target,
                        str(level),
                        f"{mean(one.jaccard for one in shared):.4f}",
                        f"{mean(one.both for one in shared):,.0f}",
                        f"{mean(one.expected for one in shared):,.0f}",
                        f"{mean(one.z for one in shared):.1f}",
                    )
                )
    headings = ("source", "target", "round", "Jaccard", "both keep", "by chance", "standard deviations above chance")
    note = "Masks that were found from the same first weights; means over seeds; chance keeps every layer's counts."
    return Table("transfer_overlap", "Do corpora find the same weights?", headings, rows, note)
