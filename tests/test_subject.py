from pathlib import Path

import pytest
from hypothesis import strategies as st

from ticketkit import BudgetError, PluginError, Plugins
from ticketkit.testing import ConformanceError
from ticketkit.testing.subject import SMALLER, Subject, for_every, listed

SUBJECT = Subject.of("schedule", "linear", Plugins())


def test_a_law_that_holds_sees_so_many_cases_the_same_each_time() -> None:
    seen: list[list[int]] = [[], []]
    for cases in seen:
        for_every(st.integers(0, 10**9), cases.append, examples=20)
    assert seen[0] == seen[1]
    assert len(seen[0]) == 20


def test_a_broken_law_is_shown_on_a_small_case(capsys: pytest.CaptureFixture[str]) -> None:
    def law(number: int) -> None:
        if number >= 10:
            raise SUBJECT.broken("stay below ten", "here", f"{number}")

    with pytest.raises(ConformanceError, match=r"came: 10$"):
        for_every(st.integers(0, 10**6), law, examples=20)
    assert capsys.readouterr() == ("", "")


def test_smaller_cases_are_looked_for_with_an_end() -> None:
    seen = []

    def law(numbers: list[int]) -> None:
        seen.append(numbers)
        if sum(numbers) > 100:
            raise SUBJECT.broken("stay below a hundred", "here", f"{numbers}")

    with pytest.raises(ConformanceError):
        for_every(st.lists(st.integers(0, 1000), min_size=6), law, examples=20)
    broken = next(index for index, numbers in enumerate(seen) if sum(numbers) > 100)
    assert len(seen) <= broken + 1 + SMALLER


def test_a_law_that_is_broken_only_once_is_broken() -> None:
    calls: list[int] = []

    def law(number: int) -> None:
        calls.append(number)
        if len(calls) == 3:
            raise SUBJECT.broken("hold", "here", "once")

    with pytest.raises(ConformanceError, match="schedule 'linear' must hold\n  where: here\n  came: once"):
        for_every(st.integers(0, 10**6), law, examples=20)


def test_other_errors_are_the_kits_own() -> None:
    def law(number: int) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        for_every(st.integers(), law, examples=3)


def test_refusals_pass_and_bugs_do_not() -> None:
    def refuse() -> None:
        raise BudgetError("too few")

    def fail() -> None:
        raise PluginError("schedule 'x' failed: KeyError: 'y'")

    with pytest.raises(BudgetError):
        SUBJECT.attempt("here", refuse)
    with pytest.raises(ConformanceError, match="must do it\n  where: here\n  came: BudgetError: too few"):
        SUBJECT.insist("do it", "here", refuse)
    with pytest.raises(ConformanceError, match="raise nothing but a TicketkitError"):
        SUBJECT.attempt("here", fail)


def test_warnings_stay_warnings() -> None:
    def warn() -> None:
        raise UserWarning("careful")

    with pytest.raises(UserWarning, match="careful"):
        SUBJECT.insist("do it", "here", warn)


def test_a_subject_is_called_by_its_name_and_options() -> None:
    chosen = {"name": "constant_count", "count": 3}
    assert Subject.of("schedule", chosen, Plugins()).name == "'constant_count' with {'count': 3}"
    assert Subject.of("schedule", Path, Plugins()).name == "Path"
    assert Subject.of("schedule", print, Plugins()).name == "print"


def test_lists_are_cut() -> None:
    assert listed(["a", "b"]) == "a; b"
    assert listed([str(number) for number in range(6)]) == "0; 1; 2; 3; and 2 more"
