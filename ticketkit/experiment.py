"""A config run end to end: build, train and prune round by round, choose on dev, then read test once."""

import json
import logging
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from ticketkit.building import made
from ticketkit.config import RunConfig, parse_config
from ticketkit.distributed import once
from ticketkit.errors import ConfigError, StorageError
from ticketkit.history import recorded
from ticketkit.imp import IMP
from ticketkit.origins import check_origins, write_origins
from ticketkit.plugins import Plugins
from ticketkit.registry import suggestion
from ticketkit.results import RESULTS_FILE, Results, summarise
from ticketkit.rewind import Rewind, load_pretrained_
from ticketkit.rng import seeded
from ticketkit.roles import Bundle, Corpus, EpochTrainer, Progress, RoundTrainer, ScoringTrainer, Trainer
from ticketkit.round import Round
from ticketkit.storage import canonical_json, write_text_atomically
from ticketkit.ticket import Ticket

logger = logging.getLogger(__name__)

CONFIG_FILE = "config.json"
TEST_FILE = "test.json"
JUDGING = ("metric", "mode", "tolerance", "percent")  # settings that judge a run and do not change it

Report = Callable[[Progress], None]
Train = Callable[[Round, Trainer, Report], Mapping[str, float]]


def train_round(current: Round, trainer: Trainer, progress: Report) -> Mapping[str, float]:
    """Let a trainer train one round; return the dev metrics of the weights that it leaves in the network."""
    if isinstance(trainer, RoundTrainer):
        return trainer.train_round(current, progress)
    return trainer.train(progress)


def run_experiment(
    config: RunConfig, directory: Path, plugins: Plugins, progress: Report, *, train: Train = train_round
) -> Results:
    """Run a config in a directory, or go on with it there; return the results, which are written there too.

    Dev alone chooses epochs and tickets. Test is read once, after the last round, and reported beside it. Ranks of one
    process group run it together; rank 0 writes. `train` trains each round.
    """
    told = recorded(progress, directory)
    with seeded(config.seed):
        bundle = build(config, directory, plugins)
        corpus: Corpus = made(config.chosen(plugins, "corpus"), "corpus")
        trainer: Trainer = made(config.chosen(plugins, "trainer"), "trainer", bundle, corpus, seed=config.seed)
        imp = _imp(config, bundle, trainer, directory, plugins)
        once(lambda: _claim(config, directory, plugins))
        with imp.watched():
            for current in imp:
                if imp.records:
                    _check_metric(config, imp.records[0].metrics)
                current.log(**train(current, trainer, partial(told, current.index)))
        test = _tested(imp, trainer, directory)
    results = summarise(config, imp, corpus.describe(), test)
    _save_tickets(imp, results, directory, plugins)
    once(lambda: write_text_atomically(directory / RESULTS_FILE, results.to_json()))
    return results


def build(config: RunConfig, directory: Path, plugins: Plugins) -> Bundle:
    """Return the config's backbone with the weights it starts from; fresh ones come from the global generators."""
    bundle: Bundle = made(config.chosen(plugins, "backbone"), "backbone")
    if config.initial is not None:
        load_pretrained_(bundle.module, near(config.initial, directory))
    return bundle


def near(path: str, directory: Path) -> Path:
    """Return the file that a run's config names: the one in its run directory, or else the one of that path."""
    own = directory / path
    return own if own.exists() else Path(path)


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
        mask=Ticket.load(near(prune.start, directory)).mask if prune.start else None,
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
