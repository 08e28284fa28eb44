"""The plain Transformer encoder: its sizes, and blocks against their formula."""

import copy

import pytest
import torch
from pydantic import ValidationError
from torch import nn
from torch.nn.functional import layer_norm, silu

from ticketkit import Scope
from ticketkit_asr.backbones.transformer import TransformerBlock, build_transformer
from ticketkit_asr.backbones.transformer_options import TransformerOptions


def meta(**options) -> nn.Module:
    """Return a network without memory for its weights."""
    with torch.device("meta"):
        return build_transformer(options=TransformerOptions(**options)).module


def parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def test_the_paper_preset_is_as_large_as_the_papers_conformer() -> None:
    module = meta(preset="paper")
    assert parameters(module) == 66_279_197
    assert parameters(module) == pytest.approx(65.8e6, rel=0.01)
    assert module.output_lengths(torch.tensor([1, 4, 5, 100])).tolist() == [1, 1, 2, 25]
    assert Scope.of(module).total / parameters(module) > 0.99


def test_the_small_preset_is_small() -> None:
    module = meta()
    assert parameters(module) == 847_917
    assert module.output_lengths(torch.tensor(200)) == 50


def test_given_settings_override_the_preset_and_the_rest_is_kept() -> None:
    options = TransformerOptions(preset="paper", blocks=3, features={"mels": 40})
    assert (options.blocks, options.dim, options.features.mels) == (3, 512, 40)
    assert options.features.window_ms == 25.0
    assert TransformerOptions.model_validate(options.model_dump(mode="json")) == options


@pytest.mark.parametrize(
    "wrong", [{"preset": "huge"}, {"dims": 3}, {"dim": 7}, {"dim": 6, "heads": 4}, {"subsampling": []}], ids=str
)
def test_wrong_sizes_are_refused_by_name(wrong) -> None:
    with pytest.raises(ValidationError, match=next(iter(wrong))):
        TransformerOptions(**wrong)


def test_a_block_normalises_before_attention_and_before_the_feed_forward_layer() -> None:
    block = TransformerBlock(4, heads=2, expansion=3, dropout=0.0).double()
    for parameter in block.parameters():
        nn.init.normal_(parameter)
    x, valid = torch.randn(2, 5, 4, dtype=torch.float64), torch.ones(2, 5, dtype=torch.bool)
    layers = [layer for layer in block.modules() if isinstance(layer, nn.LayerNorm)]
    first, second = ((lambda x, n=norm: layer_norm(x, (4,), n.weight, n.bias)) for norm in layers)
    y = x + block.attention(first(x), valid)
    wide = silu(second(y) @ block.feed_forward.expand.weight.T + block.feed_forward.expand.bias)
    y = y + wide @ block.feed_forward.contract.weight.T + block.feed_forward.contract.bias
    torch.testing.assert_close(block(x, valid), y)


def test_a_block_of_which_all_is_dropped_passes_on_what_it_reads() -> None:
    block, x = TransformerBlock(4, heads=2, expansion=3, dropout=1.0), torch.randn(2, 5, 4)
    assert torch.equal(block(x, torch.ones(2, 5, dtype=torch.bool)), x)


def test_frames_know_where_they_are() -> None:
    """Without positions, the same sound would score the same wherever it comes; attention is blind to order."""
    module = build_transformer(options=TransformerOptions(dropout=0.0)).module.eval()
    sound = torch.randn(1, 1, 40).expand(1, 80, 40)
    scores, _ = module(sound, torch.tensor([80]))
    middle = scores[0, 8:12]  # beyond the reach of the silence around
    assert (middle[1:] - middle[:-1]).abs().amax() > 1e-3


def test_torch_compile_takes_it_in_one_graph() -> None:
    torch.compiler.reset()
    convs = [{"channels": 3, "kernel": (3, 3), "stride": (2, 2)}]
    options = TransformerOptions(subsampling=convs, blocks=1, dim=8, features={"mels": 6}, dropout=0.0)
    plain = build_transformer(options=options).module
    module = copy.deepcopy(plain)
    x, lengths = torch.randn(2, 9, 6), torch.tensor([9, 5])
    results = []
    for network, run in ((plain, plain), (module, torch.compile(module, backend="eager", fullgraph=True))):
        scores, _ = run(x, lengths)
        scores.square().sum().backward()
        gradients = {key: parameter.grad for key, parameter in network.named_parameters()}
        results.append({"scores": scores, **gradients, **dict(network.named_buffers())})
    for key, tensor in results[0].items():
        torch.testing.assert_close(results[1][key], tensor, atol=1e-4, rtol=1e-4, msg=key)
