"""Invariant 10 of the design: what is loaded is what was saved, or an error."""

import json
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import nn

from ticketkit import Mask, Scope, Snapshot, Ticket, TicketError, TicketFacts
from ticketkit.snapshot import state_tensors
from ticketkit.testing import TINY_NETS, masks, tied_scores
from ticketkit.ticket import Provenance

every_net = pytest.mark.parametrize("name", TINY_NETS)


def half(model: nn.Module) -> Mask:
    scope, draw = Scope.of(model), torch.Generator().manual_seed(3)
    flags = {name: torch.rand(shape, generator=draw) < 0.5 for name, shape in scope.shapes.items()}
    return Mask(flags, aliases=scope.aliases)


def facts() -> st.SearchStrategy[TicketFacts]:
    names = st.text(max_size=5)
    provenances = st.builds(
        Provenance, entry=names, version=names, options=st.dictionaries(names, st.integers() | names, max_size=2)
    )
    return st.builds(
        TicketFacts,
        round=st.none() | st.integers(0, 99),
        seed=st.none() | st.integers(0, 2**63),
        include=st.none() | st.lists(names, max_size=2).map(tuple),
        exclude=st.lists(names, max_size=2).map(tuple),
        criterion=st.none() | provenances,
        floor=st.none() | st.floats(0, 0.99),
        metrics=st.dictionaries(names, st.floats(), max_size=3),
        parent=st.none() | names,
    )


@st.composite
def tickets(draw: st.DrawFn) -> Ticket:
    mask = draw(masks())
    weights = None
    if draw(st.booleans()):
        values = draw(tied_scores(mask))
        weights = {f"parameter/{name}": t for name, t in values.items()}
        weights |= {"parameter/bias": torch.arange(3.0), "buffer/calls": torch.tensor(7)}
    return Ticket(mask, weights, draw(facts()))


def same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    flat = (a.contiguous().reshape(-1).view(torch.uint8), b.contiguous().reshape(-1).view(torch.uint8))
    return a.dtype == b.dtype and a.shape == b.shape and torch.equal(*flat)


def spelled(some: TicketFacts) -> str:
    """Return every fact, NaN included, with sorted keys."""
    return json.dumps(some.model_dump(), sort_keys=True)


@given(ticket=tickets())
@settings(max_examples=60)
def test_loading_gives_what_was_saved_and_saving_that_the_same_bytes(
    ticket: Ticket, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("ticket")
    ticket.save(folder / "a")
    loaded = Ticket.load(folder / "a")
    ticket.save(folder / "c", compact=True)
    assert Ticket.load(folder / "c") == ticket
    assert Ticket.load(folder / "c").digest == loaded.digest
    assert loaded == ticket
    assert hash(loaded) == hash(ticket)
    assert loaded.mask == ticket.mask
    assert list(loaded.mask) == list(ticket.mask)  # ties of the next round go by this order
    assert spelled(loaded.facts) == spelled(ticket.facts)
    assert (loaded.weights is None) == (ticket.weights is None)
    for key, tensor in (ticket.weights or {}).items():
        name = key.removeprefix("parameter/")
        expected = tensor.masked_fill(~ticket.mask[name], 0) if name in ticket.mask else tensor
        assert same_bits(loaded.weights[key], expected)
    loaded.save(folder / "b")
    assert (folder / "a").read_bytes() == (folder / "b").read_bytes()


@every_net
def test_a_whole_ticket_rewinds_another_model(name: str, tmp_path: Path) -> None:
    net = TINY_NETS[name]
    model, inputs = net.build(), net.inputs()
    mask = half(model)
    Ticket(mask, Snapshot.capture(model).tensors).save(tmp_path / "t")
    other = net.build()
    assert Ticket.load(tmp_path / "t").apply_(other) is other
    Ticket(mask).apply_(model)
    model.eval(), other.eval()
    assert torch.equal(model(inputs), other(inputs))
    for key, tensor in state_tensors(other).items():
        assert same_bits(tensor.detach(), state_tensors(model)[key].detach())


def test_pruned_rewind_weights_are_not_in_the_file(tmp_path: Path) -> None:
    model = nn.Linear(64, 64, bias=False)
    mask = Mask({"weight": torch.arange(4096).reshape(64, 64) % 16 == 0})
    Ticket(mask, Snapshot.capture(model).tensors).save(tmp_path / "t")
    assert load_file(tmp_path / "t")["kept/weight"].shape == (256,)
    assert (tmp_path / "t").stat().st_size < 64 * 64 // 8 + 256 * 4 + 1000


def test_equality_ignores_values_of_pruned_weights() -> None:
    mask = Mask({"w": torch.tensor([True, False])})
    a = Ticket(mask, {"parameter/w": torch.tensor([1.0, 2.0])})
    assert a == Ticket(mask, {"parameter/w": torch.tensor([1.0, 3.0])})
    assert a != Ticket(mask, {"parameter/w": torch.tensor([1.5, 2.0])})
    assert a != Ticket(mask)


def test_non_finite_metrics_survive(tmp_path: Path) -> None:
    Ticket(Mask.ones({"w": (1,)}), facts=TicketFacts(metrics={"a": float("nan"), "b": -float("inf")})).save(
        tmp_path / "t"
    )
    metrics = Ticket.load(tmp_path / "t").metrics
    assert metrics["a"] != metrics["a"]
    assert metrics["b"] == -float("inf")


# Damage


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """Return the bytes of a small ticket with a mask, rewind weights, a buffer and facts."""
    path = tmp_path_factory.mktemp("small") / "t"
    model = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    mask = Mask({"0.weight": torch.tensor([[True, False, True], [False, False, True]])})
    some = TicketFacts(round=3, metrics={"wer": 12.5}, criterion=Provenance(entry="builtin:magnitude", version="1"))
    Ticket(mask, Snapshot.capture(model).tensors, some).save(path)
    return path.read_bytes()


@pytest.mark.parametrize("bit", range(8))
def test_any_flipped_bit_is_found_out(bit: int, small: bytes, tmp_path: Path) -> None:
    path = tmp_path / "t"
    for position in range(len(small)):
        path.write_bytes(small[:position] + bytes([small[position] ^ 1 << bit]) + small[position + 1 :])
        with pytest.raises(TicketError):
            Ticket.load(path)


@given(data=st.data())
@settings(max_examples=300)
def test_any_changed_bytes_are_found_out(
    data: st.DataObject, small: bytes, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.getbasetemp() / "changed"
    start = data.draw(st.integers(0, len(small)))
    stop = data.draw(st.integers(start, min(start + 12, len(small))))
    inserted = data.draw(st.binary(max_size=12) | st.sampled_from([b" ", b"\n", b"NaN", b"1e999", b"0", b"\xff"]))
    changed = small[:start] + inserted + small[stop:]
    path.write_bytes(changed)
    if changed == small:
        Ticket.load(path)
        return
    with pytest.raises(TicketError):
        Ticket.load(path)


def test_any_truncation_is_found_out(small: bytes, tmp_path: Path) -> None:
    path = tmp_path / "t"
    for length in range(len(small)):
        path.write_bytes(small[:length])
        with pytest.raises(TicketError):
            Ticket.load(path)


def test_any_extension_is_found_out(small: bytes, tmp_path: Path) -> None:
    path = tmp_path / "t"
    for more in (b"\0", b" ", small):
        path.write_bytes(small + more)
        with pytest.raises(TicketError):
            Ticket.load(path)


Edit = Callable[[dict[str, torch.Tensor], dict[str, str]], object]


@pytest.mark.parametrize(
    "edit",
    [
        lambda tensors, meta: tensors.update({"mask/1.weight": tensors.pop("mask/0.weight")}),
        lambda tensors, meta: tensors.update({"kept/1.weight": tensors.pop("kept/0.weight")}),
        lambda tensors, meta: tensors.update({"parameter/0.bais": tensors.pop("parameter/0.bias")}),
        lambda tensors, meta: tensors.update({"parameter/extra": torch.zeros(2)}),
        lambda tensors, meta: tensors.update({"stranger": torch.zeros(2)}),
        lambda tensors, meta: tensors.pop("buffer/1.running_mean"),
        lambda tensors, meta: tensors.update({"mask/0.weight": tensors["mask/0.weight"] | 64}),
        lambda tensors, meta: tensors.update({"parameter/0.bias": tensors["parameter/0.bias"].view(torch.int32)}),
        lambda tensors, meta: tensors.update({"parameter/0.bias": tensors["parameter/0.bias"].reshape(2, 1)}),
        lambda tensors, meta: meta.update({"other": "x"}),
        lambda tensors, meta: meta.pop("ticketkit"),
        lambda tensors, meta: meta.update({"ticketkit": "[]"}),
        lambda tensors, meta: meta.update({"ticketkit": "{}"}),
        lambda tensors, meta: meta.update({"ticketkit": meta["ticketkit"].replace("12.5", "12.50")}),
        lambda tensors, meta: meta.update({"ticketkit": meta["ticketkit"].replace("12.5", "12.4")}),
        lambda tensors, meta: meta.update({"ticketkit": meta["ticketkit"].replace(',"facts"', ', "facts"')}),
        lambda tensors, meta: meta.update({"ticketkit": meta["ticketkit"].replace('"format":1', '"format":2')}),
        lambda tensors, meta: meta.update({"ticketkit": meta["ticketkit"].replace("[2,3],3", "[3,2],3")}),
        lambda tensors, meta: meta.update({"ticketkit": meta["ticketkit"].replace("[2,3],3", "[2,3],4")}),
        lambda tensors, meta: meta.update({"ticketkit": meta["ticketkit"].replace('"aliases":{}', '"aliases":1')}),
    ],
)
def test_any_edit_of_a_ticket_is_found_out(edit: Edit, small: bytes, tmp_path: Path) -> None:
    path = tmp_path / "t"
    path.write_bytes(small)
    tensors = load_file(path)
    metadata = json.loads(small[8 : 8 + struct.unpack("<Q", small[:8])[0]])["__metadata__"]
    before = (sorted(tensors), dict(metadata))
    edit(tensors, metadata)
    save_file(tensors, path, metadata=metadata)
    assert (sorted(tensors), metadata) != before or path.read_bytes() != small
    with pytest.raises(TicketError):
        Ticket.load(path)


@pytest.mark.parametrize(
    "header",
    [
        b"[]",
        b"{}",
        b"7",
        b'{"__metadata__":[]}',
        b'{"__metadata__":{"ticketkit":7}}',
        b'{"__metadata__":{"ticketkit":"NaN"}}',
        b'{"__metadata__":{"ticketkit":"{\\"format\\":NaN}"}}',
        b'{"__metadata__":{"ticketkit":"{}"},"a":{"data_offsets":[0,"x"]}}',
        b'{"__metadata__":{"ticketkit":"{}"},"a":{"data_offsets":[]}}',
        b'{"__metadata__":{"ticketkit":"\\ud800"}}',
        b"[" * 100_000,
        b"\xff\xfe",
    ],
)
def test_any_other_header_is_refused(header: bytes, tmp_path: Path) -> None:
    (tmp_path / "t").write_bytes(struct.pack("<Q", len(header)) + header)
    with pytest.raises(TicketError):
        Ticket.load(tmp_path / "t")


def test_other_files_are_refused(tmp_path: Path) -> None:
    save_file({"w": torch.ones(2)}, tmp_path / "weights.safetensors")
    torch.save({"w": torch.ones(2)}, tmp_path / "weights.pt")
    (tmp_path / "empty").write_bytes(b"")
    (tmp_path / "huge").write_bytes(b"\xff" * 64)
    for path in [*tmp_path.iterdir(), tmp_path, tmp_path / "missing"]:
        with pytest.raises(TicketError, match=path.name):
            Ticket.load(path)


# Fitting a model


def test_another_architecture_is_refused_by_names_and_shapes_and_left_untouched() -> None:
    model = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 2))
    other = nn.Sequential(nn.Linear(4, 2), nn.ReLU(), nn.Linear(2, 2))
    before = {key: tensor.detach().clone() for key, tensor in state_tensors(other).items()}
    for ticket in (Ticket(half(model)), Ticket(half(model), Snapshot.capture(model).tensors)):
        with pytest.raises(TicketError) as caught:
            ticket.apply_(other)
        assert "0.weight: expected shape (2, 3), found (2, 4)" in str(caught.value)
        assert "1.weight (2, 2): missing" in str(caught.value)
        assert all(torch.equal(tensor, before[key]) for key, tensor in state_tensors(other).items())


def test_rewind_weights_that_the_model_lacks_are_refused_and_it_is_left_untouched() -> None:
    model, other = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2)), nn.Sequential(nn.Linear(3, 2), nn.PReLU())
    before = {key: tensor.detach().clone() for key, tensor in state_tensors(other).items()}
    with pytest.raises(TicketError) as caught:
        Ticket(half(model), Snapshot.capture(model).tensors).apply_(other)
    assert "buffer/1.running_mean (2,): missing" in str(caught.value)
    assert "parameter/1.weight: expected shape (2,), found (1,)" in str(caught.value)
    assert all(torch.equal(tensor, before[key]) for key, tensor in state_tensors(other).items())


@every_net
def test_verify_passes_exactly_when_pruned_weights_are_zero(name: str) -> None:
    model = TINY_NETS[name].build()
    ticket = Ticket(half(model))
    with pytest.raises(TicketError, match="pruned weights that are not zero: "):
        ticket.verify(model)
    ticket.apply_(model)
    ticket.verify(model)
    first = next(iter(ticket.mask))
    with torch.no_grad():
        dict(model.named_parameters())[first][~ticket.mask[first]] = float("nan")
    with pytest.raises(TicketError, match=first):
        ticket.verify(model)


def test_verify_counts_the_weights_that_came_back() -> None:
    model = nn.Sequential(nn.Linear(4, 2), nn.Linear(2, 3))
    ticket = Ticket(Mask({"0.weight": torch.zeros(2, 4, dtype=torch.bool), "1.weight": torch.ones(3, 2) > 0}))
    ticket.apply_(model)
    with torch.no_grad():
        model[0].weight[0, :3] = 1.0
        model[0].weight[1, 0] = -0.0
    with pytest.raises(TicketError, match=r"not zero: 0\.weight: 3$"):
        ticket.verify(model)


def test_verify_file_reads_plain_and_prefixed_weights(tmp_path: Path) -> None:
    model = nn.Linear(4, 2)
    ticket = Ticket(half(model))
    for prefix in ("", "parameter/"):
        path = tmp_path / "weights"
        save_file({prefix + name: p.detach() for name, p in model.named_parameters()}, path)
        with pytest.raises(TicketError, match="pruned weights that are not zero: weight: "):
            ticket.verify_file(path)
        pruned = model.weight.detach() * ticket.mask["weight"]
        save_file({f"{prefix}weight": pruned}, path)
        ticket.verify_file(path)
        save_file({f"{prefix}weight": pruned.T.contiguous()}, path)
        with pytest.raises(TicketError, match=r"weight: expected shape \(2, 4\), found \(4, 2\)"):
            ticket.verify_file(path)


def test_apply_clears_nan_and_negative_zero() -> None:
    model = nn.Linear(3, 1, bias=False)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[float("nan"), -1.0, float("inf")]]))
    Ticket(Mask({"weight": torch.zeros(1, 3, dtype=torch.bool)})).apply_(model)
    assert model.weight.tolist() == [[0.0, 0.0, 0.0]]
    assert not model.weight.signbit().any()


def test_apply_keeps_identity_and_tied_weights_together() -> None:
    model = TINY_NETS["tied_gru"].build()
    ticket, identity = Ticket(half(model), Snapshot.capture(model).tensors), id(model.output.weight)
    ticket.apply_(model)
    assert id(model.output.weight) == id(model.embedding.weight) == identity
    assert not model.output.weight.detach()[~ticket.mask["embedding.weight"]].any()


def sparse_ticket() -> Ticket:
    draw = torch.Generator().manual_seed(2)
    values = {"parameter/w": torch.randn(60, 70, generator=draw), "parameter/b": torch.randn(60, generator=draw)}
    return Ticket(Mask({"w": torch.rand(60, 70, generator=draw) < 0.04}), values)


def test_a_compact_ticket_is_smaller_and_any_flipped_bit_of_it_is_found_out(tmp_path: Path) -> None:
    ticket, path = sparse_ticket(), tmp_path / "compact"
    ticket.save(tmp_path / "packed")
    ticket.save(path, compact=True)
    content = path.read_bytes()
    assert len(content) < (tmp_path / "packed").stat().st_size - 300
    assert set(load_file(path)) == {"gaps/w", "kept/w", "parameter/b"}
    for place in range(len(content)):
        path.write_bytes(content[:place] + bytes([content[place] ^ 1 << place % 8]) + content[place + 1 :])
        with pytest.raises(TicketError):
            Ticket.load(path)
