"""What a parameter is called and what it is, however its model is wrapped.

DDP, torch.compile and the like put something before every name:

| wrapper | prefix |
|---|---|
| `DataParallel`, `DistributedDataParallel`, `AveragedModel` (SWA, EMA) | `module.` |
| `torch.compile(model)` | `_orig_mod.` |
| `FullyShardedDataParallel` (FSDP 1; `fully_shard` keeps names) | `_fsdp_wrapped_module.` |
| activation checkpointing and offloading | `_checkpoint_wrapped_module.` |

A canonical name leaves these out at any depth and in any nesting. The type of a module decides, never the string: a
network's own submodule may be called `module`. What a wrapper holds itself, such as `AveragedModel.n_averaged`, has a
name with an empty part where the wrapper is (`.n_averaged`), which no name of the wrapped network can be.

Whether a parameter is a weight matrix or kernel is also decided by the type of the module that holds it.
"""

import sys
import warnings
from collections.abc import Iterator

import torch
from torch import nn
from torch.nn.modules.conv import _ConvNd
from torch.nn.modules.rnn import RNNBase, RNNCellBase
from torch.nn.parameter import is_lazy

from ticketkit.errors import NoEffectWarning

WRAPPERS = {
    ("torch.nn.parallel.data_parallel", "DataParallel"): "module",
    ("torch.nn.parallel.distributed", "DistributedDataParallel"): "module",
    ("torch.optim.swa_utils", "AveragedModel"): "module",
    ("torch._dynamo.eval_frame", "OptimizedModule"): "_orig_mod",
    ("torch.distributed.fsdp.fully_sharded_data_parallel", "FullyShardedDataParallel"): "_fsdp_wrapped_module",
    ("torch.distributed.algorithms._checkpoint.checkpoint_wrapper", "ActivationWrapper"): "_checkpoint_wrapped_module",
}
"""Where each wrapping class lives, and the attribute under which it holds the wrapped module."""

ATTENTION_WEIGHTS = ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight")
CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict, nn.ParameterList, nn.ParameterDict)
FOREIGN_LAYERS = (("transformers.pytorch_utils", "Conv1D"),)
"""Where the layers of other libraries live whose `weight` is a matrix: GPT-2's, a linear layer stored transposed."""


def unwrap(module: nn.Module) -> nn.Module:
    """Return the module inside all wrappers around it; one that is not wrapped is returned itself.

    >>> from torch.optim.swa_utils import AveragedModel
    >>> unwrap(AveragedModel(nn.DataParallel(nn.Linear(2, 1))))
    Linear(in_features=2, out_features=1, bias=True)
    """
    attribute = _wrapped_attribute(module)
    inner = None if attribute is None else module._modules[attribute]
    return module if inner is None else unwrap(inner)


def named_modules(model: nn.Module, *, remove_duplicate: bool = True) -> Iterator[tuple[str, nn.Module]]:
    """Yield (canonical name, module) in the order of `model.named_modules()`, leaving out the wrappers themselves."""
    for prefix, module in _walk(model, "", set() if remove_duplicate else None):
        if _wrapped_attribute(module) is None:
            yield prefix.removesuffix("."), module


def named_parameters(model: nn.Module, *, remove_duplicate: bool = True) -> Iterator[tuple[str, nn.Parameter]]:
    """Yield (canonical name, parameter) in the order of `model.named_parameters()`.

    With `remove_duplicate` a parameter that several modules share is yielded once, under its first name.

    >>> from torch.optim.swa_utils import AveragedModel
    >>> [name for name, _ in named_parameters(AveragedModel(nn.Sequential(nn.Linear(2, 1))))]
    ['0.weight', '0.bias']
    """
    for name, parameter, _ in owned_parameters(model, remove_duplicate=remove_duplicate):
        yield name, parameter


def owned_parameters(
    model: nn.Module, *, remove_duplicate: bool = True
) -> Iterator[tuple[str, nn.Parameter, nn.Module]]:
    """Yield what `named_parameters` does, and with each parameter the module that holds it."""
    seen: set[int] = set()
    for prefix, module in _walk(model, "", set() if remove_duplicate else None):
        for leaf, parameter in module.named_parameters(recurse=False, remove_duplicate=remove_duplicate):
            if remove_duplicate and id(parameter) in seen:
                continue
            seen.add(id(parameter))
            yield prefix + leaf, parameter, module


def named_buffers(
    model: nn.Module, *, remove_duplicate: bool = True, wrappers: bool = True
) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield (canonical name, buffer) in the order of `model.named_buffers()`, persistent or not.

    Without `wrappers`, what belongs to a wrapper and not to the network is left out: a network and its `AveragedModel`
    then have the same.
    """
    seen: set[int] = set()
    for prefix, module in _walk(model, "", set() if remove_duplicate else None):
        if not wrappers and "" in prefix.split(".")[:-1]:
            continue
        for leaf, buffer in module.named_buffers(recurse=False, remove_duplicate=remove_duplicate):
            if remove_duplicate and id(buffer) in seen:
                continue
            seen.add(id(buffer))
            yield prefix + leaf, buffer


def tied_groups(model: nn.Module) -> dict[str, list[str]]:
    """Return first name → all names of every parameter, where names that share one storage form a group."""
    groups: dict[object, list[str]] = {}
    for name, parameter in named_parameters(model, remove_duplicate=False):
        groups.setdefault(_identity(parameter), []).append(name)
    return {names[0]: names for names in groups.values()}


def weight_names(model: nn.Module, *, embeddings: bool = False, bare: bool = False) -> set[str]:
    """Return the names of all weight matrices and kernels, whichever of a tied parameter's names that is.

    Warns `NoEffectWarning` of an option that adds none.
    """
    names: dict[str, set[str]] = {"layer": set(), "embeddings": set(), "bare": set()}
    for name, parameter, module in owned_parameters(model, remove_duplicate=False):
        if kind := _kind_of_weight(name.rpartition(".")[2], parameter, module):
            names[kind].add(name)
    wanted = [option for option, on in (("embeddings", embeddings), ("bare", bare)) if on]
    if idle := [option for option in wanted if not names[option]]:
        warnings.warn(
            f"{' and '.join(f'{option}=True' for option in idle)} changed nothing: {type(unwrap(model)).__name__} has "
            "no such parameters",
            NoEffectWarning,
            stacklevel=3,
        )
    return names["layer"].union(*(names[option] for option in wanted))


def computed_weights(model: nn.Module) -> list[str]:
    """Return the names of layers' weights that are no parameters: parametrized, weight-normed or pruned by torch."""
    return [
        f"{prefix}.{leaf}" if prefix else leaf
        for prefix, module in named_modules(model)
        for leaf in _layer_weights(module)
        if leaf not in module._parameters
    ]


def is_known_layer(module: nn.Module) -> bool:
    """Say whether a module is a layer of torch.nn, a foreign one or derived from one; plain containers are none."""
    return _is_foreign_layer(module) or any(
        kind.__module__.startswith("torch.nn.") and kind is not nn.Module and kind not in CONTAINERS
        for kind in type(module).__mro__
    )


def memory_of(tensor: torch.Tensor) -> object | None:
    """Return a key of the memory that a tensor lies in, or None if it has none: empty, meta, lazy and distributed ones.

    Two parameters of a network that share weights may be two objects over one storage; a distributed tensor
    (`fully_shard`) is a shell around others and has no storage to look at.
    """
    if is_lazy(tensor) or tensor.is_meta or tensor.numel() == 0:
        return None
    try:
        return (tensor.device, tensor.untyped_storage().data_ptr())
    except (RuntimeError, NotImplementedError):
        return None


def _identity(parameter: nn.Parameter) -> object:
    """Return a key that two parameters share if they are one object or the same view of one storage."""
    memory = memory_of(parameter)
    if memory is None:
        return id(parameter)
    return (memory, parameter.storage_offset(), tuple(parameter.shape), parameter.stride())


def _walk(module: nn.Module, prefix: str, seen: set[int] | None, depth: int = 1) -> Iterator[tuple[str, nn.Module]]:
    """Yield (prefix of the names of what it holds, module) for a module and all below; `seen` drops repetitions.

    `depth` counts the wrappers around one place, so that two of them there do not call their own state alike.
    """
    if seen is not None:
        if id(module) in seen:
            return
        seen.add(id(module))
    attribute = _wrapped_attribute(module)
    own = prefix if attribute is None else prefix + "." * depth
    yield own, module
    for name, child in module._modules.items():
        if child is None:
            continue
        if name == attribute:
            yield from _walk(child, prefix, seen, depth + 1)
        else:
            yield from _walk(child, f"{own}{name}.", seen)


def _wrapped_attribute(module: nn.Module) -> str | None:
    """Return the attribute under which a wrapper holds its module, or None for what is no wrapper.

    Nothing is imported to find out: an object can only be of a class whose module has been loaded.
    """
    for (home, kind), attribute in WRAPPERS.items():
        loaded = getattr(sys.modules.get(home), kind, None)
        if isinstance(loaded, type) and isinstance(module, loaded) and module._modules.get(attribute) is not None:
            return attribute
    return None


def _kind_of_weight(leaf: str, parameter: nn.Parameter, module: nn.Module) -> str | None:
    """Return "layer", "embeddings" or "bare", or None for a bias, a norm and what else is no weight."""
    if leaf in _layer_weights(module):
        return "layer"
    if isinstance(module, nn.Embedding | nn.EmbeddingBag):
        return "embeddings" if leaf == "weight" else None
    return "bare" if not is_known_layer(module) and not is_lazy(parameter) and parameter.ndim >= 2 else None


def _layer_weights(module: nn.Module) -> tuple[str, ...]:
    """Return what the weights of a known layer are called, whether they are parameters or computed."""
    if isinstance(module, nn.Linear | nn.Bilinear | _ConvNd) or _is_foreign_layer(module):
        return ("weight",)
    if isinstance(module, RNNBase):
        return tuple(leaf for leaf in module._flat_weights_names if leaf.startswith("weight_"))
    if isinstance(module, RNNCellBase):
        return ("weight_ih", "weight_hh")
    return ATTENTION_WEIGHTS if isinstance(module, nn.MultiheadAttention) else ()


def _is_foreign_layer(module: nn.Module) -> bool:
    """Say whether another library's layer it is; nothing is imported, for an object's class is there already."""
    classes = [getattr(sys.modules.get(home), name, None) for home, name in FOREIGN_LAYERS]
    return isinstance(module, tuple(kind for kind in classes if isinstance(kind, type)))
