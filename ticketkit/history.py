"""How the trainings of a run went, epoch by epoch: `epochs.jsonl` in its run directory."""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from ticketkit.distributed import rank
from ticketkit.roles import Progress
from ticketkit.storage import file_system_errors

FILE = "epochs.jsonl"


@dataclass(frozen=True)
class Epoch:
    """One epoch of a round: the mean training loss, and the metrics of dev."""

    round: int
    epoch: int
    loss: float
    metrics: dict[str, float]


def recorded(progress: Callable[[Progress], None], directory: Path) -> Callable[[int, Progress], None]:
    """Return what takes the index of a round and an epoch's progress, adds them to the file and passes them on."""

    def record(index: int, told: Progress) -> None:
        if rank() == 0:
            line = json.dumps(asdict(Epoch(index, told.epoch, told.loss, dict(told.metrics))))
            path = directory / FILE
            with file_system_errors(path):
                directory.mkdir(parents=True, exist_ok=True)
                cut = path.exists() and not path.read_bytes().endswith(b"\n")  # by a crash: what follows stands alone
                with path.open("a", encoding="utf-8") as file:
                    file.write("\n" * cut + line + "\n")
        progress(told)

    return record


def read_history(directory: Path) -> list[Epoch]:
    """Return the epochs of a run, in order; of one that was trained again after an interruption, the last training.

    A line that a crash cut short is left out.
    """
    found: dict[tuple[int, int], Epoch] = {}
    path = directory / FILE
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        try:
            epoch = Epoch(**json.loads(line))
        except (ValueError, TypeError):
            continue
        found[epoch.round, epoch.epoch] = epoch
    return [found[key] for key in sorted(found)]
