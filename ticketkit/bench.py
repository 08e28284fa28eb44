"""A ticket's forms beside each other: time of a pass, memory, time to load, bytes on disk, measured on this machine."""

import multiprocessing
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import torch

from ticketkit.errors import ConfigError, TicketkitError
from ticketkit.export import export
from ticketkit.exported import load_exported
from ticketkit.plugins import Plugins
from ticketkit.roles import ExampleBundle
from ticketkit.timing import measured
from ticketkit.trained import TrainedTicket

FORMS: dict[str, dict[str, Any]] = {
    "dense": {"name": "dense"},
    "auto": {"name": "auto"},
    "sparse": {"name": "sparse"},
    "compact": {"name": "compact"},
    "dense int8": {"name": "dense", "dtype": "int8"},
    "auto fp16": {"name": "auto", "dtype": "fp16"},
}
"""What is compared: exporters with their options. The first is what the others are compared with."""


CLEARLY = 1.05
"""Times as fast as dense that something must be to be advised."""


@dataclass(frozen=True)
class Measured:
    """One form: seconds of a pass by batch size (median and quartiles), and what it takes to have it."""

    form: str
    passes: dict[int, tuple[float, float, float]]
    load_seconds: float
    peak_bytes: int
    """The most memory that a process had which loaded it and passed one batch."""
    file_bytes: int
    layers: str
    """The forms of its layers, counted."""


def bench(
    trained: TrainedTicket,
    plugins: Plugins,
    *,
    batches: Sequence[int] = (1, 8, 32),
    seconds: float = 5.0,
    repeats: int = 15,
    say: Callable[[str], None] = lambda line: None,
) -> tuple[list[Measured], dict[str, str]]:
    """Return what each form of a ticket takes, and why forms that it cannot have are left out.

    Passes of all forms are taken in turn. Raises `ConfigError` for a backbone that has no example inputs.
    """
    if not isinstance(trained.bundle, ExampleBundle):
        raise ConfigError(
            f"backbone {trained.run['backbone']!r} has no example(seconds, batch), so nobody knows what its network is "
            "called with; see ticketkit.ExampleBundle"
        )
    left_out: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as folder:
        made = {}
        for form, chosen in FORMS.items():
            say(f"exporting {form}")
            try:
                export(
                    trained.bundle,
                    trained.ticket,
                    Path(folder) / form,
                    plugins.choose("exporter", chosen),
                    run=trained.run,
                )
                made[form] = Path(folder) / form
            except TicketkitError as error:
                left_out[form] = str(error)
        loads, modules, layers = {}, {}, {}
        for form, directory in made.items():
            started = time.perf_counter()
            loaded = load_exported(directory, plugins)
            loads[form] = time.perf_counter() - started
            modules[form] = loaded.bundle.module
            layers[form] = loaded.forms
        passes: dict[str, dict[int, tuple[float, float, float]]] = {form: {} for form in made}
        for batch in batches:
            say(f"passes of a batch of {batch}")
            example = trained.bundle.example(seconds, batch)
            calls = {form: _call(module, example) for form, module in modules.items()}
            for form, taken in measured(calls, repeats=repeats).items():
                low, _, high = quantiles(taken, n=4)
                passes[form][batch] = (median(taken), low, high)
        say("memory of each form in a process of its own")
        return [
            Measured(form, passes[form], loads[form], _peak(made[form], seconds), _bytes(made[form]), layers[form])
            for form in made
        ], left_out


def verdicts(found: Sequence[Measured]) -> list[str]:
    """Return what the figures say, in a line for each form: faster or slower than dense, at which batch sizes."""
    dense, lines = found[0], []
    for one in found[1:]:
        ratios = {batch: dense.passes[batch][0] / one.passes[batch][0] for batch in one.passes}
        said = ", ".join(f"{_times(ratio)} at batch {batch}" for batch, ratio in ratios.items())
        size = dense.file_bytes / one.file_bytes
        lines.append(f"{one.form}: {said}; its files are {size:.1f} times smaller than dense ones")
    smallest = min(dense.passes)
    best = min(found, key=lambda one: one.passes[smallest][0])
    gain = dense.passes[smallest][0] / best.passes[smallest][0]
    lines.append(
        f"on this machine, with {torch.get_num_threads()} threads and batches of {smallest}: "
        + (
            f"use {best.form}, {_times(gain)} as dense"
            if gain > CLEARLY
            else "keep it dense, nothing is clearly faster"
        )
    )
    return lines


def _times(ratio: float) -> str:
    return f"{ratio:.2f} times as fast" if ratio >= 1 else f"{1 / ratio:.2f} times slower"


def _call(module: Any, example: tuple[Any, ...]) -> Callable[[], object]:
    return lambda: module(*example)


def _bytes(directory: Path) -> int:
    return sum(path.stat().st_size for path in directory.rglob("*") if path.is_file())


def _peak(directory: Path, seconds: float) -> int:
    """Return the peak memory of a fresh process that loads an export and passes one example."""
    context = multiprocessing.get_context("spawn")
    with context.Pool(1) as pool:
        found: int = pool.apply(_load_and_pass, (directory, seconds, torch.get_num_threads()))
    return found


def _load_and_pass(directory: Path, seconds: float, threads: int) -> int:
    torch.set_num_threads(threads)
    loaded: Any = load_exported(directory, Plugins.discover())
    with torch.no_grad():
        loaded.bundle.module(*loaded.bundle.example(seconds, 1))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
