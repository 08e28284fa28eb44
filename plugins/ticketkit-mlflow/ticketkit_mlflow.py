"""An observer for ticketkit: one MLflow run for every IMP run, one step for every round.

It writes only where the user says so: to the experiment and the store that `TICKETKIT_MLFLOW_EXPERIMENT` and
`MLFLOW_TRACKING_URI` name when a run begins. A run with a run directory names its MLflow run there, in `mlflow.json`,
and goes on in it after an interruption; without one every run is a new one.
"""

from __future__ import annotations

import json
import logging
import os
import random
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import import_module
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Self

import ticketkit

logger = logging.getLogger(__name__)

URI = "MLFLOW_TRACKING_URI"
EXPERIMENT = "TICKETKIT_MLFLOW_EXPERIMENT"
NOTE = "mlflow.json"  # in the run directory; it holds no address, for that may hold a password
MASK = "ticketkit.mask."
COMPLETE = "density/scope"  # sent last of a round: the steps that have it are the rounds that are all there
BATCH, LONGEST = 1000, 5000  # metrics in a request, characters in a parameter or tag: what every store takes


class MLflow:
    """Sends the events of one run at a time; without a store and an experiment it does nothing.

    `MLflow(uri, experiment)` sends there, whatever the environment says.
    """

    def __init__(self, uri: str | None = None, experiment: str | None = None):
        self._uri, self._experiment = uri, experiment
        self._run: _Run | None = None

    @ticketkit.hookimpl
    def ticketkit_run_start(self, plan: Sequence[int], finished: int, directory: Path | None) -> None:
        """Open the MLflow run that the run directory names, or a new one."""
        self._run = None
        uri, experiment = self._uri or os.environ.get(URI), self._experiment or os.environ.get(EXPERIMENT)
        if not experiment or not _is_first_process():
            return
        _check_can_send(uri, experiment)
        with _random_state_kept():
            self._run = _Run.opened(_client(uri), experiment, plan, finished, directory)

    @ticketkit.hookimpl
    def ticketkit_mask_ready(self, index: int, mask: ticketkit.Mask) -> None:
        """Send which mask the next round trains."""
        self._send(lambda run: run.tag(f"{MASK}{index}", mask.digest))

    @ticketkit.hookimpl
    def ticketkit_round_start(self, round: ticketkit.Round) -> None:
        """Send what is trained."""
        self._send(lambda run: run.log_params({"model": type(round.model).__name__}))

    @ticketkit.hookimpl
    def ticketkit_ticket_saved(self, ticket: ticketkit.Ticket) -> None:
        """Send where the tickets of this run come from."""
        self._send(lambda run: run.log_params(provenance(ticket.facts)))

    @ticketkit.hookimpl
    def ticketkit_round_end(self, record: ticketkit.RoundRecord) -> None:
        """Send a round."""
        self._send(lambda run: run.log_round(record))

    @ticketkit.hookimpl
    def ticketkit_run_end(self, records: Sequence[ticketkit.RoundRecord]) -> None:
        """Send the rounds that are missing, if a process was killed before or the store did not answer; then end."""
        self._send(lambda run: run.end(records))
        self._run = None

    @ticketkit.hookimpl
    def ticketkit_run_error(self, error: BaseException) -> None:
        """Note what ended the run; it may go on later."""
        self._send(lambda run: run.fail(error))
        self._run = None

    def _send(self, what: Callable[[_Run], None]) -> None:
        """Send something; a store that does not answer then ends no run: what is missing is sent at the end."""
        if self._run is None:
            return
        with _random_state_kept():
            try:
                what(self._run)
            except _mlflow("exceptions").MlflowException as error:
                logger.warning("MLflow refused what it was sent; ticketkit sends it again when the run ends: %s", error)


class _Run:
    """One run and its MLflow run, which has the rounds `sent`."""

    def __init__(self, client: Any, run_id: str, sent: set[int]):
        self._client = client
        self._id = run_id
        self._sent = sent

    @classmethod
    def opened(cls, client: Any, experiment: str, plan: Sequence[int], finished: int, directory: Path | None) -> Self:
        """Return the run, in the MLflow run that the directory names, or in a new one, which is named there."""
        experiment_id = _experiment_id(client, experiment)
        params = {"plan": _short(" ".join(map(str, plan))), "rounds": str(len(plan) - 1)}
        note = directory / NOTE if directory else None
        found = _noted_run(client, note) if note and note.exists() else None
        if found is None or (found.info.experiment_id, found.data.params.get("plan")) != (
            experiment_id,
            params["plan"],
        ):
            run = cls(client, _new_run(client, experiment_id, note), set())
            run.log_params(params)
            return run
        run_id = found.info.run_id
        if finished < len(plan):
            client.update_run(run_id, status="RUNNING")
        sent = {metric.step for metric in client.get_metric_history(run_id, COMPLETE)}
        return cls(client, run_id, sent & set(range(finished)))

    def tag(self, key: str, value: str) -> None:
        """Send a tag; a later value of the same key replaces the earlier."""
        self._client.set_tag(self._id, key, _short(value))

    def log_params(self, params: Mapping[str, object]) -> None:
        """Send settings; the same setting may be sent again."""
        self._client.log_batch(self._id, params=_params(params))

    def log_round(self, record: ticketkit.RoundRecord) -> None:
        """Send one round, unless it is there."""
        if record.index in self._sent:
            return
        entities, now = _mlflow("entities"), int(time.time() * 1000)
        sizes = {"scope_total": record.total, "model_total": record.model_total}
        mask = entities.RunTag(f"{MASK}{record.index}", record.mask_digest)
        self._client.log_batch(self._id, params=_params(sizes), tags=[mask])
        sent = [entities.Metric(_name(key), value, now, record.index) for key, value in metrics(record).items()]
        for start in range(0, len(sent), BATCH):
            self._client.log_batch(self._id, metrics=sent[start : start + BATCH])
        self._sent.add(record.index)

    def end(self, records: Sequence[ticketkit.RoundRecord]) -> None:
        """Complete the MLflow run; one that has ended before keeps the time of that."""
        for record in records:
            self.log_round(record)
        if self._client.get_run(self._id).info.status != "FINISHED":
            self._client.set_terminated(self._id, "FINISHED")

    def fail(self, error: BaseException) -> None:
        """Mark the MLflow run as failed, with the error in a tag."""
        self.tag("ticketkit.error", f"{type(error).__name__}: {error}")
        self._client.set_terminated(self._id, "FAILED")


def metrics(record: ticketkit.RoundRecord) -> dict[str, float]:
    """Return the metrics of a round; densities are shares of 1: of the scope, the whole model, each parameter.

    What the user logged keeps its name; `kept` counts weights, `seconds` is wall-clock time of training and evaluation.
    """
    return {
        **record.metrics,
        **{f"parameter_density/{name}": density for name, density in record.densities.items()},
        "round/seconds": record.seconds,
        "round/kept": record.kept,
        "density/model": record.model_density,
        COMPLETE: record.density,
    }


def provenance(facts: ticketkit.TicketFacts) -> dict[str, object]:
    """Return what decided the masks of a run, as its tickets say it."""
    known: dict[str, object] = {"seed": facts.seed, "rewind": facts.rewind, "floor": facts.floor}
    for part in ("criterion", "granularity", "schedule", "allocation"):
        if (chosen := getattr(facts, part)) is not None:
            known |= {part: chosen.entry, f"{part}.version": chosen.version}
            known |= {f"{part}.{option}": value for option, value in chosen.options.items()}
    return {name: value for name, value in known.items() if value is not None}


def _check_can_send(uri: str | None, experiment: str) -> None:
    if not uri:
        raise ticketkit.ConfigError(
            f"{EXPERIMENT} asks for the MLflow experiment {experiment!r}, but {URI} does not say where it is; set it "
            f"to a server or a file, such as sqlite:///mlflow.db, or unset {EXPERIMENT}"
        )
    if find_spec("mlflow") is None:
        raise ticketkit.ConfigError(f"{EXPERIMENT} is set, but MLflow is missing: pip install mlflow-skinny")


def _client(uri: str | None) -> Any:
    try:
        return _mlflow("tracking").MlflowClient(tracking_uri=uri)
    except ModuleNotFoundError as error:
        raise ticketkit.ConfigError(
            f"MLflow cannot open {uri}: {error}; a database needs: pip install 'ticketkit-mlflow[sqlite]'"
        ) from error


def _experiment_id(client: Any, name: str) -> str:
    """Return the id of the experiment of that name, which is made if there is none; raises `ConfigError` if not."""
    exceptions = _mlflow("exceptions")
    found = client.get_experiment_by_name(name)
    try:
        made: str = found.experiment_id if found else client.create_experiment(name)
    except exceptions.MlflowException as error:
        found = client.get_experiment_by_name(name)  # another process may have made it meanwhile
        if found is None:
            raise ticketkit.ConfigError(f"{EXPERIMENT}={name!r} cannot be used: {error}") from error
        return str(found.experiment_id)
    if found and found.lifecycle_stage != "active":
        raise ticketkit.ConfigError(f"the MLflow experiment {name!r} was deleted; restore it or choose another name")
    return made


def _new_run(client: Any, experiment_id: str, note: Path | None) -> str:
    """Start a new MLflow run, name it in the note and return its id.

    Its own name tells the time, since one that MLflow draws repeats with the seed.
    """
    name, tags = f"imp-{time.strftime('%Y%m%d-%H%M%S')}", {"ticketkit.version": version("ticketkit")}
    run_id: str = client.create_run(experiment_id, run_name=name, tags=tags).info.run_id
    if note:
        partial = note.with_name(f".{note.name}.partial")
        partial.write_text(json.dumps({"run_id": run_id}), encoding="utf-8")
        partial.replace(note)
    return run_id


def _noted_run(client: Any, note: Path) -> Any:
    """Return the MLflow run that a note names; None if the store has no such run, or it was deleted there."""
    try:
        run_id = json.loads(note.read_text(encoding="utf-8"))["run_id"]
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise ticketkit.StorageError(
            f"{note} is damaged: {error!r}; delete it, and the run begins a new MLflow run"
        ) from error
    try:
        found = client.get_run(run_id)
    except _mlflow("exceptions").MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return None
    return found if found.info.lifecycle_stage == "active" else None


def _params(settings: Mapping[str, object]) -> list[Any]:
    param = _mlflow("entities").Param
    return [param(_name(key), _short(str(value))) for key, value in settings.items()]


def _mlflow(module: str) -> Any:
    return import_module(f"mlflow.{module}")


@contextmanager
def _random_state_kept() -> Iterator[None]:
    """Keep the state of Python's generator: MLflow may draw from it, such as how long it waits for a server."""
    state = random.getstate()
    try:
        yield
    finally:
        random.setstate(state)


def _name(key: str) -> str:
    """Return a name that MLflow takes: another character than a letter, digit, or one of `_-. /` becomes its code."""
    return re.sub(r"[^A-Za-z0-9_\-. /]", lambda match: f"_{ord(match[0]):x}_", key)


def _short(text: str) -> str:
    return text if len(text) <= LONGEST else text[: LONGEST - 1] + "…"


def _is_first_process() -> bool:
    """Say whether this is the one process of a distributed group that writes."""
    from torch import distributed

    return not (distributed.is_available() and distributed.is_initialized()) or distributed.get_rank() == 0


observer = MLflow()
