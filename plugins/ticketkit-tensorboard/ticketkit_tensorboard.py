"""An observer for ticketkit: the rounds of every run in TensorBoard, one folder for each run.

It writes only where the user says so: into the folder that `TICKETKIT_TENSORBOARD_DIR` names when a run begins, or that
`TensorBoard(folder)` was given. Events do not say which run directory a run has, so an interrupted run is recognised by
its plan and by the digest of the mask that it goes on with; `ticketkit.json` in each folder holds both.
"""

import json
import logging
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ticketkit

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

logger = logging.getLogger(__name__)

DIRECTORY = "TICKETKIT_TENSORBOARD_DIR"
NOTE = "ticketkit.json"
COMPLETE = "density/scope"  # written last of a round: the steps that have it are the rounds that are all there

PATIENCE = 2.0  # seconds, for the clock to pass the last event file


@dataclass
class Note:
    """What a folder says of its run: the planned counts, mask digests by round, and whether it came to its end."""

    plan: list[int]
    masks: dict[int, str] = field(default_factory=dict)
    ended: bool = False

    @classmethod
    def read(cls, folder: Path) -> "Note":
        """Return the note in a folder."""
        content = json.loads((folder / NOTE).read_text(encoding="utf-8"))
        return cls(content["plan"], {int(index): mask for index, mask in content["masks"].items()}, content["ended"])

    def write(self, folder: Path) -> None:
        """Write the note into a folder, whole or not at all."""
        partial = folder / f".{NOTE}.partial"
        partial.write_text(json.dumps(asdict(self)), encoding="utf-8")
        partial.replace(folder / NOTE)


class TensorBoard:
    """Writes the events of one run at a time; without a folder, given or in the environment, it does nothing."""

    def __init__(self, directory: str | Path | None = None):
        self._directory = directory
        self._run: _Run | None = None
        self._masks: dict[int, str] = {}  # of the round that starts next and the one before

    @ticketkit.hookimpl
    def ticketkit_run_start(self, plan: Sequence[int], finished: int) -> None:
        """Open a folder for a new run; that of an interrupted one is found once its mask is known."""
        self._close()
        directory = self._directory or os.environ.get(DIRECTORY)
        if not directory or not _is_first_process():
            return
        if find_spec("tensorboard") is None:
            raise ticketkit.ConfigError(
                f"{directory} is to hold TensorBoard's event files, but TensorBoard is missing: pip install tensorboard"
            )
        self._run = _Run(Path(directory), plan)
        if not finished:
            self._run.open(0, {})

    @ticketkit.hookimpl
    def ticketkit_round_start(self, round: ticketkit.Round) -> None:
        """Note the mask of the round, by which the run is recognised if it is interrupted now."""
        if self._run is not None:
            current = {round.index: round.mask.digest}
            if not self._run.is_open:
                self._run.open(round.index, self._masks | current)
            self._run.note(current)

    @ticketkit.hookimpl
    def ticketkit_mask_ready(self, index: int, mask: ticketkit.Mask, previous: ticketkit.Mask) -> None:
        """Remember the masks of two rounds."""
        self._masks = {index - 1: previous.digest, index: mask.digest}

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
        if self._run is not None and self._run.is_open:
            self._run.text("error", f"`{type(error).__name__}`: {error}", index)
        self._close()

    def _close(self) -> None:
        if self._run is not None:
            self._run.close()
        self._run = None


class _Run:
    """One run and its folder of event files."""

    def __init__(self, base: Path, plan: Sequence[int]):
        self.facts: ticketkit.TicketFacts | None = None
        self._base = base
        self._note = Note(list(plan))
        self._folder = base
        self._writer: SummaryWriter | None = None
        self._written: set[int] = set()

    @property
    def is_open(self) -> bool:
        return self._writer is not None

    def open(self, index: int, masks: Mapping[int, str], *, ended: bool = False) -> None:
        """Go on with round `index` in the folder of the run that has these masks; in a new one if there is none."""
        folder = _folder_of(self._base, self._note.plan, masks, index, ended=ended) if masks else None
        if folder is None:
            self._folder = _new_folder(self._base)
            self._note.write(self._folder)
        else:
            self._folder, self._note = folder, Note.read(folder)
            self._written = written_rounds(folder) & set(range(index + ended))
        self._start_file(index + ended)

    def note(self, masks: Mapping[int, str]) -> None:
        """Note masks and write them at once."""
        self._note.masks |= masks
        self._note.write(self._folder)

    def write(self, record: ticketkit.RoundRecord) -> None:
        """Write all of one round."""
        writer, step = self._opened(), record.index
        if step == 0:
            facts = settings(self._note.plan, self.facts)
            self.text("settings", _table(facts), step)
            file: Any = writer.file_writer
            for summary in _hparams(facts, [f"metrics/{name}" for name in record.metrics]):
                file.add_summary(summary)
        writer.add_histogram("density/parameters", _array(list(record.densities.values())), step)
        for name, value in scalars(record).items():
            writer.add_scalar(name, value, step)
        writer.flush()
        self._written.add(step)

    def end(self, records: Sequence[ticketkit.RoundRecord]) -> None:
        """Complete the run: from the first missing round on, everything is written anew, in order."""
        if not self.is_open:
            self.open(records[-1].index, {record.index: record.mask_digest for record in records}, ended=True)
        missing = [record.index for record in records if record.index not in self._written]
        if missing:
            self.close()
            self._start_file(missing[0])
            for record in records[missing[0] :]:
                self.write(record)
        self._note.masks |= {record.index: record.mask_digest for record in records}
        self._note.ended = True
        self._note.write(self._folder)

    def text(self, tag: str, text: str, step: int) -> None:
        writer = self._opened()
        writer.add_text(tag, text, step)
        writer.flush()

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()
        self._writer = None

    def _start_file(self, index: int) -> None:
        """Open another event file, before which nothing of round `index` or later counts.

        TensorBoard reads files in the order of their names, which tell seconds; of one second the order is not sure.
        """
        from torch.utils.tensorboard import SummaryWriter

        deadline = time.monotonic() + PATIENCE
        while True:
            before = _event_files(self._folder)
            self._writer = SummaryWriter(str(self._folder), purge_step=index)
            fresh = _event_files(self._folder) - before
            if not before or min(fresh) > max(before):
                return
            if time.monotonic() > deadline:
                logger.warning("%s has events from the future; TensorBoard may show rounds twice", self._folder)
                return
            self._writer.close()
            for file in fresh:
                file.unlink()
            time.sleep(0.05)

    def _opened(self) -> "SummaryWriter":
        if self._writer is None:
            raise ticketkit.RunError(f"a round came before its run started, so nothing was written to {self._base}")
        return self._writer


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


def is_same_run(noted: Mapping[int, str], masks: Mapping[int, str], index: int) -> bool:
    """Say whether the run that noted these masks is the one that goes on with round `index` and has `masks`.

    Either it knew the mask of that round, or it was killed in the round before it, whose mask it knew. The mask of a
    dense round is that of every run with its shapes, so it proves nothing.
    """
    if index in noted:
        return noted[index] == masks.get(index)
    return index > 1 and max(noted, default=-1) == index - 1 and noted[index - 1] == masks.get(index - 1)


def written_rounds(folder: Path) -> set[int]:
    """Return the rounds that are completely there in the event files of a folder."""
    accumulator: Any = import_module("tensorboard.backend.event_processing.event_accumulator")
    events = accumulator.EventAccumulator(str(folder), size_guidance={"scalars": 0})
    events.Reload()
    return {event.step for event in events.Scalars(COMPLETE)} if COMPLETE in events.Tags()["scalars"] else set()


def _folder_of(base: Path, plan: list[int], masks: Mapping[int, str], index: int, *, ended: bool) -> Path | None:
    """Return the latest folder whose run goes on with round `index`, or one that ended if this run has ended too."""
    folders = sorted((path.parent for path in base.glob(f"run-*/{NOTE}")), key=_number)
    for folder in reversed(folders):
        note = Note.read(folder)
        if note.plan == plan and (ended or not note.ended) and is_same_run(note.masks, masks, index):
            return folder
    return None


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
