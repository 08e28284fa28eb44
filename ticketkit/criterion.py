"""What a weight is worth: the inputs a criterion gets, the scores it returns, and the checks every score passes."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Protocol

import torch

from ticketkit.distributed import rank
from ticketkit.errors import ConfigError, ScoreError
from ticketkit.mask import Mask, shape_differences
from ticketkit.probe import Probe
from ticketkit.sharding import Gathered, Part, any_sharded, is_sharded, local, part_like, with_local


@dataclass(frozen=True)
class ScoreInputs:
    """What a criterion may look at; all tensors are read-only and share memory with the model.

    `weights` are the trained values of the parameters in scope and `initial` those the weights are rewound to, both
    keyed like `mask`, the mask the network was trained with. `generator` is seeded from the run's seed and the round:
    draw random scores from it and from nowhere else. `keep` is the number of weights that stay after this pruning;
    `probe` runs the trained network on the user's batches, for criteria that look at gradients or activations.
    """

    weights: Mapping[str, torch.Tensor]
    initial: Mapping[str, torch.Tensor]
    mask: Mask
    generator: torch.Generator
    keep: int
    data: Probe | None = None

    @property
    def probe(self) -> Probe:
        """Runs the trained network on the user's batches; raises `ConfigError` if the user gave none."""
        if self.data is None:
            raise ConfigError(
                "this criterion looks at gradients or activations; give IMP batches= (a callable that returns an "
                "iterable of batches) and loss= (a callable of model and batch that returns a scalar)"
            )
        return self.data


class Criterion(Protocol):
    """Scores every weight in scope; the higher score is kept.

    Returns one floating-point tensor for each name of `inputs.mask`, shaped like the parameter. Scores of weights that
    are already pruned are ignored. A criterion registered with an options model is called with `options=` too.
    """

    def __call__(self, inputs: ScoreInputs) -> Mapping[str, torch.Tensor]:
        """Return the scores; never change a tensor of the model."""
        ...


class ElementwiseScores(Mapping[str, torch.Tensor]):
    """Scores that depend on each weight alone, computed slice by slice when they are read.

    `function(name, *slices)` gets the parameter's name and equal slices of the flattened operands. `select` reads such
    scores in small chunks, so that ranking needs no memory of the size of the model.

    >>> scores = ElementwiseScores(lambda name, w: w.abs(), {"w": torch.tensor([[-2.0], [1.0]])})
    >>> scores["w"].tolist(), scores.flat_slice("w", 0, 1).tolist()
    ([[2.0], [1.0]], [2.0])
    """

    def __init__(self, function: Callable[..., torch.Tensor], *operands: Mapping[str, torch.Tensor]):
        self._function = function
        self._operands = operands

    def __getitem__(self, name: str) -> torch.Tensor:
        first = self._operands[0][name]
        own = self.here([name]) if is_sharded(first) else self
        shape = local(first).shape
        return with_local(own.flat_slice(name, 0, shape.numel()).reshape(shape), first)

    def __iter__(self) -> Iterator[str]:
        return iter(self._operands[0])

    def __len__(self) -> int:
        return len(self._operands[0])

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of one parameter's scores without computing them."""
        return tuple(self._operands[0][name].shape)

    def layout(self, name: str) -> torch.Tensor:
        """Return a tensor that is shaped and placed as one parameter's scores are."""
        return self._operands[0][name]

    def here(self, names: Iterable[str]) -> "ElementwiseScores":
        """Return the scores of the parts of some parameters that this rank holds."""
        parts = [
            {name: part_like(operand[name], self._operands[0][name]) for name in names} for operand in self._operands
        ]
        return ElementwiseScores(self._function, *parts)

    def flat_slice(self, name: str, start: int, stop: int, step: int = 1) -> torch.Tensor:
        """Return the scores at flat indices `start:stop:step` of one parameter."""
        slices = [operand[name].detach().reshape(-1)[start:stop:step] for operand in self._operands]
        return self._function(name, *slices)


def flat_slice(scores: Mapping[str, torch.Tensor], name: str, start: int, stop: int, step: int = 1) -> torch.Tensor:
    """Return the scores at flat indices `start:stop:step` of one parameter, computing no more if possible."""
    if isinstance(scores, ElementwiseScores):
        return scores.flat_slice(name, start, stop, step)
    return scores[name].detach().reshape(-1)[start:stop:step]


def parts_of(scores: Mapping[str, torch.Tensor], names: Iterable[str]) -> dict[str, Part] | None:
    """Return which part of each parameter's scores this rank reads, or None if none of them is distributed.

    Of scores that every rank has as a whole, beside others that are distributed, rank 0 reads all.
    """
    layouts = {name: scores.layout(name) if isinstance(scores, ElementwiseScores) else scores[name] for name in names}
    if not any_sharded(layouts.values()):
        return None
    parts = {name: Part.of(tensor) for name, tensor in layouts.items()}
    first = rank() == 0
    return {name: part if is_sharded(layouts[name]) else replace(part, is_owned=first) for name, part in parts.items()}


def here(scores: Mapping[str, torch.Tensor], names: Iterable[str]) -> Mapping[str, torch.Tensor]:
    """Return the scores of the parts of some parameters that this rank holds."""
    if isinstance(scores, ElementwiseScores):
        return scores.here(list(names))
    return {name: local(scores[name]) for name in names}


def gathered(scores: Mapping[str, torch.Tensor]) -> Mapping[str, torch.Tensor]:
    """Return scores that can be read whole: themselves, if none of them is distributed."""
    return scores if parts_of(scores, scores) is None else Gathered(scores)


def check_scores(scores: Mapping[str, torch.Tensor], mask: Mask) -> torch.dtype:
    """Return the dtype that holds every score exactly: float64 if any score has it, else float32.

    Raises `ScoreError` unless there is one floating-point tensor of the right shape for every parameter of the mask.
    """
    if not isinstance(scores, Mapping):
        raise ScoreError(f"a criterion must return a mapping from names to tensors, not {scores!r}")
    shapes, dtypes = {}, set()
    for name in scores:
        if isinstance(scores, ElementwiseScores):
            shapes[name], example = scores.shape(name), scores.here([name]).flat_slice(name, 0, 0)
        else:
            example = scores[name]
            if not isinstance(example, torch.Tensor):
                raise ScoreError(f"score of parameter {name!r} must be a tensor, not {type(example).__name__}")
            shapes[name] = tuple(example.shape)
        if not example.dtype.is_floating_point:
            raise ScoreError(f"score of parameter {name!r} must be floating-point, not {example.dtype}")
        dtypes.add(example.dtype)
    if problems := shape_differences(mask.shapes, shapes):
        raise ScoreError("scores do not fit the mask:\n  " + "\n  ".join(problems))
    return torch.float64 if torch.float64 in dtypes else torch.float32
