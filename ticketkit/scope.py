"""Which parameters can be pruned: a rule over names, resolved once against a model, in a fixed order."""

import difflib
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from itertools import pairwise
from math import prod
from types import FunctionType
from typing import Self

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from ticketkit.errors import NoEffectWarning, ScopeError
from ticketkit.mask import Mask, Shape, shape_differences
from ticketkit.names import computed_weights, memory_of, named_parameters, owned_parameters, unwrap, weight_names
from ticketkit.names import tied_groups as tied_groups
from ticketkit.sharding import resharded

Where = Callable[[str, nn.Parameter, nn.Module], bool]


@dataclass(frozen=True)
class Scope:
    """The parameters that are masked, scored and counted, in the order of `model.named_parameters()`.

    Names are canonical: those of the network itself, whatever wraps it. Each group of tied parameters appears once,
    under its first name; `aliases` holds the others. `total` counts the weights in scope and `model_total` those of the
    whole model, tied ones once: every density says which of the two it is a share of. The other fields are the rule, as
    `of` takes it; of a function, `where`, its name.
    """

    shapes: Mapping[str, Shape]
    aliases: Mapping[str, tuple[str, ...]]
    model_total: int
    include: tuple[str, ...] | None = None
    exclude: tuple[str, ...] = ()
    where: str | None = None
    embeddings: bool = False
    bare: bool = False

    @classmethod
    def of(
        cls,
        model: nn.Module,
        *,
        include: Iterable[str] | None = None,
        exclude: Iterable[str] = (),
        where: Where | None = None,
        embeddings: bool = False,
        bare: bool = False,
    ) -> Self:
        """Return the scope of a model under a rule.

        By default it holds the weight matrices and kernels of Linear, Bilinear, convolutions, recurrent layers and
        cells (input, recurrent and projection weights of all layers and directions), attention projections and the
        `Conv1D` of transformers; not biases, norms and embeddings. Two options widen what counts as a weight:
        `embeddings` adds the tables of Embedding and EmbeddingBag; `bare` adds the parameters of two or more dimensions
        that modules of your own hold directly or in a ParameterList or ParameterDict (learned positions and class
        tokens among them, which is why it is an option; a subclass of a torch.nn layer counts as that layer).

        Then `include` chooses among the weights by shell globs over canonical names, and a full name without wildcards
        adds a parameter of any kind; `where(name, parameter, module)` keeps those for which it returns True, `module`
        being the one that holds the parameter; `exclude` removes. A tied parameter is asked for under all its names,
        and one that fits is enough.

        Raises `ScopeError` when a pattern matches nothing or nothing is left to prune; warns `NoEffectWarning` of an
        option or a `where` that changes nothing.

        >>> Scope.of(nn.Sequential(nn.Linear(3, 2), nn.LSTM(2, 4)), exclude=["0.*"]).shapes
        {'1.weight_ih_l0': (16, 2), '1.weight_hh_l0': (16, 4)}
        """
        groups = tied_groups(resharded(model))
        parameters = dict(named_parameters(model))
        weights = weight_names(model, embeddings=embeddings, bare=bare)
        include = None if include is None else _patterns(include, "include")
        exclude = _patterns(exclude, "exclude")
        chosen = {name for name, names in groups.items() if not weights.isdisjoint(names)}
        if include is not None:
            chosen = {name for pattern in include for name in _included(pattern, groups, weights)}
        else:
            _warn_of_computed_weights(model, exclude)
        if where is not None:
            chosen = _passed(where, model, groups, chosen)
        for pattern in exclude:
            chosen -= _excluded(pattern, groups)
        if not chosen:
            raise ScopeError(
                f"nothing to prune: none of the {len(groups)} parameters of {type(unwrap(model)).__name__} left in "
                "scope is a weight of a Linear, convolution, recurrent or attention layer; embeddings=True and "
                "bare=True widen the scope, and include=[...] takes full names"
            )
        names = [name for name in groups if name in chosen]
        chosen_parameters = {name: parameters[name] for name in names}
        _check_prunable(chosen_parameters)
        _check_separate(chosen_parameters)
        return cls(
            shapes={name: tuple(parameters[name].shape) for name in names},
            aliases={name: tuple(groups[name][1:]) for name in names if len(groups[name]) > 1},
            model_total=sum(parameters[name].numel() for name in groups if not is_lazy(parameters[name])),
            include=include,
            exclude=exclude,
            where=None if where is None else _name_of(where),
            embeddings=embeddings,
            bare=bare,
        )

    @property
    def names(self) -> tuple[str, ...]:
        """Parameter names in canonical order."""
        return tuple(self.shapes)

    @property
    def sizes(self) -> dict[str, int]:
        """How many weights each parameter has."""
        return {name: prod(shape) for name, shape in self.shapes.items()}

    @property
    def total(self) -> int:
        """How many weights are in scope, tied ones counted once."""
        return sum(self.sizes.values())

    def ones(self) -> Mask:
        """Return the mask that keeps every weight in scope."""
        return Mask.ones(self.shapes, aliases=self.aliases)

    def ordered(self, mask: Mask) -> Mask:
        """Return a mask from elsewhere in the order of this scope and with its aliases.

        Raises `ScopeError` listing every name and shape on which they differ.
        """
        if problems := shape_differences(self.shapes, mask.shapes):
            raise ScopeError(
                "the mask to start from does not cover the scope; choose the scope to fit it:\n  "
                + "\n  ".join(problems)
            )
        return Mask.from_bits(self.shapes, {name: mask.bits(name) for name in self.shapes}, aliases=self.aliases)

    def tensors(self, model: nn.Module) -> dict[str, torch.Tensor]:
        """Return the detached values of the parameters in scope; they share memory with the model."""
        return {name: group[0].detach() for name, group in masked_parameters(model, self.shapes).items()}


def check_in_memory(model: nn.Module, names: Iterable[str]) -> None:
    """Raise `ScopeError` naming those of the parameters that are on the meta device."""
    parameters = dict(named_parameters(model, remove_duplicate=False))
    if absent := [name for name in names if name in parameters and parameters[name].is_meta]:
        raise ScopeError(
            f"{', '.join(absent)}: on the meta device, without memory to hold a mask in; load the weights first, or "
            "initialise the model after model.to_empty(device=...)"
        )


def masked_parameters(model: nn.Module, shapes: Mapping[str, Shape]) -> dict[str, list[nn.Parameter]]:
    """Return for each name the model's parameter and any tied to it; raise `ScopeError` listing all that do not fit."""
    by_name = dict(named_parameters(resharded(model), remove_duplicate=False))
    found = {name: tuple(parameter.shape) for name, parameter in by_name.items() if name in shapes}
    if problems := shape_differences(shapes, found):
        kind = type(unwrap(model)).__name__
        raise ScopeError(f"{kind} does not have the masked parameters:\n  " + "\n  ".join(problems))
    groups = {member: names for names in tied_groups(model).values() for member in names}
    result = {}
    for name in shapes:
        distinct = {id(by_name[member]): by_name[member] for member in [name, *groups[name]]}
        result[name] = list(distinct.values())
    return result


def _warn_of_computed_weights(model: nn.Module, exclude: Sequence[str]) -> None:
    """Warn of weights that are no parameters but computed from some: they would stay dense without a word."""
    computed = [name for name in computed_weights(model) if not any(fnmatchcase(name, pattern) for pattern in exclude)]
    if computed:
        warnings.warn(
            f"not in scope, because a parametrization, weight_norm or torch.nn.utils.prune computes them: "
            f"{', '.join(computed)}; remove that first, or exclude them to say that they stay dense",
            NoEffectWarning,
            stacklevel=3,
        )


def _patterns(patterns: Iterable[str], what: str) -> tuple[str, ...]:
    if isinstance(patterns, str):
        raise ScopeError(f"{what} must be a list of patterns, not the string {patterns!r}; write [{patterns!r}]")
    return tuple(patterns)


def _included(pattern: str, groups: Mapping[str, Sequence[str]], weights: set[str]) -> set[str]:
    """Return the first names of the groups that an include pattern chooses."""
    matched = {first: [n for n in names if fnmatchcase(n, pattern)] for first, names in groups.items()}
    chosen = {first for first, names in matched.items() if pattern in names or not weights.isdisjoint(names)}
    if chosen:
        return chosen
    if others := [name for names in matched.values() for name in names]:
        raise ScopeError(
            f"include {pattern!r} matches only parameters that are no weight matrices or kernels: {', '.join(others)}; "
            "write their full names to prune them all the same, or see the options embeddings and bare"
        )
    raise ScopeError(_no_match("include", pattern, groups))


def _excluded(pattern: str, groups: Mapping[str, Sequence[str]]) -> set[str]:
    """Return the first names of the groups that an exclude pattern removes."""
    matched = {first for first, names in groups.items() if any(fnmatchcase(name, pattern) for name in names)}
    if not matched:
        raise ScopeError(_no_match("exclude", pattern, groups))
    return matched


def _passed(where: Where, model: nn.Module, groups: Mapping[str, Sequence[str]], chosen: set[str]) -> set[str]:
    """Return those of the chosen groups of which a name passes the user's predicate."""
    first_of = {name: first for first in chosen for name in groups[first]}
    passed = set()
    for name, parameter, module in owned_parameters(model, remove_duplicate=False):
        if name in first_of:
            answer = where(name, parameter, module)
            if not isinstance(answer, bool):
                raise ScopeError(f"where={_name_of(where)} returned {answer!r} for {name!r}; it must return a bool")
            if answer:
                passed.add(first_of[name])
    if passed == chosen and chosen:
        warnings.warn(
            f"where={_name_of(where)} changed nothing: it is True for all {len(chosen)} parameters in scope",
            NoEffectWarning,
            stacklevel=3,
        )
    return passed


def _name_of(function: object) -> str:
    named = function if isinstance(function, FunctionType) else type(function)
    return f"{named.__module__}.{named.__qualname__}"


def _no_match(what: str, pattern: str, groups: Mapping[str, Sequence[str]]) -> str:
    names = [name for group in groups.values() for name in group]
    nearest = difflib.get_close_matches(pattern, names, n=3, cutoff=0.3)
    hint = f"; nearest: {', '.join(map(repr, nearest))}" if nearest else ""
    return f"{what} {pattern!r} matched none of {len(names)} parameters{hint}"


def _check_prunable(parameters: Mapping[str, nn.Parameter]) -> None:
    for name, parameter in parameters.items():
        if is_lazy(parameter):
            raise ScopeError(f"parameter {name!r} is not initialised yet; run the model once on a batch, then prune")
        if not parameter.dtype.is_floating_point:
            raise ScopeError(f"parameter {name!r} is {parameter.dtype}; only floating-point weights can be pruned")


def _check_separate(parameters: Mapping[str, nn.Parameter]) -> None:
    """Raise `ScopeError` for two parameters that share memory without being the same view of it, such as w and w.T."""
    spans: dict[object, list[tuple[int, int, str]]] = {}
    for name, parameter in parameters.items():
        if (memory := memory_of(parameter)) is not None:
            steps = zip(parameter.shape, parameter.stride(), strict=True)
            first = int(parameter.storage_offset())
            last = first + sum((int(size) - 1) * int(step) for size, step in steps)
            spans.setdefault(memory, []).append((first, last, name))
    for found in spans.values():
        found.sort()
        for (_, last, one), (first, _, other) in pairwise(found):
            if first <= last:
                raise ScopeError(
                    f"parameters {one!r} and {other!r} overlap in memory without being one tensor; a mask cannot hold "
                    "both, so exclude one of them or tie them as the same parameter"
                )
