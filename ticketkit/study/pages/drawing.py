"""Figures and heat maps as SVG text, drawn by matplotlib."""

import io
from collections.abc import Iterable, Sequence
from typing import Any

from ticketkit.errors import ConfigError
from ticketkit.study.findings import Figure, HeatMap, Series

COLOURS = ("#1f5aa6", "#c8553d", "#2a8c6a", "#8a5aa8", "#b8860b", "#3d7f95", "#a33f6e", "#5f6b2d", "#444444")
SETTINGS: Any = {
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 9.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#888888",
    "axes.labelcolor": "#333333",
    "xtick.color": "#555555",
    "ytick.color": "#555555",
    "grid.color": "#e4e4e4",
    "legend.frameon": False,
}


def figure_svg(figure: Figure) -> str:
    """Return a figure as an SVG element; raises `ConfigError` without matplotlib."""
    drawn, axes = _canvas((7.6, 4.0))
    for place, series in enumerate(figure.series):
        _line(axes, series, COLOURS[place % len(COLOURS)])
    if figure.level is not None:
        label, height = figure.level
        axes.axhline(height, color="#777777", linestyle=":", linewidth=1.2, label=label)
    if figure.log_x and _positive(series.x for series in figure.series):
        axes.set_xscale("log")
    if figure.log_y and _positive(series.y for series in figure.series):
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(_plain())
        axes.yaxis.set_minor_formatter(_plain())
        axes.tick_params(axis="y", which="minor", labelsize=7)
    if figure.reversed_x:
        axes.invert_xaxis()
    _x_ticks(axes, figure)
    axes.set_xlabel(figure.x_label)
    axes.set_ylabel(figure.y_label)
    axes.grid(True)
    axes.legend(fontsize=8.5, loc="center left", bbox_to_anchor=(1.01, 0.5))
    return _svg(drawn, figure.title)


def heat_map_svg(heat: HeatMap) -> str:
    """Return a heat map as an SVG element, on a logarithmic colour scale from 0.1 % to all."""
    from matplotlib.colors import LogNorm

    drawn, axes = _canvas((7.6, max(1.4, 0.55 + 0.21 * len(heat.rows))))
    values = [[max(value, 1e-9) for value in row] for row in heat.values]
    mesh = axes.pcolormesh(values, norm=LogNorm(1e-3, 1, clip=True), cmap="viridis", edgecolors="white", linewidth=0.4)
    axes.set_yticks([place + 0.5 for place in range(len(heat.rows))], heat.rows, fontsize=7)
    axes.set_xticks([place + 0.5 for place in range(len(heat.columns))], heat.columns, rotation=60, fontsize=7)
    axes.invert_yaxis()
    axes.tick_params(length=0)
    bar = drawn.colorbar(mesh, ax=axes, ticks=[1e-3, 1e-2, 1e-1, 1], pad=0.01)
    bar.ax.set_yticklabels(["≤ 0.1 %", "1 %", "10 %", "100 %"], fontsize=7)
    return _svg(drawn, heat.title)


def _canvas(size: tuple[float, float]) -> tuple[Any, Any]:
    try:
        import matplotlib
        from matplotlib.figure import Figure as Canvas
    except ImportError as error:
        raise ConfigError("the report draws with matplotlib; pip install 'ticketkit[study]'") from error
    with matplotlib.rc_context(SETTINGS):
        drawn = Canvas(figsize=size, layout="constrained")
        return drawn, drawn.add_subplot()


def _positive(lines: Iterable[Sequence[float]]) -> bool:
    """Say whether a logarithmic axis has anything to show; matplotlib raises where it has not."""
    return any(value > 0 for line in lines for value in line)


def _line(axes: Any, series: Series, colour: str) -> None:
    style = "--" if series.dashed else "-"
    width = 1.3 if series.dashed else 1.8
    axes.plot(series.x, series.y, style, marker="o", markersize=3, linewidth=width, color=colour, label=series.label)
    if series.low is not None and series.high is not None:
        axes.fill_between(series.x, series.low, series.high, color=colour, alpha=0.13, linewidth=0)


def _x_ticks(axes: Any, figure: Figure) -> None:
    ticks: Sequence[tuple[float, str]] | None = figure.ticks
    if ticks is None and figure.log_x:
        places = sorted({round(x, 6) for series in figure.series for x in series.x}, reverse=True)
        ticks = [(place, f"{place:.3g}") for place in places[:: max(1, len(places) // 11)]]
    if ticks is not None:
        axes.set_xticks([place for place, _ in ticks], [label for _, label in ticks])
        axes.minorticks_off() if figure.log_x and not figure.log_y else axes.tick_params(
            axis="x", which="minor", length=0
        )
        axes.xaxis.set_minor_formatter(_nothing())


def _plain() -> Any:
    from matplotlib.ticker import FuncFormatter

    return FuncFormatter(lambda value, _: f"{value:g}" if f"{value:.0e}"[0] in "125" else "")


def _nothing() -> Any:
    from matplotlib.ticker import NullFormatter

    return NullFormatter()


def _svg(drawn: Any, title: str) -> str:
    """Return the SVG element of a drawing, as wide as the page lets it be."""
    import matplotlib

    written = io.StringIO()
    with matplotlib.rc_context({**SETTINGS, "svg.hashsalt": title}):
        drawn.savefig(written, format="svg", metadata={"Date": None, "Title": title}, transparent=True)
    text = written.getvalue()
    return text[text.index("<svg") :]
