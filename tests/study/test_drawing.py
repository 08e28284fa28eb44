"""Figures and heat maps: well-formed SVG that draws every number and says every word."""

from collections.abc import Iterable
from math import nan
from xml.etree import ElementTree

import pytest

from ticketkit.study.findings import Figure, HeatMap, Series
from ticketkit.study.pages.drawing import figure_svg, heat_map_svg

SVG = "{http://www.w3.org/2000/svg}"
ODD = "a < b & \"c\" > 'd'"
LINE = Series("ticket", [100.0, 50.0, 25.0], [3.0, 2.0, 4.0], [2.5, 1.5, 3.0], [3.5, 2.5, 5.0])
BARE = Series("rival", [50.0, 25.0], [5.0, 6.0], dashed=True)


def figure(series: Iterable[Series] = (LINE, BARE), **facts: object) -> Figure:
    return Figure(
        **{"name": "f", "title": "Title", "x_label": "left", "y_label": "error", "series": list(series)} | facts
    )


def texts(svg: str) -> set[str]:
    return {"".join(node.itertext()) for node in ElementTree.fromstring(svg).iter(f"{SVG}text")}


def markers(svg: str) -> int:
    """Return how many points are drawn: each uses a marker, inside the clip path of the axes."""
    groups = list(ElementTree.fromstring(svg).iter(f"{SVG}g"))
    lines = [group for group in groups if group.attrib.get("id", "").startswith("line2d")]
    clipped = [inner for line in lines for inner in line.iter(f"{SVG}g") if "clip-path" in inner.attrib]
    return sum(len(list(inner.iter(f"{SVG}use"))) for inner in clipped)


@pytest.mark.parametrize("log_y", [False, True])
@pytest.mark.parametrize("log_x", [False, True])
@pytest.mark.parametrize("reversed_x", [False, True])
def test_every_series_is_drawn_and_named_on_every_axis(log_x: bool, log_y: bool, reversed_x: bool) -> None:
    drawn = figure_svg(figure(log_x=log_x, log_y=log_y, reversed_x=reversed_x, level=("dense", 3.5)))
    assert drawn.startswith("<svg")
    assert {"ticket", "rival", "dense", "left", "error"} <= texts(drawn)
    assert markers(drawn) == len(LINE.x) + len(BARE.x)


def test_densities_of_a_ladder_are_the_ticks() -> None:
    assert {"100", "50", "25"} <= texts(figure_svg(figure(log_x=True, reversed_x=True)))


def test_ticks_that_are_given_stand_at_their_places() -> None:
    drawn = figure_svg(figure([Series("a", [0.0, 1.0], [1.0, 2.0])], ticks=[(0.0, "none"), (1.0, "loud")], log_y=True))
    assert {"none", "loud"} <= texts(drawn)


def test_odd_characters_are_text() -> None:
    drawn = figure_svg(figure([Series(ODD, [1.0, 2.0], [1.0, 2.0])], title=ODD, x_label=ODD, y_label=ODD))
    assert ODD in texts(drawn)
    assert ODD not in drawn
    heat = heat_map_svg(HeatMap("h", ODD, [ODD], [ODD], [[0.5]]))
    assert ODD in texts(heat)


@pytest.mark.parametrize("log_y", [False, True])
def test_zeros_and_missing_numbers_are_no_error(log_y: bool) -> None:
    x, zeros, gap = [3.0, 2.0, 1.0], [0.0, 0.0, 0.0], [nan, 1.0, 2.0]
    for series in (Series("a", x, zeros, zeros, zeros), Series("a", x, gap, gap, gap), Series("a", x, [nan] * 3)):
        assert "a" in texts(figure_svg(figure([series], log_x=True, log_y=log_y)))


def test_a_series_without_points_is_drawn_as_none() -> None:
    assert markers(figure_svg(figure([Series("a", [], [])], log_x=True, log_y=True))) == 0


def test_the_same_figure_is_the_same_text() -> None:
    assert figure_svg(figure(log_y=True)) == figure_svg(figure(log_y=True))
    heat = HeatMap("h", "Title", ["r"], ["c"], [[0.5]])
    assert heat_map_svg(heat) == heat_map_svg(heat)


def test_a_heat_map_names_every_row_and_column() -> None:
    rows, columns = [f"layer.{place}" for place in range(5)], ["100 %", "80 %", "64 %"]
    drawn = heat_map_svg(HeatMap("h", "Title", rows, columns, [[1.0, 0.5, 0.0]] * 4 + [[nan, nan, nan]]))
    assert {*rows, *columns, "100 %", "≤ 0.1 %"} <= texts(drawn)


def test_colours_of_a_heat_map_follow_the_numbers() -> None:
    def fills(values: list[list[float]]) -> list[str]:
        drawn = heat_map_svg(HeatMap("h", "Title", ["r"], ["a", "b", "c"], values))
        root = ElementTree.fromstring(drawn)
        mesh = next(node for node in root.iter(f"{SVG}g") if node.attrib.get("id", "").startswith("QuadMesh"))
        return [node.attrib["style"] for node in mesh.iter(f"{SVG}path") if "fill" in node.attrib.get("style", "")]

    assert len(set(fills([[1.0, 0.1, 0.01]]))) == 3
    assert len(set(fills([[0.5, 0.5, 0.5]]))) == 1
    assert len(set(fills([[0.001, 0.0001, 0.0]]))) == 1, "what is at most 0.1 % looks empty"
