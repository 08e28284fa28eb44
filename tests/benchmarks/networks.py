"""The networks and weights that are measured."""

import torch
from torch import nn

from ticketkit_asr.torchaudio_shim import torchaudio

Weights = dict[str, torch.Tensor]


def deep_speech_2(hidden: int, inputs: int) -> Weights:
    """Return random weights shaped like a DeepSpeech2: two convolutions, five BiLSTMs, a linear layer; 23 tensors."""
    shapes: dict[str, tuple[int, ...]] = {"conv.0": (32, 1, 41, 11), "conv.1": (32, 32, 21, 11)}
    for layer in range(5):
        for direction in ("", "_reverse"):
            shapes[f"lstm.weight_ih_l{layer}{direction}"] = (4 * hidden, 2 * hidden if layer else inputs)
            shapes[f"lstm.weight_hh_l{layer}{direction}"] = (4 * hidden, hidden)
    shapes["fc"] = (29, 2 * hidden)
    return {name: torch.empty(shape).normal_() for name, shape in shapes.items()}


def large_weights(quick: bool) -> Weights:
    """Return the 148 million weights of the selection figures, or a tiny set of the same names."""
    return deep_speech_2(16, 32) if quick else deep_speech_2(1144, 1312)


def described(weights: Weights) -> str:
    """Return how many weights there are in how many tensors."""
    return f"{sum(t.numel() for t in weights.values()):,} float32 weights in {len(weights)} tensors"


class Holder(nn.Module):
    """A module that only holds weights, under the names they have without their dots."""

    def __init__(self, weights: Weights):
        super().__init__()
        for name, tensor in weights.items():
            self.register_parameter(name.replace(".", "_"), nn.Parameter(tensor))


class BiLSTM(nn.Module):
    """A bidirectional LSTM with CTC loss, the size of the paper's CNN-LSTM on a small machine."""

    def __init__(self, hidden: int):
        super().__init__()
        self.lstm = nn.LSTM(80, hidden, num_layers=2, bidirectional=True)
        self.head = nn.Linear(2 * hidden, 29)

    def forward(self, frames: torch.Tensor) -> torch.Tensor:
        """Return the mean CTC loss against fixed labels."""
        log_probabilities = self.head(self.lstm(frames)[0]).log_softmax(-1)
        steps, batch, _ = frames.shape
        labels = torch.arange(1, 11).repeat(batch, 1)
        lengths = torch.full((batch,), steps), torch.full((batch,), 10)
        return nn.functional.ctc_loss(log_probabilities, labels, *lengths)


class Conformer(nn.Module):
    """torchaudio's Conformer, four layers; raises `DataError` without torchaudio."""

    def __init__(self, width: int):
        super().__init__()
        self.layers = torchaudio().models.Conformer(
            input_dim=width, num_heads=4, ffn_dim=4 * width, num_layers=4, depthwise_conv_kernel_size=31
        )

    def forward(self, frames: torch.Tensor) -> torch.Tensor:
        """Return a loss over all outputs."""
        batch, steps, _ = frames.shape
        return self.layers(frames, torch.full((batch,), steps))[0].square().mean()


class Encoder(nn.Module):
    """A Transformer encoder, four layers."""

    def __init__(self, width: int):
        super().__init__()
        layer = nn.TransformerEncoderLayer(width, 4, 4 * width, dropout=0.0, batch_first=True)
        self.layers = nn.TransformerEncoder(layer, 4, enable_nested_tensor=False)

    def forward(self, frames: torch.Tensor) -> torch.Tensor:
        """Return a loss over all outputs."""
        return self.layers(frames).square().mean()


class MLP(nn.Module):
    """Wide layers and a small batch: all weights, hardly any work on each; the hard case."""

    def __init__(self, width: int, hidden: int = 2):
        super().__init__()
        wide = [module for _ in range(hidden) for module in (nn.Linear(width, width), nn.ReLU())]
        self.layers = nn.Sequential(*wide, nn.Linear(width, 10))

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Return a loss over all outputs."""
        return self.layers(inputs).square().mean()


class LeNet5(nn.Module):
    """LeNet-5 for 28 × 28 images (LeCun et al. 1998), with ReLU and maximum pooling."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(1, 6, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(6, 16, 5), nn.ReLU(), nn.MaxPool2d(2)
        )
        self.head = nn.Sequential(
            nn.Flatten(), nn.Linear(400, 120), nn.ReLU(), nn.Linear(120, 84), nn.ReLU(), nn.Linear(84, 10)
        )

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return logits for `images` (batch, 1, 28, 28)."""
        return self.head(self.features(images))
