"""Workers as tasks of a Ray cluster, or of one that is started on this machine."""

import logging
import os
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from ticketkit.errors import ConfigError
from ticketkit.study.executors.work import Work, Worker

OBJECTS = 100 * 2**20  # bytes for Ray's shared objects, of which there are none


class RayOptions(BaseModel):
    """Where the cluster is, and what each worker takes of it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    address: str | None = None
    """Of a running cluster; by default that of RAY_ADDRESS, or one that is started on this machine."""
    num_cpus: float | None = Field(default=None, gt=0)
    """Of each worker; by default the study's threads."""
    num_gpus: float = Field(default=0, ge=0)
    resources: dict[str, float] = {}
    """Of the cluster's own kinds, such as `resources.large=1`."""


class RayTasks:
    """Starts workers as tasks of a Ray cluster; raises `ConfigError` if no machine of it can ever hold one."""

    def __init__(self, options: RayOptions, threads: int):
        self._ray = _connected(options)
        wanted = {"CPU": options.num_cpus or threads, "GPU": options.num_gpus, **options.resources}
        _check(wanted, [node["Resources"] for node in self._ray.nodes() if node["Alive"]])
        self._needs = {"num_cpus": wanted["CPU"], "num_gpus": options.num_gpus, "resources": dict(options.resources)}

    def start(self, work: Work, count: int) -> Sequence[Worker]:
        """Return as many tasks; those that find no room wait for it."""
        task = self._ray.remote(max_retries=0, **self._needs)(_task)  # whoever starts workers counts their deaths
        return [_Task(self._ray, task.remote(work)) for _ in range(count)]


def _task(work: Work) -> None:
    work()


class _Task:
    def __init__(self, ray: Any, reference: Any):
        self._ray, self._reference = ray, reference

    def __str__(self) -> str:
        return f"Ray task {self._reference.task_id().hex()[:16]}"

    def ended(self) -> str | None:
        if not self._ray.wait([self._reference], timeout=0)[0]:
            return None
        try:
            self._ray.get(self._reference)
        except self._ray.exceptions.RayError as error:
            lines = str(error).strip().splitlines() or [type(error).__name__]
            return f"died: {lines[-1 if isinstance(error, self._ray.exceptions.RayTaskError) else 0]}"
        return ""

    def stop(self) -> None:
        self._ray.cancel(self._reference, force=True)


def _connected(options: RayOptions) -> Any:
    """Return the package `ray`, connected to its cluster."""
    try:
        import ray
    except ImportError as error:
        raise ConfigError("the executor 'ray' needs Ray; pip install 'ticketkit[ray]'") from error
    if ray.is_initialized():
        return ray
    address = options.address or os.environ.get("RAY_ADDRESS")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is sent anywhere unless the user says so
    os.environ.setdefault("RAY_DEDUP_LOGS", "0")  # every line that a worker says is shown
    local: dict[str, Any] = {} if address else {"include_dashboard": False, "object_store_memory": OBJECTS}
    try:
        ray.init(address=address or "local", logging_level=logging.ERROR, **local)
    except (OSError, RuntimeError, ValueError) as error:
        raise ConfigError(
            f"no Ray cluster answers at {address or 'this machine'}: {error}; start one by: ray start --head, or leave "
            "the address out to use this machine alone"
        ) from error
    return ray


def _check(wanted: Mapping[str, float], machines: Sequence[Mapping[str, float]]) -> None:
    """Raise `ConfigError` unless some machine has all that a worker asks for: otherwise it would wait for ever."""
    wanted = {kind: amount for kind, amount in wanted.items() if amount}
    if any(all(machine.get(kind, 0) >= amount for kind, amount in wanted.items()) for machine in machines):
        return
    kinds = dict.fromkeys(wanted, 0.0)
    there = "; ".join(_listed({kind: machine.get(kind, 0) for kind in kinds}) for machine in machines) or "no machine"
    raise ConfigError(
        f"a worker asks for {_listed(wanted)}, which no machine of the Ray cluster has (it has {there}), so it would "
        "wait for ever; ask for less by --executor-option, or add such a machine"
    )


def _listed(amounts: Mapping[str, float]) -> str:
    return ", ".join(f"{amount:g} {kind}" for kind, amount in amounts.items())
