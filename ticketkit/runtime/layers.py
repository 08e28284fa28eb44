"""Layers for inference over products, called as torch's: linear, convolutional and cells; without gradients."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import unfold

from ticketkit.errors import ConfigError
from ticketkit.runtime.products import Form, product
from ticketkit.runtime.recurrent import Direction, Kind, Recurrent


class ProductLinear(nn.Module):
    """Stands in for `nn.Linear`."""

    def __init__(self, module: nn.Linear, form: Form) -> None:
        super().__init__()
        self.in_features, self.out_features = module.in_features, module.out_features
        self.product = product(module.weight, form)
        self.register_buffer("offset", _offset(module.bias, module.out_features))
        self.offset: Tensor

    @torch.no_grad()
    def forward(self, input: Tensor) -> Tensor:
        """Return (..., out_features)."""
        columns = input.reshape(-1, self.in_features).T.contiguous()
        result: Tensor = self.product(columns, self.offset)
        return result.T.reshape(*input.shape[:-1], self.out_features).contiguous()


class ProductConv(nn.Module):
    """Stands in for `nn.Conv1d` and `nn.Conv2d`, ungrouped and padded with zeros: patches are the columns."""

    def __init__(self, module: nn.Conv1d | nn.Conv2d, form: Form) -> None:
        super().__init__()
        self.flat = isinstance(module, nn.Conv1d)
        self.in_channels, self.out_channels, self.groups = module.in_channels, module.out_channels, module.groups
        self.kernel_size, self.stride = module.kernel_size, module.stride
        self.padding, self.dilation = module.padding, module.dilation
        self.product = product(module.weight.reshape(module.out_channels, -1), form)
        self.register_buffer("offset", _offset(module.bias, module.out_channels))
        self.offset: Tensor

    @torch.no_grad()
    def forward(self, input: Tensor) -> Tensor:
        """Return (batch, out_channels, ...)."""
        x = input.unsqueeze(-2) if self.flat else input
        batched = x.dim() == 4
        x = x if batched else x.unsqueeze(0)
        kernels, strides = _two(self.kernel_size), _two(self.stride)
        paddings, dilations = _two(self.padding, 0), _two(self.dilation)  # type: ignore[arg-type]
        height, width = (
            (size + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1
            for size, kernel, stride, padding, dilation in zip(
                x.shape[-2:], kernels, strides, paddings, dilations, strict=True
            )
        )
        patches = unfold(x, kernels, dilations, paddings, strides)  # (batch, inputs, places)
        columns = patches.transpose(0, 1).reshape(patches.shape[1], -1)
        result: Tensor = self.product(columns, self.offset)
        maps = result.view(self.out_channels, len(x), height, width).transpose(0, 1).contiguous()
        maps = maps if batched else maps[0]
        return maps.squeeze(-2) if self.flat else maps


class ProductCell(nn.Module):
    """Stands in for `nn.LSTMCell`, `nn.GRUCell` and `nn.RNNCell`: one step at a time."""

    def __init__(self, module: nn.RNNCellBase, form: Form) -> None:
        super().__init__()
        kinds: dict[type[nn.RNNCellBase], Kind] = {nn.LSTMCell: "LSTM", nn.GRUCell: "GRU"}
        tanh = getattr(module, "nonlinearity", "") == "tanh"
        self.kind: Kind = kinds.get(type(module), "RNN_TANH" if tanh else "RNN_RELU")
        self.hidden_size = module.hidden_size
        weights = {name: parameter.detach() for name, parameter in module.named_parameters()}
        self.direction = Direction(self.kind, weights, forms={"weight_ih": form, "weight_hh": form})

    @torch.no_grad()
    def forward(self, input: Tensor, hx: Any = None) -> Any:
        """Return the new state; for an LSTM with its cell."""
        batched = input.dim() == 2
        x = input if batched else input[None]
        h, c = (hx if self.kind == "LSTM" else (hx, None)) if hx is not None else (None, None)
        h = x.new_zeros(len(x), self.hidden_size) if h is None else h.reshape(len(x), -1)
        if self.kind == "LSTM":
            c = x.new_zeros(len(x), self.hidden_size) if c is None else c.reshape(len(x), -1)
        _, state, cell = self.direction(x.T.contiguous(), [len(x)], h.T, None if c is None else c.T)
        ends = [state.T.contiguous()] if cell is None else [state.T.contiguous(), cell.T.contiguous()]
        ends = ends if batched else [end[0] for end in ends]
        return tuple(ends) if self.kind == "LSTM" else ends[0]


def _recurrent(module: Any, form: Form) -> Recurrent:
    return Recurrent(module, {name: form for name, _ in module.named_parameters() if name.startswith("weight")})


BUILDERS: Mapping[type[nn.Module], Callable[[Any, Form], nn.Module]] = {
    nn.Linear: ProductLinear,
    nn.Conv1d: ProductConv,
    nn.Conv2d: ProductConv,
    nn.LSTM: _recurrent,
    nn.GRU: _recurrent,
    nn.RNN: _recurrent,
    nn.LSTMCell: ProductCell,
    nn.GRUCell: ProductCell,
    nn.RNNCell: ProductCell,
}
"""Exact types: a subclass may compute something else."""


def stand_in(module: nn.Module, form: Form) -> nn.Module:
    """Return a layer for inference that computes what a module does, over its weights in one of the forms.

    Raises `ConfigError` for a layer that has none.
    """
    if reason := unsupported(module):
        raise ConfigError(reason)
    return BUILDERS[type(module)](module, form)


def unsupported(module: nn.Module) -> str | None:
    """Return why a layer has no stand-in, or None if it has."""
    if type(module) not in BUILDERS:
        return f"{type(module).__name__} has no form for inference"
    if types := {str(weight.dtype).removeprefix("torch.") for weight in module.parameters()} - {"float32"}:
        return f"weights in {', '.join(sorted(types))} have no form for inference, which is in float32"
    if module._forward_hooks or module._forward_pre_hooks:
        return "a layer with hooks has no form for inference, which would not call them"
    if isinstance(module, nn.Conv1d | nn.Conv2d):
        if module.groups > 1:
            return "grouped convolutions have no form for inference"
        if module.padding_mode != "zeros" or isinstance(module.padding, str):
            return f"a convolution padded by {module.padding_mode} {module.padding!r} has no form for inference"
    return None


def matrices(module: nn.Module) -> dict[str, Tensor]:
    """Return the weights of a layer as matrices (outputs, everything else), by name."""
    return {
        name: parameter.detach().reshape(parameter.shape[0], -1)
        for name, parameter in module.named_parameters(recurse=False)
        if parameter.dim() > 1 and parameter.numel()
    }


def _offset(bias: Tensor | None, outputs: int) -> Tensor:
    """Return a bias, or none, as a column of its own."""
    return (torch.zeros(outputs) if bias is None else bias.detach().clone())[:, None]


def _two(value: tuple[int, ...], fill: int = 1) -> tuple[int, int]:
    """Return a size of two axes; of a Conv1d the first is a single row."""
    return (fill, value[0]) if len(value) == 1 else (value[0], value[1])
