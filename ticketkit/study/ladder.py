"""The runs that all studies are made of: the ladder of a variant, and single trainings with a given mask."""

from collections.abc import Iterable, Mapping
from typing import Any

from ticketkit.errors import ConfigError
from ticketkit.study.config import StudyConfig
from ticketkit.study.jobs import OWN, Arm, Job, MaskOrigin, Resize, Test, WeightsOrigin, described
from ticketkit.study.overlay import Settings, at, merged

IMP = "imp"
UNPRUNED: Settings = {"prune": {"rate": 0.2, "rounds": 0, "density": None}}
"""One training, with whatever mask it starts from."""


def run_id(variant: str, arm: str, seed: int, level: int | None = None) -> str:
    """Return the name of a run and of its directory.

    >>> run_id("cnn_lstm", "one_shot", 2, level=10)
    'cnn_lstm-one_shot-k10-s2'
    """
    return "-".join([variant, arm, *([] if level is None else [f"k{level}"]), f"s{seed}"])


def variant_settings(config: StudyConfig, variant: str) -> dict[str, Any]:
    """Return the settings that all runs of a variant share."""
    return merged(config.base, config.variants[variant])


def ladder(
    config: StudyConfig,
    variant: str,
    seed: int,
    *layers: Settings,
    named: str | None = None,
    arm: str = IMP,
    tests: Mapping[str, Test] | None = None,
) -> Job:
    """Return the job of a whole ladder, with layers over the variant's settings, as a variant of another name."""
    settings = merged(variant_settings(config, variant), *layers, {"seed": seed})
    named = named or variant
    return Job(run_id(named, arm, seed), Arm(named, arm), seed, settings, tests=tests or {OWN: Test()})


def at_once(config: StudyConfig, variant: str, seed: int, *layers: Settings, arm: str, level: int) -> Job:
    """Return the job that prunes the dense network once, to exactly what the ladder keeps at a level."""
    jump: Settings = {"prune": {"schedule": "one_shot", "rounds": level}}
    settings = merged(variant_settings(config, variant), jump, *layers, {"seed": seed})
    return Job(run_id(variant, arm, seed, level), Arm(variant, arm), seed, settings, levels={1: level})


def single(
    config: StudyConfig,
    variant: str,
    seed: int,
    *layers: Settings,
    arm: str,
    level: int,
    named: str | None = None,
    mask: MaskOrigin | None = None,
    weights: WeightsOrigin | None = None,
    resize: Resize | None = None,
    tests: Mapping[str, Test] | None = None,
) -> Job:
    """Return the job of one training that is not pruned further: a point at a level."""
    return Job(
        id=run_id(named or variant, arm, seed, level),
        arm=Arm(named or variant, arm),
        seed=seed,
        settings=merged(variant_settings(config, variant), UNPRUNED, *layers, {"seed": seed}),
        levels={0: level},
        mask=mask,
        weights=weights,
        resize=resize,
        tests=tests or {OWN: Test()},
    )


def up_to(levels: Iterable[int]) -> Settings:
    """Return the layer of a ladder that goes as far as the last of some levels."""
    return {"prune": {"rounds": max(levels)}}


def rounds(settings: Settings) -> int:
    """Return how many prunings a ladder has; raises `ConfigError` for one that does not say."""
    try:
        return int(at("prune.rounds", settings))
    except (KeyError, TypeError, ValueError) as error:
        raise ConfigError("a study's base says how long the ladder is: prune: {rate: 0.2, rounds: 20}") from error


def check_levels(config: StudyConfig, variant: str, levels: Iterable[int]) -> None:
    """Raise `ConfigError` for levels beyond the end of a variant's ladder, and for ladders that a shorter one leaves.

    A level is the same density in every arm only where each round takes the same share of what is left.
    """
    settings = variant_settings(config, variant)
    end, schedule, density = (
        rounds(settings),
        described(settings["prune"], "schedule"),
        settings["prune"].get("density"),
    )
    if schedule not in ("None", "geometric") or density is not None:
        raise ConfigError(
            f"levels are rounds that each take the same share, prune: {{rate: 0.2, rounds: 20}}; {variant!r} has "
            f"schedule {schedule} and density {density}: leave them out, or the levels of its rivals would differ"
        )
    if beyond := [level for level in levels if level > end]:
        raise ConfigError(f"levels {beyond} lie beyond the ladder of {variant!r}, which has {end} rounds")
