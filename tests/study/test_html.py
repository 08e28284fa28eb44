"""The page: well formed, complete, and nothing outside of it is needed."""

import re
from html.parser import HTMLParser

import pytest

from ticketkit.study.findings import Answer, Chapter, Figure, HeatMap, Series, Table
from ticketkit.study.pages.html import Run, html

ODD = "<b>a</b> & \"c\" 'd' </td><script>alert(1)</script>"
VOID = {"meta", "link", "br", "hr", "img", "input"}
FIGURE = Figure("f", "A figure", "x", "y", [Series("ticket", [1.0, 2.0], [3.0, 4.0])], note="Band.")
OTHER = Figure("g", "A figure", "x", "y", [Series("ticket", [1.0, 2.0], [3.0, 4.0])])
HEAT = HeatMap("h", "A map", ["layer"], ["100 %", "50 %"], [[1.0, 0.5]])
TABLE = Table("t", "A table", ("round", "error"), [("0", "1.5"), ("1", "")], note="Means.", marked=frozenset({1}))


class Page(HTMLParser):
    """What a page holds; raises `AssertionError` where an element is closed that is not the open one."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    def count(self, tag: str) -> int:
        return sum(one == tag for one, _ in self.elements)


def page(*chapters: Chapter, **facts: object) -> str:
    own = {
        "title": "Report",
        "subtitle": "3 of 3 runs",
        "rules": "Dev selects.",
        "facts": [("torch", "2")],
        "runs": [Run("mlp-imp-s0", 3, "ticketkit resume runs/mlp-imp-s0", "abc", "def")],
        "config": "title: Toy",
    }
    return html(chapters, **own | facts)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def full() -> str:
    answers = [Answer("Is it?", "yes", "So it is."), Answer("Is that?", "not decided", "Too few.")]
    return page(
        Chapter("existence", "Is there one?", "It is.", answers, [TABLE, FIGURE, HEAT], missing=("run-9",)),
        Chapter("noise", "Noise?", "It helps.", [Answer("Does it?", "no", "No.")], [OTHER]),
    )


def test_every_element_is_closed_in_turn_and_every_figure_is_there(full: str) -> None:
    found = Page(full)
    assert found.count("svg") == found.count("figure") == 3
    for part in (TABLE, FIGURE, HEAT, OTHER):
        assert part.title in found.words


def test_the_page_loads_nothing(full: str) -> None:
    found = Page(full)
    assert not {"script", "link", "iframe", "object", "embed", "img", "base", "form"} & {
        tag for tag, _ in found.elements
    }
    for tag, attributes in found.elements:
        for name, value in attributes.items():
            assert not name.startswith("on"), f"{tag} {name}"
            if name in ("src", "href", "xlink:href", "srcset", "data", "action"):
                assert value is not None
                assert value.startswith(("#", "data:")), f"{tag} {name}={value}"
    assert not re.findall(r"url\((?!#)|@import|@font-face", full)


def test_every_link_and_reference_leads_to_one_place_of_the_page(full: str) -> None:
    found = Page(full)
    wanted = {
        v[1:] for _, a in found.elements for k, v in a.items() if k in ("href", "xlink:href") and v and v[0] == "#"
    }
    wanted |= set(re.findall(r"url\(#([^)]+)\)", full))
    there = [a["id"] for _, a in found.elements if "id" in a]
    assert wanted <= set(there)
    assert {"answers", "existence", "noise", "made"} <= wanted


def test_all_that_was_found_is_on_the_page(full: str) -> None:
    text = " ".join(" ".join(Page(full).words).split())
    for part in (
        "Report",
        "3 of 3 runs",
        "Dev selects.",
        "The paper: It is.",
        "Is it?",
        "So it is.",
        "not decided",
        "Means.",
        "Band.",
        "Not finished: run-9.",
        "torch",
        "mlp-imp-s0",
        "ticketkit resume runs/mlp-imp-s0",
        "abc",
        "def",
        "title: Toy",
    ):
        assert part in text


def test_answers_are_counted_by_study_and_verdict(full: str) -> None:
    rows = re.findall(r'<tr><td><a href="#(\w+)">.*?</a></td>((?:<td>\d+</td>)+)</tr>', full)
    assert {kind: [int(n) for n in re.findall(r"\d+", cells)] for kind, cells in rows} == {
        "existence": [1, 0, 1],
        "noise": [0, 1, 0],
    }


def test_rows_that_stand_out_are_marked(full: str) -> None:
    assert full.count('<tr class="marked">') == 1
    assert re.search(r'<tr class="marked"><td>1</td>', full)


def test_odd_characters_stay_text_wherever_they_stand() -> None:
    answers = [Answer(ODD, "yes", ODD)]
    parts = [
        Table("t", ODD, (ODD,), [(ODD,)], note=ODD),
        Figure("f", ODD, ODD, ODD, [Series(ODD, [1.0, 2.0], [1.0, 2.0])], note=ODD, level=(ODD, 1.5)),
        HeatMap("h", ODD, [ODD], ["<b>&"], [[0.5]], note=ODD),
    ]
    text = page(
        Chapter("existence", ODD, ODD, answers, parts, missing=(ODD,)),
        title=ODD,
        subtitle=ODD,
        rules=ODD,
        facts=[(ODD, ODD)],
        runs=[Run(ODD, 1, ODD, ODD, ODD)],
        config=ODD,
    )
    assert "<script" not in text
    assert "<b>" not in text
    found = Page(text)
    assert sum(ODD in words for words in found.words) >= 20


def test_a_report_of_nothing_is_a_page() -> None:
    found = Page(page(runs=[]))
    assert found.count("svg") == 0
    assert "Report" in found.words
