"""A report in Markdown and CSV: nothing is lost, nothing breaks a row."""

import csv
import io
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ticketkit.study.findings import Answer, Chapter, Figure, HeatMap, Series, Table
from ticketkit.study.pages.markdown import figure_csv, heat_map_csv, markdown, table_csv

TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\0\r"), max_size=8)  # \0: csv refuses to read it
ODD = 'a|b, "c"\nd & <e>'
NUMBERS = st.floats(allow_nan=False, width=32)


@st.composite
def tables(draw: st.DrawFn) -> Table:
    width, height = draw(st.integers(1, 4)), draw(st.integers(0, 4))
    row = st.tuples(*[TEXT] * width)
    return Table("name", "Title", draw(row), draw(st.lists(row, min_size=height, max_size=height)))


@st.composite
def figures(draw: st.DrawFn) -> Figure:
    series = []
    for _ in range(draw(st.integers(0, 3))):
        length = draw(st.integers(0, 4))
        numbers = st.lists(NUMBERS, min_size=length, max_size=length)
        band = draw(st.booleans())
        series.append(
            Series(
                draw(TEXT),
                draw(numbers),
                draw(numbers),
                draw(numbers) if band else None,
                draw(numbers) if band else None,
            )
        )
    return Figure("name", "Title", draw(TEXT), draw(TEXT), series)


def read(text: str) -> list[list[str]]:
    return list(csv.reader(io.StringIO(text, newline="")))


def cells(line: str) -> int:
    return line.count("|") - 1


def written(part: Table | Figure | HeatMap, **facts: Any) -> list[str]:
    return markdown("Report", [Chapter("kind", "Chapter", "claim", parts=[part], **facts)], []).split("\n")


@given(tables())
def test_a_table_comes_back_from_csv(table: Table) -> None:
    assert read(table_csv(table)) == [list(row) if row != ("",) else [""] for row in (table.headings, *table.rows)]


@given(figures())
def test_the_numbers_of_a_figure_come_back_from_csv_to_the_bit(figure: Figure) -> None:
    head, *rows = read(figure_csv(figure))
    assert head == ["series", figure.x_label, figure.y_label, "low", "high"]
    expected = [
        (series.label, x, y, *(None if bound is None else bound[place] for bound in (series.low, series.high)))
        for series in figure.series
        for place, (x, y) in enumerate(zip(series.x, series.y, strict=True))
    ]
    assert [(label, *(float(value) if value else None for value in values)) for label, *values in rows] == expected


@given(st.lists(st.lists(st.floats(0, 1), min_size=2, max_size=2), min_size=1, max_size=4))
def test_the_numbers_of_a_heat_map_come_back_from_csv_to_the_bit(values: list[list[float]]) -> None:
    names = [f'layer, "{place}"' for place in range(len(values))]
    head, *rows = read(heat_map_csv(HeatMap("name", "Title", names, ["100 %", "80 %"], values)))
    assert head == ["", "100 %", "80 %"]
    assert [row[0] for row in rows] == names
    assert [[float(value) for value in row[1:]] for row in rows] == values


def test_a_series_with_more_numbers_on_one_axis_is_refused() -> None:
    with pytest.raises(ValueError, match="zip"):
        figure_csv(Figure("name", "Title", "x", "y", [Series("a", [1, 2], [1])]))


@given(tables())
def test_every_row_of_a_markdown_table_has_as_many_cells(table: Table) -> None:
    lines = [line for line in written(table) if line.startswith("|")]
    assert len(lines) == len(table.rows) + 2
    assert {cells(line) for line in lines} == {len(table.headings)}


def test_odd_characters_end_neither_cell_nor_row() -> None:
    lines = written(Table("name", "Title", ("x", ODD), [(ODD, "1")]))
    rows = [line for line in lines if line.startswith("|")]
    assert rows == ['| x | a/b, "c" d & <e> |', "| --- | --- |", '| a/b, "c" d & <e> | 1 |']


def test_everything_of_a_chapter_is_written() -> None:
    answer = Answer("Is it?", "not decided", "Too few.")
    table = Table("t", "A table", ("a",), [("1",)], note="A note.")
    figure = Figure("f", "A figure", "x", "y", [Series("a", [1], [2])], note="Band.")
    heat = HeatMap("h", "A map", ["r"], ["c"], [[1.0]])
    chapter = Chapter("kind", "Chapter", "It holds.", [answer], [table, figure, heat], missing=("run-1", "run-2"))
    text = markdown("Report", [chapter], [("torch", "2")])
    for part in (
        "# Report\n",
        "## Chapter\n",
        "The paper: It holds.\n",
        "- Is it? **not decided**. Too few.\n",
        "### A table\n",
        "A note.\n",
        "Figure: A figure (`f.csv`). Band.\n",
        "Figure: A map (`h.csv`).\n",
        "Not finished: run-1, run-2.\n",
        "- torch: 2\n",
    ):
        assert part in text


def test_an_empty_report_is_its_title_and_facts() -> None:
    assert markdown("Report", [], [("a", "b")]) == "# Report\n\n## How this was made\n\n- a: b\n"
