from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from torch import Tensor

from ticketkit import DataError
from ticketkit_asr.objectives.rnnt_kernel import kernel_loads, kernel_takes, torchaudio_rnnt_loss
from ticketkit_asr.objectives.rnnt_loss import rnnt_loss

INF = float("inf")


@dataclass(frozen=True)
class Batch:
    logits: Tensor
    targets: Tensor
    frames: Tensor
    labels: Tensor
    blank: int

    def loss(self, logits: Tensor | None = None) -> Tensor:
        logits = self.logits if logits is None else logits
        return rnnt_loss(logits, self.targets, self.frames, self.labels, self.blank)

    def loss_and_gradient(self, logits: Tensor | None = None) -> tuple[Tensor, Tensor]:
        logits = (self.logits if logits is None else logits).clone().requires_grad_()
        loss = self.loss(logits)
        loss.sum().backward()
        assert logits.grad is not None
        return loss.detach(), logits.grad

    def alone(self, i: int) -> "Batch":
        """The i-th utterance without batch mates and padding."""
        frames, labels = int(self.frames[i]), int(self.labels[i])
        return Batch(
            logits=self.logits[i : i + 1, :frames, : labels + 1],
            targets=self.targets[i : i + 1, :labels],
            frames=self.frames[i : i + 1],
            labels=self.labels[i : i + 1],
            blank=self.blank,
        )


def make(
    frames: list[int],
    labels: list[int],
    *,
    size: int = 5,
    blank: int = 0,
    seed: int = 0,
    room: tuple[int, int] = (0, 0),
) -> Batch:
    """Random float64 logits and targets for utterances of these lengths, padded further by `room`."""
    generator = torch.Generator().manual_seed(seed)
    most_frames, most_labels = max(frames) + room[0], max(labels) + room[1]
    logits = torch.randn(len(frames), most_frames, most_labels + 1, size, generator=generator, dtype=torch.float64)
    targets = torch.randint(1, size, (len(frames), most_labels), generator=generator)
    targets = (blank + targets) % size  # never the blank
    return Batch(2 * logits, targets, torch.tensor(frames), torch.tensor(labels), blank)


@st.composite
def batches(draw: st.DrawFn) -> Batch:
    lengths = draw(st.lists(st.tuples(st.integers(1, 5), st.integers(0, 3)), min_size=1, max_size=3))
    size = draw(st.integers(2, 5))
    return make(
        [frames for frames, _ in lengths],
        [labels for _, labels in lengths],
        size=size,
        blank=draw(st.integers(0, size - 1)),
        seed=draw(st.integers(0, 2**32)),
        room=draw(st.sampled_from([(0, 0), (2, 1)])),
    )


def alignments(frames: int, labels: int) -> Iterator[list[tuple[int, int, bool]]]:
    """Every way to write `labels` in `frames`: steps (frame, labels written, whether a label follows)."""
    for writes in combinations(range(frames - 1 + labels), labels):  # the last step is a blank
        steps, frame, written = [], 0, 0
        for step in range(frames + labels):
            steps.append((frame, written, step in writes))
            frame, written = (frame, written + 1) if step in writes else (frame + 1, written)
        yield steps


def enumerated(batch: Batch, scores: Tensor) -> Tensor:
    """The loss of each utterance by adding up every alignment; `scores` are log-probabilities."""
    losses = []
    for i, (frames, labels) in enumerate(zip(batch.frames.tolist(), batch.labels.tolist(), strict=True)):
        target = [*batch.targets[i].tolist(), None]
        arcs = torch.tensor(
            [
                [(t, u, target[u] if writes else batch.blank) for t, u, writes in steps]
                for steps in alignments(frames, labels)
            ]
        )
        losses.append(-scores[i][arcs.unbind(-1)].sum(1).logsumexp(0))
    return torch.stack(losses)


@given(batches())
@example(make([1], [0]))
@example(make([1, 3], [3, 0]))
@example(make([4, 1, 2], [0, 0, 0], room=(0, 2)))
def test_loss_and_gradient_are_those_of_the_sum_over_all_alignments(batch: Batch) -> None:
    logits = batch.logits.clone().requires_grad_()
    expected = enumerated(batch, logits.log_softmax(-1))
    expected.sum().backward()
    loss, gradient = batch.loss_and_gradient()
    torch.testing.assert_close(loss, expected.detach(), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(gradient, logits.grad, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("batch", [make([4, 2, 3], [2, 3, 0]), make([1], [2], blank=4), make([3], [0])])
def test_the_gradient_is_the_slope_of_the_loss(batch: Batch) -> None:
    assert torch.autograd.gradcheck(batch.loss, batch.logits.clone().requires_grad_())


@given(batches(), st.floats(0.05, 0.6), st.integers(0, 2**32))
def test_labels_that_cannot_be_written_have_no_part_in_loss_or_gradient(batch: Batch, rate: float, seed: int) -> None:
    never = torch.rand(batch.logits.shape, generator=torch.Generator().manual_seed(seed)) < rate
    logits = batch.logits.masked_fill(never, -INF)
    closed = never.all(-1)  # nodes that no alignment can leave
    differentiable = logits.masked_fill(closed[..., None], 0).requires_grad_()
    expected = enumerated(batch, differentiable.log_softmax(-1).masked_fill(closed[..., None], -INF))
    loss, gradient = batch.loss_and_gradient(logits)
    torch.testing.assert_close(loss, expected.detach(), rtol=1e-12, atol=1e-12)
    possible = expected < INF
    expected[possible].sum().backward()
    torch.testing.assert_close(gradient[possible], differentiable.grad[possible], rtol=1e-10, atol=1e-12)
    assert not gradient[never].any()
    assert not gradient[~possible].any()


def test_what_is_impossible_costs_infinity_and_teaches_nothing() -> None:
    batch = make([3, 3, 3], [2, 2, 2])
    logits = batch.logits.clone()
    logits[0, 2, 2, batch.blank] = -INF  # the last arc of every alignment
    logits[1, 0, 0] = -INF  # nothing at all may follow the start
    loss, gradient = batch.loss_and_gradient(logits)
    assert loss[:2].tolist() == [INF, INF]
    assert not gradient[:2].any()
    assert torch.equal(loss[2], batch.loss()[2])
    assert gradient[2].any()


def test_overflow_is_an_infinite_loss_and_nan_stays_in_its_utterance() -> None:
    batch = make([3, 3, 3], [2, 2, 2])
    logits = batch.logits.clone()
    logits[0, 1, 1, 3] = INF
    logits[1, 1, 1, 3] = float("nan")
    loss, gradient = batch.loss_and_gradient(logits)
    assert loss[0] == INF
    assert not gradient[0].any()
    assert loss[1].isnan()
    assert gradient[1].isnan().any()
    assert torch.equal(loss[2], batch.loss()[2])
    assert gradient[2].isfinite().all()


@given(batches(), st.sampled_from([float("nan"), INF, -INF, 1e30]), st.sampled_from([-7, 0, 10**6]))
def test_what_the_padding_holds_changes_no_bit(batch: Batch, filling: float, label: int) -> None:
    logits, targets = batch.logits.clone(), batch.targets.clone()
    for i, (frames, labels) in enumerate(zip(batch.frames.tolist(), batch.labels.tolist(), strict=True)):
        logits[i, frames:], logits[i, :, labels + 1 :] = filling, filling
        targets[i, labels:] = label
    spoilt = Batch(logits, targets, batch.frames, batch.labels, batch.blank)
    for ours, expected in zip(spoilt.loss_and_gradient(), batch.loss_and_gradient(), strict=True):
        assert torch.equal(ours, expected)


@given(batches())
def test_an_utterance_costs_the_same_alone_and_its_padding_has_no_gradient(batch: Batch) -> None:
    loss, gradient = batch.loss_and_gradient()
    for i, (frames, labels) in enumerate(zip(batch.frames.tolist(), batch.labels.tolist(), strict=True)):
        alone, alone_gradient = batch.alone(i).loss_and_gradient()
        torch.testing.assert_close(loss[i], alone[0], rtol=1e-13, atol=1e-13)
        torch.testing.assert_close(gradient[i, :frames, : labels + 1], alone_gradient[0], rtol=1e-11, atol=1e-13)
        assert not gradient[i, frames:].any()
        assert not gradient[i, :, labels + 1 :].any()


@given(batches())
def test_every_node_only_moves_probability_between_its_labels(batch: Batch) -> None:
    _, gradient = batch.loss_and_gradient()
    torch.testing.assert_close(gradient.sum(-1), torch.zeros_like(gradient[..., 0]), rtol=0, atol=1e-12)


@given(batches(), st.data())
def test_gradients_are_weighted_by_utterance(batch: Batch, data: st.DataObject) -> None:
    weights = data.draw(st.lists(st.sampled_from([-2.0, 0.0, 1.0, 4.0]), min_size=3, max_size=3))
    weight = torch.tensor(weights[: len(batch.frames)], dtype=torch.float64)
    logits = batch.logits.clone().requires_grad_()
    (batch.loss(logits) * weight).sum().backward()
    _, gradient = batch.loss_and_gradient()
    torch.testing.assert_close(logits.grad, gradient * weight[:, None, None, None], rtol=1e-12, atol=0)


@given(batches())
def test_the_loss_is_the_same_where_no_gradient_is_wanted_and_for_strided_logits(batch: Batch) -> None:
    loss, gradient = batch.loss_and_gradient()
    assert torch.equal(batch.loss(), loss)
    strided = batch.logits.transpose(1, 2).contiguous().transpose(1, 2)
    for ours, expected in zip(batch.loss_and_gradient(strided), (loss, gradient), strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-13, atol=1e-13)


def test_long_utterances_are_exact_to_the_last_digits_of_float32() -> None:
    batch = make([400, 310, 55], [80, 7, 70], size=30)
    expected, slope = batch.loss_and_gradient()
    loss, gradient = batch.loss_and_gradient(batch.logits.float())
    assert loss.dtype == gradient.dtype == torch.float32
    torch.testing.assert_close(loss.double(), expected, rtol=2e-7, atol=0)
    torch.testing.assert_close(gradient.double(), slope, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_logits_are_computed_in_float32(dtype: torch.dtype) -> None:
    batch = make([6, 4], [3, 2])
    logits = batch.logits.to(dtype)
    loss, gradient = batch.loss_and_gradient(logits)
    expected, slope = batch.loss_and_gradient(logits.float())
    assert loss.dtype == torch.float32
    assert gradient.dtype == dtype
    assert torch.equal(loss, expected)
    assert torch.equal(gradient, slope.to(dtype))


def test_until_backward_nothing_of_the_size_of_the_logits_is_kept_but_the_logits() -> None:
    batch = make([30, 20], [9, 5], size=64)
    logits = batch.logits.clone().requires_grad_()
    kept: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor):
        loss = batch.loss(logits)
    own = [tensor for tensor in kept if tensor.data_ptr() == logits.data_ptr()]
    assert len(own) == 1
    assert sum(tensor.numel() for tensor in kept) - logits.numel() < logits.numel() / 10
    loss.sum().backward()


def test_whole_numbers_of_any_width_are_lengths_and_labels() -> None:
    batch = make([4, 2], [2, 3])
    narrow = rnnt_loss(batch.logits, batch.targets.int(), batch.frames.int(), batch.labels.to(torch.int16))
    assert torch.equal(narrow, batch.loss())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"logits": torch.zeros(2, 4, 5)}, r"logits must be floats .*, not float32 \(2, 4, 5\)"),
        ({"logits": torch.zeros(2, 4, 4, 5, dtype=torch.int64)}, "logits must be floats .*, not int64"),
        ({"targets": torch.ones(2, 4, dtype=torch.int64)}, r"targets must be whole numbers of shape \(2, 3\)"),
        ({"targets": torch.ones(2, 3)}, r"targets must be whole .*, not float32 \(2, 3\)"),
        ({"logit_lengths": torch.tensor([4])}, r"logit_lengths must be whole numbers of shape \(2,\)"),
        ({"logit_lengths": torch.tensor([4, 0])}, r"logit_lengths must be 1 to 4; wrong, by utterance: \{1: 0\}"),
        ({"logit_lengths": torch.tensor([5, 9])}, r"\{0: 5, 1: 9\}"),
        ({"target_lengths": torch.tensor([2, 4])}, r"target_lengths must be 0 to 3; wrong, by utterance: \{1: 4\}"),
        ({"target_lengths": torch.tensor([-1, 3])}, r"\{0: -1\}"),
        ({"targets": torch.tensor([[1, 5, 9], [2, 1, 1]])}, r"0 to 4 without the blank 0; .*\{0: \[5\]\}"),
        ({"targets": torch.tensor([[1, 2, 9], [2, 0, -1]])}, r"wrong, by utterance: \{1: \[0, -1\]\}"),
        ({"blank": 5}, "blank must be one of the 5 labels, not 5"),
        ({"blank": -1}, "not -1"),
    ],
)
def test_contradictions_are_refused_by_name(change: dict[str, Tensor | int], message: str) -> None:
    batch = make([4, 2], [2, 3])
    arguments = {
        "logits": batch.logits,
        "targets": torch.tensor([[1, 2, 0], [3, 4, 1]]),
        "logit_lengths": batch.frames,
        "target_lengths": batch.labels,
        "blank": 0,
    }
    rnnt_loss(**arguments)
    with pytest.raises(DataError, match=message):
        rnnt_loss(**{**arguments, **change})


def test_on_a_cpu_the_loss_is_ours() -> None:
    assert not kernel_takes(torch.zeros(1, 1, 1, 2))


@pytest.mark.skipif(not kernel_loads(), reason="torchaudio's compiled part does not load beside this torch")
def test_torchaudios_kernel_gives_the_same_loss_and_gradient() -> None:
    batch = make([30, 21, 5], [9, 0, 7], size=30, room=(3, 2))
    logits = batch.logits.float().requires_grad_()
    theirs = torchaudio_rnnt_loss(logits, batch.targets, batch.frames, batch.labels, batch.blank)
    theirs.sum().backward()
    loss, gradient = batch.loss_and_gradient(batch.logits.float())
    torch.testing.assert_close(theirs.detach(), loss, rtol=1e-5, atol=0)
    torch.testing.assert_close(logits.grad, gradient, rtol=1e-3, atol=1e-4)
