"""A whole study of a toy plugin, small enough to run in a test."""

from pathlib import Path
from typing import Any

from ticketkit.plugins import Plugins
from ticketkit.study.config import Kind, StudyConfig, parse_study
from ticketkit.study.directory import StudyDirectory
from ticketkit.study.grids import jobs
from ticketkit.study.jobs import Job
from ticketkit.study.worker import work

TOY = Path(__file__).resolve().parents[1] / "toy"

SETTINGS: dict[str, Any] = {
    "title": "Toy",
    "base": {
        "corpus": "majority",
        "trainer": {"name": "sgd", "epochs": 2},
        "prune": {"rate": 0.3, "rounds": 3, "criterion": "magnitude_over_init"},
        "metric": "wer",
    },
    "variants": {"mlp": {"backbone": {"name": "mlp", "hidden": 12}}},
    "seeds": [0, 1],
    "margin": 0.02,
    "resamples": 1000,
}
SECTIONS: dict[Kind, dict[str, Any]] = {
    "existence": {},
    "controls": {"levels": [1, 2], "small": {"mlp": {"size": "backbone.hidden", "epochs": "trainer.epochs"}}},
    "transfer": {
        "variant": "mlp",
        "sources": {"few": {"corpus": {"name": "majority", "examples": 48}}},
        "targets": {"many": {}},
        "levels": [2],
    },
    "structure": {
        "variant": "mlp",
        "levels": [2],
        "granularities": {
            "row": {"granularity": "row"},
            "two_four": {"granularity": {"name": "n_m", "n": 2, "m": 4}, "rounds": 1, "rate": None, "density": 0.5},
        },
    },
    "noise": {
        "variant": "mlp",
        "levels": [2],
        "train": {"loud": {"trainer": {"epochs": 3}}},
        "test": {"hard": {"corpus": {"name": "majority", "examples": 32}}},
        "dense": {"long": {"trainer": {"epochs": 4}}},
        "small": {"size": "backbone.hidden"},
    },
}


def toy_plugins() -> Plugins:
    """Return the engine's own entries and those of the toy plugin, as a single file."""
    plugins = Plugins.discover()
    if "majority" not in plugins.registries["corpus"]:
        plugins.add_file(TOY / "toy_plugin.py")
    return plugins


def toy_study(*kinds: Kind, **changes: Any) -> StudyConfig:
    """Return the toy study with some of its sections, and other settings over its own."""
    return parse_study({**SETTINGS, **{kind: SECTIONS[kind] for kind in kinds}, **changes})


def done(path: Path, config: StudyConfig, plugins: Plugins) -> tuple[StudyDirectory, list[Job]]:
    """Return the directory of a study whose jobs have all been worked on, and these."""
    study, found = StudyDirectory(path), jobs(config, config.kinds)
    study.claim(config)
    work(study, found, plugins, threads=1)
    return study, found
