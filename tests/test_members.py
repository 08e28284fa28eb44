"""Labels: what is refused, and that they are read the same however they are written and cut into runs."""

from math import prod

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ticketkit import ConfigError, Mask, Member, Units
from ticketkit import members as engine
from ticketkit.granularity import along


@st.composite
def labelled(draw: st.DrawFn) -> tuple[tuple[int, ...], Member, int]:
    """Return a shape, a member of it whose terms each depend on some axes only, and how many units there are."""
    shape = tuple(draw(st.lists(st.integers(1, 5), max_size=4)))
    least = draw(st.sampled_from([-1, 0]))
    terms = []
    for place in range(draw(st.integers(1, 3))):
        sides = [size if draw(st.booleans()) else 1 for size in shape]
        sides = sides[draw(st.integers(0, len(sides))) :] if draw(st.booleans()) else sides
        drawn = draw(st.lists(st.integers(0 if place else least, 3), min_size=prod(sides), max_size=prod(sides)))
        terms.append(np.array(drawn).reshape(sides))
    return shape, Member("u", tuple(terms)), 10


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(labelled(), st.data())
def test_every_run_reads_the_labels_of_the_whole(
    monkeypatch: pytest.MonkeyPatch, case: tuple, data: st.DataObject
) -> None:
    """Whatever the terms, a run's units and what a table says of them are those of the labels written out."""
    shape, member, count = case
    before, size = data.draw(st.integers(0, 3)), prod(shape)
    monkeypatch.setattr(engine, "CHUNK", data.draw(st.sampled_from([8, 16, 1 << 18])))
    start = data.draw(st.integers(0, size - 1))
    kept = np.ones(data.draw(st.integers(1, size - start)), np.bool_)
    slot = engine.Slot.of(member, before, shape)
    piece = engine.Piece("w", start, kept, shape, (slot,))
    labels = np.broadcast_to(sum(member.terms), shape).reshape(-1)[start : piece.stop].tolist()
    assert slot.units(piece).tolist() == [-1 if label < 0 else label + before for label in labels]
    table = np.arange(before + count + 1) * 7 % 23
    assert slot.look(table, piece).tolist() == [table[-1 if label < 0 else label + before] for label in labels]


def test_a_single_row_longer_than_a_chunk_is_read_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "CHUNK", 8)
    units = Units.of({"w": (2, 30)}, {"w": (along(np.arange(2) * 3, 0, 2), along(np.arange(30) // 10, 1, 2))})
    chosen = units.select({"w": torch.arange(60.0).reshape(2, 30)}, Mask.ones({"w": (2, 30)}), 25)
    assert chosen["w"].flatten().nonzero().flatten().tolist() == list(range(40, 60))


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({}, "belong to no unit: w"),
        ({"w": (Member("u", [[0], [1]]),), "v": (Member("u", 0),)}, "not masked: v"),
        ({"w": (Member("t", 0),)}, "no such space; there are: u"),
        ({"w": (Member("u", [[0.0], [1.0]]),)}, "must be whole numbers, not float64"),
        ({"w": (Member("u", [0, 1, 1]),)}, r"have shapes \[\(3,\)\], which do not broadcast"),
        ({"w": (Member("u", np.zeros((3, 2, 2), int)),)}, "do not broadcast"),
        ({"w": (Member("u", [[0], [2]]),)}, "go from 0 to 2, allowed are -1 to 1"),
        ({"w": (Member("u", [[0], [-1]]),)}, "2 weights of 'w' belong to no unit"),
        ({"w": (Member("u", [[0], [-1]]), Member("u", [[-1, 0]]))}, "1 weights of 'w' belong to no unit"),
        ({"w": (Member("u", 0), Member("u", [[-2], [1]]))}, "go from -2 to 1, allowed are -1 to 1"),
        ({"w": (Member("u", (np.array([[0], [1]]), np.array([0, 1]))),)}, "go from 0 to 2"),
    ],
)
def test_wrong_labels_are_refused(members: dict[str, tuple[Member, ...]], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Units({"w": (2, 2)}, {"u": 2}, members)


def test_labels_may_be_tensors() -> None:
    units = Units.of({"w": (2, 2)}, {"w": torch.tensor([[0], [1]])})
    assert units.spaces == {"w": 2}
    assert units.shapes == {"w": (2, 2)}


def test_narrow_labels_do_not_overflow() -> None:
    labels = {name: torch.arange(100, dtype=torch.int8) for name in "abc"}
    units = Units.of(dict.fromkeys("abc", (100,)), labels)
    scored = {name: torch.arange(100.0) + place for place, name in enumerate("abc")}
    chosen = units.select(scored, Mask.ones(units.parameters), 3)
    assert [flags.nonzero().flatten().tolist() for flags in chosen.values()] == [[], [99], [98, 99]]
