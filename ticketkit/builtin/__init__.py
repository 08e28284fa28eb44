"""The built-in criteria, schedules and allocators, registered through the same hooks as anyone's."""

from ticketkit.builtin import allocators, criteria, schedules
from ticketkit.hookspecs import Register, hookimpl


@hookimpl
def ticketkit_register_criteria(register: Register) -> None:
    """Register the built-in criteria."""
    register("magnitude", criteria.magnitude)
    register("magnitude_over_init", criteria.magnitude_over_init)
    register("random", criteria.random)


@hookimpl
def ticketkit_register_schedules(register: Register) -> None:
    """Register the built-in schedules."""
    register("geometric", schedules.geometric)


@hookimpl
def ticketkit_register_allocators(register: Register) -> None:
    """Register the built-in allocators."""
    register("global", allocators.global_ranking)
    register("uniform", allocators.uniform)
