import subprocess
import sys

import pytest
import torch
from hypothesis import Phase, find, given, settings
from hypothesis import strategies as st

from ticketkit import Mask, Scope
from ticketkit.testing import DTYPES, TINY_NETS, masks, scores, selections, shape_maps, shapes, tied_scores


@pytest.mark.parametrize("name", TINY_NETS)
def test_every_tiny_net_trains_and_has_weights_to_prune(name: str) -> None:
    net = TINY_NETS[name]
    model = net.build()
    model(net.inputs()).sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    assert 0 < Scope.of(model).total < 2000


@given(st.data())
def test_strategies_give_what_they_say(data: st.DataObject) -> None:
    chosen = data.draw(shape_maps())
    mask = data.draw(masks(chosen))
    assert mask.shapes == chosen
    for strategy in (scores, tied_scores):
        for source in (mask, chosen):
            drawn = data.draw(strategy(source))
            assert {name: tuple(tensor.shape) for name, tensor in drawn.items()} == chosen
            assert len({tensor.dtype for tensor in drawn.values()}) <= 1
            assert all(tensor.isfinite().all() for tensor in drawn.values())


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("strategy", [scores, tied_scores])
def test_scores_come_in_the_dtype_asked_for(dtype: torch.dtype, strategy: object) -> None:
    @given(strategy({"w": (3, 2)}, dtype=dtype))
    def check(drawn: dict[str, torch.Tensor]) -> None:
        assert drawn["w"].dtype == dtype

    check()


@pytest.mark.parametrize(
    "awkward",
    [
        lambda case: any(tensor.dim() == 0 for tensor in case[0].values()),
        lambda case: any(tensor.numel() == 0 for tensor in case[0].values()),
        lambda case: any((t.signbit() & (t == 0)).any() and (~t.signbit() & (t == 0)).any() for t in case[0].values()),
        lambda case: any(((t != 0) & (t.abs() < torch.finfo(t.dtype).tiny)).any() for t in case[0].values()),
        lambda case: any(t.numel() > 3 and t.unique().numel() == 1 for t in case[0].values()),
        lambda case: 0 < case[2] < case[1].kept,
        lambda case: case[1].kept == 0 and case[1].total > 0,
        lambda case: len(case[1]) > 1 and list(case[1]) != sorted(case[1]),
    ],
    ids=["0-d", "empty", "signed zeros", "subnormal", "all tied", "real choice", "nothing left", "unsorted names"],
)
def test_awkward_cases_are_drawn(awkward: object) -> None:
    find(selections(), awkward, settings=settings(max_examples=2000, phases=[Phase.generate]))


def test_shapes_stay_small() -> None:
    @given(shapes(max_dims=2, max_side=4))
    def check(shape: tuple[int, ...]) -> None:
        assert len(shape) <= 2
        assert all(side <= 4 for side in shape)

    check()


def test_masks_without_shapes_draw_their_own() -> None:
    assert isinstance(find(masks(), lambda mask: mask.total > 0), Mask)


def test_without_hypothesis_the_error_says_what_to_install() -> None:
    script = (
        "import sys; sys.modules['hypothesis'] = None\n"
        "import ticketkit\n"
        "try:\n    import ticketkit.testing\n"
        "except ModuleNotFoundError as error:\n    print(error)"
    )
    finished = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert finished.stdout.strip() == "ticketkit.testing needs hypothesis: pip install 'ticketkit[testing]'"
