"""Attention against a reference of plain loops, and the shapes it is made of."""

import math
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from ticketkit import IMP, Plugins, Scope
from ticketkit.testing import plugin_installed
from ticketkit_asr.backbones.attention import (
    FeedForward,
    RelativeSelfAttention,
    SelfAttention,
    in_groups,
    joined_heads,
    sinusoids,
    skewed,
    split_heads,
)
from ticketkit_asr.backbones.cnn_lstm import valid_frames

HEADS_PLUGIN = Path(__file__).parents[2] / "plugins" / "ticketkit-heads"
SIZE = 2

sizes = st.integers(1, 3)


def sinusoid(position: int, dim: int) -> list[float]:
    """Return sine and cosine of a position at each wavelength, by the formula of Vaswani et al. 2017."""
    rates = [10_000 ** (-2 * i / dim) for i in range(dim // 2)]
    return [function(position * rate) for rate in rates for function in (math.sin, math.cos)]


def projected(layer: nn.Linear, x: Tensor, heads: int) -> Tensor:
    """Return (frames, heads, head size)."""
    return layer(x).reshape(len(x), heads, -1)


def attended(scores: list[list[Tensor]], values: list[Tensor]) -> list[Tensor]:
    """Return for every row of scores the mean of the values, weighted by the softmax of the row."""
    result = []
    for row in scores:
        weights = torch.stack(row).softmax(0)
        result.append(sum((w * v for w, v in zip(weights, values, strict=True)), torch.zeros_like(values[0])))
    return result


def plain(attention: SelfAttention, x: Tensor) -> Tensor:
    """Return what attention makes of one utterance (frames, dim), computed frame by frame."""
    heads = attention.num_heads
    q, k, v = (projected(layer, x, heads) for layer in (attention.q_proj, attention.k_proj, attention.v_proj))
    outputs = []
    for head in range(heads):
        scores = [[a @ b / math.sqrt(q.shape[2]) for b in k[:, head]] for a in q[:, head]]
        outputs.append(torch.stack(attended(scores, list(v[:, head]))))
    return attention.out_proj(torch.stack(outputs, 1).flatten(1))


def relative(attention: RelativeSelfAttention, x: Tensor) -> Tensor:
    """Return what relative attention makes of one utterance (frames, dim), computed group by group."""
    heads, group, (frames, dim) = attention.num_heads, attention.group, x.shape
    q, k, v = (projected(layer, x, heads) for layer in (attention.q_proj, attention.k_proj, attention.v_proj))
    u, w = (bias.reshape(heads, -1) for bias in (attention.content_bias, attention.position_bias))

    def position(distance: int) -> Tensor:
        return projected(attention.pos_proj, torch.tensor([sinusoid(distance, dim)], dtype=x.dtype), heads)[0]

    def score(head: int, i: int, j: int) -> Tensor:
        total = torch.zeros((), dtype=x.dtype)
        for member in range(group):
            asking, asked = i * group + member, j * group + member
            if asking < frames:
                distance = (j - i) * group + member - group // 2
                total = total + (q[asking, head] + w[head]) @ position(distance)[head]
                if asked < frames:
                    total = total + (q[asking, head] + u[head]) @ k[asked, head]
        return total / math.sqrt(group * dim / heads)

    groups = math.ceil(frames / group)
    padded = torch.cat([v, v.new_zeros(groups * group - frames, *v.shape[1:])])
    outputs = []
    for head in range(heads):
        scores = [[score(head, i, j) for j in range(groups)] for i in range(groups)]
        values = [padded[j * group : (j + 1) * group, head].flatten() for j in range(groups)]
        outputs.append(torch.cat([out.unflatten(0, (group, -1)) for out in attended(scores, values)])[:frames])
    return attention.out_proj(torch.stack(outputs, 1).flatten(1))


@st.composite
def batches(draw: st.DrawFn) -> tuple[int, Tensor, Tensor]:
    """Return a number of heads, (batch, frames, dim) in float64, and the length of each utterance."""
    heads = draw(sizes)
    lengths = torch.tensor(draw(st.lists(st.integers(1, 7), min_size=1, max_size=3)))
    frames = int(lengths.max()) + draw(st.integers(0, 3))
    return heads, torch.randn(len(lengths), frames, SIZE * heads, dtype=torch.float64), lengths


@settings(max_examples=30)
@given(batches())
def test_attention_equals_its_formula_on_each_utterance_alone(case: tuple[int, Tensor, Tensor]) -> None:
    heads, x, lengths = case
    attention = SelfAttention(SIZE * heads, heads).double()
    output = attention(x, valid_frames(lengths, x.shape[1]))
    for utterance, length, got in zip(x, lengths, output, strict=True):
        torch.testing.assert_close(got[:length], plain(attention, utterance[:length]), atol=1e-12, rtol=1e-12)


@settings(max_examples=30)
@given(batches(), sizes)
def test_relative_attention_equals_its_formula_on_each_utterance_alone(
    case: tuple[int, Tensor, Tensor], group: int
) -> None:
    heads, x, lengths = case
    attention = RelativeSelfAttention(SIZE * heads, heads, group=group).double()
    output = attention(x, valid_frames(lengths, x.shape[1]))
    for utterance, length, got in zip(x, lengths, output, strict=True):
        expected = relative(attention, utterance[:length])
        torch.testing.assert_close(got[:length], expected, atol=1e-6, rtol=1e-6)  # sinusoids are in float32


@pytest.mark.parametrize("group", [1, 3])
def test_gradients_of_relative_attention_are_those_of_its_formula(group: int) -> None:
    attention = RelativeSelfAttention(4, 2, group=group).double()
    x = torch.randn(1, 7, 4, dtype=torch.float64)
    attention(x, torch.ones(1, 7, dtype=torch.bool)).square().sum().backward()
    got = {name: parameter.grad for name, parameter in attention.named_parameters()}
    attention.zero_grad()
    relative(attention, x[0]).square().sum().backward()
    for name, parameter in attention.named_parameters():
        torch.testing.assert_close(got[name], parameter.grad, atol=1e-5, rtol=1e-5)


def test_only_relative_attention_hears_the_order_of_frames() -> None:
    x, valid = torch.randn(1, 6, 4, dtype=torch.float64), torch.ones(1, 6, dtype=torch.bool)
    deaf, hearing = SelfAttention(4, 2).double(), RelativeSelfAttention(4, 2).double()
    torch.testing.assert_close(deaf(x.flip(1), valid), deaf(x, valid).flip(1))
    assert not torch.allclose(hearing(x.flip(1), valid), hearing(x, valid).flip(1), atol=1e-3)


def test_relative_attention_knows_distances_alone() -> None:
    """An utterance that starts later sounds the same."""
    attention = RelativeSelfAttention(4, 2).double()
    x, other = torch.randn(1, 5, 4, dtype=torch.float64), torch.randn(1, 3, 4, dtype=torch.float64)
    soon = attention(torch.cat([x, other], dim=1), torch.tensor([[True] * 5 + [False] * 3]))[:, :5]
    late = attention(torch.cat([other, x], dim=1), torch.tensor([[False] * 3 + [True] * 5]))[:, 3:]
    torch.testing.assert_close(late, soon)


@given(st.integers(1, 9), st.integers(1, 3))
def test_skewed_scores_are_those_of_the_distance(frames: int, batch: int) -> None:
    scores = torch.arange(batch * frames * 2 * frames).reshape(batch, frames, 2 * frames)
    expected = torch.tensor(
        [[[row[i][k - i + frames - 1] for k in range(frames)] for i in range(frames)] for row in scores.tolist()]
    )
    assert torch.equal(skewed(scores), expected)


@given(sizes, sizes, sizes, sizes, sizes)
def test_heads_split_and_joined_are_what_they_were(batch: int, groups: int, group: int, heads: int, size: int) -> None:
    x = torch.arange(batch * groups * group * heads * size).reshape(batch, groups * group, heads * size)
    split = split_heads(x, heads, group)
    assert split.shape == (batch, heads, groups, group * size)
    assert torch.equal(joined_heads(split, group), x)
    first_head = x[:, :, :size].reshape(batch, groups, group * size)
    assert torch.equal(split[:, 0], first_head)


@given(st.integers(1, 4), st.integers(1, 9), st.integers(1, 9))
def test_frames_fill_up_groups_and_are_silent_beyond_the_utterance(group: int, frames: int, length: int) -> None:
    length = min(length, frames)
    x = torch.ones(1, frames, 2)
    grouped = in_groups(x, valid_frames(torch.tensor([length]), frames), group)
    assert grouped.shape[1] % group == 0
    assert 0 <= grouped.shape[1] - frames < group
    if group == 1:
        assert grouped is x
    else:
        assert grouped[0, :, 0].tolist() == [1.0] * length + [0.0] * (grouped.shape[1] - length)


def test_sinusoids_are_those_of_the_formula() -> None:
    positions = [-700, -3, 0, 1, 2, 999]
    expected = torch.tensor([sinusoid(position, 8) for position in positions])
    torch.testing.assert_close(sinusoids(torch.tensor(positions), 8), expected, atol=1e-4, rtol=0)


def test_biases_are_drawn_by_glorots_rule_and_drawn_anew_without_the_projections() -> None:
    attention = RelativeSelfAttention(64, 4)
    before = {name: tensor.clone() for name, tensor in attention.state_dict().items()}
    bound = math.sqrt(6 / (4 + 16))
    for bias in (attention.content_bias, attention.position_bias):
        assert bias.abs().max() <= bound
        assert bias.abs().max() > 0.9 * bound
    attention.reset_parameters()
    changed = {name for name, tensor in attention.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed == {"content_bias", "position_bias"}
    assert not torch.equal(attention.content_bias, attention.position_bias)


def test_every_weight_of_attention_is_in_scope_and_its_biases_are_not() -> None:
    names = {f"{layer}_proj.weight" for layer in ("q", "k", "v", "pos", "out")}
    assert set(Scope.of(RelativeSelfAttention(4, 2)).names) == names


def test_feed_forward_layers_look_at_each_frame_alone() -> None:
    layer, x = FeedForward(4, expansion=3, dropout=0.0), torch.randn(2, 5, 4)
    alone = torch.stack([layer(frame) for frame in x.flatten(0, 1)]).view_as(x)
    torch.testing.assert_close(layer(x), alone)
    assert layer.expand.out_features == 12


def test_feed_forward_layers_are_linear_swish_linear_with_dropout_behind_each() -> None:
    layer = FeedForward(1000, expansion=1, dropout=0.5)
    nn.init.zeros_(layer.expand.weight)
    nn.init.ones_(layer.expand.bias)
    nn.init.eye_(layer.contract.weight)
    nn.init.zeros_(layer.contract.bias)
    swish = 1 / (1 + math.exp(-1))
    values, counts = layer(torch.randn(1, 1, 1000)).unique(return_counts=True)
    torch.testing.assert_close(values, torch.tensor([0.0, 4 * swish]))  # what is left is doubled twice
    assert counts[1].item() == pytest.approx(250, abs=60)


@pytest.fixture(scope="module")
def head_plugin(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Plugins]:
    """The plugins of an environment where the granularity for heads is installed."""
    if not (HEADS_PLUGIN / "pyproject.toml").exists():
        pytest.skip(f"{HEADS_PLUGIN} is not there: only the repository carries the example plugins")
    with plugin_installed(HEADS_PLUGIN, tmp_path_factory.mktemp("site")), pytest.MonkeyPatch.context() as patch:
        patch.setenv("TICKETKIT_LOAD_PLUGINS", "heads")
        yield Plugins.discover()


@pytest.mark.parametrize("group", [1, 2])
def test_a_head_pruned_as_a_unit_is_as_good_as_gone(head_plugin: Plugins, group: int) -> None:
    attention = RelativeSelfAttention(6, 3, group=group)
    scope = {"include": [f"{layer}_proj.weight" for layer in ("q", "k", "v", "out")]}
    imp = IMP(attention, rate=1 / 3, rounds=1, granularity="hf_head", scope=scope, plugins=head_plugin)
    for _ in imp:
        pass
    mask = imp.tickets[1].mask
    gone = [head for head in range(3) if not mask["q_proj.weight"][2 * head : 2 * head + 2].any()]
    assert len(gone) == 1
    x, valid = torch.randn(1, 5, 6), torch.ones(1, 5, dtype=torch.bool)
    before = attention(x, valid)
    with torch.no_grad():  # whatever else belongs to the head says nothing any more
        rows = slice(2 * gone[0], 2 * gone[0] + 2)
        for bias in (attention.content_bias, attention.position_bias, attention.q_proj.bias, attention.k_proj.bias):
            bias[rows] = 9.0
        attention.pos_proj.weight[rows] = 9.0
    torch.testing.assert_close(attention(x, valid), before)
