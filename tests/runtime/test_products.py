import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.runtime.masked import assert_same, forms, masks, seeds
from ticketkit import ConfigError
from ticketkit.runtime.products import FORMS, product, zero_rows_and_columns

sizes = st.integers(1, 11)


@settings(max_examples=60)
@given(data=st.data(), rows=sizes, columns=sizes, n=st.integers(0, 6), form=forms, seed=seeds, wide=st.booleans())
def test_every_form_is_the_matrix_times_columns_plus_an_offset_that_it_leaves_alone(
    data, rows, columns, n, form, seed, wide
) -> None:
    torch.manual_seed(seed)
    matrix = torch.randn(rows, columns) * data.draw(masks(rows, columns))
    x, offset = torch.randn(columns, n), torch.randn(rows, n if wide else 1)
    before = x.clone(), offset.clone()
    made = product(matrix, form)
    for _ in range(2):
        assert_same(made(x, offset), matrix @ x + offset)
    assert torch.equal(x, before[0])
    assert torch.equal(offset, before[1])
    made.check()


@pytest.mark.parametrize("form", FORMS)
def test_a_product_shares_no_memory_with_the_matrix(form) -> None:
    matrix = torch.eye(4)
    made = product(matrix, form)
    matrix.zero_()
    if form != "dense":
        assert torch.equal(made(torch.eye(4), torch.zeros(4, 1)), torch.eye(4))


@pytest.mark.parametrize("form", ["csr", "bsr"])
def test_a_sparse_matrix_is_that_of_its_buffers_when_these_are_replaced(form) -> None:
    made, other = product(torch.eye(8), form), product(2 * torch.eye(8).flip(0), form)
    x, offset = torch.randn(8, 3), torch.zeros(8, 1)
    made(x, offset)
    for name, buffer in other.named_buffers():
        setattr(made, name, buffer)
    assert torch.equal(made(x, offset), 2 * x.flip(0))


DAMAGE = {
    "csr": {"columns": [[0, 9], [-1, 1], [1, 0]], "rows": [[0, 2, 1], [1, 2, 2], [0, 2, 7], [0, 2]], "values": [[1.0]]},
    "bsr": {"columns": [[9], [-1]], "rows": [[1, 1], [0, 7], [0]], "values": [[[[1.0]]], [1.0]]},
    "compact": {"rows": [[0, 2], [-1, 0], [1, 0], [0, 0], [0]], "columns": [[5, 6], [1, 0]], "matrix": [[[1.0]]]},
}


@pytest.mark.parametrize(
    ("form", "name", "value"),
    [(form, name, value) for form, buffers in DAMAGE.items() for name, values in buffers.items() for value in values],
)
def test_buffers_that_are_no_such_matrix_are_refused(form, name, value) -> None:
    made = product(torch.tensor([[1.0, 2.0, 0.0], [3.0, 0.0, 0.0]]), form)
    made.check()
    setattr(made, name, torch.tensor(value, dtype=getattr(made, name).dtype))
    with pytest.raises(ValueError, match=r"."):
        made.check()


def test_an_unknown_form_is_refused_with_those_there_are() -> None:
    with pytest.raises(ConfigError, match="the form dense, csr, bsr, compact, not 'coo'"):
        product(torch.eye(2), "coo")


def test_zero_rows_and_columns_are_counted() -> None:
    assert zero_rows_and_columns(torch.tensor([[0.0, 1.0, 0.0], [0.0, 0.0, 0.0]])) == (1, 2)
