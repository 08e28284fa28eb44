"""The RNN transducer loss (Graves 2012): minus the log-probability of a text, summed over all its alignments.

An alignment is a path through the lattice of (frame, labels written): a blank goes to the next frame, a label to the
next label. Nodes with the same sum of both form a diagonal, and a whole diagonal follows from the one before, in every
utterance and in both directions at once. The lattice is small beside the logits and kept in float64; of the logits
there is no second copy except the gradient while it is computed, and what lies beyond an utterance is never read.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ticketkit import DataError
from ticketkit_asr.objectives.rnnt_kernel import kernel_takes, torchaudio_rnnt_loss

_NEVER = float("-inf")
"""The logarithm of the probability 0."""

Lengths = Sequence[tuple[int, int]]
"""Frames and labels of each utterance."""


def rnnt_loss(logits: Tensor, targets: Tensor, logit_lengths: Tensor, target_lengths: Tensor, blank: int = 0) -> Tensor:
    """Return the RNN-T loss of each utterance, in nats: shape (batch,), differentiable once in `logits`.

    `logits` (batch, frames, most labels + 1, labels) are unnormalised scores for what follows frame t after u labels;
    `targets` (batch, most labels) label indices other than `blank`; both are padded to `logit_lengths` (at least 1)
    and `target_lengths`, and the padding may hold anything. Computes in float32, for float64 logits in float64.

    A logit of -inf is a probability of 0. Where no alignment is possible, or a logit is +inf (an overflow), the loss is
    inf and the gradient 0; NaN stays NaN, in its utterance alone. Raises `DataError` when shapes, lengths or labels
    contradict each other. On a GPU torchaudio's kernel does the work where it loads and takes what is given.

    >>> logits = torch.zeros(1, 2, 2, 3)  # one label in two frames: each of the 2 alignments has 3 arcs of 1/3
    >>> loss = rnnt_loss(logits, torch.tensor([[1]]), torch.tensor([2]), torch.tensor([1]))
    >>> round(loss.exp().item(), 3)
    13.5
    """
    lengths = _checked(logits, targets, logit_lengths, target_lengths, blank)
    targets = targets.to(logits.device, torch.int64)
    if kernel_takes(logits):
        return torchaudio_rnnt_loss(logits, targets, logit_lengths, target_lengths, blank)
    loss: Tensor = _RnntLoss.apply(logits, targets, lengths, blank)  # type: ignore[no-untyped-call]
    return loss


class _RnntLoss(torch.autograd.Function):
    """The loss, and its gradient from the forward and backward variables."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, targets: Tensor, lengths: Lengths, blank: int) -> Tensor:
        arcs, normaliser = _arcs(logits, targets, lengths, blank, both_ways=ctx.needs_input_grad[0])
        variables = _variables(arcs, lengths)
        end = torch.tensor([labels for _, labels in lengths], device=logits.device)
        total = variables[-1, 0, :, 1:].gather(1, end[:, None]).squeeze(1)
        overflown = (normaliser == float("inf")).flatten(1).any(1)
        loss = total.neg().masked_fill(overflown, float("inf"))
        normaliser = _never_nan(normaliser)
        if ctx.needs_input_grad[0]:
            posteriors = _posteriors(arcs, variables, total, logits.shape[1]).to(normaliser.dtype)
            ctx.save_for_backward(logits, targets, normaliser, posteriors, loss)
            ctx.lengths, ctx.blank = lengths, blank
        return loss.to(normaliser.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None, None, None]:
        """Return softmax × P(node) - P(arc), at every node of every utterance: the loss's gradient in the logits."""
        logits, targets, normaliser, posteriors, loss = ctx.saved_tensors
        blanks, labels = posteriors * upstream[:, None, None]
        nodes = blanks + labels
        gradient = torch.empty_like(logits, memory_format=torch.contiguous_format)
        infinite = (loss == float("inf")).tolist()
        for i, (frames, count) in enumerate(ctx.lengths):
            inside = (i, slice(frames), slice(count + 1))
            block = gradient[inside]
            gradient[i, frames:] = 0
            gradient[i, :frames, count + 1 :] = 0
            if infinite[i]:
                block.zero_()
                continue
            wide = block if block.dtype == normaliser.dtype else torch.empty_like(block, dtype=normaliser.dtype)
            torch.sub(logits[inside], normaliser[inside].unsqueeze(-1), out=wide).exp_()
            wide.mul_(nodes[inside].unsqueeze(-1))
            wide[..., ctx.blank] -= blanks[inside]
            written = _label_index(targets[i, :count], frames)
            wide[:, :count].scatter_add_(-1, written, labels[inside][:, :count, None].neg())
            if wide is not block:
                block.copy_(wide)
        return gradient, None, None, None


def _arcs(logits: Tensor, targets: Tensor, lengths: Lengths, blank: int, *, both_ways: bool) -> tuple[Tensor, Tensor]:
    """Return the log-probabilities of all arcs, and the normaliser (batch, frames, labels + 1) of every node's logits.

    The arcs are (diagonals, kind, directions, batch, labels + 1), placed where they arrive: kind 0 is a label, kind 1 a
    blank; direction 1 is the lattice turned around. After its last blank an utterance stays where it is, for free, so
    that all end on the last diagonal.
    """
    batch, frames, nodes, _ = logits.shape
    wide = torch.promote_types(logits.dtype, torch.float32)
    shape = (frames + nodes - 1, 2, 1 + both_ways, batch, nodes)
    arcs = torch.full(shape, _NEVER, dtype=torch.float64, device=logits.device)
    normaliser = torch.zeros(batch, frames, nodes, dtype=wide, device=logits.device)
    labels, blanks = arcs[:, 0, 0, :, 1:], arcs[:, 1, 0]
    labels_at, blanks_at = _by_frame(labels, frames), _by_frame(blanks, frames)
    for i, (length, count) in enumerate(lengths):
        block = logits[i, :length, : count + 1].to(wide)
        total = block.logsumexp(-1)
        normaliser[i, :length, : count + 1] = total
        total = _never_nan(total)
        blanks_at[i, :length, : count + 1] = block[..., blank] - total
        label = block[:, :count].gather(-1, _label_index(targets[i, :count], length)).squeeze(-1)
        labels_at[i, :length, :count] = label - total[:, :count]
        blanks[length + count :, i, count] = 0
    if both_ways:
        arcs[:, 1, 1] = blanks.flip(0, 2)
        arcs[:, 0, 1, :, 1:] = labels.flip(0, 2)
    return arcs, normaliser


def _variables(arcs: Tensor, lengths: Lengths) -> Tensor:
    """Return the log-probabilities of reaching each node: (diagonals + 1, directions, batch, 1 + labels + 1).

    Direction 0 holds Graves' forward variables α, direction 1 his backward variables β, turned around; a column that
    nothing reaches comes first.
    """
    diagonals, kinds, directions, batch, nodes = arcs.shape
    reached = arcs.new_full((diagonals + 1, directions, batch, nodes + 1), _NEVER)
    reached[0, 0, :, 1] = 0
    if directions == 2:
        for i, (_, count) in enumerate(lengths):
            reached[0, 1, i, nodes - count] = 0
    diagonal, direction, utterance, node = reached.stride()
    # A label arrives from one column to the left, a blank from the same: two overlapping views, one addition.
    sources = reached.as_strided(
        (diagonals, kinds, directions, batch, nodes), (diagonal, node, direction, utterance, node)
    )
    both = arcs.new_empty(kinds, directions, batch, nodes)
    by_label, by_blank = both
    for source, arc, target in zip(sources.unbind(), arcs.unbind(), reached[1:, :, :, 1:].unbind(), strict=True):
        torch.add(source, arc, out=both)
        torch.logaddexp(by_label, by_blank, out=target)
    return reached


def _posteriors(arcs: Tensor, variables: Tensor, total: Tensor, frames: int) -> Tensor:
    """Return the probabilities, given the text, of the blank and of the label after each node.

    The shape is (2, batch, frames, labels + 1), with 0 for the label after the last.
    """
    ahead = variables[:-1, 0, :, 1:] - total[:, None]
    behind = variables[:-1, 1, :, 1:].flip(0, 2)
    blanks = _by_frame(ahead + arcs[:, 1, 0] + behind, frames)
    labels = _by_frame(ahead[..., :-1] + arcs[:, 0, 0, :, 1:] + behind[..., 1:], frames)
    return torch.stack((blanks, torch.nn.functional.pad(labels, (0, 1), value=_NEVER))).exp_()


def _by_frame(skewed: Tensor, frames: int) -> Tensor:
    """Return (diagonals, batch, labels) as (batch, frames, labels): a view whose frame t, label u is diagonal t + u."""
    diagonal, utterance, label = skewed.stride()
    shape = (skewed.shape[1], frames, skewed.shape[2])
    return skewed.as_strided(shape, (utterance, diagonal, diagonal + label), skewed.storage_offset())


def _never_nan(normaliser: Tensor) -> Tensor:
    """Return the normaliser such that a node whose logits are all -inf gets probabilities of 0, not of 0 / 0."""
    return normaliser.masked_fill(normaliser == _NEVER, float("inf"))


def _label_index(target: Tensor, frames: int) -> Tensor:
    """Return the labels (labels,) as an index (frames, labels, 1) into logits."""
    return target[None, :, None].expand(frames, -1, 1)


def _checked(
    logits: Tensor, targets: Tensor, logit_lengths: Tensor, target_lengths: Tensor, blank: int
) -> list[tuple[int, int]]:
    """Return the frames and labels of each utterance; raise `DataError` for what contradicts the shapes."""
    if logits.dim() != 4 or not logits.is_floating_point():
        raise DataError(f"logits must be floats of (batch, frames, labels + 1, labels), not {_described(logits)}")
    batch, frames, nodes, labels = logits.shape
    expected = {"targets": (batch, nodes - 1), "logit_lengths": (batch,), "target_lengths": (batch,)}
    given = {"targets": targets, "logit_lengths": logit_lengths, "target_lengths": target_lengths}
    for name, shape in expected.items():
        if tuple(given[name].shape) != shape or given[name].is_floating_point():
            what = f"{name} must be whole numbers of shape {shape}, for logits {tuple(logits.shape)}"
            raise DataError(f"{what}, not {_described(given[name])}")
    if not 0 <= blank < labels:
        raise DataError(f"blank must be one of the {labels} labels, not {blank}")
    lengths = list(zip(logit_lengths.tolist(), target_lengths.tolist(), strict=True))
    for name, least, most, numbers in (
        ("logit_lengths", 1, frames, [length for length, _ in lengths]),
        ("target_lengths", 0, nodes - 1, [count for _, count in lengths]),
    ):
        if wrong := {i: number for i, number in enumerate(numbers) if not least <= number <= most}:
            raise DataError(f"{name} must be {least} to {most}; wrong, by utterance: {wrong}")
    used = torch.arange(nodes - 1) < target_lengths.cpu()[:, None]
    given_labels = targets.cpu()
    wrong_labels = used & ((given_labels < 0) | (given_labels >= labels) | (given_labels == blank))
    if wrong_labels.any():
        where = {i: given_labels[i][wrong].tolist() for i, wrong in enumerate(wrong_labels) if wrong.any()}
        raise DataError(f"targets must be 0 to {labels - 1} without the blank {blank}; wrong, by utterance: {where}")
    return lengths


def _described(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {tuple(tensor.shape)}"
