"""Hidden units that never reach an output, removed exactly: feed-forward units between two linear layers, and heads.

A unit that the layer behind it does not read adds nothing. A unit without an input is constant, and goes into the bias
of the layer behind it. What is left is the same network with smaller layers of the same kinds.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional

from ticketkit.errors import ConfigError
from ticketkit.names import named_modules, tied_groups
from ticketkit.roles import HiddenUnits
from ticketkit.runtime.attention import Attention

ELEMENTWISE: tuple[type[nn.Module], ...] = (
    nn.Identity, nn.Dropout, nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.SELU, nn.CELU, nn.GELU, nn.SiLU, nn.Mish,
    nn.Sigmoid, nn.Tanh, nn.Hardtanh, nn.Hardsigmoid, nn.Hardswish, nn.Softplus, nn.Softsign, nn.LogSigmoid,
)  # fmt: skip
"""Layers that give each feature its own output in evaluation mode; exact types."""
FUNCTIONS = (functional.relu, functional.gelu, functional.silu, functional.elu, torch.relu, torch.tanh, torch.sigmoid)
STATISTICS = ("weight", "bias", "running_mean", "running_var")


@dataclass(frozen=True)
class Removal:
    """What was made smaller: layers by their paths, and what is left of the features between them."""

    makers: tuple[str, ...]
    reader: str
    vectors: tuple[str, ...]
    counted_by: str | None
    before: int
    """Features that there were."""
    features: int
    units: int

    @classmethod
    def read(cls, facts: Any) -> Self:
        """Return what a file holds; raises `TypeError` or `KeyError` for anything else."""
        return cls(**{**facts, "makers": tuple(facts["makers"]), "vectors": tuple(facts["vectors"])})

    def facts(self) -> dict[str, Any]:
        """Return it as JSON has it."""
        return asdict(self)

    def apply_(self, module: nn.Module) -> None:
        """Give a freshly built module layers of these sizes, with any values; raises `ConfigError` if it has others."""
        width = _width(module, self.makers, self.reader, self.vectors)
        if width != self.before or not 0 < self.units <= self.features <= width:
            raise ConfigError(
                f"{self.reader} reads {width} features, of which {self.features} of {self.before} cannot be left"
            )
        _keep_(module, self, torch.arange(self.features))


def found_units(module: nn.Module) -> Iterator[HiddenUnits]:
    """Yield the hidden units that torch's own modules have, and heads of attention that was taken apart."""
    for path, layer in named_modules(module):
        prefix = f"{path}." if path else ""
        if type(layer) in (nn.TransformerEncoderLayer, nn.TransformerDecoderLayer):
            activation: Any = layer.activation
            if activation in FUNCTIONS or type(activation) in ELEMENTWISE:
                yield HiddenUnits((f"{prefix}linear1",), f"{prefix}linear2", between=activation)
        elif type(layer) is nn.Sequential:
            yield from _in_a_row(layer, prefix)
        elif isinstance(layer, Attention):
            makers = tuple(f"{prefix}{name}_proj" for name in "qkv")
            yield HiddenUnits(makers, f"{prefix}out_proj", counted_by=f"{prefix}num_heads", values=makers[2])


def remove_idle_(module: nn.Module, units: Callable[[nn.Module], Iterable[HiddenUnits]]) -> list[Removal]:
    """Remove from a module in evaluation mode what is idle among its units; return what was made smaller, in order.

    Of every kind of unit one is left. Layers whose weights others share, and those with hooks, are left as they are.
    """
    removals: list[Removal] = []
    while found := [removal for each in units(module) if (removal := _removed_(module, each)) is not None]:
        removals += found  # what they read may be read by nobody else
    return removals


@torch.no_grad()
def _removed_(module: nn.Module, units: HiddenUnits) -> Removal | None:
    """Remove the idle ones of some units; return what was made smaller, if anything was."""
    if any(_is_fixed(module, path) for path in (*units.makers, units.reader)):
        return None
    width = _width(module, units.makers, units.reader, units.vectors)
    count = _count(module, units, width)
    added = _added(module, units)
    idle = _idle(module, units, count, added)
    if bool(idle.all()):
        idle[0] = False
    if not bool(idle.any()):
        return None
    reader: Any = module.get_submodule(units.reader)
    if added is not None and reader.bias is not None:
        reader.bias.copy_(reader.bias.double() + added[:, idle].sum(1))
    if isinstance(owner := _owner(module, units), Attention):
        owner.busy[owner.busy.nonzero()[:, 0][idle]] = False
    kept = (~idle).repeat_interleave(width // count).nonzero()[:, 0]
    removal = Removal(units.makers, units.reader, units.vectors, units.counted_by, width, len(kept), int((~idle).sum()))
    _keep_(module, removal, kept)
    return removal


def _in_a_row(layer: nn.Sequential, prefix: str) -> Iterator[HiddenUnits]:
    """Yield the units of each linear layer that another follows behind elementwise ones and batch normalisation."""
    children, maker = list(layer.named_children()), None
    between: list[tuple[str, nn.Module]] = []
    for name, child in children:
        if type(child) is nn.Linear:
            if maker is not None:
                vectors = tuple(f"{prefix}{norm}.{leaf}" for norm, leaf in _statistics(between))
                passed = nn.Sequential(*(one for _, one in between))
                yield HiddenUnits((prefix + maker,), prefix + name, vectors=vectors, between=_as_a_batch(passed))
            maker, between = name, []
        elif maker is not None and (type(child) in ELEMENTWISE or _normalises(child)):
            between.append((name, child))
        else:
            maker = None


def _as_a_batch(passed: nn.Module) -> Callable[[Tensor], Tensor]:
    return lambda features: passed(features[None])[0]


def _normalises(layer: nn.Module) -> bool:
    return type(layer) is nn.BatchNorm1d and layer.running_mean is not None


def _statistics(layers: Sequence[tuple[str, nn.Module]]) -> Iterator[tuple[str, str]]:
    for name, layer in layers:
        if type(layer) is nn.BatchNorm1d:
            yield from ((name, leaf) for leaf in STATISTICS if getattr(layer, leaf) is not None)


def _is_fixed(module: nn.Module, path: str) -> bool:
    """Say whether a layer may not change its size: it, or its weights, have other names, or somebody listens to it."""
    layer = module.get_submodule(path)
    hooked = bool(layer._forward_hooks or layer._forward_pre_hooks)
    shared = [name for names in tied_groups(module).values() if len(names) > 1 for name in names]
    return type(layer) is not nn.Linear or hooked or any(f"{path}.{name}" in shared for name in ("weight", "bias"))


def _width(module: nn.Module, makers: Sequence[str], reader: str, vectors: Sequence[str]) -> int:
    """Return the features between layers; raises `ConfigError` if they do not agree."""
    layers: list[Any] = [module.get_submodule(path) for path in (*makers, reader)]
    if strange := [path for path, layer in zip((*makers, reader), layers, strict=True) if type(layer) is not nn.Linear]:
        raise ConfigError(f"{', '.join(strange)} must be nn.Linear to have hidden units removed")
    sizes = {layer.out_features for layer in layers[:-1]} | {layers[-1].in_features}
    sizes |= {_vector(module, name).numel() for name in vectors}
    if len(sizes) != 1:
        raise ConfigError(f"{', '.join(makers)} and {reader} do not agree on their features: {sorted(sizes)}")
    width: int = sizes.pop()
    return width


def _count(module: nn.Module, units: HiddenUnits, width: int) -> int:
    if units.counted_by is None:
        return width
    path, _, attribute = units.counted_by.rpartition(".")
    count: int = getattr(module.get_submodule(path), attribute)
    return count


def _idle(module: nn.Module, units: HiddenUnits, count: int, added: Tensor | None) -> Tensor:
    """Return which units add nothing to what the reader puts out, or always the same."""
    reader: Any = module.get_submodule(units.reader)
    idle: Tensor = ~reader.weight.any(0).view(count, -1).any(1)
    maker: Any
    if units.values is not None:
        maker = module.get_submodule(units.values)
        idle |= ~_puts_out(maker).view(count, -1).any(1)
    if added is not None:
        maker = module.get_submodule(units.makers[0])
        constant = ~maker.weight.any(1) & added.isfinite().all(0)
        idle |= constant if reader.bias is not None else constant & ~added.any(0)
    owner = _owner(module, units)
    return idle & _flat(owner, count) if isinstance(owner, Attention) and not owner.weights_unasked else idle


def _added(module: nn.Module, units: HiddenUnits) -> Tensor | None:
    """Return what each unit would add to the reader's outputs if it had no inputs: (outputs, units), in float64."""
    if units.between is None:
        return None
    maker: Any = module.get_submodule(units.makers[0])
    reader: Any = module.get_submodule(units.reader)
    made = units.between(torch.zeros(maker.out_features) if maker.bias is None else maker.bias.detach().clone())
    added: Tensor = torch.where(reader.weight == 0, 0.0, reader.weight.double() * made.double())
    return added


def _owner(module: nn.Module, units: HiddenUnits) -> nn.Module:
    return module.get_submodule(units.reader.rpartition(".")[0])


def _puts_out(layer: Any) -> Tensor:
    """Return which outputs of a linear layer are not zero for every input."""
    rows: Tensor = layer.weight.any(1)
    return rows if layer.bias is None else rows | (layer.bias != 0)


def _flat(attention: Any, heads: int) -> Tensor:
    """Return which heads score every key alike, so that their weights are known without them."""
    scores: Tensor = attention.k_proj.weight.any(1) & _puts_out(attention.q_proj)
    return ~scores.view(heads, -1).any(1)


def _vector(module: nn.Module, name: str) -> Tensor:
    path, _, leaf = name.rpartition(".")
    vector = getattr(module.get_submodule(path), leaf)
    if not isinstance(vector, Tensor) or vector.dim() != 1:
        raise ConfigError(f"{name} is no vector of one value a feature")
    return vector


def _keep_(module: nn.Module, removal: Removal, kept: Tensor) -> None:
    """Leave some of the features in all layers that have them."""
    for path in removal.makers:
        maker: Any = module.get_submodule(path)
        maker.weight = _chosen(maker.weight, kept, 0)
        maker.bias = None if maker.bias is None else _chosen(maker.bias, kept, 0)
        maker.out_features = len(kept)
    reader: Any = module.get_submodule(removal.reader)
    reader.weight = _chosen(reader.weight, kept, 1)
    reader.in_features = len(kept)
    for name in removal.vectors:
        path, _, leaf = name.rpartition(".")
        owner: Any = module.get_submodule(path)
        value = getattr(owner, leaf)
        setattr(owner, leaf, _chosen(value, kept, 0) if isinstance(value, nn.Parameter) else value[kept].clone())
        if isinstance(owner, nn.BatchNorm1d):
            owner.num_features = len(kept)
    if removal.counted_by is not None:
        path, _, attribute = removal.counted_by.rpartition(".")
        counted = module.get_submodule(path)
        if type(getattr(counted, attribute, None)) is not int:
            raise ConfigError(f"{removal.counted_by} is no number of units")
        setattr(counted, attribute, removal.units)


def _chosen(parameter: nn.Parameter, kept: Tensor, axis: int) -> nn.Parameter:
    return nn.Parameter(parameter.detach().index_select(axis, kept), requires_grad=parameter.requires_grad)
