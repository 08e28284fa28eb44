"""Hypothesis strategies for shapes, masks and scores, with the awkward cases in: ties, ±0.0, subnormals, no weights."""

from collections.abc import Mapping
from math import prod

import torch
from hypothesis import strategies as st

from ticketkit.mask import Mask

Shape = tuple[int, ...]

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
LARGEST = {torch.float16: 60000.0, torch.bfloat16: 3e38, torch.float32: 3e38, torch.float64: 1e308}
AWKWARD = {
    torch.float16: (0.0, -0.0, 6e-8, -6e-8, 60000.0, 1.0, 1.001),
    torch.bfloat16: (0.0, -0.0, 1e-40, -1e-40, 3e38, 1.0, 1.0078125),
    torch.float32: (0.0, -0.0, 1e-45, -1e-45, 3e38, 1.0, 1.0000001),
    torch.float64: (0.0, -0.0, 5e-324, -5e-324, 1e308, 1.0, 1.0000000000000002),
}
NAMES = ("b", "a.weight", "c.10", "c.9", "z")  # not in alphabetical order: ties must go by position, never by name


def shapes(*, max_dims: int = 3, max_side: int = 3) -> st.SearchStrategy[Shape]:
    """Return shapes of up to `max_dims` dimensions: scalars `()`, empty ones with a side of 0, and ordinary ones."""
    return st.lists(st.integers(0, max_side), max_size=max_dims).map(tuple)


@st.composite
def shape_maps(draw: st.DrawFn, *, max_parameters: int = 4) -> dict[str, Shape]:
    """Return the shapes of one to `max_parameters` parameters, by name."""
    names = draw(st.permutations(NAMES))[: draw(st.integers(1, max_parameters))]
    return {name: draw(shapes()) for name in names}


@st.composite
def masks(draw: st.DrawFn, shapes: Mapping[str, Shape] | None = None) -> Mask:
    """Return a mask over the given or drawn shapes: any pattern of kept weights, all and none included."""
    chosen = draw(shape_maps()) if shapes is None else shapes
    return Mask({name: draw(_flags(shape)) for name, shape in chosen.items()})


@st.composite
def scores(
    draw: st.DrawFn, shapes: Mask | Mapping[str, Shape], *, dtype: torch.dtype | None = None
) -> dict[str, torch.Tensor]:
    """Return finite scores for every parameter of a mask or of a map of shapes, all of one floating dtype."""
    chosen = draw(st.sampled_from(DTYPES)) if dtype is None else dtype
    return {name: draw(_values(shape, chosen)) for name, shape in _shapes_of(shapes).items()}


@st.composite
def tied_scores(
    draw: st.DrawFn, shapes: Mask | Mapping[str, Shape], *, dtype: torch.dtype | None = None
) -> dict[str, torch.Tensor]:
    """Return scores of at most four different values, so that most of them tie within and across parameters."""
    chosen = draw(st.sampled_from(DTYPES)) if dtype is None else dtype
    few = draw(st.lists(_numbers(chosen), min_size=1, max_size=4))
    tensors = {}
    for name, shape in _shapes_of(shapes).items():
        picks = draw(st.lists(st.sampled_from(few), min_size=prod(shape), max_size=prod(shape)))
        tensors[name] = torch.tensor(picks, dtype=chosen).reshape(shape)
    return tensors


@st.composite
def selections(draw: st.DrawFn) -> tuple[dict[str, torch.Tensor], Mask, int]:
    """Return scores, the mask they are ranked under and a number of weights to keep that the mask allows."""
    mask = draw(masks())
    ranked = draw(st.one_of(tied_scores(mask), scores(mask)))
    return ranked, mask, draw(st.integers(0, mask.kept))


def _shapes_of(shapes: Mask | Mapping[str, Shape]) -> Mapping[str, Shape]:
    return shapes.shapes if isinstance(shapes, Mask) else shapes


def _flags(shape: Shape) -> st.SearchStrategy[torch.Tensor]:
    size = prod(shape)
    return st.integers(0, 2**size - 1).map(
        lambda bits: torch.tensor([bits >> i & 1 for i in range(size)], dtype=torch.bool).reshape(shape)
    )


def _numbers(dtype: torch.dtype) -> st.SearchStrategy[float]:
    most = LARGEST[dtype]
    return st.one_of(st.sampled_from(AWKWARD[dtype]), st.floats(-most, most))


def _values(shape: Shape, dtype: torch.dtype) -> st.SearchStrategy[torch.Tensor]:
    size = prod(shape)
    return st.lists(_numbers(dtype), min_size=size, max_size=size).map(
        lambda numbers: torch.tensor(numbers, dtype=dtype).reshape(shape)
    )
