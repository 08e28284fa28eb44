"""Tiny networks, one of each kind that pruning has to get right, with inputs to run them on."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

BATCH, TIME, FEATURES, LABELS, VOCABULARY = 4, 5, 6, 3, 7


@dataclass(frozen=True)
class TinyNet:
    """A network's builder and its inputs; initial weights and inputs come from torch's global generator."""

    build: Callable[[], nn.Module]
    inputs: Callable[[], torch.Tensor]


class BiLSTMTagger(nn.Module):
    """A two-layer bidirectional LSTM with a linear layer on every frame: (batch, time, features) → (…, labels)."""

    def __init__(self, hidden: int):
        super().__init__()
        self.lstm = nn.LSTM(FEATURES, hidden, num_layers=2, bidirectional=True, batch_first=True)
        self.head = nn.Linear(2 * hidden, LABELS)

    def forward(self, frames: torch.Tensor) -> torch.Tensor:
        """Return label scores for every frame."""
        scores: torch.Tensor = self.head(self.lstm(frames)[0])
        return scores


class TiedGRU(nn.Module):
    """A GRU language model whose output layer is its embedding: (batch, time) of tokens → (…, vocabulary)."""

    def __init__(self, width: int):
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, width)
        self.gru = nn.GRU(width, width, batch_first=True)
        self.output = nn.Linear(width, VOCABULARY)
        self.output.weight = self.embedding.weight

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Return the scores of the next token."""
        scores: torch.Tensor = self.output(self.gru(self.embedding(tokens))[0])
        return scores


class Attention(nn.Module):
    """Self-attention with a norm and a linear layer: (batch, time, features) → (batch, time, labels)."""

    def __init__(self, heads: int):
        super().__init__()
        self.attention = nn.MultiheadAttention(FEATURES, heads, batch_first=True)
        self.norm = nn.LayerNorm(FEATURES)
        self.head = nn.Linear(FEATURES, LABELS)

    def forward(self, frames: torch.Tensor) -> torch.Tensor:
        """Return label scores for every frame."""
        scores: torch.Tensor = self.head(self.norm(frames + self.attention(frames, frames, frames)[0]))
        return scores


def mlp(hidden: int = 8, dropout: float = 0.0) -> nn.Module:
    """Return a two-layer perceptron: (batch, features) → (batch, labels)."""
    return nn.Sequential(nn.Linear(FEATURES, hidden), nn.ReLU(), nn.Dropout(dropout), nn.Linear(hidden, LABELS))


def convnet(channels: int = 4) -> nn.Module:
    """Return two convolutions with BatchNorm and a linear layer: (batch, 1, 8, 8) → (batch, labels)."""
    return nn.Sequential(
        nn.Conv2d(1, channels, 3),
        nn.BatchNorm2d(channels),
        nn.ReLU(),
        nn.Conv2d(channels, channels, 3, stride=2),
        nn.Flatten(),
        nn.Linear(4 * channels, LABELS),
    )


def bilstm_tagger(hidden: int = 5) -> nn.Module:
    """Return a two-layer bidirectional LSTM tagger: (batch, time, features) → (batch, time, labels)."""
    return BiLSTMTagger(hidden)


def tied_gru(width: int = 6) -> nn.Module:
    """Return a GRU language model with tied embedding and output: (batch, time) → (batch, time, vocabulary)."""
    return TiedGRU(width)


def attention(heads: int = 2) -> nn.Module:
    """Return one self-attention layer with a head: (batch, time, features) → (batch, time, labels)."""
    return Attention(heads)


def _frames() -> torch.Tensor:
    return torch.randn(BATCH, TIME, FEATURES)


TINY_NETS = {
    "mlp": TinyNet(mlp, lambda: torch.randn(BATCH, FEATURES)),
    "convnet": TinyNet(convnet, lambda: torch.randn(BATCH, 1, 8, 8)),
    "bilstm_tagger": TinyNet(bilstm_tagger, _frames),
    "tied_gru": TinyNet(tied_gru, lambda: torch.randint(VOCABULARY, (BATCH, TIME))),
    "attention": TinyNet(attention, _frames),
}
