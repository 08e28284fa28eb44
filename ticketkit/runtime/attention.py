"""Attention whose projections are layers of their own, so that each has its form and heads can be left out."""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from ticketkit.names import named_modules


class Attention(nn.Module):
    """Stands in for `nn.MultiheadAttention`, called as it is; for inference, so without dropout.

    Of the heads that it had first, those that are not `busy` have been left out: nothing of them reaches the output.
    What `need_weights=True` returns has them still, in their places and in the mean: only heads whose scores are the
    same for every key are left out where somebody may ask, and their weights follow from the masks alone.
    """

    in_proj_weight = in_proj_bias = None
    """What torch's fused path asks of its attention; None keeps it from reading weights past this module."""

    def __init__(self, module: nn.MultiheadAttention, *, weights_unasked: bool = False) -> None:
        super().__init__()
        self.embed_dim, self.num_heads, self.batch_first = module.embed_dim, module.num_heads, module.batch_first
        self.kdim, self.vdim, self.dropout, self.head_dim = module.kdim, module.vdim, module.dropout, module.head_dim
        self.weights_unasked = weights_unasked
        if module.in_proj_weight is not None:
            weights = module.in_proj_weight.chunk(3)
        else:
            weights = module.q_proj_weight, module.k_proj_weight, module.v_proj_weight
        biases = (None,) * 3 if module.in_proj_bias is None else module.in_proj_bias.chunk(3)
        self.q_proj, self.k_proj, self.v_proj = (
            _linear(weight, bias) for weight, bias in zip(weights, biases, strict=True)
        )
        self.out_proj = _linear(module.out_proj.weight, module.out_proj.bias)
        self.register_buffer("busy", torch.ones(module.num_heads, dtype=torch.bool))
        self.busy: Tensor
        self.eval()

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """Return what torch's module returns: outputs, and weights where they are needed.

        `is_causal` is a hint that `attn_mask` holds what it says, which is applied as it is.
        """
        if is_causal and attn_mask is None:
            raise RuntimeError("is_causal says what attn_mask is, so it needs one; pass the causal mask too")
        batched = query.dim() == 3
        query, key, value = (self._batch_first(x, batched) for x in (query, key, value))
        q, k, v = (
            layer(x).unflatten(-1, (self.num_heads, self.head_dim)).transpose(1, 2)
            for layer, x in ((self.q_proj, query), (self.k_proj, key), (self.v_proj, value))
        )  # (batch, heads, frames, head_dim)
        bias = self._bias(key_padding_mask, attn_mask, len(q), q.dtype)
        weights: Tensor | None = None
        if need_weights:
            scores = (q / math.sqrt(self.head_dim)) @ k.mT
            weights = (scores if bias is None else scores + self._of_busy(bias)).softmax(-1)
            attended = weights @ v
            weights = self._with_idle(weights, bias)
            weights = weights.mean(1) if average_attn_weights else weights
        else:
            attended = scaled_dot_product_attention(q, k, v, None if bias is None else self._of_busy(bias))
        output = self.out_proj(attended.transpose(1, 2).flatten(2))
        if not batched:
            return output[0], None if weights is None else weights[0]
        return output if self.batch_first else output.transpose(0, 1).contiguous(), weights

    def _batch_first(self, x: Tensor, batched: bool) -> Tensor:
        if not batched:
            return x[None]
        return x if self.batch_first else x.transpose(0, 1)

    def _bias(self, padding: Tensor | None, mask: Tensor | None, batch: int, dtype: torch.dtype) -> Tensor | None:
        """Return what both masks add to the scores, (batch or 1, heads or 1, queries or 1, keys)."""
        added = None
        if padding is not None:
            padding = padding if padding.dim() == 2 else padding[None]
            added = _additive(padding, dtype)[:, None, None, :]
        if mask is not None:
            shape = (1, 1) if mask.dim() == 2 else (batch, len(self.busy))
            given = _additive(mask, dtype).view(*shape, *mask.shape[-2:])
            added = given if added is None else added + given
        return added

    def _of_busy(self, bias: Tensor) -> Tensor:
        return bias if bias.shape[1] == 1 else bias[:, self.busy]

    def _with_idle(self, weights: Tensor, bias: Tensor | None) -> Tensor:
        """Return weights (batch, heads, queries, keys) of the busy heads among those of all."""
        if bool(self.busy.all()):
            return weights
        batch, _, queries, keys = weights.shape
        flat = weights.new_zeros(1, 1, 1, keys) if bias is None else bias
        every = flat.softmax(-1).expand(batch, len(self.busy), queries, keys).clone()
        every[:, self.busy] = weights
        return every


class PaddedEncoder(nn.Module):
    """Stands in for an `nn.TransformerEncoder` some layers of which have other forms.

    torch's own gives its layers nested tensors where it can, which fused layers alone take; what comes back has zeros
    in padded frames, and so it has here.
    """

    def __init__(self, encoder: nn.TransformerEncoder) -> None:
        super().__init__()
        self.layers, self.norm, self.num_layers = encoder.layers, encoder.norm, encoder.num_layers
        self.nests, self.checks = encoder.use_nested_tensor, encoder.mask_check
        self.eval()

    def forward(
        self,
        src: Tensor,
        mask: Tensor | None = None,
        src_key_padding_mask: Tensor | None = None,
        is_causal: bool | None = None,
    ) -> Tensor:
        """Return what torch's encoder returns in evaluation mode."""
        x = src
        for layer in self.layers:
            x = layer(x, src_mask=mask, src_key_padding_mask=src_key_padding_mask, is_causal=bool(is_causal))
        nests = self.nests and torch.backends.mha.get_fastpath_enabled()
        if nests and src.dim() == 3 and mask is None and src_key_padding_mask is not None:
            padded = _additive(src_key_padding_mask, src.dtype) != 0
            if not self.checks or not bool((padded[:, :-1] & ~padded[:, 1:]).any()):
                x = x.masked_fill(padded[:, :, None], 0)
        return x if self.norm is None else self.norm(x)


def obstacle(module: nn.MultiheadAttention) -> str | None:
    """Return why an attention cannot be taken apart, or None if it can."""
    if type(module) is not nn.MultiheadAttention:
        return f"{type(module).__name__} may compute something else than nn.MultiheadAttention"
    if module.bias_k is not None or module.bias_v is not None or module.add_zero_attn:
        return "attention with add_bias_kv or add_zero_attn has no form for inference"
    if type(module.out_proj) is not nn.modules.linear.NonDynamicallyQuantizableLinear:
        return "attention whose out_proj is another layer has no form for inference"
    if types := {str(weight.dtype).removeprefix("torch.") for weight in module.parameters()} - {"float32"}:
        return f"weights in {', '.join(sorted(types))} have no form for inference, which is in float32"
    if any(part._forward_hooks or part._forward_pre_hooks for part in module.modules()):
        return "attention with hooks has no form for inference, which would not call them"
    return None


def taken_apart(module: nn.Module, path: str) -> nn.Module:
    """Replace the attention at a path by one whose projections are layers; return the module, or what replaces it.

    An encoder around it no longer nests its tensors. Raises `AttributeError` if nothing is there.
    """
    found: Any = module.get_submodule(path)
    owner = module.get_submodule(path.rpartition(".")[0]) if path else None
    knows = type(owner) in (nn.TransformerEncoderLayer, nn.TransformerDecoderLayer)
    module = _replaced(module, path, Attention(found, weights_unasked=knows))
    for place, encoder in list(named_modules(module)):
        if isinstance(encoder, nn.TransformerEncoder) and path.startswith(f"{place}.layers." if place else "layers."):
            if type(encoder) is nn.TransformerEncoder:
                module = _replaced(module, place, PaddedEncoder(encoder))
            else:
                encoder.use_nested_tensor = False
    return module


def _replaced(module: nn.Module, path: str, by: nn.Module) -> nn.Module:
    if not path:
        return by
    parent, _, leaf = path.rpartition(".")
    setattr(module.get_submodule(parent), leaf, by)
    return module


def _linear(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
    layer.weight = nn.Parameter(weight.detach().clone(), requires_grad=False)
    if bias is not None:
        layer.bias = nn.Parameter(bias.detach().clone(), requires_grad=False)
    return layer


def _additive(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """Return a mask as torch adds it to scores: of a bool one, minus infinity where it is true."""
    if mask.dtype != torch.bool:
        return mask.to(dtype)
    return torch.zeros_like(mask, dtype=dtype).masked_fill_(mask, -math.inf)
