"""Where the workers of a study run: processes of this machine, tasks of Ray, jobs of Slurm."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from ticketkit.config import with_overrides
from ticketkit.errors import ConfigError
from ticketkit.registry import suggestion, validation_lines
from ticketkit.study.executors.processes import Processes
from ticketkit.study.executors.ray_tasks import RayOptions, RayTasks
from ticketkit.study.executors.slurm_jobs import SlurmJobs, SlurmOptions
from ticketkit.study.executors.work import Executor

SERIAL = "serial"
"""No worker is started: the command works itself."""


class NoOptions(BaseModel):
    """Of executors that take none."""

    model_config = ConfigDict(frozen=True, extra="forbid")


@dataclass(frozen=True)
class Recipe:
    """An executor: the options that it takes, and how it is made of them and of the threads of a run."""

    options: type[BaseModel]
    make: Callable[[Any, int], Executor | None]


EXECUTORS: Mapping[str, Recipe] = {
    SERIAL: Recipe(NoOptions, lambda options, threads: None),
    "processes": Recipe(NoOptions, lambda options, threads: Processes()),
    "ray": Recipe(RayOptions, RayTasks),
    "slurm": Recipe(SlurmOptions, SlurmJobs),
}


def make_executor(name: str | None, options: Sequence[str], *, workers: int, threads: int) -> Executor | None:
    """Return the executor of a name with `key=value` options, None for `serial`; by default, what suits the workers.

    Raises `ConfigError` for an unknown name, options that it does not take, or what is not installed or not there.
    """
    name = name or (SERIAL if workers == 1 else "processes")
    if name not in EXECUTORS:
        raise ConfigError(f"there is no executor {name!r}{suggestion(name, EXECUTORS)}")
    if name == SERIAL and workers > 1:
        raise ConfigError(f"the executor 'serial' is one worker; for {workers} choose processes, ray or slurm")
    kind = EXECUTORS[name]
    if strange := [option for option in options if "=" not in option]:
        raise ConfigError(f"--executor-option takes key=value, not {strange[0]!r}")
    try:
        chosen = kind.options.model_validate(with_overrides({}, options))
    except ValidationError as error:
        lines = validation_lines(error)
        takes = ", ".join(kind.options.model_fields) or "none"
        raise ConfigError(f"--executor-option of {name}, which takes {takes}:\n  " + "\n  ".join(lines)) from error
    return kind.make(chosen, threads)
