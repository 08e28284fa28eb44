from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from tests.runtime.masked import assert_same, masked, seeds
from ticketkit.names import named_modules
from ticketkit.runtime.attention import Attention, PaddedEncoder, obstacle, taken_apart
from ticketkit.runtime.preparing import prepared

WIDTH, FRAMES, BATCH = 8, 5, 3


@st.composite
def attentions(draw: st.DrawFn) -> nn.MultiheadAttention:
    """Return attention of any kind whose weights are masked, some heads as a granularity of heads does."""
    torch.manual_seed(draw(seeds))
    heads = draw(st.sampled_from((1, 2, 4)))
    more = {"kdim": draw(st.sampled_from((WIDTH, 6))), "vdim": draw(st.sampled_from((WIDTH, 7)))}
    flags = {"bias": draw(st.booleans()), "batch_first": draw(st.booleans())}
    layer = nn.MultiheadAttention(WIDTH, heads, dropout=0.3, **more, **flags)
    for name, parameter in layer.named_parameters():
        if "bias" in name:
            nn.init.normal_(parameter)
    with torch.no_grad():
        for number in range(heads):
            without_head(layer, number, draw(st.sampled_from(("all", "read", "value", "", ""))))
    made: Any = draw(masked(layer)) if draw(st.booleans()) else layer.eval()
    return made


def without_head(layer: nn.MultiheadAttention, number: int, what: str) -> None:
    """Set weights of a head to zero: all of them, those that read it, or its values."""
    rows = torch.arange(number * layer.head_dim, (number + 1) * layer.head_dim)
    packed = layer.in_proj_weight
    parts = packed.chunk(3) if packed is not None else (layer.q_proj_weight, layer.k_proj_weight, layer.v_proj_weight)
    if what == "all":
        for part in parts:
            part[rows] = 0
    if what in ("all", "read"):
        layer.out_proj.weight[:, rows] = 0
    if what == "value":
        parts[2][rows] = 0
        if layer.in_proj_bias is not None:
            layer.in_proj_bias[2 * WIDTH + rows] = 0


def called(draw: Callable[..., Any], layer: nn.MultiheadAttention) -> tuple[list[Tensor], dict[str, Any]]:
    """Return how an attention is called: on itself or across, batched or not, with any masks."""
    batch, queries, keys = draw(st.sampled_from((0, 1, BATCH))), draw(st.integers(1, FRAMES)), FRAMES
    itself = layer.kdim == layer.vdim == WIDTH and draw(st.booleans())

    def sequence(frames: int, width: int) -> Tensor:
        if not batch:
            return torch.randn(frames, width)
        return torch.randn(*((batch, frames) if layer.batch_first else (frames, batch)), width)

    if itself:
        queries = keys
        inputs = [sequence(keys, WIDTH)] * 3
    else:
        inputs = [sequence(queries, WIDTH), sequence(keys, layer.kdim), sequence(keys, layer.vdim)]
    floats = draw(st.booleans())

    def mask(*shape: int) -> Tensor:
        hidden = torch.rand(shape) < 0.4
        hidden[..., 0] = False  # somebody is always listened to
        return torch.randn(shape).masked_fill(hidden, -torch.inf) if floats else hidden

    every: dict[str, Any] = {}
    if draw(st.booleans()):
        every["key_padding_mask"] = mask(*([batch] if batch else []), keys)
    match draw(st.sampled_from(("none", "shared", "each", "causal"))):
        case "shared":
            every["attn_mask"] = mask(queries, keys)
        case "each":
            every["attn_mask"] = mask(max(batch, 1) * layer.num_heads, queries, keys)
        case "causal" if not floats:
            every |= {"attn_mask": torch.ones(queries, keys, dtype=torch.bool).triu(1), "is_causal": True}
    return inputs, every


@settings(max_examples=30)
@given(data=st.data(), layer=attentions(), removed=st.booleans())
def test_attention_that_was_taken_apart_computes_what_torchs_does_and_weighs_as_it_does(data, layer, removed) -> None:
    inputs, masks = called(data.draw, layer)
    kinds = [{"need_weights": False}, {}, {"average_attn_weights": False}]
    with torch.no_grad():
        expected = [layer(*inputs, **masks, **kind) for kind in kinds]
    whole = all(parameter.all() for parameter in layer.parameters() if parameter.dim() > 1)
    made: Any = prepared(layer, "sparse")[0] if removed and not whole else taken_apart(layer, "")
    assert isinstance(made, Attention)
    for kind, wanted in zip(kinds, expected, strict=True):
        came = made(*inputs, **masks, **kind)
        assert_same(came[0], wanted[0].contiguous())
        assert (came[1] is None) == (wanted[1] is None)
        if came[1] is not None:
            assert_same(came[1], wanted[1])


def test_idle_heads_are_removed_and_one_is_left_of_none() -> None:
    layer = nn.MultiheadAttention(WIDTH, 4).eval()
    with torch.no_grad():
        for number in (0, 2):
            without_head(layer, number, "all")
    made: Any = prepared(layer, "compact")[0]
    assert (made.num_heads, made.busy.tolist()) == (2, [False, True, False, True])
    assert made.q_proj.weight.shape == made.v_proj.weight.shape == (4, WIDTH)
    assert made.out_proj.weight.shape == (WIDTH, 4)
    nothing = nn.MultiheadAttention(WIDTH, 4).eval()
    nn.init.zeros_(nothing.out_proj.weight)
    nn.init.zeros_(nothing.in_proj_weight)
    assert prepared(nothing, "compact")[0].num_heads == 1


def test_a_head_whose_weights_somebody_may_ask_for_is_left_and_one_in_an_encoder_goes() -> None:
    layer = nn.TransformerEncoderLayer(WIDTH, 2, 4, batch_first=True).eval()
    with torch.no_grad():
        without_head(layer.self_attn, 0, "read")
    alone: Any = prepared(nn.Sequential(layer.self_attn), "sparse")[0]
    assert alone[0].num_heads == 2
    within: Any = prepared(layer, "sparse")[0]
    assert within.self_attn.num_heads == 1


ENCODERS: dict[str, dict[str, Any]] = {
    "fused": {"batch_first": True},
    "fused gelu": {"batch_first": True, "activation": "gelu"},
    "frames first": {},
    "norms first": {"batch_first": True, "norm_first": True, "activation": nn.functional.silu},
    "without bias": {"batch_first": True, "bias": False},
}


@pytest.mark.filterwarnings("ignore:enable_nested_tensor is True", "ignore:The PyTorch API of nested tensors")
@settings(max_examples=6)
@given(data=st.data(), seed=seeds, units=st.sampled_from((0.3, 1.0)), padding=st.sampled_from(("none", "end", "any")))
@pytest.mark.parametrize("name", ENCODERS)
def test_an_encoder_computes_what_torchs_does_padded_frames_included(name, data, seed, units, padding) -> None:
    torch.manual_seed(seed)
    options = ENCODERS[name]
    layer = nn.TransformerEncoderLayer(WIDTH, 2, 12, **options)
    encoder = nn.TransformerEncoder(layer, 2, norm=nn.LayerNorm(WIDTH) if seed % 2 else None)
    module = data.draw(masked(nn.ModuleDict({"encoder": encoder})))
    with torch.no_grad():
        for each in encoder.layers:
            each.linear1.weight *= torch.rand(12, 1) < units
            each.linear2.weight *= torch.rand(12) < units
            without_head(each.self_attn, int(torch.randint(2, ())), "all")
    x = torch.randn(*((BATCH, FRAMES) if options.get("batch_first") else (FRAMES, BATCH)), WIDTH)
    hidden = None
    if padding == "end":
        hidden = torch.arange(FRAMES) >= torch.randint(1, FRAMES + 1, (BATCH, 1))
    elif padding == "any":
        hidden = torch.rand(BATCH, FRAMES) < 0.4
        hidden[:, 0] = False
    mask = torch.ones(FRAMES, FRAMES, dtype=torch.bool).triu(1) if seed % 3 == 0 else None
    with torch.no_grad():
        expected = encoder(x, mask, hidden)
    made: Any = prepared(module, data.draw(st.sampled_from(("sparse", "compact"))))[0]
    assert isinstance(made.encoder, PaddedEncoder)
    assert {type(part) for _, part in named_modules(made)} & {nn.MultiheadAttention, nn.TransformerEncoder} == set()
    assert_same(made.encoder(x, mask, hidden), expected.contiguous())


def test_a_decoder_computes_what_torchs_does() -> None:
    torch.manual_seed(5)
    module = nn.TransformerDecoder(nn.TransformerDecoderLayer(WIDTH, 2, 6, batch_first=True), 2).eval()
    for parameter in module.parameters():
        if parameter.dim() > 1:
            parameter.data.mul_(torch.rand(parameter.shape[0], 1) < 0.6)
    x, memory = torch.randn(2, 4, WIDTH), torch.randn(2, 3, WIDTH)
    causal = nn.Transformer.generate_square_subsequent_mask(4)
    with torch.no_grad():
        expected = module(x, memory, tgt_mask=causal, tgt_is_causal=True)
    made, choices, structure = prepared(module, "sparse")
    assert len(structure.apart) == 4
    assert any(removal.reader == "layers.0.linear2" for removal in structure.removed)
    assert choices["layers.0.multihead_attn.q_proj"].form == "csr"
    assert_same(made(x, memory, tgt_mask=causal, tgt_is_causal=True), expected)


class Derived(nn.MultiheadAttention):
    """May compute anything."""


def listened_to() -> nn.MultiheadAttention:
    layer = nn.MultiheadAttention(WIDTH, 2)
    layer.out_proj.register_forward_hook(lambda module, inputs, output: None)
    return layer


@pytest.mark.parametrize(
    ("layer", "reason"),
    [
        (nn.MultiheadAttention(WIDTH, 2, add_bias_kv=True), "add_bias_kv"),
        (nn.MultiheadAttention(WIDTH, 2, add_zero_attn=True), "add_zero_attn"),
        (nn.MultiheadAttention(WIDTH, 2, dtype=torch.float64), "float64"),
        (Derived(WIDTH, 2), "Derived"),
        (listened_to(), "hooks"),
    ],
    ids=["bias_kv", "zero_attn", "float64", "derived", "hooks"],
)
def test_attention_that_cannot_be_taken_apart_stays_dense_and_says_why(layer, reason) -> None:
    with torch.no_grad():
        without_head(layer, 0, "all")
    assert reason in str(obstacle(layer))
    made: Any
    made, choices, structure = prepared(nn.ModuleDict({"attention": layer.eval()}), "sparse")
    assert made.attention is layer
    assert reason in str(choices["attention"].left_dense)
    assert (choices["attention"].form, structure.apart) == ("dense", {})


def test_a_causal_hint_without_its_mask_is_refused_as_torch_refuses_it() -> None:
    layer, x = nn.MultiheadAttention(WIDTH, 2).eval(), torch.randn(FRAMES, WIDTH)
    for one in (layer, taken_apart(layer, "")):
        with pytest.raises(RuntimeError, match="is_causal"):
            one(x, x, x, is_causal=True)
