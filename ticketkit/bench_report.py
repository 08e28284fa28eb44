"""What a bench of a ticket's forms says: a table, and verdicts in words."""

from collections.abc import Callable, Iterator

import torch
from rich.table import Table

from ticketkit.bench import Bench, Measured, Spread
from ticketkit.config import RunConfig

CLEARLY = 1.05
"""Times as fast as dense that something must be to be advised."""


def table_of(found: Bench, config: RunConfig) -> Table:
    """Return a row for each form; the metric is the one that the run's tickets are judged by."""
    first = min(found.seconds)
    step = [] if found.step_seconds is None else ["ms, step", "real-time factor, step"]
    metric = [f"test {config.metric}{' %' if config.percent else ''}"] if found.forms[0].metrics else []
    passes = [f"ms, batch {size}" for size in found.seconds]
    table = Table("form", *passes, "real-time factor", *step, "load ms", "peak MiB", "bytes", *metric, "layers")
    for one in found.forms:
        row = [_milliseconds(spread) for spread in one.passes.values()]
        row.append(f"{one.passes[first].middle / found.seconds[first]:.4f}")
        if one.step is not None and found.step_seconds is not None:
            row += [_milliseconds(one.step), f"{one.step.middle / found.step_seconds:.4f}"]
        row += [f"{1e3 * one.load_seconds:.0f}", f"{one.peak_bytes / 2**20:.0f}", f"{one.file_bytes:,}"]
        if metric:
            row.append(_metric(one, config))
        table.add_row(one.form, *row, one.layers)
    return table


def lines_of(found: Bench, config: RunConfig) -> list[str]:
    """Return what was passed, a line for each form beside dense, the verdict, and what there is none of."""
    lines = [f"passes are over {found.inputs}; milliseconds are medians, quartiles in brackets"]
    lines += [_beside(found, one, config) for one in found.forms[1:]]
    lines += _verdicts(found, config)
    if found.no_step:
        lines.append(f"no streaming step: {found.no_step}")
    if not found.forms[0].metrics:
        lines.append(f"with --evaluate: the {config.metric} of each form on the test split")
    return [*lines, *(f"{form}: left out: {reason}" for form, reason in found.left_out.items())]


def _beside(found: Bench, one: Measured, config: RunConfig) -> str:
    dense = found.forms[0]
    said = [
        f"{_times(dense.passes[batch].middle / spread.middle)} at batch {batch}" for batch, spread in one.passes.items()
    ]
    if one.step is not None and dense.step is not None:
        said.append(f"{_times(dense.step.middle / one.step.middle)} in a step")
    size = dense.file_bytes / one.file_bytes
    times = f"{size:.1f} times smaller" if size >= 1 else f"{1 / size:.1f} times larger"
    apart = _apart(dense, one, config)
    said_of_it = {None: "", "": "; as good on test"}.get(apart, f"; {apart}")
    return f"{one.form}: {', '.join(said)}; its files are {times} than dense ones{said_of_it}"


def _apart(dense: Measured, one: Measured, config: RunConfig) -> str | None:
    """Return how much a form's test metric differs from that of dense, "" if not at all; None where nobody asked."""
    if config.metric not in one.metrics:
        return None
    difference = one.metrics[config.metric] - dense.metrics[config.metric]
    return f"test {config.metric} {_shown(difference, config, sign=True)}" if difference else ""


def _verdicts(found: Bench, config: RunConfig) -> Iterator[str]:
    """Yield what to use for passes of the smallest batch, and for steps of a stream."""
    smallest = min(found.seconds)
    machine = f"on this machine, with {torch.get_num_threads()} threads"
    yield f"{machine} and batches of {smallest}: {_advice(found, config, lambda one: one.passes[smallest])}"
    if found.step_seconds is not None:
        yield f"{machine} and a stream: {_advice(found, config, lambda one: one.step)}"


def _advice(found: Bench, config: RunConfig, spread_of: Callable[[Measured], Spread | None]) -> str:
    spreads = [(spread, one) for one in found.forms if (spread := spread_of(one)) is not None]
    dense = spreads[0][0]
    best, form = min(spreads, key=lambda pair: pair[0].middle)
    gain = dense.middle / best.middle
    if gain <= CLEARLY:
        return "keep it dense, nothing is clearly faster"
    if best.high >= dense.low:
        return (
            f"{form.form} was {gain:.2f} times as fast as dense, but their quartiles overlap: measure again on an idle "
            "machine"
        )
    apart = _apart(found.forms[0], form, config)
    return f"use {form.form}, {gain:.2f} times as fast as dense{f', if {apart} is no matter' if apart else ''}"


def _times(ratio: float) -> str:
    return f"{ratio:.2f} times as fast" if ratio >= 1 else f"{1 / ratio:.2f} times slower"


def _milliseconds(spread: Spread) -> str:
    digits = 1 if spread.middle >= 0.01 else 2
    middle, low, high = (f"{1e3 * value:.{digits}f}" for value in (spread.middle, spread.low, spread.high))
    return f"{middle} ({low}-{high})"


def _metric(one: Measured, config: RunConfig) -> str:
    return _shown(one.metrics[config.metric], config) if config.metric in one.metrics else ""


def _shown(value: float, config: RunConfig, *, sign: bool = False) -> str:
    plus = "+" if sign else ""
    return f"{100 * value:{plus}.2f} %" if config.percent else f"{value:{plus}.4g}"
