"""Effective sparsity: which kept weights lie on a path from the input to the output, and which cannot matter.

Vysogorets and Kempe, "Connectivity Matters: Neural Network Pruning Through the Lens of Effective Sparsity" (JMLR 2023):
a kept weight out of a unit that nothing enters, or into a unit that nothing leaves, does no work, and at high sparsity
there are many. The paper walks a graph that it builds per architecture; here one backward pass finds the same weights
in any network. A float64 copy of the network gets positive random weights, zero biases and activations that let
everything through, so gradients are sums of positive terms, which never cancel: a gradient is exactly zero if and only
if no path carries it.
"""

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from math import frexp
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.modules.conv import _ConvNd
from torch.nn.modules.rnn import RNNBase, RNNCellBase
from torch.nn.utils.rnn import PackedSequence
from torch.overrides import TorchFunctionMode

from ticketkit.errors import ConfigError, RunError
from ticketkit.mask import Mask
from ticketkit.names import named_buffers, named_parameters
from ticketkit.rng import seeded
from ticketkit.scope import masked_parameters

Run = Callable[[nn.Module], torch.Tensor]

LET_THROUGH = {
    "alpha_dropout", "celu", "dropout", "dropout1d", "dropout2d", "dropout3d", "elu", "feature_alpha_dropout",
    "feature_dropout", "gelu", "hardshrink", "hardswish", "hardtanh", "leaky_relu", "local_response_norm",
    "log_sigmoid", "logsigmoid", "mish", "normalize", "prelu", "relu", "relu6", "rrelu", "selu", "silu", "softplus",
    "softshrink", "softsign", "tanh", "tanhshrink", "threshold",
}  # fmt: skip
"""Names of functions, in place or not, that return their input instead: what they do to a unit starts no path."""

NORMS: Mapping[Any, int] = {
    **dict.fromkeys((F.layer_norm, F.rms_norm, F.group_norm, torch.layer_norm, torch.rms_norm, torch.group_norm), 2),
    **dict.fromkeys((F.batch_norm, F.instance_norm), 3),
    **dict.fromkeys((torch.batch_norm, torch.instance_norm), 1),
}
"""Normalisations and the position of their weight, by which alone they scale: statistics tie units but are no path."""

TRAILING_WEIGHT = (F.layer_norm, F.rms_norm, torch.layer_norm, torch.rms_norm)

POOLS: Mapping[str, Callable[..., torch.Tensor]] = {
    "max_pool1d": F.avg_pool1d,
    "max_pool2d": F.avg_pool2d,
    "max_pool3d": F.avg_pool3d,
}
"""Poolings and the mean that replaces them: a path goes through every value of a window, not only the highest."""

SMALLEST = 2.0**-200  # a product of an activation, a weight and a gradient stays far above the least float64

LINEAR = (nn.Linear, nn.Bilinear, _ConvNd, RNNBase, RNNCellBase)


def effective_mask(
    model: nn.Module, mask: Mask, run: Run, *, seed: int = 0, biases: Sequence[str] = ("*bias*",)
) -> Mask:
    """Return the mask without the weights that lie on no path from the input to the output.

    `run(model)` does one forward pass of the network it is given (a copy in eval mode, never the one outside) and
    returns its output tensor. Give it an input that uses every part of the network: positive where it is
    floating-point, no zeros, several different steps for attention and recurrence. Parameters outside the mask count as
    dense. `biases` are patterns of the names of parameters and buffers that are added instead of multiplied (learned
    positions, say): they are set to zero, since a unit that only a bias feeds is constant; a masked bias is effective
    if it reaches the output. The model, its gradients, its flags and the global generators stay as they are; for a
    while a float64 copy of the model exists, on a device that must have float64.
    Raises `ScopeError` when the model lacks a masked parameter, `ConfigError` when `run` returns no tensor, `RunError`
    when its output does not come from the model it was given, is the same whatever is kept, or has no finite gradients.

    Recurrent layers and attention are differentiated as they stand. A gate that multiplies a unit without a value is no
    path: where nothing enters the cell candidate (g of an LSTM, n of a GRU), the unit's other gates are ineffective.
    Limits: a hidden sigmoid passes ½ on even if nothing enters it, so weights behind it count as effective, and so does
    whatever a model adds under no name (buffers that `biases` does not match, constants). A maximum over positions
    other than the max_pool functions lets only the highest pass, and what is computed under no_grad is no path.
    Scripted and compiled modules are run as written: pass the module that was compiled.

    >>> model = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 1))
    >>> mask = Mask({"0.weight": torch.tensor([[True, True], [False, False]]),
    ...              "2.weight": torch.tensor([[False, True]])})
    >>> mask.kept, effective_mask(model, mask, lambda copy: copy(torch.ones(1, 2))).kept
    (3, 0)
    """
    masked_parameters(model, mask.shapes)
    if not mask.kept:
        return mask
    found = _carrying(model, mask, run, seed, biases)
    if not found.kept and not _carrying(model, Mask.ones(mask.shapes), run, seed, biases).kept:
        raise RunError(
            "not even without a mask does a masked parameter lie on a path from the input to the output of run(model); "
            "give it an input without zeros and return an output that depends on it"
        )
    return found


def effective_density(
    model: nn.Module, mask: Mask, run: Run, *, seed: int = 0, biases: Sequence[str] = ("*bias*",)
) -> float:
    """Return the share of the masked parameters' weights that are kept and on a path; see `effective_mask`.

    >>> model = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 1))
    >>> mask = Mask({"0.weight": torch.tensor([[True, True], [False, False]])})
    >>> mask.density, effective_density(model, mask, lambda copy: copy(torch.ones(1, 2)))
    (0.5, 0.5)
    """
    return effective_mask(model, mask, run, seed=seed, biases=biases).density


def _carrying(model: nn.Module, mask: Mask, run: Run, seed: int, biases: Sequence[str]) -> Mask:
    """Return the kept weights with a gradient other than zero in a positive copy of the model."""
    positive = copy.deepcopy(model).double().eval()
    groups = _copies(model, positive, mask)
    draw = torch.Generator().manual_seed(seed)
    _set_positive(positive, mask, groups, biases, draw)
    for module in positive.modules():
        if module._parameters:
            module.register_forward_pre_hook(_widen_inputs, with_kwargs=True)
    ends = [parameter for group in groups.values() for parameter in group]
    for parameter in ends:
        parameter.requires_grad_(True)
    with seeded(seed), torch.enable_grad(), torch.backends.cudnn.flags(enabled=False), _Positive():
        # cuDNN has no backward pass of recurrent layers in eval mode
        output = run(positive)
        _check_output(output)
        projection = torch.empty(output.shape, dtype=output.dtype).uniform_(0.5, 1.5, generator=draw)
        found = torch.autograd.grad(output, ends, projection.to(output.device), allow_unused=True)
    if all(gradient is None for gradient in found):
        raise RunError(
            "the output of run(model) does not depend on any masked parameter of the model it was given; let it call "
            "its argument, not a network from outside, and compute nothing under no_grad"
        )
    gradients = {id(parameter): gradient for parameter, gradient in zip(ends, found, strict=True)}
    return Mask(
        {name: _reached(name, groups[name], gradients) & kept for name, kept in mask.items()}, aliases=mask.aliases
    )


def _copies(model: nn.Module, copied: nn.Module, mask: Mask) -> dict[str, list[nn.Parameter]]:
    """Return for each masked name the parameters of a copy; only the original knows which share a storage."""
    pairs = zip(named_parameters(model), named_parameters(copied), strict=True)
    twin = {id(original): parameter for (_, original), (_, parameter) in pairs}
    return {name: [twin[id(p)] for p in group] for name, group in masked_parameters(model, mask.shapes).items()}


def _set_positive(
    model: nn.Module,
    mask: Mask,
    groups: Mapping[str, Iterable[nn.Parameter]],
    biases: Sequence[str],
    draw: torch.Generator,
) -> None:
    """Write zeros into biases and pruned weights, and positive random weights that add up to 1 per row elsewhere."""
    named: dict[str, torch.Tensor] = dict(named_parameters(model))
    kept = {id(parameter): mask[name] for name, group in groups.items() for parameter in group}
    with torch.no_grad():
        for name, tensor in [*named.items(), *named_buffers(model)]:
            if any(fnmatchcase(name, pattern) for pattern in biases):
                tensor.zero_()
            elif name in named and tensor.is_floating_point():
                values = torch.empty(tensor.shape, dtype=tensor.dtype).uniform_(0.5, 1.5, generator=draw)
                if id(tensor) in kept:
                    values.masked_fill_(~kept[id(tensor)], 0.0)
                if tensor.ndim > 1 and tensor.numel():
                    rows = values.flatten(1).sum(1)
                    values /= torch.where(rows == 0, 1.0, rows).reshape(-1, *[1] * (tensor.ndim - 1))
                tensor.copy_(values)


def _check_output(output: object) -> None:
    if not isinstance(output, torch.Tensor) or not output.is_floating_point():
        came = output.dtype if isinstance(output, torch.Tensor) else type(output).__name__
        raise ConfigError(f"run(model) must return the network's output as one floating-point tensor, not {came}")
    if not output.requires_grad:
        raise RunError("the output of run(model) has no gradient; let it call the model it is given, without no_grad")


def _reached(name: str, group: Iterable[nn.Parameter], gradients: Mapping[int, torch.Tensor | None]) -> torch.Tensor:
    """Return where the gradient of a parameter, or of one tied to it, is not zero."""
    reached = None
    for parameter in group:
        gradient = gradients[id(parameter)]
        found = torch.zeros(parameter.shape) if gradient is None else gradient.to_dense().cpu()
        if not bool(found.isfinite().all()):
            raise RunError(f"gradients of {name!r} are not finite; run(model) must not divide by or take logs of zeros")
        reached = found != 0 if reached is None else reached | (found != 0)
    return torch.tensor(False) if reached is None else reached


class _Positive(TorchFunctionMode):
    """Inside, activations are the identity, normalisations scale by their weight and poolings average."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "").removeprefix("_").removesuffix("_")
        tensor = args[0] if args else kwargs.get("input")
        if not isinstance(tensor, torch.Tensor) or not tensor.is_floating_point():
            return func(*args, **kwargs)
        if name in LET_THROUGH:
            return tensor
        if func in NORMS:
            weight = kwargs.get("weight", args[NORMS[func]] if len(args) > NORMS[func] else None)
            if weight is not None and func not in TRAILING_WEIGHT:
                weight = weight.reshape(-1, *[1] * (tensor.ndim - 2))  # (channels, 1, …), beside axis 1
            return tensor if weight is None else tensor * weight
        if name in POOLS:
            settings = kwargs | dict(zip(("input", "kernel_size", "stride", "padding", "dilation"), args, strict=False))
            spread, indices = settings.pop("dilation", 1), settings.pop("return_indices", False)
            if not indices and set(spread if isinstance(spread, tuple | list) else [spread]) == {1}:
                return POOLS[name](**settings)
        return func(*args, **kwargs)


def _widen_inputs(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Cast what enters a module to float64; scale what enters a linear or recurrent one, and its gradient, to about 1.

    Only zeros count, and a positive factor makes none and removes none; but sparse layers shrink numbers, deep ones let
    the counts of paths to neighbouring units drift apart by any factor, and both would underflow.
    """
    scale = isinstance(module, LINEAR)
    return tuple(_widened(value, scale) for value in args), {k: _widened(v, scale) for k, v in kwargs.items()}


def _widened(value: Any, scale: bool) -> Any:
    if isinstance(value, torch.Tensor) and value.is_floating_point():
        wide = value.double()
        if scale:
            wide = _near_one(wide)
            if wide.requires_grad:
                wide.register_hook(_near_one)  # type: ignore[no-untyped-call]
        return wide
    if isinstance(value, PackedSequence):
        return value._replace(data=_widened(value.data, scale))
    if type(value) in (tuple, list):
        return type(value)(_widened(item, scale) for item in value)
    return value


def _near_one(tensor: torch.Tensor) -> torch.Tensor:
    """Return the tensor times a power of two, its largest finite value about 1 and none but zeros below `SMALLEST`."""
    largest = float(tensor.detach().abs().nan_to_num(0.0, 0.0, 0.0).max()) if tensor.numel() else 0.0
    if not largest:
        return tensor
    scaled = tensor * 2.0 ** min(1 - frexp(largest)[1], 1000)
    value = scaled.detach()
    tiny = (value != 0) & (value.abs() < SMALLEST)
    return scaled + torch.where(tiny, value.sign() * SMALLEST - value, 0.0)  # the gradient passes as if not raised
