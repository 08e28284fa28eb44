"""An observer for ticketkit: the rounds of every run in TensorBoard, one folder for each run.

It writes only where the user says so: into the folder that `TICKETKIT_TENSORBOARD_DIR` names when a run begins, or that
`TensorBoard(folder)` was given. A run with a run directory names its folder there, in `tensorboard.json`, and goes on
in it after an interruption; without one every run is a new one.
"""

import json
import logging
import os
import time
from collections.abc import Mapping, Sequence
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ticketkit

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

logger = logging.getLogger(__name__)

DIRECTORY = "TICKETKIT_TENSORBOARD_DIR"
NOTE = "tensorboard.json"  # in the run directory
SCORES = (
    "scores"  # a folder of their own: when a round is written late, what is there of later ones goes, but not these
)
COMPLETE = "density/scope"  # written last of a round: the steps that have it are the rounds that are all there
SHOWN, BINS = 1_000_000, 64  # scores of a parameter that a histogram counts, and into how many bins
PATIENCE = 2.0  # seconds, for the clock to pass the last event file


class TensorBoard:
    """Writes the events of one run at a time; without a folder, given or in the environment, it does nothing."""

    def __init__(self, directory: str | Path | None = None):
        self._directory = directory
        self._run: _Run | None = None

    @ticketkit.hookimpl
    def ticketkit_run_start(self, plan: Sequence[int], finished: int, directory: Path | None) -> None:
        """Open the folder of the run."""
        self._close()
        base = self._directory or os.environ.get(DIRECTORY)
        if not base or not _is_first_process():
            return
        if find_spec("tensorboard") is None:
            raise ticketkit.ConfigError(
                f"{base} is to hold TensorBoard's event files, but TensorBoard is missing: pip install tensorboard"
            )
        self._run = _Run(run_folder(Path(base), directory), plan, finished)

    @ticketkit.hookimpl
    def ticketkit_scores_ready(self, index: int, scores: Mapping[str, ticketkit.Tensor], mask: ticketkit.Mask) -> None:
        """Write what the criterion thinks of the weights that are still there."""
        if self._run is not None:
            self._run.write_scores(index, scores, mask)

    @ticketkit.hookimpl
    def ticketkit_ticket_saved(self, ticket: ticketkit.Ticket) -> None:
        """Remember where the tickets of this run come from."""
        if self._run is not None:
            self._run.facts = ticket.facts

    @ticketkit.hookimpl
    def ticketkit_round_end(self, record: ticketkit.RoundRecord) -> None:
        """Write a round."""
        if self._run is not None:
            self._run.write(record)

    @ticketkit.hookimpl
    def ticketkit_run_end(self, records: Sequence[ticketkit.RoundRecord]) -> None:
        """Write the rounds that are missing, because a process was killed between saving and writing them."""
        if self._run is not None:
            self._run.end(records)
        self._close()

    @ticketkit.hookimpl
    def ticketkit_run_error(self, error: BaseException, index: int) -> None:
        """Write what ended the run; it may go on later."""
        if self._run is not None:
            self._run.text("error", f"`{type(error).__name__}`: {error}", index)
        self._close()

    def _close(self) -> None:
        if self._run is not None:
            self._run.close()
        self._run = None


class _Run:
    """One run, from round `finished` on, and its folder."""

    def __init__(self, folder: Path, plan: Sequence[int], finished: int):
        self.facts: ticketkit.TicketFacts | None = None
        self._folder = folder
        self._plan = plan
        self._rounds = _Events(folder, finished)
        self._scores = _Events(folder / SCORES, finished)

    def write(self, record: ticketkit.RoundRecord) -> None:
        """Write all of one round."""
        writer, step = self._rounds.writer, record.index
        if step == 0:
            facts = settings(self._plan, self.facts)
            self.text("settings", _table(facts), step)
            file: Any = writer.file_writer
            for summary in _hparams(facts, [f"metrics/{name}" for name in record.metrics]):
                file.add_summary(summary)
        writer.add_histogram("density/parameters", _array(list(record.densities.values())), step)
        for name, value in scalars(record).items():
            writer.add_scalar(name, value, step)
        writer.flush()

    def write_scores(self, index: int, scores: Mapping[str, ticketkit.Tensor], mask: ticketkit.Mask) -> None:
        """Write the scores of the weights that `mask` keeps, a histogram for each parameter that has some left."""
        for name in mask:
            values = shown_scores(scores[name], mask[name])
            if len(values):
                self._scores.writer.add_histogram(f"scores/{name}", values, index, bins=edges(values))
        self._scores.writer.flush()

    def end(self, records: Sequence[ticketkit.RoundRecord]) -> None:
        """Complete the run: from the first missing round on, everything is written anew, in order."""
        self._rounds.close()
        written = written_rounds(self._folder)
        missing = [record.index for record in records if record.index not in written]
        if missing:
            self._rounds = _Events(self._folder, missing[0])
            for record in records[missing[0] :]:
                self.write(record)

    def text(self, tag: str, text: str, step: int) -> None:
        self._rounds.writer.add_text(tag, text, step)
        self._rounds.writer.flush()

    def close(self) -> None:
        self._rounds.close()
        self._scores.close()


class _Events:
    """The event files of a folder, to which the first writing adds one.

    Of what earlier files hold, nothing of round `index` or later counts from then on.
    """

    def __init__(self, folder: Path, index: int):
        self._folder = folder
        self._index = index
        self._writer: SummaryWriter | None = None

    @property
    def writer(self) -> "SummaryWriter":
        if self._writer is None:
            self._writer = _begun(self._folder, self._index)
        return self._writer

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()


def run_folder(base: Path, directory: Path | None) -> Path:
    """Return the folder in `base` that a run directory names; a new one, which is named there, if it names none.

    Raises `StorageError` if what is there cannot be read.
    """
    base = base.resolve()
    note = directory / NOTE if directory else None
    if note and note.exists():
        noted = _noted(note)
        if noted.parent == base and noted.is_dir():
            return noted
    folder = _new_folder(base)
    if note:
        partial = note.with_name(f".{note.name}.partial")
        partial.write_text(json.dumps({"folder": str(folder)}), encoding="utf-8")
        partial.replace(note)
    return folder


def scalars(record: ticketkit.RoundRecord) -> dict[str, float]:
    """Return what is drawn of a round; densities are shares of 1: of the scope, the whole model, each parameter.

    `kept` counts weights, `seconds` is wall-clock time of training and evaluation.
    """
    return {
        **{f"metrics/{name}": value for name, value in record.metrics.items()},
        **{f"parameter_density/{name}": density for name, density in record.densities.items()},
        "seconds": record.seconds,
        "kept": record.kept,
        "density/model": record.model_density,
        COMPLETE: record.density,
    }


def settings(plan: Sequence[int], facts: ticketkit.TicketFacts | None) -> dict[str, int | float | str]:
    """Return what is known of a run: its plan, and with a run directory also what decided its masks."""
    known: dict[str, Any] = {"rounds": len(plan) - 1, "plan": " ".join(map(str, plan))}
    if facts is not None:
        known |= {"seed": facts.seed, "rewind": facts.rewind, "floor": facts.floor and str(facts.floor)}
        for part in ("criterion", "granularity", "schedule", "allocation"):
            if (chosen := getattr(facts, part)) is not None:
                known |= {part: chosen.entry, f"{part}.version": chosen.version}
                known |= {f"{part}.{option}": str(value) for option, value in chosen.options.items()}
    return {name: value for name, value in known.items() if value is not None}


def shown_scores(scores: ticketkit.Tensor, kept: ticketkit.Tensor) -> Any:
    """Return the finite scores of kept weights, in float64; of more than `SHOWN` of them, evenly spaced ones."""
    values = scores.detach()[kept.to(scores.device)]
    values = values[:: max(1, -(-len(values) // SHOWN))].double().cpu()
    return values[values.isfinite()].numpy()


def edges(values: Any) -> Any:
    """Return the edges of at most `BINS` equal bins from the least to the greatest value; no two edges are the same.

    TensorBoard's own bins reach from 1e-12 to 1e20, which not every criterion keeps to.
    """
    import numpy as np

    found = np.unique(np.linspace(values.min(), values.max(), BINS + 1))
    return found if len(found) > 1 else np.array([found[0], np.nextafter(found[0], np.inf)])


def written_rounds(folder: Path) -> set[int]:
    """Return the rounds that are completely there in the event files of a folder."""
    accumulator: Any = import_module("tensorboard.backend.event_processing.event_accumulator")
    events = accumulator.EventAccumulator(str(folder), size_guidance={"scalars": 0})
    events.Reload()
    return {event.step for event in events.Scalars(COMPLETE)} if COMPLETE in events.Tags()["scalars"] else set()


def _noted(note: Path) -> Path:
    try:
        return Path(json.loads(note.read_text(encoding="utf-8"))["folder"])
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise ticketkit.StorageError(
            f"{note} is damaged: {error!r}; delete it, and the run begins a new folder of event files"
        ) from error


def _new_folder(base: Path) -> Path:
    """Make and return the folder with the next free number; no other process gets the same."""
    number = 1 + max((_number(path) for path in base.glob("run-*")), default=0)
    while True:
        folder = base / f"run-{number:03d}"
        try:
            folder.mkdir(parents=True)
        except FileExistsError:
            number += 1
        else:
            return folder


def _begun(folder: Path, index: int) -> "SummaryWriter":
    """Return a writer of another event file, before which nothing of round `index` or later counts.

    TensorBoard reads files in the order of their names, which tell seconds; of one second the order is not sure.
    """
    from torch.utils.tensorboard import SummaryWriter

    deadline = time.monotonic() + PATIENCE
    while True:
        before = _event_files(folder)
        writer = SummaryWriter(str(folder), purge_step=index)
        fresh = _event_files(folder) - before
        if not before or min(fresh) > max(before):
            return writer
        if time.monotonic() > deadline:
            logger.warning("%s has events from the future; TensorBoard may show rounds twice", folder)
            return writer
        writer.close()
        for file in fresh:
            file.unlink()
        time.sleep(0.05)


def _event_files(folder: Path) -> set[Path]:
    return set(folder.glob("events.out.tfevents.*"))


def _number(folder: Path) -> int:
    digits = folder.name.removeprefix("run-")
    return int(digits) if digits.isdigit() else 0


def _table(facts: Mapping[str, object]) -> str:
    """Return a Markdown table."""
    return "\n".join(
        ["| setting | value |", "| --- | --- |", *(f"| {name} | {value} |" for name, value in facts.items())]
    )


def _hparams(facts: Mapping[str, int | float | str], metrics: Sequence[str]) -> Sequence[Any]:
    """Return the summaries that the HPARAMS page shows: the settings, and which curves are results."""
    summary: Any = import_module("torch.utils.tensorboard.summary")
    summaries: Sequence[Any] = summary.hparams(dict(facts), dict.fromkeys(metrics, 0.0))
    return summaries


def _array(values: list[float]) -> Any:
    import numpy as np

    return np.array(values)


def _is_first_process() -> bool:
    """Say whether this is the one process of a distributed group that writes."""
    from torch import distributed

    return not (distributed.is_available() and distributed.is_initialized()) or distributed.get_rank() == 0


observer = TensorBoard()
