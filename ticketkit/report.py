"""Results → what people read: a table, Markdown, and a plot of the metric against remaining weights."""

from collections.abc import Sequence
from pathlib import Path

from rich import box
from rich.table import Table

from ticketkit.errors import ConfigError
from ticketkit.results import ResultRow, Results
from ticketkit.storage import write_atomically, write_text_atomically

COLUMNS = ("round", "scope left", "model left", "emptiest parameter", "dev", "test", "ticket", "time")


def table(results: Results) -> Table:
    """Return the table for a terminal: one row a round, the best and the extreme ticket marked."""
    rendered = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in headings(results):
        words = name in ("emptiest parameter", "ticket")
        rendered.add_column(name, justify="left" if words else "right", overflow="fold")
    for row in results.rows:
        style = "bold green" if row.round in (results.best, results.extreme) else ""
        rendered.add_row(*cells(results, row), style=style)
    return rendered


def markdown(results: Results) -> str:
    """Return the same table in Markdown, with a line that says what every column counts."""
    lines = [
        caption(results),
        "",
        "| " + " | ".join(headings(results)) + " |",
        "|" + "|".join([" --- "] * len(COLUMNS)) + "|",
        *("| " + " | ".join(cells(results, row)) + " |" for row in results.rows),
        "",
        conclusion(results),
    ]
    return "\n".join(lines) + "\n"


def headings(results: Results) -> list[str]:
    """Return the column names, with the metric and its unit."""
    unit = f"{results.metric} %" if results.percent else results.metric
    return [f"{name} {unit}" if name in ("dev", "test") else name for name in COLUMNS]


def cells(results: Results, row: ResultRow) -> list[str]:
    """Return one round as text."""
    return [
        str(row.round),
        f"{row.scope_density:.1%}",
        f"{row.model_density:.1%}",
        f"{row.emptiest} {row.emptiest_density:.1%}",
        _number(results, row.dev.get(results.metric)),
        _number(results, row.test.get(results.metric)),
        _verdict(results, row),
        f"{row.seconds:.0f} s",
    ]


def caption(results: Results) -> str:
    """Return what the table is about, in one line."""
    corpus, backbone = (_name(results.config[role]) for role in ("corpus", "backbone"))
    criterion = _name(results.config["prune"]["criterion"])
    return (
        f"{backbone} on {corpus}, pruned by {criterion}: {results.scope_total:,} weights in scope "
        f"of {results.model_total:,}, seed {results.config['seed']} (one seed)"
    )


def conclusion(results: Results) -> str:
    """Return the outcome in plain words."""
    rows = {row.round: row for row in results.rows}
    dense = rows[0]
    said = [f"Dense: test {_described(results, dense)}."]
    if results.extreme is None:
        said.append(f"No ticket matches it on dev within {_number(results, results.tolerance)}.")
    else:
        row = rows[results.extreme]
        said.append(f"Extreme ticket: {row.scope_density:.1%} of the scope, test {_described(results, row)}.")
    if results.best is not None:
        row = rows[results.best]
        said.append(f"Best ticket on dev: {row.scope_density:.1%} of the scope, test {_described(results, row)}.")
    said.append("Epochs and tickets were chosen on dev; test was read once, at the end.")
    return " ".join(said)


def write_report(results: Results, directory: Path) -> list[Path]:
    """Write `report.md` and, with matplotlib, `report.png` and `report.svg`; return what was written."""
    text = directory / "report.md"
    write_text_atomically(text, markdown(results))
    return [text, *plot([results], directory / "report")]


def plot(runs: Sequence[Results], stem: Path) -> list[Path]:
    """Draw dev and test metric against remaining weights as PNG and SVG; return the paths, none without matplotlib.

    Raises `ConfigError` when the runs were judged by different metrics.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return []
    if len({(run.metric, run.percent) for run in runs}) > 1:
        raise ConfigError(f"runs judged by different metrics share no axis: {sorted({run.metric for run in runs})}")
    figure = Figure(figsize=(7.5, 4.5), layout="constrained")
    axes = figure.add_subplot()
    scale = 100 if runs[0].percent else 1
    for index, run in enumerate(runs):
        label = "" if len(runs) == 1 else f"{_name(run.config['prune']['criterion'])}, seed {run.config['seed']}: "
        density = [100 * row.scope_density for row in run.rows]
        for split, style in (("dev", "--"), ("test", "-")):
            values = [scale * getattr(row, split).get(run.metric, float("nan")) for row in run.rows]
            axes.plot(density, values, style, marker="o", markersize=4, color=f"C{index}", label=f"{label}{split}")
            axes.axhline(values[0], color=f"C{index}", linestyle=":" if split == "test" else (0, (1, 4)), linewidth=1)
    axes.set_xscale("log")
    axes.invert_xaxis()
    ticks = sorted({round(100 * row.scope_density, 1) for run in runs for row in run.rows})
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks], rotation=45)
    axes.minorticks_off()
    axes.set_xlabel("remaining weights of the scope, %")
    axes.set_ylabel(f"{runs[0].metric}, %" if runs[0].percent else runs[0].metric)
    axes.set_title(caption(runs[0]) if len(runs) == 1 else f"{len(runs)} runs", fontsize=9)
    axes.grid(alpha=0.3)
    axes.legend(title="dotted: the dense network", fontsize=8, title_fontsize=8)
    paths = [stem.with_suffix(".png"), stem.with_suffix(".svg")]
    for path in paths:
        kind = path.suffix[1:]
        write_atomically(path, lambda temporary, kind=kind: figure.savefig(temporary, format=kind, dpi=150))  # type: ignore[misc]
    return paths


def _verdict(results: Results, row: ResultRow) -> str:
    if row.round == 0:
        return "dense"
    marks = ["winning" if row.winning else "no"]
    marks += ["best"] if row.round == results.best else []
    marks += ["extreme"] if row.round == results.extreme else []
    return ", ".join(marks)


def _described(results: Results, row: ResultRow) -> str:
    return f"{results.metric} {_number(results, row.test.get(results.metric))}{' %' if results.percent else ''}"


def _number(results: Results, value: float | None) -> str:
    if value is None:
        return "–"
    return f"{100 * value:.2f}" if results.percent else f"{value:.4g}"


def _name(chosen: object) -> str:
    return str(chosen["name"]) if isinstance(chosen, dict) else str(chosen)
