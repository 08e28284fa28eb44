"""The Conformer: the published sizes, and blocks against their formula."""

import copy

import pytest
import torch
from pydantic import ValidationError
from torch import nn
from torch.nn.functional import batch_norm, conv1d, layer_norm

from ticketkit import Scope
from ticketkit_asr.backbones.conformer import ConformerBlock, ConvolutionModule, build_conformer
from ticketkit_asr.backbones.transformer_options import ConformerOptions

LABELS = 256  # the paper's pieces of words


def meta(**options) -> nn.Module:
    """Return a network without memory for its weights."""
    with torch.device("meta"):
        return build_conformer(options=ConformerOptions(**options)).module


def parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def test_the_paper_preset_has_its_65_8_million_parameters() -> None:
    module = meta(preset="paper")
    more_labels = (LABELS - module.output.out_features) * (module.output.in_features + 1)
    assert parameters(module) == 65_726_621
    assert parameters(module) + more_labels == 65_843_072


def test_the_paper_preset_has_the_papers_share_of_linear_layers() -> None:
    """The published code prunes nn.Linear alone, which makes "16.8 %" remaining weights 27.6 % of the model."""
    module = meta(preset="paper")
    linear = sum(layer.weight.numel() for layer in module.modules() if isinstance(layer, nn.Linear))
    share = linear / parameters(module)
    assert share == pytest.approx(0.87, abs=0.001)
    assert 0.168 * share + 1 - share == pytest.approx(0.276, abs=0.001)


def test_the_paper_preset_narrows_time_in_blocks_4_and_10() -> None:
    bundle_features = ConformerOptions(preset="paper").features
    module = meta(preset="paper")
    assert [number for number, block in enumerate(module.blocks) if block.stride == 2] == [4, 10]
    assert [block.norm.normalized_shape for block in module.blocks] == [(256,)] * 4 + [(384,)] * 6 + [(512,)] * 6
    assert [block.attention.group for block in module.blocks] == [3] * 5 + [1] * 11
    assert {block.attention.num_heads for block in module.blocks} == {8}
    assert {block.convolution.depthwise.kernel_size for block in module.blocks} == {(15,)}
    assert module.output_lengths(torch.tensor([1, 2, 16, 17])).tolist() == [1, 1, 2, 3]
    assert (bundle_features.bins(16_000), bundle_features.fft(16_000)) == (80, 512)
    assert (bundle_features.window(16_000), bundle_features.hop(16_000)) == (400, 160)


def test_the_small_preset_is_small() -> None:
    module = meta()
    assert parameters(module) == 720_509
    assert module.output_lengths(torch.tensor(200)) == 50
    assert Scope.of(module).total / parameters(module) > 0.98


def test_given_settings_override_the_preset_and_the_rest_is_kept() -> None:
    options = ConformerOptions(preset="paper", kernel=7, features={"mels": 40})
    assert (options.kernel, options.heads, options.features.mels) == (7, 8, 40)
    assert options.features.window_ms == 25.0
    assert ConformerOptions.model_validate(options.model_dump(mode="json")) == options


@pytest.mark.parametrize(
    "wrong",
    [
        {"preset": "huge"},
        {"kernal": 3},
        {"kernel": 4},
        {"stages": []},
        {"dropout": 1.0},
        {"dropout": -0.1},
        {"heads": 0},
    ],
    ids=str,
)
def test_wrong_sizes_are_refused_by_name(wrong) -> None:
    with pytest.raises(ValidationError, match=next(iter(wrong))):
        ConformerOptions(**wrong)


def test_widths_that_are_no_whole_heads_are_refused_by_name() -> None:
    with pytest.raises(ValidationError, match=r"stages\.1\.dim is 10, which is not a multiple of heads, 4"):
        ConformerOptions(stages=[{"blocks": 1, "dim": 8}, {"blocks": 1, "dim": 10}])
    with pytest.raises(ValidationError, match=r"stages\.0\.dim"):
        ConformerOptions(heads=3, stages=[{"blocks": 1, "dim": 9}])  # sinusoids come in pairs


def swish(x: torch.Tensor) -> torch.Tensor:
    return x / (1 + (-x).exp())


def convolved(module: ConvolutionModule, x: torch.Tensor) -> torch.Tensor:
    """Return what the convolution module makes of whole utterances, by Gulati et al. 2020, figure 2."""
    frames = layer_norm(x, x.shape[-1:], module.norm.weight, module.norm.bias)
    value, gate = (frames @ module.expand.weight[:, :, 0].T + module.expand.bias).chunk(2, dim=-1)
    gated = (value * gate.sigmoid()).mT
    kernel = module.depthwise.weight
    deep = conv1d(gated, kernel, module.depthwise.bias, module.stride, kernel.shape[2] // 2, groups=len(kernel))
    normalised = batch_norm(deep, None, None, module.batch_norm.weight, module.batch_norm.bias, training=True)
    return swish(normalised).mT @ module.contract.weight[:, :, 0].T + module.contract.bias


@pytest.mark.parametrize(("downsampled", "stride"), [(None, 1), (6, 2)])
def test_a_block_is_two_half_feed_forwards_around_attention_and_convolution(downsampled, stride) -> None:
    sizes = {"heads": 2, "group": 1, "expansion": 2, "kernel": 3, "dropout": 0.0}
    block = ConformerBlock(4, downsampled_dim=downsampled, **sizes).double()
    for parameter in block.parameters():
        nn.init.normal_(parameter)
    x, valid = torch.randn(2, 7, 4, dtype=torch.float64), torch.ones(2, 7, dtype=torch.bool)
    output, left = block(x, torch.tensor([7, 7]))
    y = x + block.feed_forward_1(x) / 2
    y = y + block.attention(block.attention_norm(y), valid)
    shortcut = y if downsampled is None else y[:, ::2] @ block.shortcut.weight[:, :, 0].T + block.shortcut.bias
    y = shortcut + convolved(block.convolution, y)
    y = block.norm(y + block.feed_forward_2(y) / 2)
    torch.testing.assert_close(output, y)
    assert output.shape[1] == (7 - 1) // stride + 1
    assert left.tolist() == [output.shape[1]] * 2


def test_a_block_of_which_all_is_dropped_is_its_norm() -> None:
    block = ConformerBlock(4, downsampled_dim=None, heads=2, group=1, expansion=2, kernel=3, dropout=1.0)
    x = torch.randn(2, 7, 4)
    assert torch.equal(block(x, torch.tensor([7, 5]))[0], block.norm(x))


def test_torch_compile_takes_a_block_in_one_graph() -> None:
    torch.compiler.reset()
    plain = ConformerBlock(4, downsampled_dim=6, heads=2, group=3, expansion=2, kernel=3, dropout=0.0)
    block = copy.deepcopy(plain)
    x, lengths = torch.randn(2, 7, 4), torch.tensor([7, 3])
    valid = torch.arange(4) < torch.tensor([[4], [2]])
    results = []
    for module, run in ((plain, plain), (block, torch.compile(block, backend="eager", fullgraph=True))):
        output, _ = run(x, lengths)
        output.square()[valid].sum().backward()
        gradients = {key: parameter.grad for key, parameter in module.named_parameters()}
        results.append({"output": output[valid], **gradients, **dict(module.named_buffers())})
    for key, tensor in results[0].items():
        torch.testing.assert_close(results[1][key], tensor, atol=1e-4, rtol=1e-4, msg=key)


def test_the_papers_model_trains_a_step_and_has_nearly_all_weights_in_scope() -> None:
    bundle = build_conformer(options=ConformerOptions(preset="paper"))
    scope = Scope.of(bundle.module)
    assert (scope.total, scope.model_total) == (65_518_080, 65_726_621)
    features, lengths = torch.randn(2, 120, 80), torch.tensor([120, 90])
    losses = bundle.objective.losses(bundle.module, features, lengths, [torch.tensor([3, 1, 20]), torch.tensor([7])])
    losses.sum().backward()
    gradients = [parameter.grad for parameter in bundle.module.parameters()]
    assert all(gradient is not None and torch.isfinite(gradient).all() for gradient in gradients)
