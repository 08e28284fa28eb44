"""A matrix with zeros times columns, in four forms: dense, CSR, BSR, and compacted to rows and columns that count."""

import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from ticketkit.errors import ConfigError

Form = Literal["dense", "csr", "bsr", "compact"]
FORMS: tuple[Form, ...] = ("dense", "csr", "bsr", "compact")
BLOCK = 4
"""Rows and columns of a BSR block; MKL takes square ones only."""


class Product(nn.Module, ABC):
    """`product(x, offset)` is matrix @ x + offset, for x (columns, n) and an offset (rows, n) or (rows, 1)."""

    form: Form
    varying: ClassVar[frozenset[str]] = frozenset()
    """Buffers whose lengths depend on what is zero."""

    @abstractmethod
    def forward(self, x: Tensor, offset: Tensor) -> Tensor:
        """Return (rows, n)."""

    def vector(self, x: Tensor, offset: Tensor) -> Tensor:
        """Return (rows,) for one column (columns,) and an offset (rows,): what a single sequence needs at each step."""
        column: Tensor = self(x[:, None], offset[:, None])
        return column[:, 0]

    def check(self) -> None:
        """Raise `ValueError` if the buffers are no matrix of this shape: what comes from a file may be anything."""


class DenseProduct(Product):
    """The matrix as it is, zeros included."""

    form: Form = "dense"

    def __init__(self, matrix: Tensor) -> None:
        super().__init__()
        self.register_buffer("matrix", matrix.contiguous())
        self.matrix: Tensor

    def forward(self, x: Tensor, offset: Tensor) -> Tensor:
        """Return (rows, n)."""
        return torch.addmm(offset, self.matrix, x)

    def vector(self, x: Tensor, offset: Tensor) -> Tensor:
        """Return (rows,)."""
        return torch.addmv(offset, self.matrix, x)


class CompressedProduct(Product):
    """Rows compressed to their values and the columns of these, as torch's CSR and BSR have them."""

    layout: ClassVar[torch.layout]
    varying = frozenset({"columns", "values"})

    def check(self) -> None:
        """Raise `ValueError` if the buffers are no matrix of this shape."""
        _checked(self._matrix)

    def _keep(self, sparse: Tensor) -> None:
        self.shape = tuple(sparse.shape)
        self.register_buffer("rows", sparse.crow_indices().int())
        self.register_buffer("columns", sparse.col_indices().int())
        self.register_buffer("values", sparse.values())
        self.rows: Tensor
        self.columns: Tensor
        self.values: Tensor
        self._built: tuple[tuple[Tensor, ...], Tensor] | None = None

    def _matrix(self) -> Tensor:
        """Return the sparse tensor over the buffers, made anew when these have been replaced."""
        parts = (self.rows, self.columns, self.values)
        if self._built is None or any(new is not old for new, old in zip(parts, self._built[0], strict=True)):
            with _quietly():
                made = torch.sparse_compressed_tensor(*parts, self.shape, layout=self.layout, check_invariants=True)
            self._built = parts, made
        return self._built[1]


class CsrProduct(CompressedProduct):
    """Compressed rows: values and column indices of what is not zero."""

    form: Form = "csr"
    layout = torch.sparse_csr

    def __init__(self, matrix: Tensor) -> None:
        super().__init__()
        with _quietly():
            self._keep(matrix.to_sparse_csr())

    def forward(self, x: Tensor, offset: Tensor) -> Tensor:
        """Return (rows, n)."""
        return torch.addmm(offset.expand(-1, x.shape[1]), self._matrix(), x)

    def vector(self, x: Tensor, offset: Tensor) -> Tensor:
        """Return (rows,); MKL multiplies a vector twice as fast as a matrix of one column."""
        return torch.addmv(offset, self._matrix(), x)


class BsrProduct(CompressedProduct):
    """Compressed rows of square blocks; the matrix is padded with zeros to whole blocks."""

    form: Form = "bsr"
    layout = torch.sparse_bsr

    def __init__(self, matrix: Tensor) -> None:
        super().__init__()
        self.height, self.width = matrix.shape
        padded = nn.functional.pad(matrix, (0, -self.width % BLOCK, 0, -self.height % BLOCK))
        with _quietly():
            self._keep(padded.to_sparse_bsr((BLOCK, BLOCK)))

    def forward(self, x: Tensor, offset: Tensor) -> Tensor:
        """Return (rows, n)."""
        x = nn.functional.pad(x, (0, 0, 0, self.shape[1] - self.width))
        return (self._matrix() @ x)[: self.height] + offset

    def check(self) -> None:
        """Raise `ValueError` if the buffers are no matrix of this shape."""
        super().check()
        if self.values.shape[1:] != (BLOCK, BLOCK):
            raise ValueError(f"blocks of {tuple(self.values.shape[1:])}, not of {(BLOCK, BLOCK)}")


class CompactProduct(Product):
    """Rows and columns that are zero left out: a smaller dense matrix between a choice of inputs and of outputs."""

    form: Form = "compact"
    varying = frozenset({"rows", "columns", "matrix"})

    def __init__(self, matrix: Tensor) -> None:
        super().__init__()
        rows, columns = matrix.any(1).nonzero()[:, 0], matrix.any(0).nonzero()[:, 0]
        self.shape = tuple(matrix.shape)
        self.register_buffer("rows", rows.int())
        self.register_buffer("columns", columns.int())
        self.register_buffer("matrix", matrix[rows][:, columns].contiguous())
        self.rows: Tensor
        self.columns: Tensor
        self.matrix: Tensor

    def forward(self, x: Tensor, offset: Tensor) -> Tensor:
        """Return (rows, n)."""
        x = x if len(self.columns) == self.shape[1] else x.index_select(0, self.columns)
        if len(self.rows) == self.shape[0]:
            return torch.addmm(offset, self.matrix, x)
        result = offset.expand(-1, x.shape[1]).contiguous() if offset.shape[1] != x.shape[1] else offset.clone()
        return result.index_add_(0, self.rows, self.matrix @ x)

    def check(self) -> None:
        """Raise `ValueError` if the buffers are no matrix of this shape."""
        for name, places, size in zip(("row", "column"), (self.rows, self.columns), self.shape, strict=True):
            edges = torch.tensor([-1, size], dtype=places.dtype)
            if places.dim() != 1 or not bool((torch.cat([edges[:1], places, edges[1:]]).diff() > 0).all()):
                raise ValueError(f"{name} indices that do not rise from 0 to {size - 1}")
        if self.matrix.shape != (len(self.rows), len(self.columns)):
            raise ValueError(
                f"a matrix {tuple(self.matrix.shape)} of {len(self.rows)} rows, {len(self.columns)} columns"
            )


def product(matrix: Tensor, form: Form) -> Product:
    """Return a matrix in one of the forms."""
    kinds: dict[Form, type[Product]] = {
        "dense": DenseProduct,
        "csr": CsrProduct,
        "bsr": BsrProduct,
        "compact": CompactProduct,
    }
    if form not in kinds:
        raise ConfigError(f"a matrix has the form {', '.join(FORMS)}, not {form!r}")
    return kinds[form](matrix.detach().float())


def _checked(build: Callable[[], Tensor]) -> None:
    try:
        build()
    except RuntimeError as error:
        raise ValueError(str(error)) from error


@contextmanager
def _quietly() -> Iterator[None]:
    """Leave out torch's notes that CSR is in beta; what would be unsafe is checked here."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Sparse .* tensor support is in beta|Sparse invariant checks")
        yield


def zero_rows_and_columns(matrix: Tensor) -> tuple[int, int]:
    """Return how many rows and how many columns are all zero."""
    return int((~matrix.any(1)).sum()), int((~matrix.any(0)).sum())
