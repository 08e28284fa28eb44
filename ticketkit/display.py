"""What a run looks like while it goes: a live bar on a terminal, plain lines anywhere else."""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from rich import progress as bars
from rich.console import Console

from ticketkit.hookspecs import hookimpl
from ticketkit.ledger import RoundRecord
from ticketkit.roles import Progress
from ticketkit.round import Round


class Display:
    """Shows round, epoch, loss, dev metrics and the time left; an observer of the engine's events."""

    def __init__(self, console: Console, metric: str, *, percent: bool):
        self._console = console
        self._metric = metric
        self._percent = percent
        self._bars = bars.Progress(
            bars.TextColumn("{task.description}"),
            bars.BarColumn(),
            bars.TextColumn("{task.fields[facts]}"),
            bars.TimeElapsedColumn(),
            console=console,
            disable=not console.is_terminal,
            transient=True,
        )
        self._task: bars.TaskID | None = None
        self._rounds = 0
        self._round: Round | None = None
        self._began = time.monotonic()
        self._epochs = 0  # trained in this process

    @contextmanager
    def live(self) -> Iterator[None]:
        """Show the bar inside the block."""
        with self._bars:
            yield

    @hookimpl
    def ticketkit_run_start(self, plan: tuple[int, ...], finished: int) -> None:
        """Note how many rounds there are, and say if some are already done."""
        self._rounds = len(plan)
        self._began = time.monotonic()
        if finished:
            self._say(f"going on: {finished} of {len(plan)} rounds are done")

    @hookimpl
    def ticketkit_round_start(self, round: Round) -> None:
        """Begin the bar of a round."""
        self._round = round
        if self._task is not None:
            self._bars.remove_task(self._task)
        self._task = self._bars.add_task(self._title(round), facts="")

    @hookimpl
    def ticketkit_round_end(self, record: RoundRecord) -> None:
        """Print what the round found."""
        name, density = record.emptiest
        self._say(
            f"round {record.index}/{self._rounds - 1}: {record.density:.1%} of the scope left "
            f"(emptiest {name} {density:.1%}), dev {self._shown(record.metrics)}, {record.seconds:.0f} s"
        )

    def epoch(self, progress: Progress) -> None:
        """Show one epoch of the present round, and how long the rest will take at the present pace."""
        if self._round is None or self._task is None:
            return
        self._epochs += 1
        ahead = (self._rounds - self._round.index) * progress.epochs - progress.epoch
        seconds = (time.monotonic() - self._began) / self._epochs * ahead
        left = f"about {seconds / 60:.0f} min left" if seconds >= 90 else f"about {seconds:.0f} s left"
        facts = (
            f"epoch {progress.epoch}/{progress.epochs}  loss {progress.loss:.3f}  dev {self._shown(progress.metrics)}  "
            f"{left}"
        )
        self._bars.update(self._task, total=progress.epochs, completed=progress.epoch, facts=facts)
        if not self._console.is_terminal:
            self._say(f"{self._title(self._round)}  {facts}")

    def _say(self, line: str) -> None:
        self._console.print(line, soft_wrap=True)

    def _title(self, current: Round) -> str:
        return f"round {current.index}/{self._rounds - 1} ({current.density:.1%} left)"

    def _shown(self, metrics: Mapping[str, float]) -> str:
        value = metrics.get(self._metric)
        if value is None:
            return "–"
        return f"{self._metric} {100 * value:.2f} %" if self._percent else f"{self._metric} {value:.4g}"
