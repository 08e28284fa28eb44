"""A config run end to end: build, train and prune round by round, choose on dev, then read test once."""

import json
import logging
import platform
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Self

import torch
from torch import nn

from ticketkit.analysis import best_record, extreme_record, winning_records
from ticketkit.config import RunConfig, parse_config
from ticketkit.distributed import once
from ticketkit.errors import ConfigError, PluginError, StorageError
from ticketkit.imp import IMP
from ticketkit.ledger import Ledger, RoundRecord
from ticketkit.origins import check_origins, write_origins
from ticketkit.plugins import Plugins
from ticketkit.registry import Choice, suggestion
from ticketkit.rewind import Rewind
from ticketkit.rng import seeded
from ticketkit.roles import Bundle, Corpus, EpochTrainer, Progress, RoundTrainer, ScoringTrainer, Trainer
from ticketkit.storage import canonical_json, write_text_atomically
from ticketkit.ticket import Ticket

logger = logging.getLogger(__name__)

CONFIG_FILE = "config.json"
TEST_FILE = "test.json"
RESULTS_FILE = "results.json"
# What the engine needs of what a plugin's entry makes.
PARTS = {"backbone": ("module",), "corpus": ("describe",), "trainer": ("train", "evaluate")}
JUDGING = ("metric", "mode", "tolerance", "percent")  # settings that judge a run and do not change it


@dataclass(frozen=True)
class ResultRow:
    """One round of a report. Densities are shares of 1, metrics in their own unit, `seconds` of training and dev."""

    round: int
    kept: int
    scope_density: float
    model_density: float
    emptiest: str
    emptiest_density: float
    dev: Mapping[str, float]
    test: Mapping[str, float]
    winning: bool
    seconds: float


@dataclass(frozen=True)
class Results:
    """All that a finished experiment found; `best` and `extreme` are rounds, chosen on dev alone."""

    metric: str
    mode: str
    tolerance: float
    percent: bool
    rows: tuple[ResultRow, ...]
    best: int | None
    extreme: int | None
    scope_total: int
    model_total: int
    config: Mapping[str, Any]
    corpus: Mapping[str, Any]
    environment: Mapping[str, Any]

    def to_json(self) -> str:
        """Return the results as JSON, for `results.json`."""
        return json.dumps(asdict(self), indent=1, sort_keys=True)

    @classmethod
    def read(cls, directory: Path) -> Self:
        """Return the results in a run directory; raises `StorageError` when there are none."""
        path = directory / RESULTS_FILE
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            return cls(**{**content, "rows": tuple(ResultRow(**row) for row in content["rows"])})
        except FileNotFoundError as error:
            raise StorageError(f"{directory} holds no {RESULTS_FILE}; finish its run with: ticketkit resume") from error
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise StorageError(f"{path} is damaged: {error!r}; write it again with: ticketkit resume") from error


def run_experiment(
    config: RunConfig, directory: Path, plugins: Plugins, progress: Callable[[Progress], None]
) -> Results:
    """Run a config in a directory, or go on with it there; return the results, which are written there too.

    Dev alone chooses epochs and tickets. Test is read once, after the last round, and reported beside it. Ranks of one
    process group run it together; rank 0 writes.
    """
    with seeded(config.seed):
        bundle: Bundle = made(config.chosen(plugins, "backbone"), "backbone")
        corpus: Corpus = made(config.chosen(plugins, "corpus"), "corpus")
        trainer: Trainer = made(config.chosen(plugins, "trainer"), "trainer", bundle, corpus, seed=config.seed)
        imp = _imp(config, bundle, trainer, directory, plugins)
        once(lambda: _claim(config, directory, plugins))
        with imp.watched():
            for current in imp:
                if imp.records:
                    _check_metric(config, imp.records[0].metrics)
                if isinstance(trainer, RoundTrainer):
                    metrics = trainer.train_round(current, progress)
                else:
                    metrics = trainer.train(progress)
                current.log(**metrics)
        test = _tested(imp, trainer, directory)
    results = summarise(config, imp, corpus.describe(), test)
    _save_tickets(imp, results, directory, plugins)
    once(lambda: write_text_atomically(directory / RESULTS_FILE, results.to_json()))
    return results


def made(choice: Choice, kind: str, *arguments: Any, **named: Any) -> Any:
    """Return what the entry of a role makes; raise `PluginError` naming what it lacks."""
    result = choice.call(*arguments, **named)
    if lacking := [name for name in PARTS[kind] if not hasattr(result, name)]:
        raise PluginError(
            f"{choice.culprit or choice.provenance.entry} made a {type(result).__name__} without "
            f"{' and '.join(lacking)}; what a {kind} makes needs {' and '.join(PARTS[kind])}"
        )
    if kind == "backbone" and not isinstance(result.module, nn.Module):
        came = type(result.module).__name__
        raise PluginError(f"{choice.culprit}: the bundle's module must be a torch.nn.Module, not {came}")
    return result


def read_config(directory: Path, plugins: Plugins) -> RunConfig:
    """Return the config of the run in a directory; raises `ConfigError` when there is none."""
    try:
        settings = json.loads((directory / CONFIG_FILE).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ConfigError(
            f"{directory} holds no run ({CONFIG_FILE} is missing); start one with: ticketkit run"
        ) from error
    except (OSError, ValueError) as error:
        raise StorageError(f"cannot read {directory / CONFIG_FILE}: {error}") from error
    check_origins(directory, plugins)
    return parse_config(settings, plugins)


@dataclass(frozen=True, eq=False)
class TrainedTicket:
    """A ticket of a run with its trained network: what is exported, evaluated, used."""

    ticket: Ticket
    bundle: Bundle
    config: RunConfig
    directory: Path

    def corpus(self, plugins: Plugins) -> Corpus:
        """Open the corpus that the run was trained on."""
        opened: Corpus = made(self.config.chosen(plugins, "corpus"), "corpus")
        return opened


def open_trained(path: Path, plugins: Plugins) -> TrainedTicket:
    """Return the ticket in a file of a run directory, with the network that was trained with its mask.

    The backbone is built as the run's config says. Raises `ConfigError` if the file is not in a run directory, or no
    finished round there has its mask.
    """
    ticket = Ticket.load(path)
    directory = next((parent for parent in path.absolute().parents if (parent / CONFIG_FILE).is_file()), None)
    if directory is None:
        raise ConfigError(
            f"{path} is in no run directory, so nobody knows its trained weights; name a ticket of a run, such as "
            "runs/fsdd/extreme.safetensors"
        )
    config, ledger = read_config(directory, plugins), Ledger(directory)
    found = [record for record in ledger.records() if record.mask_digest == ticket.mask.digest]
    if not found:
        raise ConfigError(f"none of the rounds in {directory} has the mask of {path}; was it copied there?")
    with seeded(config.seed):
        bundle: Bundle = made(config.chosen(plugins, "backbone"), "backbone")
    ledger.trained(found[-1]).restore_tensors(bundle.module)
    return TrainedTicket(ticket, bundle, config, directory)


def summarise(
    config: RunConfig, imp: IMP, corpus: Mapping[str, Any], test: Mapping[int, Mapping[str, float]]
) -> Results:
    """Return the results of the finished rounds: which win on dev, and what test says of each."""
    records = imp.records
    winners = {record.index for record in winning_records(records, config.metric, config.mode, config.tolerance)}
    best = best_record(records, config.metric, config.mode)
    extreme = extreme_record(records, config.metric, config.mode, config.tolerance)
    return Results(
        metric=config.metric,
        mode=config.mode,
        tolerance=config.tolerance,
        percent=config.percent,
        rows=tuple(_row(record, test[record.index], winning=record.index in winners) for record in records),
        best=best.index if best else None,
        extreme=extreme.index if extreme else None,
        scope_total=imp.scope.total,
        model_total=imp.scope.model_total,
        config=config.model_dump(mode="json"),
        corpus=corpus,
        environment=environment(),
    )


def environment() -> dict[str, Any]:
    """Return what a reader needs to judge the times and repeat the bits."""
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "machine": f"{platform.system()} {platform.machine()}",
    }


def _check_metric(config: RunConfig, metrics: Mapping[str, float]) -> None:
    """Raise `ConfigError` after the first round, not after the last, if it did not measure what tickets need."""
    if config.metric not in metrics:
        raise ConfigError(
            f"metric {config.metric!r} was not measured{suggestion(config.metric, metrics)}; go on with "
            "--set metric=... and the same directory"
        )


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise StorageError(f"{path} cannot be read: {error}; delete it to write it again") from error
    if not isinstance(content, dict):
        raise StorageError(f"{path} is damaged: it holds no settings or results; delete it to write it again")
    return content


def _claim(config: RunConfig, directory: Path, plugins: Plugins) -> None:
    """Write config and origins into the directory; raise `ConfigError` listing what differs if another is there."""
    path = directory / CONFIG_FILE
    wanted = json.loads(canonical_json(config.model_dump(mode="json")))
    if not path.exists():
        write_origins(config, directory, plugins)
        write_text_atomically(path, json.dumps(wanted, indent=1))
        return
    found = _read_json(path)
    deciding = [key for key in wanted if key not in JUDGING]
    started = any(directory.glob("rounds/*/record.json")) or any(directory.glob("rounds/*/checkpoint.safetensors"))
    if not started or all(found.get(key) == wanted[key] for key in deciding):
        if not started:
            write_origins(config, directory, plugins)
        write_text_atomically(path, json.dumps(wanted, indent=1))
    else:
        lines = [
            f"{key}: there {found.get(key)!r}, here {wanted.get(key)!r}"
            for key in deciding
            if found.get(key) != wanted[key]
        ]
        raise ConfigError(
            f"{directory} holds a run of another config; choose another --out, or go on with it by: "
            f"ticketkit resume {directory}\n  " + "\n  ".join(lines)
        )


def _imp(config: RunConfig, bundle: Bundle, trainer: Trainer, directory: Path, plugins: Plugins) -> IMP:
    prune = config.prune
    rewind = Rewind.of(prune.rewind)
    if rewind.name == "epoch" and rewind.steps_per_epoch is None and isinstance(trainer, EpochTrainer):
        rewind = rewind.model_copy(update={"steps_per_epoch": trainer.steps_per_epoch})
    scoring = trainer if isinstance(trainer, ScoringTrainer) else None

    def initialise(module: nn.Module) -> None:
        """Give the module the weights of a backbone that is built anew, so that the distribution is its own."""
        fresh: Bundle = made(config.chosen(plugins, "backbone"), "backbone")
        module.load_state_dict(fresh.module.state_dict())

    return IMP(
        bundle.module,
        rate=prune.rate,
        rounds=prune.rounds,
        density=prune.density,
        criterion=prune.criterion,
        granularity=prune.granularity,
        allocation=prune.allocation,
        schedule=prune.schedule,
        rewind=rewind,
        scope=prune.scope.model_dump(),
        floor=prune.floor,
        on_collapse=prune.on_collapse,
        mask=Ticket.load(prune.start).mask if prune.start else None,
        batches=scoring.scoring_batches if scoring else None,
        loss=scoring.scoring_loss if scoring else None,
        initialise=initialise,
        run_dir=directory,
        seed=config.seed,
        plugins=plugins,
    )


def _tested(imp: IMP, trainer: Trainer, directory: Path) -> dict[int, dict[str, float]]:
    """Return the test metrics of every round's trained network, measured once and kept in the run directory."""
    path = directory / TEST_FILE
    if (known := once(lambda: _read_test(path))) is not None:
        return known
    test = {}
    for record in imp.records:
        imp.trained(record.index).restore_tensors(imp.model)
        test[record.index] = dict(trainer.evaluate("test"))
        logger.info("round %d: test %s", record.index, test[record.index])
    once(lambda: write_text_atomically(path, json.dumps(test, indent=1)))
    return test


def _read_test(path: Path) -> dict[int, dict[str, float]] | None:
    """Return the test metrics in a file; None if there is none."""
    if not path.exists():
        return None
    try:
        return {int(index): dict(metrics) for index, metrics in _read_json(path).items()}
    except (TypeError, ValueError) as error:
        raise StorageError(f"{path} is damaged: {error}; delete it to measure again") from error


def _save_tickets(imp: IMP, results: Results, directory: Path, plugins: Plugins) -> None:
    for name, index in (("best", results.best), ("extreme", results.extreme)):
        if index is not None:
            ticket, path = imp.tickets[index], directory / f"{name}.safetensors"
            once(partial(ticket.save, path))
            plugins.emit("ticket_saved", ticket=ticket, path=path)


def _row(record: RoundRecord, test: Mapping[str, float], *, winning: bool) -> ResultRow:
    emptiest, emptiest_density = record.emptiest
    return ResultRow(
        round=record.index,
        kept=record.kept,
        scope_density=record.density,
        model_density=record.model_density,
        emptiest=emptiest,
        emptiest_density=emptiest_density,
        dev=record.metrics,
        test=test,
        winning=winning,
        seconds=record.seconds,
    )
