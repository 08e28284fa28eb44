"""Networks of every kind that pruning has to get right, tiny, each with a batch and a loss of its own.

Initial weights come from torch's global generator; batches from one of their own, the same each time.
"""

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from itertools import pairwise
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ticketkit_asr.backbones.cnn_lstm import build_cnn_lstm
from ticketkit_asr.backbones.options import CnnLstmOptions
from ticketkit_asr.torchaudio_shim import torchaudio

B, T, D, LABELS, VOCABULARY = 3, 6, 8, 4, 11


@dataclass(frozen=True)
class Animal:
    """A network's builder, its loss on a fixed batch, its scope and which of its matrices are out of that on purpose.

    `outside` are globs over the names of parameters of two or more dimensions: every other one must be in scope.
    """

    build: Callable[[], nn.Module]
    loss: Callable[[nn.Module], Tensor]
    scope: Mapping[str, Any] = field(default_factory=dict)
    outside: tuple[str, ...] = ()


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def tokens(*shape: int, seed: int = 0, below: int = VOCABULARY) -> Tensor:
    return torch.randint(below, shape, generator=torch.Generator().manual_seed(seed))


def classified(*shape: int) -> Callable[[nn.Module], Tensor]:
    """Return the cross entropy of a network's output (batch, …, labels) for noise of a shape."""

    def loss(model: nn.Module) -> Tensor:
        scores = model(noise(*shape)).flatten(0, -2)
        return F.cross_entropy(scores, tokens(len(scores), below=scores.shape[-1]))

    return loss


def reconstructed(*shape: int) -> Callable[[nn.Module], Tensor]:
    """Return the squared error of a network that is to give back noise of a shape."""
    return lambda model: F.mse_loss(model(noise(*shape)), noise(*shape))


class Recurrent(nn.Module):
    """A recurrent layer and a linear one: (batch, time, features) → (batch, time, labels)."""

    def __init__(self, layer: nn.RNNBase, width: int) -> None:
        super().__init__()
        self.layer = layer
        self.head = nn.Linear(width, LABELS)

    def forward(self, frames: Tensor) -> Tensor:
        return self.head(self.layer(frames)[0])


class Residual(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False),
            nn.BatchNorm2d(outputs),
            nn.ReLU(),
            nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False),
            nn.BatchNorm2d(outputs),
        )
        self.skip = nn.Conv2d(inputs, outputs, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.body(x) + self.skip(x))


def resnet() -> nn.Module:
    blocks = [Residual(3, 4, 1), Residual(4, 6, 2), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, LABELS)]
    return nn.Sequential(*blocks)


class Seq2Seq(nn.Module):
    """GRU encoder and decoder; one embedding serves both and the output layer."""

    def __init__(self) -> None:
        super().__init__()
        self.source = nn.Embedding(VOCABULARY, D)
        self.target = nn.Embedding(VOCABULARY, D)
        self.encoder = nn.GRU(D, D, batch_first=True)
        self.decoder = nn.GRU(D, D, batch_first=True)
        self.output = nn.Linear(D, VOCABULARY, bias=False)
        self.target.weight = self.source.weight
        self.output.weight = self.source.weight

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        _, state = self.encoder(self.source(source))
        return self.output(self.decoder(self.target(target), state)[0])


def translated(model: nn.Module) -> Tensor:
    target = tokens(B, T, seed=1)
    return F.cross_entropy(model(tokens(B, T), target[:, :-1]).flatten(0, 1), target[:, 1:].flatten())


class Translator(nn.Module):
    """nn.Transformer, encoder and decoder, with embeddings and dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, D)
        self.body = nn.Transformer(D, 2, 1, 2, 2 * D, dropout=0.1, batch_first=True)
        self.output = nn.Linear(D, VOCABULARY)

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        causal = nn.Transformer.generate_square_subsequent_mask(target.shape[1])
        return self.output(self.body(self.embedding(source), self.embedding(target), tgt_mask=causal))


class ConformerCtc(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = torchaudio().models.Conformer(D, 2, 2 * D, 2, 3, dropout=0.1)
        self.output = nn.Linear(D, LABELS)

    def forward(self, frames: Tensor) -> Tensor:
        return self.output(self.body(frames, torch.tensor([T, T - 1, T]))[0])


def ctc(model: nn.Module) -> Tensor:
    scores = model(noise(B, T, D)).log_softmax(-1).transpose(0, 1)
    targets = tokens(B, 2, below=LABELS - 1) + 1
    return F.ctc_loss(scores, targets, torch.tensor([T, T - 1, T]), torch.full((B,), 2))


def separable() -> nn.Module:
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise([3, 6, 8]):
        layers += [
            nn.Conv2d(inputs, inputs, 3, padding=1, groups=inputs),
            nn.Conv2d(inputs, outputs, 1),
            nn.Hardswish(),
        ]
        layers += [nn.BatchNorm2d(outputs)]
    return nn.Sequential(*layers, nn.AdaptiveMaxPool2d(1), nn.Flatten(), nn.Linear(8, LABELS))


class UNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Conv2d(1, 4, 3, stride=2, padding=1)
        self.bottom = nn.Conv2d(4, 6, 3, stride=2, padding=1)
        self.up = nn.ConvTranspose2d(6, 4, 4, stride=2, padding=1)
        self.out = nn.ConvTranspose2d(8, 1, 4, stride=2, padding=1)
        self.norm = nn.GroupNorm(2, 4)

    def forward(self, x: Tensor) -> Tensor:
        wide = F.relu(self.down(x))
        return self.out(torch.cat([wide, self.norm(self.up(F.relu(self.bottom(wide))))], 1))


def temporal() -> nn.Module:
    """Return dilated 1-D convolutions whose weight normalisation was removed, as one does before pruning."""
    convs = [nn.utils.parametrizations.weight_norm(nn.Conv1d(D, D, 3, dilation=d, padding=d)) for d in (1, 2, 4)]
    for conv in convs:
        nn.utils.parametrize.remove_parametrizations(conv, "weight")
    return nn.Sequential(*[part for conv in convs for part in (conv, nn.ELU())], nn.Flatten(), nn.Linear(D * T, LABELS))


def volumetric() -> nn.Module:
    return nn.Sequential(
        nn.Conv3d(1, 3, 3), nn.BatchNorm3d(3), nn.SiLU(), nn.Conv3d(3, 3, 2), nn.Flatten(), nn.Linear(3, LABELS)
    )


class CellLoop(nn.Module):
    """An LSTMCell feeding a GRUCell, step by step."""

    def __init__(self) -> None:
        super().__init__()
        self.lower = nn.LSTMCell(D, 5)
        self.upper = nn.GRUCell(5, 4)
        self.head = nn.Linear(4, LABELS)

    def forward(self, frames: Tensor) -> Tensor:
        lower = (frames.new_zeros(len(frames), 5), frames.new_zeros(len(frames), 5))
        upper = frames.new_zeros(len(frames), 4)
        for frame in frames.unbind(1):
            lower = self.lower(frame, lower)
            upper = self.upper(lower[0], upper)
        return self.head(upper)


class Pairs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(D, 4), nn.Linear(D, 5)
        self.both = nn.Bilinear(4, 5, LABELS)

    def forward(self, x: Tensor) -> Tensor:
        return self.both(self.left(x).tanh(), self.right(x).tanh())


class Experts(nn.Module):
    """A mixture: a bare gate, a stack of experts, a list and a dict of projections."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Parameter(torch.randn(D, 3))
        self.experts = nn.Parameter(torch.randn(3, D, D) / D)
        self.shift = nn.ParameterList([torch.randn(D, D) / D, torch.zeros(D)])
        self.heads = nn.ParameterDict({"out": torch.randn(D, LABELS), "bias": torch.zeros(LABELS)})

    def forward(self, x: Tensor) -> Tensor:
        mixed = torch.einsum("be,bi,eio->bo", (x @ self.gate).softmax(-1), x, self.experts)
        return (mixed @ self.shift[0] + self.shift[1]).relu() @ self.heads["out"] + self.heads["bias"]


class Vision(nn.Module):
    """Patches, a class token, learned positions, and attention with separate query, key and value layers."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(1, D, 4, stride=4)
        self.token = nn.Parameter(torch.zeros(1, 1, D))
        self.positions = nn.Parameter(torch.randn(1, 5, D))
        self.q, self.k, self.v, self.o = (nn.Linear(D, D, bias=False) for _ in range(4))
        self.norm = nn.LayerNorm(D)
        self.mlp = nn.Sequential(nn.Linear(D, 2 * D), nn.GELU(), nn.Linear(2 * D, D))
        self.head = nn.Linear(D, LABELS)

    def forward(self, images: Tensor) -> Tensor:
        x = self.patches(images).flatten(2).transpose(1, 2)
        x = self.norm(torch.cat([self.token.expand(len(x), -1, -1), x], 1) + self.positions)
        q, k, v = (layer(x).unflatten(-1, (2, -1)).transpose(1, 2) for layer in (self.q, self.k, self.v))
        x = x + self.o(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return self.head(x[:, 0] + self.mlp(x[:, 0]))


class CrossAttention(nn.Module):
    """nn.MultiheadAttention whose keys and values are of other widths, with rows of bias appended to them."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(D, 2, kdim=3, vdim=5, add_bias_kv=True, batch_first=True)
        self.head = nn.Linear(D, LABELS)

    def forward(self, frames: Tensor) -> Tensor:
        return self.head(self.attention(frames, frames[..., :3], frames[..., :5])[0])


def autoencoder() -> nn.Module:
    return nn.Sequential(
        nn.Conv1d(1, 4, 4, stride=2, padding=1),
        nn.PReLU(),
        nn.Conv1d(4, 2, 4, stride=2, padding=1),
        nn.ConvTranspose1d(2, 4, 4, stride=2, padding=1),
        nn.InstanceNorm1d(4, affine=True),
        nn.ConvTranspose1d(4, 1, 4, stride=2, padding=1),
    )


class Siamese(nn.Module):
    """One encoder in two places."""

    def __init__(self) -> None:
        super().__init__()
        self.left = nn.Sequential(nn.Linear(D, D), nn.Tanh(), nn.Linear(D, D))
        self.right = self.left
        self.head = nn.Linear(D, LABELS)

    def forward(self, x: Tensor) -> Tensor:
        return self.head((self.left(x) - self.right(x.flip(0))).abs())


class Recommender(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.user = nn.Embedding(VOCABULARY, D)
        self.items = nn.EmbeddingBag(VOCABULARY, D, mode="mean")
        self.head = nn.Linear(2 * D, LABELS)

    def forward(self, users: Tensor, items: Tensor) -> Tensor:
        return self.head(torch.cat([self.user(users), self.items(items)], -1))


def lazy() -> nn.Module:
    model = nn.Sequential(nn.LazyConv1d(4, 3), nn.LazyBatchNorm1d(), nn.Flatten(), nn.LazyLinear(LABELS))
    model(noise(B, D, T))
    return model


def cnn_lstm() -> nn.Module:
    convs = ({"channels": 3, "kernel": (5, 5), "stride": (2, 2)},)
    features = {"kind": "log_mel", "mels": 8}
    return build_cnn_lstm(options=CnnLstmOptions(hidden=6, layers=2, convs=convs, features=features)).module


def recognised(model: nn.Module) -> Tensor:
    scores, lengths = model(noise(B, 12, 8).abs(), torch.tensor([12, 10, 11]))
    targets = tokens(B, 2, below=LABELS) + 1
    return F.ctc_loss(scores.log_softmax(-1).transpose(0, 1), targets, lengths, torch.full((B,), 2), zero_infinity=True)


@cache
def hugging_face() -> ModuleType:
    """Return transformers, told to stay offline; it imports torchaudio, which may need our door to it."""
    torchaudio()
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        patch.setenv("HF_HUB_OFFLINE", "1")  # which it reads when imported; processes started later are not told so
        warnings.simplefilter("ignore", DeprecationWarning)
        import transformers

    return transformers


SMALL = {"hidden_size": D, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 2 * D}
IDS = {"vocab_size": VOCABULARY, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}


def bert() -> nn.Module:
    config = hugging_face().BertConfig(**SMALL, **IDS, max_position_embeddings=T, num_labels=LABELS)
    return hugging_face().BertForTokenClassification(config)


def gpt2() -> nn.Module:
    config = hugging_face().GPT2Config(**IDS, n_embd=D, n_layer=2, n_head=2, n_positions=T)
    return hugging_face().GPT2LMHeadModel(config)


def whisper() -> nn.Module:
    sizes = {"encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2, "decoder_attention_heads": 2}
    widths = {"d_model": D, "encoder_ffn_dim": D, "decoder_ffn_dim": D, "num_mel_bins": 4}
    lengths = {"max_source_positions": T, "max_target_positions": T, "decoder_start_token_id": 1}
    config = hugging_face().WhisperConfig(**IDS, **sizes, **widths, **lengths)
    return hugging_face().WhisperForConditionalGeneration(config)


def wav2vec2() -> nn.Module:
    convs = {"conv_dim": (4, 4), "conv_stride": (4, 4), "conv_kernel": (8, 4), "num_feat_extract_layers": 2}
    positions = {"num_conv_pos_embeddings": 4, "num_conv_pos_embedding_groups": 2}
    calm = {"apply_spec_augment": False, "layerdrop": 0.0, "ctc_loss_reduction": "mean"}
    config = hugging_face().Wav2Vec2Config(**SMALL, **IDS, **convs, **positions, **calm)
    return hugging_face().Wav2Vec2ForCTC(config)


def labelled(below: int = VOCABULARY) -> Callable[[nn.Module], Tensor]:
    """Return the loss that a Hugging Face model of text computes itself."""
    return lambda model: model(input_ids=tokens(B, T), labels=tokens(B, T, seed=1, below=below)).loss


ZOO = {
    "mlp": Animal(
        lambda: nn.Sequential(nn.Linear(D, 9), nn.ReLU(), nn.Dropout(0.2), nn.Linear(9, LABELS)), classified(B, D)
    ),
    "resnet": Animal(resnet, classified(B, 3, 8, 8)),
    "bilstm_projected": Animal(
        lambda: Recurrent(nn.LSTM(D, 5, 2, batch_first=True, bidirectional=True, proj_size=3), 6), classified(B, T, D)
    ),
    "gru_stack": Animal(lambda: Recurrent(nn.GRU(D, 5, 3, batch_first=True, dropout=0.2), 5), classified(B, T, D)),
    "elman": Animal(lambda: Recurrent(nn.RNN(D, 7, nonlinearity="relu", batch_first=True), 7), classified(B, T, D)),
    "gru_seq2seq": Animal(Seq2Seq, translated),
    "transformer": Animal(Translator, translated, outside=("embedding.weight",)),
    "conformer": Animal(ConformerCtc, ctc),
    "separable_cnn": Animal(separable, classified(B, 3, 6, 6)),
    "unet": Animal(UNet, reconstructed(B, 1, 8, 8)),
    "temporal_convnet": Animal(temporal, classified(B, D, T)),
    "conv3d": Animal(volumetric, classified(B, 1, 4, 4, 4)),
    "cell_loop": Animal(CellLoop, classified(B, T, D)),
    "bilinear": Animal(Pairs, classified(B, D)),
    "experts": Animal(Experts, classified(B, D), {"bare": True}),
    "vision": Animal(Vision, classified(B, 1, 8, 8), outside=("token", "positions")),
    "cross_attention": Animal(CrossAttention, classified(B, T, D), outside=("attention.bias_?",)),
    "autoencoder": Animal(autoencoder, reconstructed(B, 1, 16)),
    "siamese": Animal(Siamese, classified(B, D)),
    "recommender": Animal(
        Recommender,
        lambda model: F.cross_entropy(model(tokens(B), tokens(B, T)), tokens(B, below=LABELS)),
        {"embeddings": True},
    ),
    "lazy": Animal(lazy, classified(B, D, T)),
    "cnn_lstm": Animal(cnn_lstm, recognised),
    "bert": Animal(bert, labelled(LABELS), outside=("bert.embeddings.*_embeddings.weight",)),
    "gpt2": Animal(gpt2, labelled(), outside=("transformer.wpe.weight",)),
    "whisper": Animal(
        whisper,
        lambda model: model(input_features=noise(B, 4, 2 * T), labels=tokens(B, T)).loss,
        outside=("model.*coder.embed_positions.weight",),
    ),
    "wav2vec2": Animal(
        wav2vec2,
        lambda model: model(noise(B, 160), labels=tokens(B, 2, below=VOCABULARY - 1) + 1).loss,
        {"exclude": ["*.pos_conv_embed.*"]},
        outside=("*.pos_conv_embed.*",),
    ),
}
