"""Hypothesis strategies for small networks of every kind that is pruned, and for scopes over them."""

import warnings
from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from hypothesis import strategies as st
from torch import nn

from ticketkit.errors import NoEffectWarning
from ticketkit.names import named_parameters
from ticketkit.rng import seeded
from ticketkit.scope import Scope

Network = tuple[nn.Module, torch.Tensor]
"""A network and an input that it runs on."""

BATCH, TIME, SIDE, TOKENS = 3, 4, 6, 5
SMALL = st.integers(1, 4)


class Chain(nn.Module):
    """Layers one after another on (batch, time, features), each of its own kind; with an embedding, on tokens."""

    def __init__(self, layers: Sequence[nn.Module], *, residual: bool = False):
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.residual = residual

    def forward(self, frames: torch.Tensor) -> torch.Tensor:
        """Return the last layer's output."""
        for layer in self.layers:
            output = _applied(layer, frames)
            frames = frames + output if self.residual and output.shape == frames.shape else output
        return frames


@st.composite
def models(draw: st.DrawFn) -> Network:
    """Return a small random network in training mode, and an input that it runs on.

    Stacks of linear layers; plain, transposed and grouped convolutions with BatchNorm; recurrent layers of all kinds,
    directions and projections; attention; norms; embeddings tied to output layers. All have weights in the default
    scope, a few hundred at most, drawn with the structure.
    """
    family = draw(st.sampled_from((_stack, _convolutions, _sequence, _language_model)))
    with seeded(draw(st.integers(0, 2**16))):
        return draw(family())


@st.composite
def scopes(draw: st.DrawFn, model: nn.Module) -> Scope:
    """Return a scope over a model that is never empty, by any rule: include, exclude, embeddings, bare.

    Raises `ScopeError` for a model without anything to prune.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NoEffectWarning)
        embeddings, bare = draw(st.booleans()), draw(st.booleans())
        within = Scope.of(model, embeddings=embeddings, bare=bare)
        include = draw(st.none() | st.lists(_patterns(model, within), min_size=1, max_size=3))
        chosen = Scope.of(model, include=include, embeddings=embeddings, bare=bare)
        exclude = draw(st.lists(st.sampled_from(chosen.names), max_size=len(chosen.names) - 1, unique=True))
        return Scope.of(model, include=include, exclude=exclude, embeddings=embeddings, bare=bare)


def _patterns(model: nn.Module, scope: Scope) -> st.SearchStrategy[str]:
    """Return patterns that choose something: full names, of biases too, and globs that match weights."""
    layers = [name.rpartition(".")[0] for name in scope.names]
    globs = ["*", *(f"{layer}.*" for layer in layers if layer)]
    return st.sampled_from(list(dict.fromkeys([*globs, *(name for name, _ in named_parameters(model))])))


@st.composite
def _stack(draw: st.DrawFn) -> Network:
    """Return linear layers with activations, norms and dropout between them: (batch, features)."""
    widths = draw(st.lists(st.integers(1, 6), min_size=2, max_size=4))
    layers: list[nn.Module] = []
    for wide, narrow in pairwise(widths):
        layers.append(nn.Linear(wide, narrow, bias=draw(st.booleans())))
        layers += draw(st.sampled_from(([], [nn.ReLU()], [nn.BatchNorm1d(narrow), nn.Tanh()], [nn.Dropout(0.1)])))
    return nn.Sequential(*layers), torch.randn(BATCH, widths[0])


@st.composite
def _convolutions(draw: st.DrawFn) -> Network:
    """Return convolutions over one or two dimensions, plain or transposed, in groups: (batch, channels, …)."""
    dims = draw(st.integers(1, 2))
    plain, transposed = ((nn.Conv1d, nn.ConvTranspose1d), (nn.Conv2d, nn.ConvTranspose2d))[dims - 1]
    norm = (nn.BatchNorm1d, nn.BatchNorm2d)[dims - 1]
    channels = first = draw(SMALL)
    layers: list[nn.Module] = []
    for _ in range(draw(st.integers(1, 3))):
        groups = draw(st.sampled_from([g for g in range(1, channels + 1) if channels % g == 0]))
        outputs = groups * draw(st.integers(1, 3))
        kind = draw(st.sampled_from((plain, transposed)))
        kernel = draw(st.integers(1, 3))
        layers.append(kind(channels, outputs, kernel, padding=kernel // 2, groups=groups, bias=draw(st.booleans())))
        layers += draw(st.sampled_from(([], [nn.ReLU()], [norm(outputs)])))
        channels = outputs
    return nn.Sequential(*layers), torch.randn(BATCH, first, *[SIDE] * dims)


@st.composite
def _sequence(draw: st.DrawFn) -> Network:
    """Return recurrent, attention, linear and convolution layers over frames: (batch, time, features)."""
    width = first = draw(SMALL)
    layers: list[nn.Module] = []
    for _ in range(draw(st.integers(1, 3))):
        layer, width = draw(st.one_of(_recurrent(width), _attention(width), _framewise(width)))
        layers.append(layer)
    layers.append(nn.Linear(width, draw(SMALL)))
    return Chain(layers, residual=draw(st.booleans())), torch.randn(BATCH, TIME, first)


@st.composite
def _language_model(draw: st.DrawFn) -> Network:
    """Return an embedding, a recurrent or attention layer, and an output layer that may be tied to the embedding."""
    embedding = nn.Embedding(TOKENS, draw(SMALL))
    layer, width = draw(st.one_of(_recurrent(embedding.embedding_dim), _attention(embedding.embedding_dim)))
    output = nn.Linear(width, TOKENS, bias=draw(st.booleans()))
    if width == embedding.embedding_dim and draw(st.booleans()):
        output.weight = embedding.weight
    return Chain([embedding, layer, output]), torch.randint(TOKENS, (BATCH, TIME))


@st.composite
def _recurrent(draw: st.DrawFn, width: int) -> tuple[nn.Module, int]:
    """Return a recurrent layer and the width of its output."""
    kind: Callable[..., nn.RNNBase] = draw(st.sampled_from((nn.LSTM, nn.GRU, nn.RNN)))
    hidden, directions = draw(st.integers(1, 4)), draw(st.integers(1, 2))
    projected = draw(st.integers(0, hidden - 1)) if kind is nn.LSTM else 0
    layer = kind(
        width,
        hidden,
        num_layers=draw(st.integers(1, 2)),
        bias=draw(st.booleans()),
        batch_first=True,
        bidirectional=directions == 2,
        **({"proj_size": projected} if projected else {}),
    )
    return layer, directions * (projected or hidden)


@st.composite
def _attention(draw: st.DrawFn, width: int) -> tuple[nn.Module, int]:
    """Return self-attention, its projections in one matrix or, for keys and values twice as wide, in three."""
    heads = draw(st.sampled_from([h for h in range(1, width + 1) if width % h == 0]))
    wide = width * draw(st.integers(1, 2))
    return nn.MultiheadAttention(width, heads, bias=draw(st.booleans()), batch_first=True, kdim=wide, vdim=wide), width


@st.composite
def _framewise(draw: st.DrawFn, width: int) -> tuple[nn.Module, int]:
    """Return a layer that is applied frame by frame, or a norm."""
    outputs = draw(SMALL)
    kinds: dict[str, tuple[Callable[[], nn.Module], int]] = {
        "linear": (lambda: nn.Linear(width, outputs), outputs),
        "layer norm": (lambda: nn.LayerNorm(width), width),
        "batch norm": (lambda: nn.BatchNorm1d(width), width),
        "convolution": (lambda: nn.Conv1d(width, outputs, 3, padding=1), outputs),
    }
    build, made = kinds[draw(st.sampled_from(list(kinds)))]
    return build(), made


def _applied(layer: nn.Module, frames: torch.Tensor) -> torch.Tensor:
    """Return a layer's output for (batch, time, features)."""
    if isinstance(layer, nn.RNNBase):
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "LSTM with projections")  # which are slow with oneDNN, but right
            output: torch.Tensor = layer(frames)[0]
    elif isinstance(layer, nn.MultiheadAttention):
        keys = torch.cat([frames] * (layer.kdim // layer.embed_dim), dim=-1)
        output = layer(frames, keys, keys)[0]
    elif isinstance(layer, nn.Conv1d | nn.BatchNorm1d):
        output = layer(frames.transpose(1, 2)).transpose(1, 2)
    else:
        output = layer(frames)
    return output
