"""The five studies of Audio Lottery as grids of runs: which there are, and what they take from each other."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from math import log
from typing import Any

from ticketkit.errors import ConfigError
from ticketkit.study.config import Kind, Small, StudyConfig
from ticketkit.study.jobs import OWN, Job, MaskOrigin, Resize, Test, WeightsOrigin, united
from ticketkit.study.ladder import IMP, at_once, check_levels, ladder, rounds, run_id, single, up_to, variant_settings
from ticketkit.study.overlay import Settings, at, valued

DEFAULT_RATE = 0.2
NONE = "none"
"""The training condition without anything that the noise study adds."""


def jobs(config: StudyConfig, kinds: tuple[Kind, ...]) -> list[Job]:
    """Return all runs of some studies, each once, those that others need before them."""
    found = [job for kind in config.declared(kinds) for seed in config.seeds for job in GRIDS[kind](config, seed)]
    return _ordered(united(found))


def existence(config: StudyConfig, seed: int) -> Iterator[Job]:
    """Yield the whole ladder of each variant."""
    for variant in (config.existence and config.existence.variants) or config.variants:
        rounds(variant_settings(config, variant))
        yield ladder(config, variant, seed)


def controls(config: StudyConfig, seed: int) -> Iterator[Job]:
    """Yield the ladder of each variant, and what else has as many weights at each level."""
    study = config.controls
    if study is None:
        return
    for variant in study.variants or config.variants:
        check_levels(config, variant, study.levels)
        yield ladder(config, variant, seed)
        yield ladder(config, variant, seed, {"prune": {"rewind": "none"}}, up_to(study.levels), arm="standard")
        for level in study.levels:
            yield at_once(config, variant, seed, arm="one_shot", level=level)
            yield at_once(config, variant, seed, {"prune": {"criterion": "random"}}, arm="random_global", level=level)
            yield from _masked(config, variant, seed, level)
            if variant in study.small:
                yield from _small(config, variant, seed, level, study.small[variant])


def _masked(config: StudyConfig, variant: str, seed: int, level: int) -> Iterator[Job]:
    """Yield trainings with what is left of the ladder's ticket: its counts, or its mask without its weights."""
    imp = run_id(variant, IMP, seed)
    yield single(
        config, variant, seed, arm="random_layers", level=level, mask=MaskOrigin(imp, level, shuffle="parameter")
    )
    yield single(
        config,
        variant,
        seed,
        arm="random_ticket",
        level=level,
        mask=MaskOrigin(imp, level),
        weights=WeightsOrigin(imp, level, "fresh"),
    )


def _small(config: StudyConfig, variant: str, seed: int, level: int, small: Small) -> Iterator[Job]:
    """Yield dense networks as large as the ticket: trained as long as it, and as long as the search for it."""
    resize = Resize(run_id(variant, IMP, seed), level, small.size)
    yield single(config, variant, seed, arm="small_dense", level=level, resize=resize)
    if small.epochs is not None:
        settings, trainings = variant_settings(config, variant), level + 1
        layers = [valued(small.epochs, trainings * _number(settings, small.epochs))]
        if small.anneal is not None:
            layers.append(valued(small.anneal, _number(settings, small.anneal) ** (1 / trainings)))
        yield single(config, variant, seed, *layers, arm="small_dense_long", level=level, resize=resize)


def _number(settings: Settings, path: str) -> int | float:
    try:
        value = at(path, settings)
    except (KeyError, TypeError) as error:
        raise ConfigError(f"controls.small names {path!r}, which the variant's settings do not give a value") from error
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ConfigError(f"controls.small names {path!r}, which is {value!r} and no number")
    return value


def transfer(config: StudyConfig, seed: int) -> Iterator[Job]:
    """Yield ladders on all corpora; on targets also trainings with the masks of the sources, and rivals of these."""
    study = config.transfer
    if study is None:
        return
    if twice := [name for name, layer in study.targets.items() if study.sources.get(name, layer) != layer]:
        raise ConfigError(f"transfer: {', '.join(twice)} is one thing as a source and another as a target; rename one")
    corpora = {**study.sources, **study.targets}
    for corpus, layer in corpora.items():
        yield ladder(config, study.variant, seed, layer, up_to(study.levels), named=f"{study.variant}@{corpus}")
    for target, layer in study.targets.items():
        named = f"{study.variant}@{target}"
        moved = partial(single, config, study.variant, seed, layer, named=named)
        for source in study.sources:
            if source == target:
                continue
            imp = run_id(f"{study.variant}@{source}", IMP, seed)
            if "trained" in study.starts:
                yield moved(
                    arm=f"dense_from_{source}",
                    level=0,
                    weights=WeightsOrigin(imp, 0, "trained"),
                )
            for level in study.levels:
                for start in study.starts:
                    yield moved(
                        arm=f"{start}_from_{source}",
                        level=level,
                        mask=MaskOrigin(imp, level),
                        weights=WeightsOrigin(imp, level, start),
                    )
                yield moved(
                    arm=f"shuffled_from_{source}",
                    level=level,
                    mask=MaskOrigin(imp, level, shuffle="parameter"),
                    weights=WeightsOrigin(imp, level, "initial"),
                )


def structure(config: StudyConfig, seed: int) -> Iterator[Job]:
    """Yield the variant's ladder, and one for each granularity as far as the last level."""
    study = config.structure
    if study is None:
        return
    check_levels(config, study.variant, study.levels)
    yield ladder(config, study.variant, seed)
    for name, layer in study.granularities.items():
        job = ladder(config, study.variant, seed, up_to(study.levels), {"prune": layer}, arm=name)
        density = layer.get("density")
        yield (
            job
            if density is None
            else replace(job, levels={0: 0, rounds(job.settings): _nearest(config, job, density)})
        )


def _nearest(config: StudyConfig, job: Job, density: float) -> int:
    """Return the pruned level of the variant's ladder whose density is nearest to a given one, on a log scale."""
    rate = variant_settings(config, job.arm.variant)["prune"].get("rate") or DEFAULT_RATE
    return max(1, round(log(density) / log(1 - rate)))


def noise(config: StudyConfig, seed: int) -> Iterator[Job]:
    """Yield dense networks, their own tickets and clean speech's, for every training condition."""
    study = config.noise
    if study is None:
        return
    check_levels(config, study.variant, study.levels)
    if NONE in study.train:
        raise ConfigError(f"noise.train: {NONE!r} is training without any, which is always there; choose another name")
    points = frozenset([0, *study.levels])
    tests = {OWN: Test()} | {name: Test(layer, points) for name, layer in study.test.items()}
    every = {name: Test(test.settings) for name, test in tests.items()}
    clean = run_id(study.variant, IMP, seed)
    yield ladder(config, study.variant, seed, tests=tests)
    for condition, layer in {NONE: {}, **study.train}.items():
        named = f"{study.variant}+{condition}"
        if condition != NONE:
            yield ladder(config, study.variant, seed, layer, up_to(study.levels), named=named, tests=tests)
            for level in study.levels:
                yield single(
                    config,
                    study.variant,
                    seed,
                    layer,
                    named=named,
                    arm="clean_ticket",
                    level=level,
                    mask=MaskOrigin(clean, level),
                    tests=every,
                )
        for name, dense in study.dense.items():
            yield single(config, study.variant, seed, layer, dense, named=named, arm=name, level=0, tests=every)
        if study.small is not None:
            for level in study.levels:
                resize = Resize(clean, level, study.small.size)
                facts: dict[str, Any] = {"arm": "small_dense", "level": level, "resize": resize, "tests": every}
                yield single(config, study.variant, seed, layer, named=named, **facts)


GRIDS: Mapping[Kind, Callable[[StudyConfig, int], Iterator[Job]]] = {
    "existence": existence,
    "controls": controls,
    "transfer": transfer,
    "structure": structure,
    "noise": noise,
}


def _ordered(found: list[Job]) -> list[Job]:
    """Return the jobs, those that are needed before those that need them, else in their order."""
    ids, done, ordered = {job.id for job in found}, set[str](), list[Job]()
    waiting = found
    while waiting:
        ready = [job for job in waiting if job.needs <= done]
        if not ready:
            missing = sorted({need for job in waiting for need in job.needs} - ids)
            raise ConfigError(f"runs need others that no study has: {', '.join(missing)}")
        ordered += ready
        done |= {job.id for job in ready}
        waiting = [job for job in waiting if job.id not in done]
    return ordered
