"""Masked heads of Hugging Face models are as good as removed; and a run that names them through the entry point."""

import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.optim.swa_utils import AveragedModel

import ticketkit
from ticketkit.testing import check_granularity, plugin_installed

PROJECT = Path(__file__).parents[1]
HEADS, SIZE = 4, 3
WIDTH = HEADS * SIZE


@pytest.fixture(scope="module")
def plugins(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ticketkit.Plugins]:
    """The plugins of an environment where this one is installed."""
    with plugin_installed(PROJECT, tmp_path_factory.mktemp("site")), pytest.MonkeyPatch.context() as patch:
        patch.setenv("TICKETKIT_LOAD_PLUGINS", "heads")
        yield ticketkit.Plugins.discover()


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


@dataclass(frozen=True)
class Net:
    """A tiny network with random weights, how it runs, and where its attentions and their layers are."""

    build: Callable[[Any], nn.Module]
    run: Callable[[nn.Module], torch.Tensor]
    include: list[str]
    attentions: list[str]
    layers: tuple[str, str, str, str]
    shared: int = HEADS


def bert(transformers: Any) -> nn.Module:
    config = transformers.BertConfig(
        vocab_size=20, hidden_size=WIDTH, num_hidden_layers=2, num_attention_heads=HEADS, intermediate_size=8
    )
    return transformers.BertModel(config, add_pooling_layer=False)


def whisper(transformers: Any) -> nn.Module:
    config = transformers.WhisperConfig(
        num_mel_bins=5, d_model=WIDTH, encoder_layers=2, encoder_attention_heads=HEADS, encoder_ffn_dim=8,
        max_source_positions=6,
    )  # fmt: skip
    return transformers.models.whisper.modeling_whisper.WhisperEncoder(config)


def wav2vec2(transformers: Any) -> nn.Module:
    config = transformers.Wav2Vec2Config(
        hidden_size=WIDTH, num_hidden_layers=2, num_attention_heads=HEADS, intermediate_size=8, conv_dim=(4, 4),
        conv_stride=(2, 2), conv_kernel=(3, 3), num_feat_extract_layers=2, num_conv_pos_embeddings=2,
        num_conv_pos_embedding_groups=2,
    )  # fmt: skip
    return transformers.Wav2Vec2Model(config)


def llama(transformers: Any) -> nn.Module:
    config = transformers.LlamaConfig(
        vocab_size=20, hidden_size=16, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, head_dim=4,
        intermediate_size=8,
    )  # fmt: skip
    return transformers.LlamaModel(config)


def on_tokens(model: nn.Module) -> torch.Tensor:
    return model(torch.arange(10).reshape(2, 5)).last_hidden_state


PROJECTIONS = ("q_proj", "k_proj", "v_proj", "out_proj")
NETS = {
    "bert": Net(
        bert,
        on_tokens,
        ["*.self.*", "*.attention.output.*"],
        [f"encoder.layer.{i}.attention" for i in range(2)],
        ("self.query", "self.key", "self.value", "output.dense"),
    ),
    "whisper": Net(
        whisper,
        lambda model: model(torch.linspace(-1, 1, 2 * 5 * 12).reshape(2, 5, 12).sin().double()).last_hidden_state,
        ["*.self_attn.*"],
        [f"layers.{i}.self_attn" for i in range(2)],
        PROJECTIONS,
    ),
    "wav2vec2": Net(
        wav2vec2,
        lambda model: model(torch.linspace(0, 9, 2 * 40).reshape(2, 40).sin().double()).last_hidden_state,
        ["*.attention.*"],
        [f"encoder.layers.{i}.attention" for i in range(2)],
        PROJECTIONS,
    ),
    "llama": Net(
        llama,
        on_tokens,
        ["*.self_attn.*"],
        [f"layers.{i}.self_attn" for i in range(2)],
        ("q_proj", "k_proj", "v_proj", "o_proj"),
        shared=2,
    ),
}


@pytest.fixture
def transformers(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Transformers, offline, and without torchaudio: no network here needs it, and beside some torches it fails."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    if "torchaudio" not in sys.modules:
        monkeypatch.setitem(sys.modules, "torchaudio", None)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return pytest.importorskip("transformers", reason="needs transformers, for networks to prune")


@pytest.fixture(params=NETS)
def net(request: pytest.FixtureRequest, transformers: Any) -> tuple[Net, nn.Module]:
    chosen = NETS[request.param]
    model = chosen.build(transformers).double().eval()
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            nn.init.normal_(parameter)
    return chosen, model


def pattern_of(plugins: ticketkit.Plugins, model: nn.Module, scope: ticketkit.Scope, **options: Any) -> Any:
    chosen = plugins.choose("granularity", {"name": "hf_head", **options})
    return chosen.call(ticketkit.Layout.of(model, scope.shapes))


def prune(model: nn.Module, scope: ticketkit.Scope, mask: ticketkit.Mask) -> None:
    for name, weights in scope.tensors(model).items():
        weights.masked_fill_(~mask[name], 0)


def silence(alive: torch.Tensor, _: nn.Module, given: tuple[torch.Tensor]) -> tuple[torch.Tensor]:
    """Set to zero what a layer reads from heads that are gone."""
    return (given[0] * alive,)


def kept_heads(output: torch.Tensor, heads: int) -> list[int]:
    """Return the heads whose columns of the output layer's mask are all there; a head is there whole or not at all."""
    flags = output.unflatten(1, (heads, -1)).transpose(0, 1).flatten(1)
    assert (flags.all(1) == flags.any(1)).all()
    return flags.all(1).nonzero().flatten().tolist()


def kept_runs(rows: torch.Tensor, count: int) -> list[int]:
    """Return which of `count` equal runs of rows are there; each is there whole or not at all."""
    flags = rows.unflatten(0, (count, -1)).flatten(1)
    assert (flags.all(1) == flags.any(1)).all()
    return flags.all(1).nonzero().flatten().tolist()


def test_masked_heads_are_as_good_as_silenced(plugins: ticketkit.Plugins, net: tuple[Net, nn.Module]) -> None:
    """With the heads' part of what the output layer reads set to zero, the dense network says the same."""
    facts, model = net
    scope = ticketkit.Scope.of(model, include=facts.include)
    scored = {name: weights.abs() for name, weights in scope.tensors(model).items()}
    mask = pattern_of(plugins, model, scope).select(scored, scope.ones(), round(0.6 * scope.total))
    dense, hooks, gone = facts.run(model), [], 0
    for attention in facts.attentions:
        query, key, value, output = (mask[f"{attention}.{leaf}.weight"] for leaf in facts.layers)
        kept = kept_heads(output, HEADS)
        assert kept_runs(query, HEADS) == kept
        assert kept_runs(key, facts.shared) == kept_runs(value, facts.shared)
        assert {head * facts.shared // HEADS for head in kept} <= set(kept_runs(key, facts.shared))
        gone += HEADS - len(kept)
        layer = model.get_submodule(f"{attention}.{facts.layers[3]}")
        alive = torch.tensor([head in kept for head in range(HEADS)]).repeat_interleave(output.shape[1] // HEADS)
        hooks.append(layer.register_forward_pre_hook(partial(silence, alive)))
    expected = facts.run(model)
    for hook in hooks:
        hook.remove()
    assert 0 < gone < 2 * HEADS
    assert not torch.allclose(dense, expected)
    prune(model, scope, mask)
    torch.testing.assert_close(facts.run(model), expected)


def test_masked_heads_are_as_good_as_removed(plugins: ticketkit.Plugins, transformers: Any) -> None:
    """A Whisper encoder whose projections are cut down to the heads left, biases too."""
    facts, model = NETS["whisper"], whisper(transformers).double().eval()
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            nn.init.normal_(parameter)
    scope = ticketkit.Scope.of(model, include=facts.include)
    scored = {name: weights.abs() for name, weights in scope.tensors(model).items()}
    mask = pattern_of(plugins, model, scope).select(scored, scope.ones(), scope.total // 2)
    prune(model, scope, mask)
    masked = facts.run(model)
    for path in facts.attentions:
        attention = model.get_submodule(path)
        kept = kept_heads(mask[f"{path}.out_proj.weight"], HEADS)
        own = [head * SIZE + i for head in kept for i in range(SIZE)]
        for leaf in ("q_proj", "k_proj", "v_proj"):
            layer = attention.get_submodule(leaf)
            layer.weight = nn.Parameter(layer.weight[own])
            layer.bias = layer.bias if layer.bias is None else nn.Parameter(layer.bias[own])
        attention.out_proj.weight = nn.Parameter(attention.out_proj.weight[:, own])
        attention.num_heads, attention.embed_dim = len(kept), len(own)
    assert sum(a.num_heads for a in map(model.get_submodule, facts.attentions)) == HEADS
    torch.testing.assert_close(facts.run(model), masked)


# Attentions of our own


class Attention(nn.Module):
    """Layers of an attention, of any sizes and names."""

    def __init__(self, query: int, shared: int, size: int, value: int, names: tuple[str, ...] = PROJECTIONS):
        super().__init__()
        wide = [(5, query * size), (5, shared * size), (5, shared * value), (query * value, 5)]
        for name, (reads, makes) in zip(names, wide, strict=True):
            self.add_module(name, nn.Linear(reads, makes))
        self.num_heads = query


@st.composite
def attentions(draw: st.DrawFn) -> tuple[nn.Module, int, int, list[str]]:
    """Return a pair of attentions, their query and key-value heads, and which of their parameters are in scope."""
    shared, group = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    sizes = draw(st.tuples(st.integers(1, 3), st.integers(1, 3)))
    model = nn.ModuleDict({name: Attention(shared * group, shared, *sizes) for name in ("one", "two")})
    biases = [f"one.{leaf}.bias" for leaf in ("q_proj", "k_proj", "v_proj")]
    return model, shared * group, shared, ["*", *draw(st.lists(st.sampled_from(biases), unique=True))]


@given(attentions(), st.integers(0, 2**30), st.floats(0.1, 1))
def test_heads_stay_whole_and_go_with_the_key_value_head_they_share(
    plugins: ticketkit.Plugins, drawn: tuple[nn.Module, int, int, list[str]], seed: int, density: float
) -> None:
    model, heads, shared, include = drawn
    scope = ticketkit.Scope.of(model, include=include)
    pattern = pattern_of(plugins, model, scope)
    generator = torch.Generator().manual_seed(seed)
    scores = {name: torch.rand(shape, generator=generator) for name, shape in scope.shapes.items()}
    keep = int(density * scope.total)
    try:
        mask = pattern.select(scores, scope.ones(), keep)
    except ticketkit.BudgetError:
        assert density < 1  # not even the best head fits
        return
    for one in ("one", "two"):
        flags = {leaf: mask[f"{one}.{leaf}.weight"] for leaf in PROJECTIONS}
        kept = kept_heads(flags["out_proj"], heads)
        common = kept_runs(flags["k_proj"], shared)
        assert kept_runs(flags["q_proj"], heads) == kept
        assert kept_runs(flags["v_proj"], shared) == common
        assert {head // (heads // shared) for head in kept} <= set(common)
        for leaf, count, there in (("q_proj", heads, kept), ("k_proj", shared, common), ("v_proj", shared, common)):
            if f"{one}.{leaf}.bias" in mask:
                assert kept_runs(mask[f"{one}.{leaf}.bias"][:, None], count) == there


@pytest.mark.parametrize(("heads", "shared"), [(4, 4), (4, 2), (3, 1)])
def test_it_obeys_the_laws_of_granularities(plugins: ticketkit.Plugins, heads: int, shared: int) -> None:
    nets = {"pair": lambda: nn.ModuleDict({name: Attention(heads, shared, 2, 3) for name in ("one", "two")})}
    check_granularity("hf_head", nets=nets, scope={"include": ["*.weight"]}, plugins=plugins)


def test_query_heads_go_alone_and_key_value_heads_take_theirs_along(plugins: ticketkit.Plugins) -> None:
    model = Attention(4, 2, 1, 1)
    scope = ticketkit.Scope.of(model)
    pattern = pattern_of(plugins, model, scope)
    assert pattern.spaces == {"heads": 4, "kv_heads": 2}
    assert pattern.shapes == {"heads": (4, 10), "kv_heads": (2, 10)}
    worth = {"q_proj": [9.0, 1, 8, 7], "k_proj": [5.0, 6], "v_proj": [5.0, 6], "out_proj": [9.0, 1, 8, 7]}
    scores = {f"{leaf}.weight": torch.tensor(of)[:, None].expand(-1, 5) for leaf, of in worth.items()}
    scores["out_proj.weight"] = scores["out_proj.weight"].T
    masks = {keep: pattern.select(scores, scope.ones(), keep) for keep in (60, 59, 49)}
    assert masks[60].kept == 60
    assert kept_heads(masks[59]["out_proj.weight"], 4) == [0, 2, 3]
    assert kept_runs(masks[59]["k_proj.weight"], 2) == [0, 1]
    assert kept_heads(masks[49]["out_proj.weight"], 4) == [2, 3]
    assert kept_runs(masks[49]["v_proj.weight"], 2) == [1]


def test_with_a_part_of_an_attention_in_scope_its_heads_are_of_that_part(plugins: ticketkit.Plugins) -> None:
    model = nn.ModuleDict({"inner": Attention(4, 2, 1, 1)})
    for include, spaces in (
        (["*.q_proj.*", "*.out_proj.*"], {"inner.heads": 4}),
        (["*.v_proj.*"], {"inner.kv_heads": 2}),
    ):
        assert pattern_of(plugins, model, ticketkit.Scope.of(model, include=include)).spaces == spaces


def test_heads_are_the_same_in_a_wrapped_network(plugins: ticketkit.Plugins) -> None:
    model = nn.ModuleDict({"inner": Attention(4, 2, 1, 1)})
    plain = pattern_of(plugins, model, ticketkit.Scope.of(model))
    for wrapped in (AveragedModel(model), nn.DataParallel(model), torch.compile(model, backend="eager")):
        assert pattern_of(plugins, wrapped, ticketkit.Scope.of(wrapped)).spaces == plain.spaces


def test_tied_projections_are_counted_once_and_kept_while_all_their_heads_are(plugins: ticketkit.Plugins) -> None:
    model = nn.ModuleDict({"one": Attention(2, 2, 1, 1), "two": Attention(2, 2, 1, 1)})
    model.one.k_proj.weight = model.one.q_proj.weight
    model.two.v_proj.weight = model.one.v_proj.weight
    scope = ticketkit.Scope.of(model)
    pattern = pattern_of(plugins, model, scope)
    assert pattern.shapes == {"one.heads": (2, 15), "two.heads": (2, 15)}
    scores = {name: torch.tensor([[2.0], [1.0]]).expand(2, 5) for name in scope.shapes}
    scores["one.out_proj.weight"] = scores["two.out_proj.weight"] = torch.tensor([2.0, 1.0]).expand(5, 2)
    mask = pattern.select(scores, scope.ones(), scope.total - 1)
    assert kept_heads(mask["two.out_proj.weight"], 2) == [0]
    assert kept_runs(mask["one.v_proj.weight"], 2) == [0]
    assert kept_heads(mask["one.out_proj.weight"], 2) == kept_runs(mask["one.q_proj.weight"], 2) == [0, 1]


def test_layers_may_be_called_anything(plugins: ticketkit.Plugins) -> None:
    model = Attention(2, 2, 3, 3, names=("a", "b", "c", "d"))
    del model.num_heads
    scope = ticketkit.Scope.of(model)
    named = {"query": ["x", "a"], "key": ["b"], "value": ["c"], "output": ["d"]}
    assert pattern_of(plugins, model, scope, heads=2, **named).spaces == {"heads": 2}
    with pytest.raises(ticketkit.ScopeError, match=r"attention '' \(Attention\) does not say how many heads it has"):
        pattern_of(plugins, model, scope, **named)
    with pytest.raises(ticketkit.ScopeError, match="has 6 query rows, which are not 4 heads"):
        pattern_of(plugins, model, scope, heads=4, **named)
    with pytest.raises(
        ticketkit.ScopeError, match=r"has no heads for a.weight, b.weight, c.weight, d.weight; say what"
    ):
        pattern_of(plugins, model, scope, heads=2)
    with pytest.raises(ticketkit.ScopeError, match="has no output layer under the names known"):
        pattern_of(plugins, model, scope, heads=2, **{**named, "output": ["e"]})


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ((4, 3, 2, 2), "has 4 heads of 2 query rows, to which 6 key and 6 value rows do not fit"),
        ((4, 8, 2, 2), "has 4 heads of 2 query rows, to which 16 key and 16 value rows do not fit"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(
    plugins: ticketkit.Plugins, sizes: tuple[int, int, int, int], message: str
) -> None:
    model = Attention(*sizes)
    with pytest.raises(ticketkit.ScopeError, match=message):
        pattern_of(plugins, model, ticketkit.Scope.of(model))


def test_an_output_that_reads_something_else_is_refused(plugins: ticketkit.Plugins) -> None:
    model = Attention(4, 2, 2, 2)
    model.out_proj = nn.Linear(9, 5)
    with pytest.raises(ticketkit.ScopeError, match="makes 4 heads of 2 values, but 'out_proj' reads 9 features"):
        pattern_of(plugins, model, ticketkit.Scope.of(model))


def test_parameters_without_heads_are_named(plugins: ticketkit.Plugins) -> None:
    model = nn.ModuleDict({"inner": Attention(2, 2, 1, 1), "other": nn.Linear(5, 5)})
    scope = ticketkit.Scope.of(model, include=["*", "inner.out_proj.bias"])
    with pytest.raises(
        ticketkit.ScopeError,
        match=r"no heads for inner.out_proj.bias, other.weight; set the scope, .*'include': \['inner.q_proj.weight',",
    ):
        pattern_of(plugins, model, scope)


def test_a_run_that_names_it_prunes_heads(plugins: ticketkit.Plugins, transformers: Any) -> None:
    model = bert(transformers)
    include = NETS["bert"].include
    imp = ticketkit.IMP(model, rate=0.25, rounds=2, granularity="hf_head", scope={"include": include}, plugins=plugins)
    for _ in imp:
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
        on_tokens(model).square().mean().backward()
        optimizer.step()
    left = []
    for ticket in imp.tickets:
        outputs = [ticket.mask[f"{attention}.output.dense.weight"] for attention in NETS["bert"].attentions]
        left.append(sum(len(kept_heads(output, HEADS)) for output in outputs))
    assert left == [8, 6, 4]
    facts = imp.tickets[2].facts.granularity
    assert (facts.entry, facts.options) == ("heads:hf_head", {})
