"""Strided convolutions over utterances of many lengths."""

import pytest
import torch
from torch import nn

from ticketkit_asr.backbones.options import ConvOptions
from ticketkit_asr.backbones.subsampling import ConvSubsampling

CONVS = (
    ConvOptions(channels=3, kernel=(5, 3), stride=(2, 2)),
    ConvOptions(channels=2, kernel=(3, 5), stride=(1, 3)),
)


@pytest.fixture
def layer() -> ConvSubsampling:
    layer = ConvSubsampling(bins=7, convs=CONVS, dim=6).double()
    for norm in (convolution.norm for convolution in layer.convs):
        nn.init.uniform_(norm.running_mean, -1, 1)
        nn.init.uniform_(norm.running_var, 0.5, 2)
    return layer


@pytest.mark.parametrize("training", [True, False])
def test_it_is_convolution_norm_and_swish_and_a_linear_layer(layer: ConvSubsampling, training: bool) -> None:
    x = torch.randn(2, 13, 7, dtype=torch.float64)
    layer.train(training)
    maps = x.transpose(1, 2).unsqueeze(1)  # (batch, channels, bins, frames)
    for block in layer.convs:
        norm = nn.functional.batch_norm(
            block.conv(maps), block.norm.running_mean.clone(), block.norm.running_var.clone(), training=training
        )
        maps = norm * norm.sigmoid()
    expected = layer.output(maps.permute(0, 3, 1, 2).reshape(2, maps.shape[3], -1))
    output, lengths = layer(x, torch.tensor([13, 13]))
    torch.testing.assert_close(output, expected)
    assert output.shape == (2, 3, 6)
    assert lengths.tolist() == [3, 3]


@pytest.mark.parametrize("length", range(1, 14))
def test_every_length_is_as_if_alone(layer: ConvSubsampling, length: int) -> None:
    layer.eval()
    x = torch.randn(1, 13, 7, dtype=torch.float64)
    output, lengths = layer(x, torch.tensor([length]))
    alone, whole = layer(x[:, :length], torch.tensor([length]))
    assert lengths == whole == alone.shape[1]
    torch.testing.assert_close(output[0, :lengths], alone[0], atol=1e-12, rtol=1e-12)


def test_strides_are_the_steps_in_time(layer: ConvSubsampling) -> None:
    assert layer.strides == [2, 3]
