"""Self-attention over the valid frames of utterances, and the feed-forward layers that go with it.

Queries, keys, values and outputs are separate linear layers, so that a head is rows of the first three and columns of
the last, and granularities for heads find them.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import pad, scaled_dot_product_attention, silu

_LONGEST_PERIOD = 10_000.0
"""Of the sinusoids, in 2 pi frames (Vaswani et al. 2017, section 3.5)."""


class SelfAttention(nn.Module):
    """Scaled dot-product attention of `num_heads` heads (Vaswani et al. 2017), blind to positions."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.q_proj = nn.Linear(dim, dim)
        self.k_proj = nn.Linear(dim, dim)
        self.v_proj = nn.Linear(dim, dim)
        self.out_proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor, valid: Tensor) -> Tensor:
        """Return (batch, frames, dim) from the same; `valid` (batch, frames) says which frames may be attended to."""
        query, key, value = (split_heads(layer(x), self.num_heads) for layer in (self.q_proj, self.k_proj, self.v_proj))
        attended = scaled_dot_product_attention(query, key, value, attn_mask=valid[:, None, None, :])
        output: Tensor = self.out_proj(joined_heads(attended))
        return output


class RelativeSelfAttention(nn.Module):
    """Attention that hears how far apart two frames are (Dai et al. 2019, section 3.3, with their biases u and v).

    With a `group` above 1, that many neighbouring frames attend as one (Burchi and Vielzeuf 2021, section 3.2). There a
    head is a slice of the neighbours' features laid end to end; here it keeps its own features of each neighbour, which
    costs the same and leaves a head what it is without groups: fixed rows of the projections.
    """

    def __init__(self, dim: int, num_heads: int, *, group: int = 1) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.group = group
        self.q_proj = nn.Linear(dim, dim)
        self.k_proj = nn.Linear(dim, dim)
        self.v_proj = nn.Linear(dim, dim)
        self.pos_proj = nn.Linear(dim, dim)
        self.out_proj = nn.Linear(dim, dim)
        self.content_bias = nn.Parameter(torch.empty(dim))
        self.position_bias = nn.Parameter(torch.empty(dim))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the two biases by Glorot's rule for (heads, head size); the linear layers draw their own weights."""
        for bias in (self.content_bias, self.position_bias):
            nn.init.xavier_uniform_(bias.detach().view(self.num_heads, -1))

    def forward(self, x: Tensor, valid: Tensor) -> Tensor:
        """Return (batch, frames, dim) from the same; `valid` (batch, frames) says which frames may be attended to.

        Every utterance's valid frames come before its others, which must be finite.
        """
        query, key, value = self.q_proj(x), self.k_proj(x), self.v_proj(x)
        content, position, key, value = (
            split_heads(in_groups(part, valid, self.group), self.num_heads, self.group)
            for part in (query + self.content_bias, query + self.position_bias, key, value)
        )
        scale = 1 / math.sqrt(key.shape[-1])
        distances = self._distances(key.shape[2], x)
        bias = skewed((position * scale) @ distances.mT)
        bias = bias.masked_fill(~valid[:, None, None, :: self.group], -math.inf)
        attended = scaled_dot_product_attention(content, key, value, attn_mask=bias, scale=scale)
        output: Tensor = self.out_proj(joined_heads(attended, self.group)[:, : x.shape[1]])
        return output

    def _distances(self, groups: int, x: Tensor) -> Tensor:
        """Return (1, heads, 2 * groups, group * head size): the projected distances 1 - groups, ..., groups."""
        first = (1 - groups) * self.group - self.group // 2
        frames = torch.arange(first, first + 2 * groups * self.group, device=x.device)
        return split_heads(self.pos_proj(sinusoids(frames, x.shape[-1]).to(x.dtype))[None], self.num_heads, self.group)


class FeedForward(nn.Module):
    """Layer normalisation, a wide linear layer, Swish and a linear layer back to (batch, frames, dim)."""

    def __init__(self, dim: int, *, expansion: int, dropout: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.expand = nn.Linear(dim, dim * expansion)
        self.contract = nn.Linear(dim * expansion, dim)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """Return what is to be added to `x`."""
        added: Tensor = self.dropout(self.contract(self.dropout(silu(self.expand(self.norm(x))))))
        return added


def split_heads(x: Tensor, heads: int, group: int = 1) -> Tensor:
    """Return (batch, heads, frames / group, group * head size) of (batch, frames, dim)."""
    batch, frames, _ = x.shape
    return x.reshape(batch, frames // group, group, heads, -1).permute(0, 3, 1, 2, 4).flatten(3)


def joined_heads(x: Tensor, group: int = 1) -> Tensor:
    """Return (batch, frames, dim) of (batch, heads, frames / group, group * head size): `split_heads` undone."""
    batch, heads, groups, width = x.shape
    return x.reshape(batch, heads, groups, group, width // group).permute(0, 2, 3, 1, 4).flatten(3).flatten(1, 2)


def in_groups(x: Tensor, valid: Tensor, group: int) -> Tensor:
    """Return (batch, frames, dim) with zeros after the last frame, to make whole groups, and in invalid frames.

    Frames that share a group with valid ones are attended to, so that they must be the same whatever the padding; with
    groups of one there are none, and `x` comes back as it is.
    """
    if group == 1:
        return x
    groups = (x.shape[1] + group - 1) // group
    return pad(x.masked_fill(~valid[:, :, None], 0), (0, 0, 0, groups * group - x.shape[1]))


def sinusoids(positions: Tensor, dim: int) -> Tensor:
    """Return (positions, dim): sine and cosine of each position at dim / 2 wavelengths (Vaswani et al. 2017, 3.5)."""
    rates = torch.arange(0, dim, 2, device=positions.device, dtype=torch.float32) / -dim
    angles = positions[:, None] * _LONGEST_PERIOD**rates
    return torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(1)


def skewed(scores: Tensor) -> Tensor:
    """Return scores (..., query, key) of scores (..., query, distance) for the distances 1 - n, ..., n of n frames.

    Distance is key minus query. In the flattened scores the row of query i starts at column n - 1 - i, so that rows one
    column narrower line up (Bello et al. 2019, appendix A.3).
    """
    frames = scores.shape[-2]
    flat = scores.flatten(-2)[..., frames - 1 : -1]
    return flat.reshape(*scores.shape[:-1], 2 * frames - 1)[..., :frames]
