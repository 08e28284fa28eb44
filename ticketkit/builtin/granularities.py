"""Built-in granularities whose units lie inside one parameter: weight, row, column, channel, block."""

from collections.abc import Callable
from math import prod

import numpy as np
from pydantic import PositiveInt

from ticketkit.contest import Pool
from ticketkit.errors import ScopeError
from ticketkit.granularity import Labels, Layout, Weights, along
from ticketkit.members import Member
from ticketkit.options import Options
from ticketkit.units import Units


class UnitOptions(Options):
    """What a unit is worth."""

    pool: Pool = "mean"
    """How the scores of a unit's kept weights become its score."""


class BlockOptions(UnitOptions):
    """The size of a block, and what it is worth."""

    rows: PositiveInt = 4
    cols: PositiveInt = 4


def weight(layout: Layout) -> Weights:
    """Every weight by itself."""
    return Weights(layout.shapes)


def row(layout: Layout, *, options: UnitOptions) -> Units:
    """An output: a row of a matrix, a filter of a convolution, one gate row of a recurrent layer.

    The output axis is 0, of transposed convolutions 1 (with groups: output channels, across the groups).
    """
    return _inside(layout, layout.outputs, "row", options)


def column(layout: Layout, *, options: UnitOptions) -> Units:
    """An input: a column of a matrix, an input channel of a convolution (of grouped ones too)."""
    return _inside(layout, layout.inputs, "column", options)


def channel(layout: Layout, *, options: UnitOptions) -> Units:
    """An input channel of a convolution: all kernels that read it; parameters of other layers are refused."""
    return _inside(layout, lambda name: layout.inputs(name) if layout.kernel(name) else None, "channel", options)


def block(layout: Layout, *, options: BlockOptions) -> Units:
    """A block of rows x cols of the matrix (outputs, everything else); blocks at the edges are smaller.

    Narang et al. 2017, block-sparse recurrent networks.
    """

    def blocks(name: str) -> tuple[int, Labels]:
        shape, axis = layout.shapes[name], layout.output_axis(name)
        if not shape:
            return 1, np.zeros((), np.int64)
        rest = [1 if other == axis else size for other, size in enumerate(shape)]
        across = -(-prod(rest) // options.cols)
        down = np.arange(shape[axis]) // options.rows
        columns = np.arange(prod(rest)).reshape(rest) // options.cols
        return -(-shape[axis] // options.rows) * across, (along(down * across, axis, len(shape)), columns)

    return _inside(layout, blocks, "block", options)


def _inside(
    layout: Layout, units_of: Callable[[str], tuple[int, Labels] | None], what: str, options: UnitOptions
) -> Units:
    """Return units that lie inside parameters."""
    found = {name: units for name in layout.shapes if (units := units_of(name)) is not None}
    refuse_missing(what, [name for name in layout.shapes if name not in found], list(found))
    members = {name: (Member(name, labels),) for name, (_, labels) in found.items()}
    return Units(layout.shapes, {name: count for name, (count, _) in found.items()}, members, options.pool)


def refuse_missing(what: str, without: list[str], fitting: list[str]) -> None:
    """Raise `ScopeError` if there are parameters without units of a granularity, advising those that fit."""
    if without:
        shown = [*fitting[:6], *(["..."] if len(fitting) > 6 else [])]
        advice = f'set the scope, e.g. scope={{"include": {shown}}}' if fitting else "choose another granularity"
        raise ScopeError(f"granularity {what!r} has no units for {', '.join(without)}; {advice}")
