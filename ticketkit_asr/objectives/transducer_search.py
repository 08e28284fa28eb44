"""From a transducer's scores to labels: greedy decoding and beam search, frame by frame, a batch at a time.

Both write at most `max_symbols` labels a frame, so that a network which never says blank ends too; what they hold is
bounded by the beam, not by the utterance.
"""

import math
from collections.abc import Sequence, Set
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from ticketkit_asr.objectives.objective import Emission

MAX_SYMBOLS = 10
"""Labels a frame: more than any language says in 40 ms."""

_NEVER = float("-inf")
"""The logarithm of the probability 0."""

Labels = tuple[int, ...]

State = tuple[Tensor, ...]
"""What the predictor remembers: tensors of (layers, batch, width)."""


class Reader(Protocol):
    """What decoding asks of a network: a predictor, which starts by reading a blank, and a joiner."""

    def predict(self, labels: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        """Return the predictor's output (batch, labels, width) after each label of (batch, labels), and its state."""

    def join(self, encoded: Tensor, predicted: Tensor) -> Tensor:
        """Return scores (..., labels) from encoder and predictor outputs (..., width)."""


@dataclass(frozen=True)
class Hypothesis:
    """A text that an utterance may hold."""

    labels: Labels
    frames: tuple[int, ...]
    """The frame at which each label was written, in the more probable of the histories that were merged."""
    log_probability: float
    """In nats, summed over the alignments that the search has kept."""

    @property
    def emissions(self) -> list[Emission]:
        """The labels, each at its frame."""
        return [Emission(frame, label) for frame, label in zip(self.frames, self.labels, strict=True)]


Beam = dict[Labels, Hypothesis]
"""Hypotheses by what they spell; in a finished frame best first."""


@torch.no_grad()
def greedy(
    network: Reader, encoded: Tensor, lengths: Tensor, *, blank: int, max_symbols: int = MAX_SYMBOLS
) -> list[list[Emission]]:
    """Return what is written in each utterance by taking the best arc at every node; of equal ones the lowest label.

    `encoded` is (batch, frames, width), `lengths` (batch,) the frames of each utterance. Utterances go on at their own
    pace: the number of steps is the most frames and labels of any one.
    """
    start = torch.full((len(lengths), 1), blank, device=encoded.device)
    frame, symbols = torch.zeros_like(start[:, 0]), torch.zeros_like(start[:, 0])
    lengths = lengths.to(encoded.device)
    written: list[list[Emission]] = [[] for _ in lengths]
    outputs, state = network.predict(start)
    predicted = outputs[:, 0]
    while (active := (frame < lengths).nonzero().squeeze(1)).numel():
        best = network.join(encoded[active, frame[active]], predicted[active]).argmax(-1)
        writes = (best != blank) & (symbols[active] < max_symbols)
        done, writers, labels = active[~writes], active[writes], best[writes]
        for writer, now, label in zip(writers.tolist(), frame[writers].tolist(), labels.tolist(), strict=True):
            written[writer].append(Emission(now, label))
        frame[done] += 1
        symbols[done] = 0
        symbols[writers] += 1
        if writers.numel():
            outputs, states = network.predict(labels[:, None], tuple(part[:, writers] for part in state))
            predicted = predicted.index_copy(0, writers, outputs[:, 0])
            state = tuple(part.index_copy(1, writers, new) for part, new in zip(state, states, strict=True))
    return written


@torch.no_grad()
def beam_search(
    network: Reader, encoded: Tensor, lengths: Tensor, *, blank: int, width: int, max_symbols: int = MAX_SYMBOLS
) -> list[list[Hypothesis]]:
    """Return the `width` most probable texts of each utterance that the search has found, best first.

    Breadth first (the time-synchronous search of Saon et al. 2020): every frame takes the hypotheses of the last one,
    extends the best `width` of them label by label, and merges those that spell the same. A search as wide as there are
    texts is exact. Equal probabilities are ordered by labels. `encoded` and `lengths` are as for `greedy`.
    """
    predictor = _Predictor(network, blank, encoded.device)
    beams: list[Beam] = [{(): Hypothesis((), (), 0.0)} for _ in lengths]
    for frame in range(int(lengths.max())):
        active = (lengths > frame).nonzero().squeeze(1).tolist()
        before = [beams[i] for i in active]
        after = _next_frame(
            predictor, encoded[active, frame], before, frame=frame, width=width, max_symbols=max_symbols
        )
        for i, beam in zip(active, after, strict=True):
            beams[i] = beam
        predictor.forget_all_but({labels for beam in beams for labels in beam})
    return [list(beam.values()) for beam in beams]


def _next_frame(
    predictor: "_Predictor", encoded: Tensor, beams: Sequence[Beam], *, frame: int, width: int, max_symbols: int
) -> list[Beam]:
    """Return the beam of each utterance after one more frame, `encoded` (utterances, width)."""
    ended: list[Beam] = [{} for _ in beams]
    growing = list(beams)
    for symbols in range(max_symbols + 1):
        rows = [i for i, beam in enumerate(growing) for _ in beam]
        if not rows:
            break
        hypotheses = [hypothesis for beam in growing for hypothesis in beam.values()]
        so_far = torch.tensor([h.log_probability for h in hypotheses], dtype=torch.float64)
        scores = predictor.log_probabilities(encoded[rows], [h.labels for h in hypotheses]) + so_far[:, None]
        for i, growth, score in zip(rows, hypotheses, scores[:, predictor.blank].tolist(), strict=True):
            _merge(ended[i], Hypothesis(growth.labels, growth.frames, score))
        if symbols == max_symbols:
            break
        scores[:, predictor.blank] = _NEVER
        blocks = torch.split(scores, [len(beam) for beam in growing])
        growing = [
            _extended(beam, block, done, frame=frame, width=width)
            for beam, block, done in zip(growing, blocks, ended, strict=True)
        ]
    return [_best(beam, width) for beam in ended]


def _merge(beam: Beam, hypothesis: Hypothesis) -> None:
    """Add a hypothesis to a beam, together with the one that spells the same, if there is one."""
    other = beam.get(hypothesis.labels, hypothesis)
    if other is hypothesis:
        beam[hypothesis.labels] = hypothesis
        return
    high, low = sorted((other, hypothesis), key=lambda h: h.log_probability, reverse=True)
    total = high.log_probability
    if low.log_probability > _NEVER:
        total += math.log1p(math.exp(low.log_probability - total))
    beam[hypothesis.labels] = Hypothesis(high.labels, high.frames, total)


def _extended(beam: Beam, scores: Tensor, ended: Beam, *, frame: int, width: int) -> Beam:
    """Return the extensions of a beam by a label that matter, given their log-probabilities (beam, labels).

    Those are the best `width`, as far as they could still be among the best `width` of `ended`, and whatever spells
    what has ended already: it is merged, however little it adds.
    """
    values, places = scores.flatten().sort(descending=True, stable=True)
    texts, size = list(beam), scores.shape[1]
    enough = len(ended) >= width
    bar = sorted((h.log_probability for h in ended.values()), reverse=True)[width - 1] if enough else _NEVER
    found = {
        (*texts[place // size], place % size): value
        for value, place in zip(values[:width].tolist(), places[:width].tolist(), strict=True)
        if value >= bar
    }
    rows = {labels: row for row, labels in enumerate(texts)}
    merged = [labels for labels in ended if labels and labels[:-1] in rows]
    found |= {labels: scores[rows[labels[:-1]], labels[-1]].item() for labels in merged}
    return {
        labels: Hypothesis(labels, (*beam[labels[:-1]].frames, frame), value)
        for labels, value in found.items()
        if value > _NEVER
    }


def _best(beam: Beam, width: int) -> Beam:
    """Return the best `width` hypotheses of a beam, best first, equal ones by their labels.

    Impossible ones are dropped, except that one is left: the search goes on.
    """
    ranked = sorted(beam.values(), key=lambda h: (-h.log_probability, h.labels))[:width]
    return {h.labels: h for h in [h for h in ranked if h.log_probability > _NEVER] or ranked[:1]}


class _Predictor:
    """The predictor's outputs by the labels it has read, computed once for each text and shared by all utterances."""

    def __init__(self, network: Reader, blank: int, device: torch.device) -> None:
        self.blank = blank
        self._network = network
        self._device = device
        self._read: dict[Labels, tuple[Tensor, State]] = {}
        self._store([()], *network.predict(torch.tensor([[blank]], device=device)))

    def log_probabilities(self, encoded: Tensor, prefixes: Sequence[Labels]) -> Tensor:
        """Return the log-probabilities (prefixes, labels) of what follows, in float64 on the CPU."""
        self._read_on([prefix for prefix in dict.fromkeys(prefixes) if prefix not in self._read])
        outputs = torch.stack([self._read[prefix][0] for prefix in prefixes])
        return self._network.join(encoded, outputs).double().log_softmax(-1).cpu()

    def forget_all_but(self, prefixes: Set[Labels]) -> None:
        """Forget what was read for other texts than these."""
        self._read = {prefix: read for prefix, read in self._read.items() if prefix in prefixes}

    def _read_on(self, prefixes: Sequence[Labels]) -> None:
        """Read the last label of each text; what comes before it must have been read."""
        if prefixes:
            labels = torch.tensor([[prefix[-1]] for prefix in prefixes], device=self._device)
            states = zip(*(self._read[prefix[:-1]][1] for prefix in prefixes), strict=True)
            state = tuple(torch.stack(parts, dim=1) for parts in states)
            self._store(prefixes, *self._network.predict(labels, state))

    def _store(self, prefixes: Sequence[Labels], outputs: Tensor, state: State) -> None:
        states = zip(*(part.unbind(1) for part in state), strict=True)
        for prefix, output, own in zip(prefixes, outputs[:, 0], states, strict=True):
            # Copies: a view would keep what was read for all the other texts.
            self._read[prefix] = (output.clone(), tuple(part.clone() for part in own))
