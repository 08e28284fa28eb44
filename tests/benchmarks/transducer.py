"""P12: the RNN-T loss with its gradient.

The goal is set against torchaudio's C++ kernel. Where its compiled part loads it takes part, and the floor and the
plain recursion are there for where it does not: beside a CPU build of torch, where the goal cannot be measured. (Such a
kernel once took 88 ms for this shape on two CPU cores; a figure from elsewhere, so no ratio here is formed with it.)
"""

from collections.abc import Callable, Iterator
from functools import partial

import torch
from figures import NO_WORSE, Figure, Goal, compared, interleaved, skipped, timed

from ticketkit_asr.objectives.rnnt_kernel import kernel_loads, torchaudio_rnnt_loss
from ticketkit_asr.objectives.rnnt_loss import rnnt_loss

Loss = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]

FLOOR = "log_softmax alone"
PLAIN = "autograd over diagonals"
KERNEL = "torchaudio's kernel"


def transducer_loss(quick: bool) -> Iterator[Figure]:
    """P12: loss and gradient of one batch, against torchaudio's kernel and against what any way to do it costs."""
    batch, frames, labels, size = (2, 10, 4, 8) if quick else (8, 100, 20, 64)
    logits = torch.randn(batch, frames, labels + 1, size)
    targets = torch.randint(1, size, (batch, labels))
    lengths = torch.full((batch,), frames), torch.full((batch,), labels)
    ways: dict[str, Loss] = {"ours": rnnt_loss, FLOOR: log_softmax_alone, PLAIN: plain_loss}
    if kernel_loads():
        ways[KERNEL] = torchaudio_rnnt_loss
    else:
        skipped(f"P12 against {KERNEL}", "its compiled part does not load beside this torch")
    jobs = {name: timed(partial(loss_and_gradient, way, logits, targets, *lengths)) for name, way in ways.items()}
    for job in jobs.values():
        job()  # whatever a first call sets up
    seconds = interleaved(jobs, 2 if quick else 21)
    shape = f"float32 logits {tuple(logits.shape)}, all utterances of full length"
    goals = {
        KERNEL: Goal(">=", 3, "times faster"),
        PLAIN: NO_WORSE,
        FLOOR: Goal("<=", 3, "of log_softmax, forward and backward"),
    }
    for rival, goal in goals.items():
        if rival in seconds:
            label = "P12 RNN-T loss and its gradient"
            yield compared(label, seconds["ours"], {rival: seconds[rival]}, shape=shape, goal=goal)


def loss_and_gradient(
    way: Loss, logits: torch.Tensor, targets: torch.Tensor, frames: torch.Tensor, labels: torch.Tensor
) -> torch.Tensor | None:
    """Return the gradient of the summed loss in the logits."""
    leaf = logits.detach().requires_grad_()
    way(leaf, targets, frames, labels).sum().backward()
    return leaf.grad


def log_softmax_alone(logits: torch.Tensor, *_: torch.Tensor) -> torch.Tensor:
    """Return one number an utterance that needs every log-probability: the least that a loss of them all can cost."""
    return logits.log_softmax(-1).flatten(1).sum(1)


def plain_loss(logits: torch.Tensor, targets: torch.Tensor, frames: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Return the loss by the forward recursion over diagonals, its gradient left to autograd; for full lengths only."""
    batch, most_frames, nodes, _ = logits.shape
    scores = logits.log_softmax(-1)
    blanks = skewed(scores[..., 0])  # (diagonals, batch, labels + 1)
    index = targets[:, None, :, None].expand(-1, most_frames, -1, -1)
    writes = skewed(torch.nn.functional.pad(scores[:, :, :-1].gather(-1, index).squeeze(-1), (0, 1), value=-torch.inf))
    reached = logits.new_full((batch, nodes), -torch.inf)
    reached[:, 0] = 0
    for blank, write in zip(blanks[:-1], writes[:-1], strict=True):
        by_label = torch.nn.functional.pad((reached + write)[:, :-1], (1, 0), value=-torch.inf)
        reached = torch.logaddexp(reached + blank, by_label)
    return -(reached[:, -1] + blanks[-1, :, -1])


def skewed(scores: torch.Tensor) -> torch.Tensor:
    """Return (batch, frames, labels + 1) as (diagonals, batch, labels + 1), -1e30 where a diagonal leaves the lattice.

    Not minus infinity: the derivative of `logaddexp` is NaN where both sides are.
    """
    _, frames, nodes = scores.shape
    padded = torch.nn.functional.pad(scores, (0, 0, 0, nodes), value=-1e30)  # (batch, frames + nodes, nodes)
    time = torch.arange(frames + nodes - 1)[:, None] - torch.arange(nodes)
    return padded[:, time.clamp(-1), torch.arange(nodes)].transpose(0, 1)
