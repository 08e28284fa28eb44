"""What a run takes from other runs, written into its directory before it starts: mask, first weights, size."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from ticketkit.building import made
from ticketkit.config import RunConfig, parse_config
from ticketkit.controls import shuffled
from ticketkit.errors import ConfigError, RunError, StorageError
from ticketkit.ledger import INIT, RoundRecord
from ticketkit.plugins import Plugins
from ticketkit.rng import derived_seed, seeded
from ticketkit.roles import Bundle
from ticketkit.snapshot import Snapshot
from ticketkit.study.directory import StudyDirectory
from ticketkit.study.jobs import Job, MaskOrigin, Resize, WeightsOrigin
from ticketkit.study.overlay import merged, valued
from ticketkit.ticket import Ticket

START, WEIGHTS = "start.safetensors", "weights.safetensors"


def prepare(job: Job, study: StudyDirectory, plugins: Plugins) -> RunConfig:
    """Return the config of a job, with all that it takes from other runs written into its run directory."""
    settings, directory = dict(job.settings), study.run(job.id)
    if job.resize is not None:
        settings = resized(settings, job.resize, _record(study, job.resize.run, job.resize.level), plugins)
    if job.mask is not None:
        settings = merged(settings, {"prune": {"start": START}})
        if not (directory / START).exists():
            _mask(job.mask, job.seed, study).save(directory / START)
    if job.weights is not None:
        settings = merged(settings, {"initial": WEIGHTS})
        if not (directory / WEIGHTS).exists():
            _weights(job.weights, settings, study, plugins).save(directory / WEIGHTS)
    return parse_config(settings, plugins)


def resized(settings: Mapping[str, Any], resize: Resize, record: RoundRecord, plugins: Plugins) -> dict[str, Any]:
    """Return the settings of the largest dense network that has no more weights than another run has left at a level.

    The size is found by halving: a network grows with it. Raises `ConfigError` if even the smallest is too large.
    """
    budget = record.model_total - record.total + record.kept

    def parameters(size: int) -> int:
        layer = valued(resize.path, size)
        # the ladder's fields alone matter here: whatever else is wrong shows when the run starts
        config = parse_config(merged(settings, {"prune": {"start": None}}, layer), plugins)
        with seeded(0):
            bundle: Bundle = made(config.chosen(plugins, "backbone"), "backbone")
        return sum(parameter.numel() for parameter in bundle.module.parameters())

    if parameters(1) > budget:
        raise ConfigError(
            f"{resize.path}: 1 has {parameters(1):,} parameters, more than the {budget:,} of {resize.run} at level "
            f"{resize.level}; compare at a lower level, or let another setting make the network smaller"
        )
    fits, too_large = 1, 2
    while parameters(too_large) <= budget:
        fits, too_large = too_large, 2 * too_large
    while too_large - fits > 1:
        middle = (fits + too_large) // 2
        fits, too_large = (middle, too_large) if parameters(middle) <= budget else (fits, middle)
    return merged(settings, valued(resize.path, fits))


def _mask(origin: MaskOrigin, seed: int, study: StudyDirectory) -> Ticket:
    ticket = study.ledger(origin.run).ticket(_record(study, origin.run, origin.level))
    if origin.shuffle is None:
        return ticket
    facts = ticket.facts.model_copy(update={"metrics": {}, "seed": seed, "parent": ticket.mask.digest})
    return replace(
        ticket, mask=shuffled(ticket.mask, derived_seed(seed, origin.level), within=origin.shuffle), facts=facts
    )


def _weights(origin: WeightsOrigin, settings: Mapping[str, Any], study: StudyDirectory, plugins: Plugins) -> Snapshot:
    ledger = study.ledger(origin.run)
    if origin.what == "trained":
        return ledger.trained(_record(study, origin.run, origin.level))
    initial = ledger.snapshot(INIT)
    if initial is None:
        raise StorageError(f"{study.run(origin.run)} holds no {INIT}; delete the directory to run it again")
    if origin.what == "initial":
        return initial
    return _fresh(initial, settings, plugins)


def _fresh(initial: Snapshot, settings: Mapping[str, Any], plugins: Plugins) -> Snapshot:
    """Return the weights of the backbone drawn from another seed; raise `RunError` if none differs."""
    config = parse_config(settings, plugins)
    with seeded(derived_seed(config.seed, 1)):
        bundle: Bundle = made(config.chosen(plugins, "backbone"), "backbone")
        fresh = Snapshot.capture(bundle.module)
    if all(tensor.equal(initial.tensors[key]) for key, tensor in fresh.tensors.items() if key in initial.tensors):
        raise RunError("another seed drew the same weights, so a random ticket would be no control")
    return fresh


def _record(study: StudyDirectory, run: str, level: int) -> RoundRecord:
    records = study.ledger(run).records()
    if len(records) <= level:
        raise RunError(f"{study.run(run)} has {len(records)} rounds, so none at level {level}; finish it first")
    return records[level]
