"""A report in Markdown and CSV."""

import csv
import io
from collections.abc import Iterable, Sequence

from ticketkit.study.findings import Answer, Chapter, Figure, HeatMap, Table


def markdown(title: str, chapters: Sequence[Chapter], facts: Iterable[tuple[str, str]]) -> str:
    """Return the report in Markdown; figures are named, not drawn."""
    lines = [f"# {title}", ""]
    for chapter in chapters:
        lines += [f"## {chapter.title}", "", f"The paper: {chapter.claim}", ""]
        lines += [_answer(answer) for answer in chapter.answers]
        lines += [""] if chapter.answers else []
        for part in chapter.parts:
            lines += _part(part)
        if chapter.missing:
            lines += [f"Not finished: {', '.join(chapter.missing)}.", ""]
    lines += ["## How this was made", "", *(f"- {name}: {value}" for name, value in facts), ""]
    return "\n".join(lines)


def table_csv(table: Table) -> str:
    """Return a table as CSV."""
    written = io.StringIO()
    writer = csv.writer(written, lineterminator="\n")
    writer.writerow(table.headings)
    writer.writerows(table.rows)
    return written.getvalue()


def figure_csv(figure: Figure) -> str:
    """Return the numbers of a figure as CSV."""
    written = io.StringIO()
    writer = csv.writer(written, lineterminator="\n")
    writer.writerow(("series", figure.x_label, figure.y_label, "low", "high"))
    for series in figure.series:
        for place, (x, y) in enumerate(zip(series.x, series.y, strict=True)):
            bounds = [bound[place] if bound is not None else "" for bound in (series.low, series.high)]
            writer.writerow((series.label, x, y, *bounds))
    return written.getvalue()


def heat_map_csv(heat: HeatMap) -> str:
    """Return the numbers of a heat map as CSV."""
    written = io.StringIO()
    writer = csv.writer(written, lineterminator="\n")
    writer.writerow(("", *heat.columns))
    writer.writerows((name, *values) for name, values in zip(heat.rows, heat.values, strict=True))
    return written.getvalue()


def _answer(answer: Answer) -> str:
    return f"- {answer.question} **{answer.verdict}**. {answer.because}"


def _part(part: Table | Figure | HeatMap) -> list[str]:
    if not isinstance(part, Table):
        return [f"Figure: {part.title} (`{part.name}.csv`). {part.note}".rstrip(), ""]
    rows = [_row(row) for row in part.rows]
    head = [_row(part.headings), f"|{'|'.join([' --- '] * len(part.headings))}|"]
    return [f"### {part.title}", "", *head, *rows, "", *([part.note, ""] if part.note else [])]


def _row(cells: Iterable[str]) -> str:
    """Return a row of a Markdown table, in which no cell can end the cell or the row."""
    return f"| {' | '.join(' '.join(cell.split()).replace('|', '/') for cell in cells)} |"
