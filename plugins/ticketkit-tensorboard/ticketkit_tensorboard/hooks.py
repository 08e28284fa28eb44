"""What is written when: the hooks, and the run that they belong to."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

import ticketkit
from ticketkit_tensorboard.content import edges, hparams, scalars, settings, shown_scores, table
from ticketkit_tensorboard.files import EventFiles, run_folder, written_rounds

DIRECTORY = "TICKETKIT_TENSORBOARD_DIR"
SCORES = "scores"  # a folder of their own: what a late round makes TensorBoard forget can be written anew, scores not


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
        self._rounds = EventFiles(folder, finished)
        self._scores = EventFiles(folder / SCORES, finished)

    def write(self, record: ticketkit.RoundRecord) -> None:
        """Write all of one round."""
        writer, step = self._rounds.writer, record.index
        if step == 0:
            facts = settings(self._plan, self.facts)
            self.text("settings", table(facts), step)
            file: Any = writer.file_writer
            for summary in hparams(facts, [f"metrics/{name}" for name in record.metrics]):
                file.add_summary(summary)
        writer.add_histogram("density/parameters", np.array(list(record.densities.values())), step)
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
            self._rounds = EventFiles(self._folder, missing[0])
            for record in records[missing[0] :]:
                self.write(record)

    def text(self, tag: str, text: str, step: int) -> None:
        self._rounds.writer.add_text(tag, text, step)
        self._rounds.writer.flush()

    def close(self) -> None:
        self._rounds.close()
        self._scores.close()


def _is_first_process() -> bool:
    """Say whether this is the one process of a distributed group that writes."""
    from torch import distributed

    return not (distributed.is_available() and distributed.is_initialized()) or distributed.get_rank() == 0


observer = TensorBoard()
