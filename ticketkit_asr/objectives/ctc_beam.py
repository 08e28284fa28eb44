"""Prefix beam search over CTC scores, without a language model (Graves & Jaitly 2014; Hannun et al. 2014)."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

Beam = dict[tuple[int, ...], "_Prefix"]


class _Prefix:
    """A text so far: its log-probabilities ending in a blank and in its last label, and where its labels began."""

    __slots__ = ("blank", "frames", "label")

    def __init__(self, blank: float = -np.inf, label: float = -np.inf, frames: tuple[int, ...] = ()):
        self.blank, self.label, self.frames = blank, label, frames

    @property
    def total(self) -> float:
        return float(np.logaddexp(self.blank, self.label))


def prefix_beam(log_probs: NDArray[Any], *, blank: int, width: int) -> list[tuple[int, int]]:
    """Return the most probable labels that the search has found, as (frame where it began, label).

    `log_probs` is (frames, labels). Every frame keeps the `width` most probable prefixes, summed over their alignments;
    of equal ones the lower labels come first. A search as wide as there are texts is exact.
    """
    beam: Beam = {(): _Prefix(blank=0.0)}
    for frame, row in enumerate(log_probs):
        grown: Beam = {}
        likely = np.argsort(-row, kind="stable")[: width + 1].tolist()
        for labels, prefix in beam.items():
            stays = grown.setdefault(labels, _Prefix(frames=prefix.frames))
            stays.blank = float(np.logaddexp(stays.blank, prefix.total + row[blank]))
            if labels:
                stays.label = float(np.logaddexp(stays.label, prefix.label + row[labels[-1]]))
            for label in likely:
                if label == blank:
                    continue
                before = prefix.blank if labels[-1:] == (label,) else prefix.total
                longer = grown.setdefault((*labels, label), _Prefix(frames=(*prefix.frames, frame)))
                longer.label = float(np.logaddexp(longer.label, before + row[label]))
        best = sorted(grown.items(), key=lambda item: (-item[1].total, item[0]))[:width]
        beam = dict(best)
    labels, prefix = next(iter(beam.items()))
    return list(zip(prefix.frames, labels, strict=True))
