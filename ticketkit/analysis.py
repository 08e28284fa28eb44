"""What a mask did to a network, and which rounds won."""

from collections.abc import Mapping, Sequence
from typing import Literal

from ticketkit.errors import ConfigError
from ticketkit.ledger import RoundRecord

COLLAPSE = 0.01  # a parameter with a smaller share of its weights left counts as collapsed

Mode = Literal["min", "max"]


def collapsed(densities: Mapping[str, float], threshold: float = COLLAPSE) -> dict[str, float]:
    """Return the densities below `threshold` (or zero), emptiest first: parameters through which little can pass.

    >>> collapsed({"conv": 0.004, "lstm": 0.3, "fc": 0.0})
    {'fc': 0.0, 'conv': 0.004}
    """
    thin = [name for name, density in densities.items() if density < threshold or density == 0]
    return {name: densities[name] for name in sorted(thin, key=lambda name: densities[name])}


def winning_records(
    records: Sequence[RoundRecord], metric: str, mode: Mode = "min", tolerance: float = 0.0
) -> list[RoundRecord]:
    """Return the pruned rounds whose metric is at least as good as the dense round's, within `tolerance`.

    Raises `ConfigError` when the dense round has not logged the metric.
    """
    dense = next((record for record in records if record.index == 0), None)
    if dense is None or metric not in dense.metrics:
        logged = sorted(dense.metrics) if dense else []
        raise ConfigError(f"the dense round has not logged {metric!r}; it has logged {logged}")
    limit = _loss(dense.metrics[metric], mode) + tolerance
    return [r for r in records if r.index and metric in r.metrics and _loss(r.metrics[metric], mode) <= limit]


def best_record(records: Sequence[RoundRecord], metric: str, mode: Mode = "min") -> RoundRecord | None:
    """Return the record of the pruned round with the best metric (of equals, the sparsest), or None without any."""
    pruned = [record for record in records if record.index and metric in record.metrics]
    return min(pruned, key=lambda r: (_loss(r.metrics[metric], mode), r.kept), default=None)


def extreme_record(
    records: Sequence[RoundRecord], metric: str, mode: Mode = "min", tolerance: float = 0.0
) -> RoundRecord | None:
    """Return the record of the sparsest winning round, or None if no round wins."""
    return min(winning_records(records, metric, mode, tolerance), key=lambda record: record.kept, default=None)


def _loss(value: float, mode: Mode) -> float:
    """Return a number that is lower for a better metric; NaN is the worst."""
    if mode not in ("min", "max"):
        raise ConfigError(f"mode must be 'min' (lower is better) or 'max', not {mode!r}")
    loss = value if mode == "min" else -value
    return loss if loss == loss else float("inf")
