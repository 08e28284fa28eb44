import gc
from collections import Counter
from dataclasses import dataclass, field
from itertools import product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ticketkit_asr.backbones.rnnt import Rnnt
from ticketkit_asr.backbones.rnnt_options import RnntOptions
from ticketkit_asr.objectives.objective import Emission
from ticketkit_asr.objectives.transducer_search import State, beam_search, greedy

BLANK = 0


def network(seed: int, *, labels: int = 3, sharpness: float = 3.0) -> Rnnt:
    """A tiny RNN-T with real LSTMs, its scores drawn apart so that texts differ in probability."""
    options = RnntOptions(stack=(1,), hidden=5, bidirectional=False, embedding=4, predictor=5, joint=6)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        module = Rnnt(bins=3, labels=labels, blank=BLANK, options=options).double().eval()
        with torch.no_grad():
            module.output.weight *= sharpness
            module.predictor.weight_ih_l0 *= sharpness
    return module


def spelled(written: list[list[Emission]]) -> list[list[int]]:
    return [[emission.label for emission in utterance] for utterance in written]


def heard(seed: int, *, batch: int, frames: int) -> Tensor:
    return torch.randn(batch, frames, 5, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def every_text(module: Rnnt, encoded: Tensor, max_symbols: int) -> dict[tuple[int, ...], float]:
    """The log-probability of every text: of all alignments with up to `max_symbols` labels a frame, summed."""
    labels = range(1, module.output.out_features)
    strings = [string for n in range(max_symbols + 1) for string in product(labels, repeat=n)]
    scores = {}
    for n in range(max_symbols * len(encoded) + 1):
        for text in product(labels, repeat=n):
            predicted, _ = module.predict(torch.tensor([[BLANK, *text]]))
            scores[text] = module.join(encoded, predicted[0, -1]).log_softmax(-1)  # (frames, labels)
    found: dict[tuple[int, ...], list[Tensor]] = {}
    for alignment in product(strings, repeat=len(encoded)):
        text: tuple[int, ...] = ()
        total = torch.zeros((), dtype=torch.float64)
        for frame, string in enumerate(alignment):
            for label in string:
                total = total + scores[text][frame, label]
                text = (*text, label)
            total = total + scores[text][frame, BLANK]
        found.setdefault(text, []).append(total)
    return {text: torch.stack(totals).logsumexp(0).item() for text, totals in found.items()}


@torch.no_grad()
@settings(max_examples=12)
@given(st.integers(0, 2**32), st.sampled_from([(1, 3), (2, 2), (3, 1)]))
def test_a_beam_as_wide_as_there_are_texts_finds_the_exact_probability_of_each(
    seed: int, size: tuple[int, int]
) -> None:
    frames, max_symbols = size
    module, encoded = network(seed), heard(seed, batch=1, frames=frames)
    expected = every_text(module, encoded[0], max_symbols)
    (found,) = beam_search(
        module, encoded, torch.tensor([frames]), blank=BLANK, width=len(expected), max_symbols=max_symbols
    )
    assert {h.labels: h.log_probability for h in found} == pytest.approx(expected, abs=1e-9)
    assert found[0].labels == max(expected, key=expected.__getitem__)
    assert [h.log_probability for h in found] == sorted((h.log_probability for h in found), reverse=True)


def test_the_best_text_may_have_no_good_alignment() -> None:
    """In each of 4 frames a blank has 0.6 and a label 0.4: silence is the best alignment, one label the best text."""
    step = torch.tensor([0.6, 0.4], dtype=torch.float64).log()

    class Once:
        """After one label there are only blanks."""

        def predict(self, labels: Tensor, state: State | None = None) -> tuple[Tensor, State]:
            read = (labels != BLANK).double()[..., None]
            return read, (read[:, :, 0].T[None],)

        def join(self, encoded: Tensor, predicted: Tensor) -> Tensor:
            only_blank = torch.tensor([0.0, -torch.inf], dtype=torch.float64)
            return torch.where(predicted > 0, only_blank, step)

    encoded, lengths = torch.zeros(1, 4, 1), torch.tensor([4])
    assert spelled(greedy(Once(), encoded, lengths, blank=BLANK)) == [[]]
    (found,) = beam_search(Once(), encoded, lengths, blank=BLANK, width=2)
    assert [h.labels for h in found] == [(1,), ()]
    silence = 0.6**4
    assert [torch.tensor(h.log_probability).exp().item() for h in found] == pytest.approx([1 - silence, silence])


@dataclass
class Script:
    """A transducer that follows alignments: at each frame of each utterance, the labels planned for it, then a blank.

    An encoder state is (utterance, frame), a predictor state the number of labels read.
    """

    plans: list[list[list[int]]]
    confidence: float = 60.0
    read: list[int] = field(default_factory=list)

    def predict(self, labels: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        self.read += labels.flatten().tolist()
        before = torch.zeros(1, len(labels), 1) if state is None else state[0]
        counts = before[0] + (labels != BLANK).float()
        return counts[..., None], (counts[None],)

    def join(self, encoded: Tensor, predicted: Tensor) -> Tensor:
        scores = torch.zeros(len(encoded), 4)
        for row, ((utterance, frame), (count,)) in enumerate(zip(encoded.tolist(), predicted.tolist(), strict=True)):
            plan = self.plans[int(utterance)]
            upto = [label for string in plan[: int(frame) + 1] for label in string]
            scores[row, upto[int(count)] if count < len(upto) else BLANK] = self.confidence
        return scores

    def hear(self) -> tuple[Tensor, Tensor]:
        """Encoder states and lengths, with the padding filled with NaN."""
        lengths = torch.tensor([len(plan) for plan in self.plans])
        encoded = torch.full((len(self.plans), int(lengths.max()), 2), float("nan"))
        for i, plan in enumerate(self.plans):
            for frame in range(len(plan)):
                encoded[i, frame] = torch.tensor([i, frame])
        return encoded, lengths

    @property
    def emissions(self) -> list[list[Emission]]:
        return [[Emission(t, label) for t, string in enumerate(plan) for label in string] for plan in self.plans]


plans = st.lists(
    st.lists(st.lists(st.integers(1, 3), max_size=3), min_size=1, max_size=5),
    min_size=1,
    max_size=3,
)


@given(plans, st.integers(1, 3))
def test_both_searches_read_any_alignment_that_the_network_is_sure_of(plans: list[list[list[int]]], width: int) -> None:
    script = Script(plans)
    assert greedy(script, *script.hear(), blank=BLANK, max_symbols=3) == script.emissions
    found = beam_search(script, *script.hear(), blank=BLANK, width=width, max_symbols=3)
    assert [hypotheses[0].emissions for hypotheses in found] == script.emissions
    assert [h[0].log_probability for h in found] == pytest.approx([0.0] * len(plans), abs=1e-9)
    assert all(len(hypotheses) <= width for hypotheses in found)


@torch.no_grad()
@given(st.integers(0, 2**32), st.lists(st.integers(1, 6), min_size=1, max_size=4), st.integers(1, 3))
def test_greedy_takes_the_best_arc_at_every_node(seed: int, lengths: list[int], max_symbols: int) -> None:
    module, encoded = network(seed, labels=4), heard(seed, batch=len(lengths), frames=max(lengths))
    expected = []
    for utterance, length in zip(encoded, lengths, strict=True):
        written: list[Emission] = []
        for frame, state in enumerate(utterance[:length]):
            for _ in range(max_symbols):
                predicted, _ = module.predict(torch.tensor([[BLANK, *(emission.label for emission in written)]]))
                label = int(module.join(state, predicted[0, -1]).argmax())
                if label == BLANK:
                    break
                written.append(Emission(frame, label))
        expected.append(written)
    assert greedy(module, encoded, torch.tensor(lengths), blank=BLANK, max_symbols=max_symbols) == expected


@torch.no_grad()
@settings(max_examples=25)
@given(st.integers(0, 2**32), st.lists(st.integers(1, 5), min_size=2, max_size=3), st.integers(1, 4))
def test_an_utterance_is_searched_the_same_alone(seed: int, lengths: list[int], width: int) -> None:
    module, encoded = network(seed, labels=4), heard(seed, batch=len(lengths), frames=max(lengths))
    together = beam_search(module, encoded, torch.tensor(lengths), blank=BLANK, width=width, max_symbols=2)
    for i, length in enumerate(lengths):
        (alone,) = beam_search(
            module, encoded[i : i + 1, :length], torch.tensor([length]), blank=BLANK, width=width, max_symbols=2
        )
        assert [h.labels for h in alone] == [h.labels for h in together[i]]
        assert [h.log_probability for h in alone] == pytest.approx([h.log_probability for h in together[i]], abs=1e-9)


@torch.no_grad()
def test_a_wider_beam_never_found_a_less_probable_text_here() -> None:
    """No law of beam search, but of these networks; and some of them need more than the narrowest beam."""
    gains = []
    for seed in range(8):
        module, encoded, lengths = network(seed, labels=4), heard(seed, batch=3, frames=6), torch.tensor([6, 4, 5])
        best = [
            [h[0].log_probability for h in beam_search(module, encoded, lengths, blank=BLANK, width=w, max_symbols=2)]
            for w in (1, 4, 16)
        ]
        for narrow, wider, widest in zip(*best, strict=True):
            assert narrow <= wider + 1e-9 <= widest + 2e-9
            gains.append(widest - narrow)
    assert max(gains) > 0.1


def test_equal_texts_are_ordered_by_their_labels() -> None:
    script = Script([[[1], [2]]], confidence=0.0)  # at every node all 4 labels have 1/4
    encoded, lengths = script.hear()
    (found,) = beam_search(script, encoded, lengths, blank=BLANK, width=100, max_symbols=2)
    assert found == sorted(found, key=lambda h: (-h.log_probability, h.labels))
    assert Counter(len(h.labels) for h in found) == {n: 3**n for n in range(4)} | {4: 100 - 40}
    (narrow,) = beam_search(script, encoded, lengths, blank=BLANK, width=3, max_symbols=2)
    assert [h.labels for h in narrow] == [(), (1,), (2,)]


def test_greedy_takes_the_lowest_of_equal_labels() -> None:
    script = Script([[[1], [2]]], confidence=0.0)
    assert spelled(greedy(script, *script.hear(), blank=BLANK)) == [[]]


@pytest.mark.parametrize("max_symbols", [1, 4])
def test_a_network_that_never_says_blank_writes_no_more_than_the_bound(max_symbols: int) -> None:
    class Chatter(Script):
        def join(self, encoded: Tensor, predicted: Tensor) -> Tensor:
            scores = torch.zeros(len(encoded), 4)
            scores[:, 2] = 30.0
            return scores

    script = Chatter([[[]] * 40, [[]] * 7])
    written = [[2] * 40 * max_symbols, [2] * 7 * max_symbols]
    assert spelled(greedy(script, *script.hear(), blank=BLANK, max_symbols=max_symbols)) == written
    for hypotheses in beam_search(script, *script.hear(), blank=BLANK, width=2, max_symbols=max_symbols):
        assert all(len(h.labels) <= 40 * max_symbols for h in hypotheses)


def test_the_beam_reads_every_text_once_for_all_utterances_and_alignments() -> None:
    script = Script([[[], [], []], [[], [], []]], confidence=0.0)
    beam_search(script, *script.hear(), blank=BLANK, width=1000, max_symbols=1)
    texts_that_go_on = 1 + 3 + 9 + 27  # those of up to 3 labels
    assert len(script.read) == texts_that_go_on


def test_labels_of_probability_zero_are_in_no_hypothesis() -> None:
    class Mute(Script):
        def join(self, encoded: Tensor, predicted: Tensor) -> Tensor:
            return torch.tensor([0.0, -torch.inf, 0.0, -torch.inf]).expand(len(encoded), 4)

    script = Mute([[[], []]])
    (found,) = beam_search(script, *script.hear(), blank=BLANK, width=1000, max_symbols=1)
    assert sorted(h.labels for h in found) == [(), (2,), (2, 2)]
    assert [h.log_probability for h in found] == pytest.approx(
        [torch.tensor(p).log().item() for p in (0.25, 0.25, 0.0625)], abs=1e-6
    )


@dataclass
class Choices:
    """A transducer that finds all labels equally probable which `allowed` lists by (frame, text), else only a blank."""

    allowed: dict[tuple[int, tuple[int, ...]], list[int]]

    def predict(self, labels: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        """The text as a number: its labels are the digits."""
        before = torch.zeros(1, len(labels), 1) if state is None else state[0]
        number = 10 * before[0] + labels
        return number[..., None], (number[None],)

    def join(self, encoded: Tensor, predicted: Tensor) -> Tensor:
        scores = torch.full((len(encoded), 4), -torch.inf)
        for row, (frame, number) in enumerate(zip(encoded[:, 0].tolist(), predicted[:, 0].tolist(), strict=True)):
            text = tuple(int(digit) for digit in str(int(number)) if digit != "0")
            scores[row, self.allowed.get((int(frame), text), [BLANK])] = 0.0
        return scores

    def search(self, *, frames: int, width: int) -> list[tuple[int, ...]]:
        encoded = torch.arange(float(frames)).view(1, frames, 1)
        (found,) = beam_search(self, encoded, torch.tensor([frames]), blank=BLANK, width=width, max_symbols=1)
        return [h.labels for h in found]


def test_equal_texts_are_ordered_by_their_labels_however_the_search_came_to_them() -> None:
    choices = Choices({(0, ()): [0, 1, 2, 3], (0, (1,)): [0, 3], (1, (2,)): [0, 3]})  # 1 and 2 have 1/8 in the end
    assert choices.search(frames=1, width=9)[:3] == [(), (2,), (3,)]
    assert choices.search(frames=2, width=9) == [(), (3,), (1,), (2,), (2, 3)]


def test_an_extension_as_probable_as_the_last_of_the_beam_is_not_given_up() -> None:
    choices = Choices({(0, ()): [1, 2], (1, (1,)): [0, 1], (1, (2,)): [0, 3]})
    assert choices.search(frames=2, width=9) == [(1,), (1, 1), (2,), (2, 3)]  # 1/4 each
    assert choices.search(frames=2, width=2) == [(1,), (1, 1)]


@pytest.mark.parametrize(
    ("frame", "allowed"),
    [
        (0, {(0, ()): [0, 1], (1, ()): [0, 1, 2]}),  # label 1 at frame 0: 1/2, at frame 1: 1/6
        (1, {(0, ()): [0, 1], (0, (1,)): [0, 3], (1, ()): [1]}),  # 1/4 and 1/2
    ],
)
def test_of_merged_histories_the_more_probable_says_where_labels_were_written(
    frame: int, allowed: dict[tuple[int, tuple[int, ...]], list[int]]
) -> None:
    encoded = torch.arange(2.0).view(1, 2, 1)
    (found,) = beam_search(Choices(allowed), encoded, torch.tensor([2]), blank=BLANK, width=9, max_symbols=1)
    assert next(h.emissions for h in found if h.labels == (1,)) == [Emission(frame, 1)]


def test_a_search_goes_on_where_nothing_is_possible() -> None:
    choices = Choices({(0, ()): [1], (0, (1,)): [1]})
    assert choices.search(frames=3, width=2) == [()]


def test_what_a_search_holds_does_not_grow_with_the_utterance() -> None:
    class Wide(Script):
        """Says label 2 and a blank in turn, and counts the predictor states alive in the end, by their width."""

        alive = 0

        def predict(self, labels: Tensor, state: State | None = None) -> tuple[Tensor, State]:
            outputs, (counts,) = super().predict(labels, None if state is None else (state[0][..., :1],))
            return outputs, (counts.expand(1, len(labels), 77).clone(),)

        def join(self, encoded: Tensor, predicted: Tensor) -> Tensor:
            if encoded[0, 1] == len(self.plans[0]) - 1:  # in the last frame
                states = (x for x in gc.get_objects() if type(x) is Tensor and x.shape[-1:] == (77,))
                self.alive = max(self.alive, sum(x.numel() // 77 for x in states))
            return super().join(encoded, predicted)

    short, long = Wide([[[2], []] * 3]), Wide([[[2], []] * 12])
    for script in (short, long):
        (found,) = beam_search(script, *script.hear(), blank=BLANK, width=2, max_symbols=2)
        assert [found[0].emissions] == script.emissions
    assert 0 < long.alive == short.alive


def test_decoding_records_no_gradients_and_leaves_the_network_as_it_was() -> None:
    class Watched(Rnnt):
        recorded = False

        def join(self, encoded: Tensor, predicted: Tensor) -> Tensor:
            scores = super().join(encoded, predicted)
            self.recorded |= scores.requires_grad
            return scores

    module = network(0)
    module.__class__ = Watched
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    encoded = heard(0, batch=1, frames=3)
    assert module.join(encoded[0], torch.zeros(3, 5, dtype=torch.float64)).requires_grad
    module.recorded = False
    greedy(module, encoded, torch.tensor([3]), blank=BLANK)
    beam_search(module, encoded, torch.tensor([3]), blank=BLANK, width=3)
    assert not module.recorded
    assert all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())
