import random

import numpy as np
import pytest
import torch

from ticketkit import StorageError
from ticketkit.rng import EveryRank, RngState
from ticketkit.state import flattened, unflattened


def draw() -> tuple[float, float, float, float, int]:
    """Draw from all three generators; gauss and normal leave a cached half behind."""
    return (
        random.gauss(0, 1),
        random.random(),
        float(np.random.normal()),
        torch.rand(()).item(),
        int(torch.randperm(9)[0]),
    )


def test_restored_generators_repeat_what_they_drew() -> None:
    draw()
    state = RngState.capture()
    first = [draw() for _ in range(5)]
    state.restore()
    assert [draw() for _ in range(5)] == first


def test_capturing_changes_no_generator() -> None:
    state = RngState.capture()
    first = draw()
    state.restore()
    RngState.capture()
    assert draw() == first


def test_a_state_survives_tensors_bit_for_bit() -> None:
    draw()
    state = RngState.capture()
    first = [draw() for _ in range(5)]
    RngState.from_tensors(state.to_tensors()).restore()
    assert [draw() for _ in range(5)] == first


def test_many_cuda_states_keep_their_order() -> None:
    now = RngState.capture()
    states = tuple(torch.tensor([index], dtype=torch.uint8) for index in range(12))
    many = RngState(now.python, now.numpy, now.torch_cpu, states)
    assert [int(state) for state in RngState.from_tensors(many.to_tensors()).torch_cuda] == list(range(12))


def test_missing_states_are_refused() -> None:
    with pytest.raises(StorageError, match="no generator states"):
        RngState.from_tensors({"rng/torch": torch.get_rng_state()})


def test_states_that_differ_are_all_kept_and_each_rank_gets_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    states = []
    for _ in range(3):
        states.append(RngState.capture())
        draw()
    monkeypatch.setattr("ticketkit.rng.everyones", lambda mine: states)
    every = EveryRank.collect(states[0])
    tensors: dict[str, torch.Tensor] = {}
    written = flattened({"epoch": (every, 3)}, "loops", tensors)
    for number, expected in enumerate([*states, states[0]]):  # one rank more than were there gets rank 0's
        monkeypatch.setattr("ticketkit.rng.rank", lambda number=number: number)
        read, three = unflattened(written, tensors)["epoch"]
        assert read.same(expected)
        assert three == 3
    assert not states[0].same(states[1])


def test_states_that_are_alike_are_kept_once(monkeypatch: pytest.MonkeyPatch) -> None:
    state = RngState.capture()
    monkeypatch.setattr("ticketkit.rng.everyones", lambda mine: [mine, RngState.capture()])
    assert EveryRank.collect(state).states == (state,)
    assert flattened(EveryRank.collect(state), "a", {}) == flattened(state, "a", {})
