"""A ticket's forms beside each other, measured on this machine: passes, steps of a stream, loading, memory, bytes.

Passes are over examples of the corpus that the ticket's run names, where it is at hand, and else over what the bundle
makes up.
"""

import multiprocessing
import resource
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median, quantiles
from typing import Any, Self

import torch

from ticketkit.building import made
from ticketkit.errors import ConfigError, DataError, TicketkitError
from ticketkit.export import export
from ticketkit.exported import ExportedTicket, load_exported
from ticketkit.plugins import Plugins
from ticketkit.rng import seeded
from ticketkit.roles import CorpusExampleBundle, ExampleBundle, SteppingBundle
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

SECONDS = 5.0
"""The length of made-up examples."""
SPLIT = "test"
LOADS = 3

Say = Callable[[str], None]


@dataclass(frozen=True)
class Spread:
    """Seconds of a call that was measured again and again: the median, and the quartiles around it."""

    middle: float
    low: float
    high: float

    @classmethod
    def of(cls, taken: Sequence[float]) -> Self:
        """Return the spread of some seconds, two at least."""
        low, _, high = quantiles(taken, n=4)
        return cls(median(taken), low, high)


@dataclass(frozen=True)
class Measured:
    """One form: what its passes take, by batch size, a step of a stream, and what it takes to have it."""

    form: str
    passes: dict[int, Spread]
    step: Spread | None
    load_seconds: float
    peak_bytes: int
    """The most memory that a process had which loaded it and passed one example."""
    file_bytes: int
    layers: str
    """The forms of its layers, counted."""
    metrics: Mapping[str, float] = field(default_factory=dict)
    """Those of the test split, where they were asked for."""


@dataclass(frozen=True)
class Bench:
    """What was measured, on what, and what there is none of."""

    forms: list[Measured]
    left_out: Mapping[str, str]
    """Forms that the ticket cannot have, and why."""
    inputs: str
    """What passes are over."""
    seconds: Mapping[int, float]
    """The seconds that a batch lasts, all examples of it together."""
    step_seconds: float | None
    """The seconds that a step of a stream stands for."""
    no_step: str
    """Why there are no steps; "" if there are."""


def bench(
    trained: TrainedTicket,
    plugins: Plugins,
    *,
    batches: Sequence[int] = (1, 8, 32),
    seconds: float | None = None,
    repeats: int = 15,
    evaluate: bool = False,
    say: Say = lambda line: None,
) -> Bench:
    """Return what each form of a ticket takes.

    Calls of all forms are taken in turn. With `seconds`, passes are over made-up examples of that length. `evaluate`
    lets the run's trainer evaluate each form on the test split. Raises `ConfigError` for a backbone that has no example
    inputs, and what the corpus raises where an evaluation needs it.
    """
    if not isinstance(trained.bundle, ExampleBundle):
        raise ConfigError(
            f"backbone {trained.run['backbone']!r} has no example(seconds, batch), so nobody knows what its network is "
            "called with; see ticketkit.ExampleBundle"
        )
    examples, lengths, inputs = _examples(trained, plugins, batches, seconds)
    with tempfile.TemporaryDirectory() as folder:
        directories, left_out = _exported(trained, plugins, Path(folder), say)
        say("loading")
        loads = measured({form: _loading(path, plugins) for form, path in directories.items()}, repeats=LOADS)
        loaded = {form: load_exported(path, plugins) for form, path in directories.items()}
        passes: dict[str, dict[int, Spread]] = {form: {} for form in loaded}
        for batch, example in examples.items():
            say(f"passes of a batch of {batch}")
            calls = {form: _call(one.bundle.module, example) for form, one in loaded.items()}
            for form, taken in measured(calls, repeats=repeats).items():
                passes[form][batch] = Spread.of(taken)
        steps, step_seconds, no_step = _steps(loaded, repeats, say)
        metrics = {form: _evaluated(trained, one, plugins, form, say) for form, one in loaded.items() if evaluate}
        say("memory of each form in a process of its own")
        length = lengths[batches[0]] / batches[0]
        forms = [
            Measured(
                form,
                passes[form],
                steps.get(form),
                median(loads[form]),
                _peak(directory, length),
                _bytes(directory),
                loaded[form].forms,
                metrics.get(form, {}),
            )
            for form, directory in directories.items()
        ]
    return Bench(forms, left_out, inputs, lengths, step_seconds, no_step)


def _examples(
    trained: TrainedTicket, plugins: Plugins, batches: Sequence[int], seconds: float | None
) -> tuple[dict[int, tuple[Any, ...]], dict[int, float], str]:
    """Return the inputs of each batch size, the seconds in them, and what they are."""
    bundle: Any = trained.bundle
    why = ""
    if seconds is None and not isinstance(bundle, CorpusExampleBundle):
        why = f"; backbone {trained.run['backbone']!r} has no corpus_example(corpus, batch)"
    elif seconds is None:
        try:
            corpus = trained.corpus(plugins)
            made_of = {batch: bundle.corpus_example(corpus, batch) for batch in batches}
        except DataError as error:
            why = f"; the corpus of the run is not at hand: {error}"
        else:
            name = corpus.describe().get("name", "the corpus")
            what = f"the test split of {name}: {_lasting(made_of[batches[0]][1], batches[0])}"
            return {batch: one for batch, (one, _) in made_of.items()}, {b: s for b, (_, s) in made_of.items()}, what
    length = SECONDS if seconds is None else seconds
    return (
        {batch: bundle.example(length, batch) for batch in batches},
        {batch: length * batch for batch in batches},
        f"made-up examples, {length:g} s each{why}",
    )


def _lasting(seconds: float, batch: int) -> str:
    return f"examples of {seconds / batch:.2f} s at batch {batch}"


def _exported(
    trained: TrainedTicket, plugins: Plugins, folder: Path, say: Say
) -> tuple[dict[str, Path], dict[str, str]]:
    """Return where each form was exported to, and why others could not be."""
    directories, left_out = {}, {}
    for form, chosen in FORMS.items():
        say(f"exporting {form}")
        try:
            exporter = plugins.choose("exporter", chosen)
            export(trained.bundle, trained.ticket, folder / form, exporter, run=trained.run)
            directories[form] = folder / form
        except TicketkitError as error:
            left_out[form] = str(error)
    return directories, left_out


def _steps(loaded: Mapping[str, ExportedTicket], repeats: int, say: Say) -> tuple[dict[str, Spread], float | None, str]:
    """Return what a step of a stream takes in each form, the seconds that it stands for, and why there is none."""
    calls, lasts = {}, None
    for form, one in loaded.items():
        bundle = one.bundle
        found = bundle.stepping() if isinstance(bundle, SteppingBundle) else "its backbone has no stepping()"
        if isinstance(found, str):
            return {}, None, found
        calls[form], lasts = found
    say("steps of a stream")
    taken = measured(calls, repeats=max(repeats, 50))
    return {form: Spread.of(seconds) for form, seconds in taken.items()}, lasts, ""


def _evaluated(
    trained: TrainedTicket, loaded: ExportedTicket, plugins: Plugins, form: str, say: Say
) -> Mapping[str, float]:
    """Return what the run's trainer says of a form on the test split."""
    say(f"evaluating {form}")
    config = trained.config
    with seeded(config.seed):
        corpus = trained.corpus(plugins)
        chosen = config.chosen(plugins, "trainer")
        trainer = made(chosen, "trainer", loaded.bundle, corpus, seed=config.seed)
        metrics: Mapping[str, float] = trainer.evaluate(SPLIT)
    return metrics


def _loading(directory: Path, plugins: Plugins) -> Callable[[], object]:
    return lambda: load_exported(directory, plugins)


def _call(module: Any, example: tuple[Any, ...]) -> Callable[[], object]:
    return lambda: module(*example)


def _bytes(directory: Path) -> int:
    return sum(path.stat().st_size for path in directory.rglob("*") if path.is_file())


def _peak(directory: Path, seconds: float) -> int:
    """Return the peak memory of a fresh process that loads an export and passes one made-up example."""
    context = multiprocessing.get_context("spawn")
    with context.Pool(1) as pool:
        found: int = pool.apply(_load_and_pass, (directory, seconds, torch.get_num_threads()))
    return found


def _load_and_pass(directory: Path, seconds: float, threads: int) -> int:
    torch.set_num_threads(threads)
    loaded: Any = load_exported(directory, Plugins.discover())
    with torch.no_grad():
        loaded.bundle.module(*loaded.bundle.example(seconds, 1))
    return _own_peak()


def _own_peak() -> int:
    """Return the most bytes that this process has had; Linux's getrusage begins with its parent's."""
    status = Path("/proc/self/status")
    if status.is_file():
        peak = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
        return int(peak.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
