"""Where it is written: the folders of runs, and the event files in them."""

import json
import logging
import time
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import ticketkit
from ticketkit_tensorboard.content import COMPLETE

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

logger = logging.getLogger(__name__)

NOTE = "tensorboard.json"  # in the run directory and in its folder
PATIENCE = 2.0  # seconds, for the clock to pass the last event file


class EventFiles:
    """The event files of a folder, to which the first writing adds one.

    Of what earlier files hold, nothing of round `index` or later counts from then on.
    """

    def __init__(self, folder: Path, index: int):
        self._folder = folder
        self._index = index
        self._writer: SummaryWriter | None = None

    @property
    def writer(self) -> "SummaryWriter":
        """What writes into the last of them."""
        if self._writer is None:
            self._writer = _begun(self._folder, self._index)
        return self._writer

    def close(self) -> None:
        """Write out what is left; nothing can be added after that."""
        if self._writer is not None:
            self._writer.close()


def run_folder(base: Path, directory: Path | None) -> Path:
    """Return the folder in `base` that a run directory names; a new one, which is named there, if it names none.

    The same note lies in both, so that a folder which was deleted, and made again for another run, is not taken up.
    Raises `StorageError` if the note in the run directory cannot be read.
    """
    base = base.resolve()
    note = directory / NOTE if directory else None
    if note and note.exists():
        folder = _noted(note)
        if folder.parent == base and _content(folder / NOTE) == _content(note):
            return folder
    folder = _new_folder(base)
    content = json.dumps({"folder": str(folder), "run": uuid4().hex})
    for place in filter(None, (note, folder / NOTE)):
        partial = place.with_name(f".{place.name}.partial")
        partial.write_text(content, encoding="utf-8")
        partial.replace(place)
    return folder


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


def _content(file: Path) -> str | None:
    return file.read_text(encoding="utf-8") if file.exists() else None


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
