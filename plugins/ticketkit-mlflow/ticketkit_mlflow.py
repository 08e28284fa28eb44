"""An observer for ticketkit: one MLflow run for every IMP run, one step for every round.

It writes only where the user says so: to the experiment and the store that `TICKETKIT_MLFLOW_EXPERIMENT` and
`MLFLOW_TRACKING_URI` name when a run begins. Events do not say which run directory a run has, so an interrupted run is
recognised by its plan and by the digest of the mask that it goes on with; tags of the MLflow run hold both.
"""

import hashlib
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
from typing import Any

import ticketkit

logger = logging.getLogger(__name__)

URI = "MLFLOW_TRACKING_URI"
EXPERIMENT = "TICKETKIT_MLFLOW_EXPERIMENT"
PLAN, MASK = "ticketkit.plan", "ticketkit.mask."
COMPLETE = "density/scope"  # sent last of a round: the steps that have it are the rounds that are all there
BATCH, LONGEST = 1000, 5000  # metrics in a request, characters in a parameter or tag: what every store takes


class MLflow:
    """Sends the events of one run at a time; without a store and an experiment it does nothing.

    `MLflow(uri, experiment)` sends there, whatever the environment says.
    """

    def __init__(self, uri: str | None = None, experiment: str | None = None):
        self._uri, self._experiment = uri, experiment
        self._run: _Run | None = None
        self._masks: dict[int, str] = {}  # of the round that starts next and the one before

    @ticketkit.hookimpl
    def ticketkit_run_start(self, plan: Sequence[int], finished: int) -> None:
        """Open an MLflow run for a new run; that of an interrupted one is found once its mask is known."""
        self._run = None
        uri, experiment = self._uri or os.environ.get(URI), self._experiment or os.environ.get(EXPERIMENT)
        if not experiment or not _is_first_process():
            return
        _check_can_send(uri, experiment)
        with _random_state_kept():
            self._run = _Run(_client(uri), experiment, plan)
            if not finished:
                self._run.create()

    @ticketkit.hookimpl
    def ticketkit_round_start(self, round: ticketkit.Round) -> None:
        """Note the mask of the round, by which the run is recognised if it is interrupted now."""
        current = {round.index: round.mask.digest}
        masks, model = self._masks | current, type(round.model).__name__
        self._send(lambda run: run.start_round(round.index, masks, current, model))

    @ticketkit.hookimpl
    def ticketkit_mask_ready(self, index: int, mask: ticketkit.Mask, previous: ticketkit.Mask) -> None:
        """Remember the masks of two rounds."""
        self._masks = {index - 1: previous.digest, index: mask.digest}

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

    def _send(self, what: Callable[["_Run"], None]) -> None:
        """Send something; a store that does not answer then ends no run: what is missing is sent at the end."""
        if self._run is None:
            return
        with _random_state_kept():
            try:
                what(self._run)
            except _mlflow("exceptions").MlflowException as error:
                logger.warning("MLflow refused what it was sent; ticketkit sends it again when the run ends: %s", error)


class _Run:
    """One run and its MLflow run."""

    def __init__(self, client: Any, experiment: str, plan: Sequence[int]):
        self._client = client
        self._plan = tuple(plan)
        self._experiment = _experiment_id(client, experiment)
        self._id: str | None = None
        self._sent: set[int] = set()

    def create(self) -> None:
        """Start a new MLflow run; its name tells the time, since one that MLflow draws repeats with the seed."""
        tags = {PLAN: plan_digest(self._plan), "ticketkit.version": version("ticketkit")}
        name = f"imp-{time.strftime('%Y%m%d-%H%M%S')}"
        self._id = self._client.create_run(self._experiment, run_name=name, tags=tags).info.run_id
        self.log_params({"plan": " ".join(map(str, self._plan)), "rounds": len(self._plan) - 1})

    def start_round(self, index: int, masks: Mapping[int, str], current: Mapping[int, str], model: str) -> None:
        """Note the mask of a round, after finding the MLflow run that goes on with it."""
        if self._id is None:
            self._continue(index, masks)
        self._note(current)
        self.log_params({"model": model})

    def log_params(self, params: Mapping[str, object]) -> None:
        """Send settings; the same setting may be sent again."""
        entities = _mlflow("entities")
        sent = [entities.Param(_name(key), _short(str(value))) for key, value in params.items()]
        if self._id is not None:
            self._client.log_batch(self._id, params=sent)

    def log_round(self, record: ticketkit.RoundRecord) -> None:
        """Send the metrics of one round, unless they are there."""
        if self._id is None or record.index in self._sent:
            return
        self.log_params({"scope_total": record.total, "model_total": record.model_total})
        entities, now = _mlflow("entities"), int(time.time() * 1000)
        sent = [entities.Metric(_name(key), value, now, record.index) for key, value in metrics(record).items()]
        for start in range(0, len(sent), BATCH):
            self._client.log_batch(self._id, metrics=sent[start : start + BATCH])
        self._sent.add(record.index)

    def end(self, records: Sequence[ticketkit.RoundRecord]) -> None:
        """Complete the MLflow run."""
        masks = {record.index: record.mask_digest for record in records}
        if self._id is None:
            self._continue(records[-1].index, masks, ended=True)
        for record in records:
            self.log_round(record)
        self._note(masks)
        self._client.set_terminated(self._id, "FINISHED")

    def fail(self, error: BaseException) -> None:
        """Mark the MLflow run as failed, with the error in a tag."""
        if self._id is not None:
            self._client.set_tag(self._id, "ticketkit.error", _short(f"{type(error).__name__}: {error}"))
            self._client.set_terminated(self._id, "FAILED")

    def _note(self, masks: Mapping[int, str]) -> None:
        entities = _mlflow("entities")
        self._client.log_batch(
            self._id, tags=[entities.RunTag(f"{MASK}{index}", digest) for index, digest in masks.items()]
        )

    def _continue(self, index: int, masks: Mapping[int, str], *, ended: bool = False) -> None:
        """Take up the latest MLflow run that goes on with round `index` and has these masks, or start a new one."""
        condition = f"tags.`{PLAN}` = '{plan_digest(self._plan)}'"
        runs = self._client.search_runs([self._experiment], condition, order_by=["attributes.start_time DESC"])
        for run in runs:
            noted = {int(tag.removeprefix(MASK)): mask for tag, mask in run.data.tags.items() if tag.startswith(MASK)}
            if (ended or run.info.status != "FINISHED") and is_same_run(noted, masks, index):
                self._id = run.info.run_id
                self._sent = {metric.step for metric in self._client.get_metric_history(self._id, COMPLETE)}
                if run.info.status != "FINISHED":
                    self._client.update_run(self._id, status="RUNNING")
                return
        self.create()


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


def plan_digest(plan: Sequence[int]) -> str:
    """Return SHA-256 of the planned counts, as 64 hexadecimal digits."""
    return hashlib.sha256(" ".join(map(str, plan)).encode()).hexdigest()


def is_same_run(noted: Mapping[int, str], masks: Mapping[int, str], index: int) -> bool:
    """Say whether the run that noted these masks is the one that goes on with round `index` and has `masks`.

    Either it knew the mask of that round, or it was killed in the round before it, whose mask it knew. The mask of a
    dense round is that of every run with its shapes, so it proves nothing.
    """
    if index in noted:
        return noted[index] == masks.get(index)
    return index > 1 and max(noted, default=-1) == index - 1 and noted[index - 1] == masks.get(index - 1)


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
