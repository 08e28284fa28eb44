"""What a study would take, before it is run: trainings, hours of sound, time from a measured epoch, memory and disk."""

import resource
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

import torch

from ticketkit.building import made
from ticketkit.config import parse_config
from ticketkit.errors import ConfigError
from ticketkit.plugins import Plugins
from ticketkit.rng import seeded
from ticketkit.roles import Bundle, Corpus, Progress, Trainer
from ticketkit.scope import Scope
from ticketkit.study.config import StudyConfig
from ticketkit.study.jobs import Job
from ticketkit.study.ladder import variant_settings
from ticketkit.study.overlay import Settings, at, merged

ADAM_BYTES = 5 * 4
"""Of a weight in training: its value, its gradient, two moments and its mask, in float32."""


@dataclass(frozen=True)
class Rehearsal:
    """One epoch of a variant, timed: on its own corpus, or on a stand-in for one that is not at hand."""

    seconds: float
    hours: float
    """Of the sound that was trained on."""
    corpus_hours: float
    """Of the train split of the real corpus."""
    epochs: int
    parameters: int
    scope: int
    peak_bytes: int
    """The most memory that the process has had."""

    @property
    def training_seconds(self) -> float:
        """The time of a whole training on the real corpus."""
        return self.seconds / self.hours * self.corpus_hours * self.epochs

    @property
    def round_bytes(self) -> int:
        """What a round leaves on disk: the trained network, and a bit for each weight in scope."""
        return 4 * self.parameters + self.scope // 8


@dataclass(frozen=True)
class Estimate:
    """What the jobs of a variant take."""

    variant: str
    runs: int
    trainings: int
    hours: float
    """Of sound heard in all epochs of all trainings."""
    seconds: float
    memory_bytes: int
    disk_bytes: int
    rehearsal: Rehearsal


class _EnoughError(Exception):
    """Ends a rehearsal after its first epoch."""


def rehearse(config: StudyConfig, variants: Iterable[str], plugins: Plugins) -> dict[str, Rehearsal]:
    """Train variants for one epoch and say what that took; on their stand-ins, where the config has any.

    Variants that are the same on the same stand-in are timed once. Raises `ConfigError` for a corpus that does not say
    how many hours it has.
    """
    torch.set_num_threads(config.threads)
    known: dict[str, Rehearsal] = {}
    found = {}
    for variant in variants:
        scale = config.scale.get(variant)
        layers: tuple[Settings, ...] = (scale.stand_in,) if scale else ()
        settings = merged(variant_settings(config, variant), {"seed": config.seeds[0]}, *layers)
        key = repr(settings)
        known[key] = known.get(key) or _rehearse(settings, variant, plugins)
        found[variant] = replace(known[key], corpus_hours=scale.hours if scale else known[key].hours)
    return found


def _rehearse(settings: Settings, variant: str, plugins: Plugins) -> Rehearsal:
    run = parse_config(settings, plugins)
    epochs = 0

    def stop(progress: Progress) -> None:
        nonlocal epochs
        epochs = progress.epochs
        raise _EnoughError

    with seeded(run.seed):
        bundle: Bundle = made(run.chosen(plugins, "backbone"), "backbone")
        corpus: Corpus = made(run.chosen(plugins, "corpus"), "corpus")
        trainer: Trainer = made(run.chosen(plugins, "trainer"), "trainer", bundle, corpus, seed=run.seed)
        started = time.monotonic()
        with suppress(_EnoughError):
            trainer.train(stop)
        seconds = time.monotonic() - started
    hours = _hours(corpus, variant)
    return Rehearsal(
        seconds=seconds,
        hours=hours,
        corpus_hours=hours,
        epochs=epochs,
        parameters=sum(parameter.numel() for parameter in bundle.module.parameters()),
        scope=Scope.of(bundle.module, **run.prune.scope.model_dump()).total,
        peak_bytes=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024),
    )


def estimate(config: StudyConfig, jobs: Sequence[Job], rehearsals: Mapping[str, Rehearsal]) -> list[Estimate]:
    """Return what the jobs of each variant take; small networks count as large ones."""
    found = []
    for variant, rehearsal in rehearsals.items():
        own = [job for job in jobs if base_variant(job) == variant]
        weights = [_trainings(job) * _longer(job.settings, variant_settings(config, variant)) for job in own]
        trainings = sum(map(_trainings, own)) - _shared(own)
        share = sum(weights) * trainings / max(1, sum(map(_trainings, own)))
        found.append(
            Estimate(
                variant=variant,
                runs=len(own),
                trainings=trainings,
                hours=share * rehearsal.epochs * rehearsal.corpus_hours,
                seconds=share * rehearsal.training_seconds,
                memory_bytes=max(rehearsal.peak_bytes, ADAM_BYTES * rehearsal.parameters),
                disk_bytes=(sum(map(_trainings, own)) + len(own)) * rehearsal.round_bytes,
                rehearsal=rehearsal,
            )
        )
    return found


def base_variant(job: Job) -> str:
    """Return the variant that a job is one of, whatever its corpus or training condition.

    >>> from ticketkit.study.jobs import Arm
    >>> [base_variant(Job("", Arm(name, "imp"), 0, {})) for name in ("rnnt", "rnnt@ted", "rnnt+snr10")]
    ['rnnt', 'rnnt', 'rnnt']
    """
    return job.arm.variant.partition("@")[0].partition("+")[0]


def _trainings(job: Job) -> int:
    schedule: Any = job.settings["prune"].get("schedule")
    return 2 if schedule == "one_shot" else int(at("prune.rounds", job.settings)) + 1


def _shared(jobs: Iterable[Job]) -> int:
    """Return how many dense rounds are those of another run with the same corpus, trainer, backbone and seed."""
    dense = [
        repr([job.settings.get(key) for key in ("backbone", "corpus", "trainer", "seed")])
        for job in jobs
        if not job.needs and job.settings["prune"].get("rewind", "init") == "init"
    ]
    return len(dense) - len(set(dense))


def _longer(settings: Settings, base: Settings) -> float:
    """Return how many times as long as the variant's own a training is, by the epochs of its trainer."""
    try:
        return float(at("trainer.epochs", settings)) / float(at("trainer.epochs", base))
    except (KeyError, TypeError, ValueError):
        return 1.0


def _hours(corpus: Corpus, variant: str) -> float:
    facts: Any = corpus.describe()
    try:
        return float(facts["splits"]["train"]["hours"])
    except (KeyError, TypeError, ValueError) as error:
        raise ConfigError(
            f"the corpus of {variant!r} does not say how many hours it trains on; a dry run needs "
            "describe()['splits']['train']['hours']"
        ) from error
