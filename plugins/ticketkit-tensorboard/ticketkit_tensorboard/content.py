"""What is written: of a round, of the settings of a run, of scores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import Any

import numpy as np

import ticketkit

COMPLETE = "density/scope"  # written last of a round: the steps that have it are the rounds that are all there
SHOWN, BINS = 1_000_000, 64  # scores of a parameter that a histogram counts, and into how many bins


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
    found = np.unique(np.linspace(values.min(), values.max(), BINS + 1))
    return found if len(found) > 1 else np.array([found[0], np.nextafter(found[0], np.inf)])


def table(facts: Mapping[str, object]) -> str:
    """Return a Markdown table."""
    return "\n".join(
        ["| setting | value |", "| --- | --- |", *(f"| {name} | {value} |" for name, value in facts.items())]
    )


def hparams(facts: Mapping[str, int | float | str], metrics: Sequence[str]) -> Sequence[Any]:
    """Return the summaries that the HPARAMS page shows: the settings, and which curves are results."""
    summary: Any = import_module("torch.utils.tensorboard.summary")
    summaries: Sequence[Any] = summary.hparams(dict(facts), dict.fromkeys(metrics, 0.0))
    return summaries
