"""What docs/stability.md promises is what there is, and no promise is broken, or made, by accident."""

import copy
import json
import re
import textwrap
from collections.abc import Callable
from functools import cached_property
from pathlib import Path

import pytest
from pydantic import BaseModel, Field

from tests.api import COMMAND, FILE, PROMISES, Section, differences, members, settings, snapshot

PAGE = Path(__file__).parents[1] / "docs" / "stability.md"
PROMISED: dict[str, Section] = json.loads(FILE.read_text(encoding="utf-8"))


def test_no_promise_is_broken_and_none_is_made_by_accident() -> None:
    report = differences(PROMISED, snapshot())
    assert not report, f"docs/stability.md promises otherwise.\n\n{report}\n\nIf this is meant, run: {COMMAND}"


def test_the_page_makes_every_promise_and_names_the_command() -> None:
    page = " ".join(PAGE.read_text(encoding="utf-8").split())
    assert [promise for promise in PROMISES.values() if promise not in page] == []
    assert COMMAND in page
    assert PROMISED.keys() == PROMISES.keys() == snapshot().keys()


def test_the_page_lists_the_exit_codes_and_the_environment() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert re.findall(r"^\| (\d) \|", page, re.MULTILINE) == sorted(PROMISED["exit codes"].values())
    assert [name for name in PROMISED["environment"] if f"`{name}`" not in page] == []


def replace(section: str, name: str, old: str, new: str) -> Callable[[dict[str, Section]], None]:
    def change(api: dict[str, Section]) -> None:
        assert old in api[section][name]
        api[section][name] = api[section][name].replace(old, new)

    return change


BREAKAGES = {
    "a name": (lambda api: api["names"].pop("select"), "gone:    select"),
    "a method": (lambda api: api["names"].pop("Mask.overlap"), "gone:    Mask.overlap"),
    "an argument's name": (replace("names", "Round.checkpoint", "step", "at"), "(self, *, at: int)"),
    "a default": (replace("names", "IMP.extreme", "0.0", "0.1"), "tolerance: float=0.1"),
    "an error's base": (replace("names", "ScoreError", "RunError", "TicketkitError"), "is: class(TicketkitError)"),
    "a hook": (lambda api: api["hooks"].pop("ticketkit_run_end"), "gone:    ticketkit_run_end"),
    "a hook's argument": (replace("hooks", "ticketkit_run_end", "records", "rounds"), "(rounds: tuple"),
    "a new hook": (lambda api: api["hooks"].update(ticketkit_step="()"), "new:     ticketkit_step"),
    "an entry": (lambda api: api["entries"].pop("criterion lamp"), "gone:    criterion lamp"),
    "an option's default": (
        replace("entries", "granularity block.rows", "= 4", "= 8"),
        "changed: granularity block.rows",
    ),
    "a config key": (lambda api: api["config"].pop("prune.floor"), "gone:    prune.floor"),
    "a command": (lambda api: api["commands"].pop("ticketkit verify"), "gone:    ticketkit verify"),
    "a command's option": (replace("commands", "ticketkit run", "--set", "--with"), "--with: list[str]"),
    "an exit code": (replace("exit codes", "bad input", "2", "3"), "was: 2"),
    "a format": (replace("files", "format of a ticket", "1", "2"), "changed: format of a ticket"),
    "a variable": (lambda api: api["environment"].pop("TICKETKIT_DATA"), "gone:    TICKETKIT_DATA"),
    "a check": (lambda api: api["testing"].pop("check_criterion"), "gone:    check_criterion"),
}


@pytest.mark.parametrize("what", BREAKAGES)
def test_a_difference_is_shown_under_the_promise_that_it_touches(what: str) -> None:
    change, shown = BREAKAGES[what]
    changed = copy.deepcopy(PROMISED)
    change(changed)
    report = differences(PROMISED, changed)
    touched = [section for section in PROMISES if PROMISED[section] != changed[section]]
    assert [line.partition(": ")[0] for line in report.splitlines() if not line.startswith(" ")] == touched
    assert len(touched) == 1
    assert PROMISES[touched[0]] in report
    assert shown in report
    assert differences(PROMISED, copy.deepcopy(PROMISED)) == ""


class Base:
    def inherited(self, x: int) -> int:
        return x


class Example(Base):
    field: "int" = 3
    _hidden: int = 4

    def __init__(self, first: str, *rest: float, named: bool = True, **more: int) -> None:
        self.kept, self._own = first, rest
        self.typed: bool = named

    def __len__(self) -> int:
        return 0

    def __repr__(self) -> str:
        return ""

    @property
    def size(self) -> "int":
        return 0

    @cached_property
    def weight(self) -> float:
        return 0.0

    @classmethod
    def of(cls, value: "str | None" = None, /) -> "Example":
        return cls(value or "")

    def _secret(self) -> None: ...


def test_the_snapshot_holds_all_that_is_public_of_a_class_and_nothing_else() -> None:
    assert members(Example) == {
        "inherited": "(self, x: int) -> int",
        "field": "int = 3",
        "kept": "attribute",
        "typed": "attribute",
        "__init__": "(self, first: str, *rest: float, named: bool=True, **more: int) -> None",
        "__len__": "(self) -> int",
        "size": "property -> int",
        "weight": "property -> float",
        "of": "classmethod (cls, value: str | None=None, /) -> Example",
    }


class Inner(BaseModel):
    depth: int = Field(default=1, ge=1)


class Outer(BaseModel):
    name: str
    inner: Inner = Inner()
    many: tuple[Inner, ...] = ()
    scale: float | None = Field(default=None, gt=0, lt=1)
    drawn: list[int] = Field(default_factory=list)


def test_the_snapshot_holds_every_option_with_its_type_its_bounds_and_its_default() -> None:
    assert dict(settings(Outer)) == {
        "name": "string (required)",
        "inner": 'Inner = {"depth": 1}',
        "inner.depth": "integer (minimum 1) = 1",
        "many": "array of Inner = []",
        "many.depth": "integer (minimum 1) = 1",
        "scale": "number (exclusiveMaximum 1, exclusiveMinimum 0) | null = null",
        "drawn": "array of integer = (computed)",
    }


def test_the_report_is_readable() -> None:
    promised = {"hooks": {"ticketkit_run_end": "(records)", "ticketkit_old": "(x)"}}
    found = {"hooks": {"ticketkit_run_end": "(rounds)", "ticketkit_new": "(y)"}}
    assert differences(promised, found) == textwrap.dedent("""\
        hooks: Hooks and their arguments stay; adding an argument is always compatible.
          gone:    ticketkit_old  (x)
          changed: ticketkit_run_end
              was: (records)
               is: (rounds)
          new:     ticketkit_new  (y)""")
