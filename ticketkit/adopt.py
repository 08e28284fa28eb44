"""Masks from elsewhere: from a network whose pruned weights are zero, from torch.nn.utils.prune, from plain tensors.

None of these guesses. What says that a weight is pruned is an exact zero in a parameter in scope, a pruning method that
`torch.nn.utils.prune` has hooked into a module, or a tensor that you name yourself; a key of a state dict that happens
to contain "mask" says nothing.
"""

import difflib
import warnings
from collections.abc import Iterator, Mapping
from typing import Literal, NamedTuple

import torch
from torch import nn
from torch.nn.modules.rnn import RNNBase
from torch.nn.utils import prune

from ticketkit.errors import MaskError, NoEffectWarning
from ticketkit.mask import Mask
from ticketkit.names import is_known_layer, named_modules, tied_groups, unwrap
from ticketkit.scope import Scope

LEAVES = (
    "weight",
    "q_proj_weight",
    "k_proj_weight",
    "v_proj_weight",
    "in_proj_weight",
    "weight_ih",
    "weight_hh",
    "bias",
    "bias_ih",
    "bias_hh",
    "in_proj_bias",
    "bias_k",
    "bias_v",
)
"""The order in which the layers of torch.nn, except RNN, LSTM and GRU, register their parameters."""


class _Pruned(NamedTuple):
    """One parameter that torch.nn.utils.prune holds a mask on."""

    name: str
    module: nn.Module
    leaf: str

    @property
    def original(self) -> nn.Parameter:
        """The parameter under the mask."""
        return self.module.get_parameter(f"{self.leaf}_orig")


def mask_from_zeros(model: nn.Module, scope: Scope | None = None) -> Mask:
    """Return the mask of a network that was pruned by setting weights to zero: zeros of either sign are pruned.

    It covers the scope, by default `Scope.of(model)`. Warns `NoEffectWarning` if no weight in scope is zero.

    >>> model = nn.Linear(2, 1)
    >>> model.weight = nn.Parameter(torch.tensor([[0.5, 0.0]]))
    >>> mask_from_zeros(model)["weight"]
    tensor([[ True, False]])
    """
    scope = Scope.of(model) if scope is None else scope
    mask = Mask({name: values != 0 for name, values in scope.tensors(model).items()}, aliases=scope.aliases)
    if mask.kept == mask.total:
        warnings.warn(
            f"none of the {mask.total} weights of {type(unwrap(model)).__name__} in scope is zero: the mask keeps all",
            NoEffectWarning,
            stacklevel=2,
        )
    return mask


def mask_from_torch_prune(model: nn.Module, *, remove: bool = True) -> Mask:
    """Return the mask that torch.nn.utils.prune holds on a model, under the parameters' real names.

    It covers the parameters that were pruned that way, biases too, and no others; `mask_from_tensors(mask, scope,
    missing="keep")` extends it to a scope.

    With `remove` the pruning is made permanent by `prune.remove`, so that the model is an ordinary one again and
    computes what it did: pruned weights are +0.0, every parameter is the object it was, in the memory it had, and the
    parameters of torch.nn's layers are in their usual order again (those of other modules stay last in theirs).

    Raises `MaskError` if nothing is pruned, if a mask is not of zeros and ones, or if tied parameters are not all
    pruned alike; the model is then untouched.
    """
    found = list(_torch_pruned(model))
    if not found:
        raise MaskError(
            f"no module of {type(unwrap(model)).__name__} is pruned by torch.nn.utils.prune; for weights that were set "
            "to zero there is mask_from_zeros"
        )
    kept = {p.name: _exact_bool(f"{p.name}_mask", p.module.get_buffer(f"{p.leaf}_mask")) for p in found}
    groups = _tied_alike(model, kept)
    if remove:
        for pruned in {(id(p.module), p.leaf): p for p in found}.values():
            _make_permanent(pruned, kept[pruned.name])
        groups = {names[0]: names for names in tied_groups(model).values() if names[0] in kept}
    aliases = {first: names[1:] for first, names in groups.items()}
    return Mask({first: kept[first] for first in groups}, aliases=aliases)


def mask_from_tensors(
    tensors: Mapping[str, torch.Tensor],
    model_or_scope: nn.Module | Scope,
    *,
    missing: Literal["error", "keep"] = "error",
) -> Mask:
    """Return the mask that keeps a weight where the tensor of its parameter's name is True or 1.

    Tensors may be of any dtype but hold nothing except zeros and ones; the name of a tied parameter may be any of its
    names. The mask covers the scope, by default that of the model. Parameters in scope without a tensor are an error,
    or kept whole with `missing="keep"`.

    Raises `MaskError` listing everything that does not fit.

    >>> mask_from_tensors({"weight": torch.tensor([[1.0, 0.0]])}, nn.Linear(2, 1))["weight"]
    tensor([[ True, False]])
    """
    if missing not in ("error", "keep"):
        raise MaskError(f"missing must be 'error' or 'keep', not {missing!r}")
    scope = model_or_scope if isinstance(model_or_scope, Scope) else Scope.of(model_or_scope)
    first_of = {name: first for first in scope.names for name in (first, *scope.aliases.get(first, ()))}
    kept: dict[str, torch.Tensor] = {}
    problems = []
    absent = [first for first in scope.names if not any(first_of.get(name) == first for name in tensors)]
    for name, tensor in tensors.items():
        first = first_of.get(name)
        try:
            if first is None:
                raise MaskError(_stranger(name, list(first_of)))
            flags = _exact_bool(name, tensor)
            if tuple(flags.shape) != tuple(scope.shapes[first]):
                raise MaskError(f"{name}: expected shape {tuple(scope.shapes[first])}, found {tuple(flags.shape)}")
            if not torch.equal(kept.setdefault(first, flags), flags):
                raise MaskError(f"{name} is tied to {first}, and the two masks differ")
        except MaskError as error:
            problems.append(str(error))
    if missing == "error":
        problems += [f"{name} {tuple(scope.shapes[name])}: missing; missing='keep' keeps it whole" for name in absent]
    if problems:
        raise MaskError("these tensors are no mask of the scope:\n  " + "\n  ".join(problems))
    ones = {name: torch.ones(scope.shapes[name], dtype=torch.bool) for name in absent}
    return Mask({name: (kept | ones)[name] for name in scope.names}, aliases=scope.aliases)


def _torch_pruned(model: nn.Module) -> Iterator[_Pruned]:
    """Yield what torch.nn.utils.prune holds, told by its hooks; a module in two places is yielded for both."""
    for prefix, module in named_modules(model, remove_duplicate=False):
        for hook in module._forward_pre_hooks.values():
            if isinstance(hook, prune.BasePruningMethod):
                leaf = str(hook._tensor_name)
                yield _Pruned(f"{prefix}.{leaf}" if prefix else leaf, module, leaf)


def _tied_alike(model: nn.Module, kept: Mapping[str, torch.Tensor]) -> dict[str, list[str]]:
    """Return first name → all names of the pruned parameters; raise `MaskError` if some of them are pruned otherwise.

    A mask holds for a parameter and so for all its names; where torch prunes one place only, the other computes with
    the whole parameter.
    """
    real = {f"{name}_orig": name for name in kept}
    groups: dict[str, list[str]] = {}
    for names in tied_groups(model).values():
        pruned = [real[name] for name in names if name in real]
        if pruned and len(pruned) < len(names):
            whole = ", ".join(name for name in names if name not in real)
            raise MaskError(f"{pruned[0]} is pruned, but {whole}, tied to it, is not; prune all of them alike")
        if any(not torch.equal(kept[name], kept[pruned[0]]) for name in pruned):
            raise MaskError(f"{', '.join(pruned)} are tied, but their masks differ; prune all of them alike")
        if pruned:
            groups[pruned[0]] = pruned
    return groups


def _make_permanent(pruned: _Pruned, kept: torch.Tensor) -> None:
    """Remove one pruning: the original parameter, in its own memory, under its own name and in its place."""
    parameter, memory = pruned.original, pruned.original.data
    prune.remove(pruned.module, pruned.leaf)  # type: ignore[no-untyped-call]
    parameter.data = memory  # prune.remove has moved it to new memory, out of a tie or the chunk that cuDNN needs
    with torch.no_grad():
        parameter.masked_fill_(~kept.to(parameter.device), 0.0)
    _restore_order(pruned.module)


def _restore_order(module: nn.Module) -> None:
    """Put the parameters of a torch.nn layer back into the order in which it registers them."""
    if isinstance(module, RNNBase):
        usual: tuple[str, ...] = tuple(module._flat_weights_names)
    else:
        usual = LEAVES if is_known_layer(module) else ()
    leaves = list(module._parameters)
    for leaf in [*(leaf for leaf in usual if leaf in leaves), *(leaf for leaf in leaves if leaf not in usual)]:
        module._parameters[leaf] = module._parameters.pop(leaf)


def _exact_bool(name: str, tensor: torch.Tensor) -> torch.Tensor:
    """Return a tensor of zeros and ones as bool on the CPU; raise `MaskError` for any other content."""
    if not isinstance(tensor, torch.Tensor) or tensor.is_meta or tensor.is_complex():
        came = f"{tensor.dtype} on {tensor.device}" if isinstance(tensor, torch.Tensor) else type(tensor).__name__
        raise MaskError(f"{name}: a mask is a tensor of zeros and ones, not {came}")
    values = tensor.detach().to_dense().cpu() if tensor.layout is not torch.strided else tensor.detach().cpu()
    if values.dtype is torch.bool:
        return values
    exact = values.to(torch.float64)
    if strange := int(((exact != 0) & (exact != 1)).sum()):
        example = exact[(exact != 0) & (exact != 1)][0].item()
        raise MaskError(f"{name}: {strange} of {exact.numel()} entries are neither 0 nor 1, such as {example}")
    return exact != 0


def _stranger(name: str, names: list[str]) -> str:
    nearest = difflib.get_close_matches(name, names, n=2, cutoff=0.5)
    hint = f"; nearest: {', '.join(nearest)}" if nearest else ""
    return f"{name}: no parameter in scope has this name{hint}"
