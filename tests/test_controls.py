"""Trap 31: a control that silently does nothing proves nothing; every control here shows its own effect."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from ticketkit import IMP, Mask, MaskError, Plugins, RunError, Scope, Ticket, TicketError
from ticketkit.controls import random_ticket, reinitialised_ticket, shuffled
from ticketkit.snapshot import Snapshot, state_tensors
from ticketkit.testing import TINY_NETS, masks, mlp


def half_mask(model: nn.Module, seed: int = 0) -> Mask:
    draw = torch.Generator().manual_seed(seed)
    shapes = Scope.of(model).shapes
    return Mask({name: torch.rand(shape, generator=draw) < 0.3 for name, shape in shapes.items()})


def ticket_of(model: nn.Module) -> Ticket:
    return Ticket(half_mask(model), Snapshot.capture(model).tensors)


@given(masks(), st.integers(0, 2**32 - 1))
def test_shuffling_keeps_counts_and_changes_the_mask_or_says_that_it_cannot(mask: Mask, seed: int) -> None:
    for within in ("parameter", "model"):
        try:
            result = shuffled(mask, seed, within=within)
        except MaskError:
            continue
        assert result != mask
        assert result.kept == mask.kept
        assert result.shapes == mask.shapes
        if within == "parameter":
            assert result.counts == mask.counts


@given(masks())
def test_a_mask_that_keeps_all_or_nothing_has_no_random_control(mask: Mask) -> None:
    for trivial in (Mask.ones(mask.shapes), mask - mask):
        with pytest.raises(MaskError, match="changed nothing"):
            shuffled(trivial, 0)


def test_a_seed_gives_one_mask_and_another_seed_another() -> None:
    mask = half_mask(mlp(40))
    assert shuffled(mask, 1) == shuffled(mask, 1)
    assert shuffled(mask, 1) != shuffled(mask, 2)


@pytest.mark.parametrize("within", ["parameter", "model"])
def test_every_place_is_as_likely_as_any_other(within: str) -> None:
    mask = Mask({"a": torch.arange(16) < 5, "b": torch.arange(8) < 4})
    drawn = [shuffled(mask, seed, within=within) for seed in range(3000)]  # type: ignore[arg-type]
    hits = sum(torch.cat([m["a"], m["b"]]).double() for m in drawn) / len(drawn)
    expected = torch.tensor([5 / 16] * 16 + [0.5] * 8) if within == "parameter" else torch.full((24,), 9 / 24)
    assert torch.allclose(hits, expected.double(), atol=0.035)  # four standard errors


def test_a_random_ticket_keeps_the_rewind_weights_and_drops_what_was_measured() -> None:
    ticket = ticket_of(mlp())
    control = random_ticket(ticket, 4)
    assert control.mask != ticket.mask
    assert control.mask.kept == ticket.mask.kept
    assert control.weights is ticket.weights
    assert (control.metrics, control.facts.parent) == ({}, ticket.mask.digest)


@pytest.mark.parametrize("name", ["mlp", "convnet", "bilstm_tagger", "attention"])
def test_a_reinitialised_ticket_has_the_same_mask_over_other_weights(name: str) -> None:
    model = TINY_NETS[name].build()
    before = {key: tensor.clone() for key, tensor in state_tensors(model).items()}
    ticket = ticket_of(model)
    control = reinitialised_ticket(ticket, model, 5)
    assert control.mask == ticket.mask
    for masked in ticket.mask:
        kept = ticket.mask[masked]
        assert not (control.weights or {})[f"parameter/{masked}"][kept].equal(before[f"parameter/{masked}"][kept])
    assert all(tensor.equal(before[key]) for key, tensor in state_tensors(model).items())
    assert control.facts.rewind == "reinit"


def test_a_reinitialisation_that_draws_the_same_weights_is_an_error() -> None:
    model = mlp()

    def same_first_layer(module: nn.Module) -> None:
        module[3].reset_parameters()  # type: ignore[index]

    with pytest.raises(RunError, match=r"fresh weights of 0\.weight equal the ticket's own"):
        reinitialised_ticket(ticket_of(model), model, 5, initialise=same_first_layer)


def test_a_bare_mask_has_no_weights_to_replace() -> None:
    with pytest.raises(TicketError, match="holds no rewind weights"):
        reinitialised_ticket(Ticket(half_mask(mlp())), mlp(), 1)


def test_within_must_be_known() -> None:
    with pytest.raises(MaskError, match="not 'layer'"):
        shuffled(half_mask(mlp()), 1, within="layer")  # type: ignore[arg-type]


def masks_of(**settings: object) -> list[Mask]:
    torch.manual_seed(2)
    model = mlp(12)
    imp = IMP(model, plugins=Plugins(), **{"rate": 0.5, "rounds": 2} | settings)  # type: ignore[arg-type]
    for _ in imp:
        optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
        for _ in range(30):
            model(torch.randn(8, 6)).square().mean().backward()
            optimizer.step()
    return [ticket.mask for ticket in imp.tickets]


def test_inverted_scores_keep_what_the_criterion_would_prune() -> None:
    inverted = masks_of(criterion={"name": "inverted", "of": "magnitude"})
    straight = masks_of()
    assert inverted[1] == straight[0] - straight[1]


def test_random_pruning_with_imps_counts_keeps_other_weights_in_the_same_numbers(tmp_path: object) -> None:
    import ticketkit.builtin.allocators as allocators

    found = masks_of()
    control = masks_of(criterion="random", allocation=allocators.counts_like(found))
    assert [mask.counts for mask in control] == [mask.counts for mask in found]
    assert control[1] != found[1]


def test_one_shot_prunes_once_to_the_density_of_all_rounds() -> None:
    iterative, at_once = masks_of(), masks_of(schedule="one_shot", rounds=None, rate=None, density=0.25)
    assert len(at_once) == 2
    assert at_once[1].kept == iterative[2].kept
    assert at_once[1] != iterative[2]


def test_standard_pruning_differs_from_rewinding() -> None:
    assert masks_of(rewind="none")[2] != masks_of()[2]
