"""The laws of schedules."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any

from hypothesis import strategies as st

from ticketkit.errors import BudgetError, ConfigError, TicketkitError
from ticketkit.plugins import Plugins
from ticketkit.schedule import Target, plan
from ticketkit.testing.subject import Named, Subject, for_every, move_generators, without_a_trace

MOST = 10**12  # weights
ROUNDS = st.integers(0, 20)
SHARES = st.integers(1, 99).map(lambda percent: percent / 100)
KINDS: dict[str, tuple[str, ...]] = {
    "no target": (),
    "rounds": ("rounds",),
    "density": ("density",),
    "rate and rounds": ("rate", "rounds"),
    "rate and density": ("rate", "density"),
    "rounds and density": ("rounds", "density"),
}
"""What a user can ask for."""


@without_a_trace
def check_schedule(schedule: Named, *, plugins: Plugins | None = None, examples: int = 12) -> None:
    """Raise `ConformanceError` if a schedule breaks a law: where it starts and ends, whole counts that never rise.

    `schedule` is what `IMP(schedule=...)` takes. It plans for 1 to 10^12 weights and each kind of target, `examples` of
    each, also for runs that start from a mask. A target that it cannot serve it may refuse, with a `ConfigError` (or,
    if there is one, a `BudgetError`); but not all of them.

    >>> from ticketkit.testing import check_schedule
    >>> check_schedule("geometric")
    """
    subject = Subject.of("schedule", schedule, plugins)
    planned: list[_Order] = []
    refusals: list[str] = []
    for asked in KINDS.values():
        for_every(_orders(asked), partial(_obeys, subject, planned, refusals), examples=examples)
    if not planned:
        raise subject.broken(
            "plan for some kind of target, or for none, and leave a weight",
            f"all {len(refusals)} runs that were tried",
            refusals[-1],
        )


@dataclass(frozen=True)
class _Order:
    """A run to be planned: the weights in scope, those it starts from, and what the user asked for."""

    total: int
    start: int
    asked: Mapping[str, Any]

    @property
    def target(self) -> Target | None:
        """The target as the schedule gets it; raises `ConfigError` if the run starts below it."""
        target = Target.of(**self.asked)
        return None if target is None else target.rescaled(self.total, self.start)

    def __str__(self) -> str:
        """Return the run as messages name it."""
        begin = f"{self.start}" if self.start == self.total else f"{self.start} of {self.total}"
        return f"{begin} weights, " + (", ".join(f"{key}={value}" for key, value in self.asked.items()) or "no target")


@st.composite
def _orders(draw: st.DrawFn, asked: tuple[str, ...]) -> _Order:
    total = draw(st.one_of(st.integers(1, 40), st.integers(1, 10**6), st.integers(1, MOST), st.just(MOST)))
    start = draw(st.one_of(st.just(total), st.integers(1, total)))
    return _Order(total, start, {what: draw(ROUNDS if what == "rounds" else SHARES) for what in asked})


def _obeys(subject: Subject, planned: list[_Order], refusals: list[str], order: _Order) -> None:
    """Hold every law against one run."""
    try:
        target = order.target
    except ConfigError:
        return  # rounds=0 with a density, or a start below the density
    try:
        counts = _counts(subject, order, target)
    except TicketkitError as error:
        _refuses_politely(subject, order, target, error)
        refusals.append(f"{type(error).__name__}: {error}")
        return
    _returns_whole_numbers(subject, order, counts)
    _starts_from_all_weights(subject, order, counts)
    _never_rises(subject, order, counts)
    _ends_where_the_target_settles_it(subject, order, target, counts)
    _takes_no_more_rounds_than_settled(subject, order, target, counts)
    _plans_the_same_again(subject, order, target, counts)
    if counts[-1] < 1:
        refusals.append(f"{_shown(counts)}, which leaves nothing of {order}")
    else:
        planned.append(order)
        _is_accepted_by_a_run(subject, order, target, counts)


def _counts(subject: Subject, order: _Order, target: Target | None) -> tuple[Any, ...]:
    counts = subject.attempt(str(order), subject.choice.call, order.start, target)
    try:
        return tuple(counts)
    except TypeError as error:
        law = "return a tuple of counts: one for the first round and one after each pruning"
        raise subject.broken(law, str(order), f"{counts!r}") from error


def _refuses_politely(subject: Subject, order: _Order, target: Target | None, error: TicketkitError) -> None:
    allowed = (ConfigError,) if target is None else (ConfigError, BudgetError)
    if not isinstance(error, allowed):
        names = " or ".join(kind.__name__ for kind in allowed)
        raise subject.broken(
            f"refuse what it cannot plan for with a {names} (without a target: Target.required(target))",
            str(order),
            f"{type(error).__name__}: {error}",
        ) from error


def _returns_whole_numbers(subject: Subject, order: _Order, counts: tuple[Any, ...]) -> None:
    if wrong := [count for count in counts if type(count) is not int or count < 0]:
        raise subject.broken(
            "return Python ints of 0 or more, computed without floats: counts go to 10^12 and are written into tickets",
            str(order),
            f"{wrong[0]!r}, a {type(wrong[0]).__name__}",
        )


def _starts_from_all_weights(subject: Subject, order: _Order, counts: tuple[int, ...]) -> None:
    if counts[:1] != (order.start,):
        raise subject.broken("start from all weights that there are", str(order), _shown(counts))


def _never_rises(subject: Subject, order: _Order, counts: tuple[int, ...]) -> None:
    rises = [index for index, (before, after) in enumerate(pairwise(counts), start=1) if after > before]
    if rises:
        raise subject.broken("never rise", str(order), f"{_shown(counts)}, which rises at round {rises[0]}")


def _ends_where_the_target_settles_it(
    subject: Subject, order: _Order, target: Target | None, counts: tuple[int, ...]
) -> None:
    if target is not None and target.settles_end and counts[-1] != target.end(order.start):
        law = f"end at exactly target.end({order.start}) = {target.end(order.start)}"
        raise subject.broken(law, str(order), _shown(counts))


def _takes_no_more_rounds_than_settled(
    subject: Subject, order: _Order, target: Target | None, counts: tuple[int, ...]
) -> None:
    if target is not None and target.settles_rounds and len(counts) > target.rounds + 1:
        law = f"return at most target.rounds + 1 = {target.rounds + 1} counts"
        raise subject.broken(law, str(order), f"{len(counts)} counts, {_shown(counts)}")


def _plans_the_same_again(subject: Subject, order: _Order, target: Target | None, counts: tuple[int, ...]) -> None:
    """A run that goes on plans anew: the plan follows from the arguments, and from nothing else."""
    move_generators()
    again = subject.insist("plan again what it planned before", str(order), _counts, subject, order, target)
    if again != counts:
        law = "plan the same again, whatever it planned before and wherever the global random generators stand"
        raise subject.broken(law, str(order), f"{_shown(counts)}, then {_shown(again)}")


def _is_accepted_by_a_run(subject: Subject, order: _Order, target: Target | None, counts: tuple[int, ...]) -> None:
    """The engine itself takes the plan."""
    asked = Target.of(**order.asked)
    accepted = subject.insist(
        "make a plan that a run accepts",
        str(order),
        plan,
        subject.choice.call,
        order.total,
        asked,
        start=order.start,
    )
    if accepted != counts:
        raise subject.broken(
            "plan in a run what it plans alone", str(order), f"{_shown(counts)}, then {_shown(accepted)}"
        )


def _shown(counts: tuple[Any, ...]) -> str:
    middle = (f"… {len(counts) - 8} more …",) if len(counts) > 8 else ()
    shown = (*map(str, counts[:4]), *middle, *map(str, counts[-4:])) if middle else tuple(map(str, counts))
    return f"({', '.join(shown)})"
