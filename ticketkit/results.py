"""What a finished experiment found, and what it was run on."""

import json
import platform
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

import torch

from ticketkit.analysis import best_record, extreme_record, winning_records
from ticketkit.config import RunConfig
from ticketkit.errors import StorageError
from ticketkit.imp import IMP
from ticketkit.ledger import RoundRecord

RESULTS_FILE = "results.json"


@dataclass(frozen=True)
class ResultRow:
    """One round of a report. Densities are shares of 1, metrics in their own unit, `seconds` of training and dev."""

    round: int
    kept: int
    scope_density: float
    model_density: float
    emptiest: str
    emptiest_density: float
    dev: Mapping[str, float]
    test: Mapping[str, float]
    winning: bool
    seconds: float


@dataclass(frozen=True)
class Results:
    """All that a finished experiment found; `best` and `extreme` are rounds, chosen on dev alone."""

    metric: str
    mode: str
    tolerance: float
    percent: bool
    rows: tuple[ResultRow, ...]
    best: int | None
    extreme: int | None
    scope_total: int
    model_total: int
    config: Mapping[str, Any]
    corpus: Mapping[str, Any]
    environment: Mapping[str, Any]

    def to_json(self) -> str:
        """Return the results as JSON, for `results.json`."""
        return json.dumps(asdict(self), indent=1, sort_keys=True)

    @classmethod
    def read(cls, directory: Path) -> Self:
        """Return the results in a run directory; raises `StorageError` when there are none."""
        path = directory / RESULTS_FILE
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            return cls(**{**content, "rows": tuple(ResultRow(**row) for row in content["rows"])})
        except FileNotFoundError as error:
            raise StorageError(f"{directory} holds no {RESULTS_FILE}; finish its run with: ticketkit resume") from error
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise StorageError(f"{path} is damaged: {error!r}; write it again with: ticketkit resume") from error


def summarise(
    config: RunConfig, imp: IMP, corpus: Mapping[str, Any], test: Mapping[int, Mapping[str, float]]
) -> Results:
    """Return the results of the finished rounds: which win on dev, and what test says of each."""
    records = imp.records
    winners = {record.index for record in winning_records(records, config.metric, config.mode, config.tolerance)}
    best = best_record(records, config.metric, config.mode)
    extreme = extreme_record(records, config.metric, config.mode, config.tolerance)
    return Results(
        metric=config.metric,
        mode=config.mode,
        tolerance=config.tolerance,
        percent=config.percent,
        rows=tuple(_row(record, test[record.index], winning=record.index in winners) for record in records),
        best=best.index if best else None,
        extreme=extreme.index if extreme else None,
        scope_total=imp.scope.total,
        model_total=imp.scope.model_total,
        config=config.model_dump(mode="json"),
        corpus=corpus,
        environment=environment(),
    )


def environment() -> dict[str, Any]:
    """Return what a reader needs to judge the times and repeat the bits."""
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "machine": f"{platform.system()} {platform.machine()}",
    }


def _row(record: RoundRecord, test: Mapping[str, float], *, winning: bool) -> ResultRow:
    emptiest, emptiest_density = record.emptiest
    return ResultRow(
        round=record.index,
        kept=record.kept,
        scope_density=record.density,
        model_density=record.model_density,
        emptiest=emptiest,
        emptiest_density=emptiest_density,
        dev=record.metrics,
        test=test,
        winning=winning,
        seconds=record.seconds,
    )
