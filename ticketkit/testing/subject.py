"""What is checked, how it is called, and what is said when it breaks a law."""

import random
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from functools import wraps
from typing import Any, ParamSpec, Self, TypeVar

import numpy
import torch
from hypothesis import HealthCheck, Phase, Verbosity, given, settings
from hypothesis import strategies as st
from hypothesis.errors import Flaky

from ticketkit.errors import ConfigError, PluginError, TicketkitError
from ticketkit.plugins import Plugins
from ticketkit.registry import NEEDS, Choice
from ticketkit.rng import RngState

Named = str | Mapping[str, Any] | Callable[..., Any]
"""What `IMP(criterion=...)` takes: a registered name, a mapping with it and options, or a callable."""

Case = TypeVar("Case")
Given = ParamSpec("Given")
SMALLER = 40


class ConformanceError(AssertionError):
    """A plugin breaks a law of its kind; the message says which, where, and what came instead."""


@dataclass(frozen=True)
class Subject:
    """A plugin's object under test: its kind, what messages call it, and what a run would call."""

    kind: str
    name: str
    choice: Choice

    @classmethod
    def of(
        cls,
        kind: str,
        chosen: Named,
        plugins: Plugins | None,
        *,
        needs: Collection[str] = (),
        regrows: bool = False,
    ) -> Self:
        """Return what a user would get for `chosen`, looked up in `plugins`, by default all that are installed.

        A bare callable has the `needs` and `regrows` given here; what is registered has its own. Raises `ConfigError`
        as a run does for names and options that are wrong.
        """
        choice = (plugins or Plugins.discover()).choose(kind, chosen)
        if isinstance(chosen, str | Mapping):
            if needs or regrows:
                raise ConfigError(
                    f"needs= and regrows= describe a bare callable; {chosen!r} is registered with its own"
                )
            return cls(kind, _title(chosen), choice)
        if isinstance(needs, str) or not NEEDS.issuperset(needs):
            raise ConfigError(f"needs={needs!r}: choose from {sorted(NEEDS)}")
        return cls(kind, _title(chosen), replace(choice, needs=frozenset(needs), regrows=regrows))

    def broken(self, law: str, where: str, came: str) -> ConformanceError:
        """Return the error that says which law this breaks (it "must …"), where, and what came instead."""
        return ConformanceError(f"{self.kind} {self.name} must {law}\n  where: {where}\n  came: {came}")

    def attempt(self, where: str, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Return what a call into the plugin returns; let its refusal, a `TicketkitError`, pass, and no other error.

        A `PluginError` is what the registry makes of any other error of a plugin that is installed.
        """
        try:
            return function(*args, **kwargs)
        except (ConformanceError, Warning):  # a warning is an error only where its author says so
            raise
        except Exception as error:
            if isinstance(error, TicketkitError) and not isinstance(error, PluginError):
                raise
            raise self.broken(
                "raise nothing but a TicketkitError that says what to do, such as ticketkit.ConfigError",
                where,
                f"{type(error).__name__}: {error}",
            ) from error

    def insist(self, law: str, where: str, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Return what a call into the plugin returns, where no refusal will do."""
        try:
            return self.attempt(where, function, *args, **kwargs)
        except TicketkitError as error:
            raise self.broken(law, where, f"{type(error).__name__}: {error}") from error

    def works(self, law: str, where: str, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Return what others make of the plugin's object, such as torch; whatever they raise breaks the law."""
        try:
            return function(*args, **kwargs)
        except (ConformanceError, Warning):
            raise
        except Exception as error:
            raise self.broken(law, where, f"{type(error).__name__}: {error}") from error


def without_a_trace(check: Callable[Given, None]) -> Callable[Given, None]:
    """Return a check that leaves the global random generators where they were, whatever it did with them."""

    @wraps(check)
    def undone(*args: Given.args, **kwargs: Given.kwargs) -> None:
        before = RngState.capture()
        try:
            check(*args, **kwargs)
        finally:
            before.restore()

    return undone


def move_generators() -> None:
    """Move the global random generators on, for what must not hear them."""
    torch.rand(1)
    numpy.random.random()
    random.random()


def for_every(cases: st.SearchStrategy[Case], law: Callable[[Case], object], *, examples: int) -> None:
    """Hold a law against so many drawn cases, the same at every call; raise its error for a small case that breaks it.

    Nothing is printed or kept on disk. Once a case breaks the law, smaller ones are tried, `SMALLER` at most.
    """
    broken: list[ConformanceError] = []
    left = SMALLER

    @settings(
        max_examples=examples,
        derandomize=True,
        database=None,
        deadline=None,
        phases=(Phase.generate, Phase.shrink),
        report_multiple_bugs=False,
        suppress_health_check=list(HealthCheck),
        verbosity=Verbosity.quiet,
    )
    @given(cases)
    def holds(case: Case) -> None:
        nonlocal left
        left -= bool(broken)
        if left < 0:
            return
        try:
            law(case)
        except ConformanceError as error:
            broken.append(error)
            raise

    try:
        holds()
    except Flaky:
        if not broken:
            raise
    except ConformanceError:
        pass
    if broken:
        vars(broken[-1]).pop("__notes__", None)  # hypothesis adds how to repeat a case, which is repeated anyway
        raise broken[-1]


def listed(items: Collection[str], most: int = 4) -> str:
    """Return the first of some items, and how many more there are."""
    shown = list(items)[:most]
    return "; ".join([*shown, *([f"and {len(items) - most} more"] if len(items) > most else [])])


def _title(chosen: Named) -> str:
    if isinstance(chosen, str):
        return repr(chosen)
    if isinstance(chosen, Mapping):
        options = {key: value for key, value in chosen.items() if key != "name"}
        return f"{chosen['name']!r}" + (f" with {options}" if options else "")
    return str(getattr(chosen, "__qualname__", repr(chosen)))
