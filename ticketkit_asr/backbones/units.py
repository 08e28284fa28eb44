"""Hidden units of the attention and feed-forward layers here, which exports remove where they are idle."""

from collections.abc import Iterator

from torch import nn
from torch.nn.functional import silu

from ticketkit import HiddenUnits
from ticketkit_asr.backbones.attention import FeedForward, RelativeSelfAttention, SelfAttention


def hidden_units(module: nn.Module) -> Iterator[HiddenUnits]:
    """Yield the units of every feed-forward layer, and the heads of every attention, of a network."""
    for path, layer in module.named_modules():
        if isinstance(layer, FeedForward):
            yield HiddenUnits((f"{path}.expand",), f"{path}.contract", between=silu)
        elif isinstance(layer, SelfAttention):
            yield _heads(path, ("q_proj", "k_proj", "v_proj"))
        elif isinstance(layer, RelativeSelfAttention):
            yield _heads(path, ("q_proj", "k_proj", "v_proj", "pos_proj"), ("content_bias", "position_bias"))


def _heads(path: str, makers: tuple[str, ...], vectors: tuple[str, ...] = ()) -> HiddenUnits:
    return HiddenUnits(
        tuple(f"{path}.{name}" for name in makers),
        f"{path}.out_proj",
        vectors=tuple(f"{path}.{name}" for name in vectors),
        counted_by=f"{path}.num_heads",
        values=f"{path}.v_proj",
    )
