"""From frame-wise labels to the labels of a text."""

from collections.abc import Sequence
from itertools import groupby


def greedy(path: Sequence[int], *, blank: int) -> list[int]:
    """Return what a CTC path spells: runs of a label count once, then blanks go (Graves et al. 2006, equation 1).

    >>> greedy([0, 1, 1, 0, 1, 2, 2], blank=0)
    [1, 1, 2]
    """
    return [label for label, _ in groupby(path) if label != blank]
