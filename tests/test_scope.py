from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.nn.utils import prune

from ticketkit import Mask, NoEffectWarning, Scope, ScopeError, enforced
from ticketkit.testing import TINY_NETS

GATES = {nn.LSTM: 4, nn.GRU: 3, nn.RNN: 1}


@pytest.mark.parametrize(
    ("layer", "expected"),
    [
        (nn.Linear(3, 2), {"weight": (2, 3)}),
        (nn.Bilinear(2, 3, 4), {"weight": (4, 2, 3)}),
        (nn.Conv1d(2, 4, 3), {"weight": (4, 2, 3)}),
        (nn.Conv2d(2, 4, 3, groups=2), {"weight": (4, 1, 3, 3)}),
        (nn.Conv3d(2, 4, 1), {"weight": (4, 2, 1, 1, 1)}),
        (nn.ConvTranspose1d(2, 4, 3), {"weight": (2, 4, 3)}),
        (nn.ConvTranspose2d(2, 4, 3), {"weight": (2, 4, 3, 3)}),
        (nn.ConvTranspose3d(2, 4, 1), {"weight": (2, 4, 1, 1, 1)}),
        (nn.LSTMCell(3, 2), {"weight_ih": (8, 3), "weight_hh": (8, 2)}),
        (nn.GRUCell(3, 2), {"weight_ih": (6, 3), "weight_hh": (6, 2)}),
        (nn.RNNCell(3, 2), {"weight_ih": (2, 3), "weight_hh": (2, 2)}),
        (nn.MultiheadAttention(4, 2), {"in_proj_weight": (12, 4), "out_proj.weight": (4, 4)}),
        (
            nn.MultiheadAttention(4, 2, kdim=3, vdim=5, add_bias_kv=True),
            {
                "q_proj_weight": (4, 4),
                "k_proj_weight": (4, 3),
                "v_proj_weight": (4, 5),
                "out_proj.weight": (4, 4),
            },
        ),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "",
)
def test_weights_are_in_scope_and_biases_are_not(layer: nn.Module, expected: dict[str, tuple[int, ...]]) -> None:
    assert Scope.of(layer).shapes == expected
    assert list(Scope.of(layer).shapes) == list(expected)


@pytest.mark.parametrize("kind", GATES)
def test_recurrent_layers_count_every_layer_and_direction(kind: type[nn.RNNBase]) -> None:
    gates = GATES[kind]
    assert Scope.of(kind(3, 2, num_layers=2, bidirectional=True)).shapes == {
        "weight_ih_l0": (2 * gates, 3),
        "weight_hh_l0": (2 * gates, 2),
        "weight_ih_l0_reverse": (2 * gates, 3),
        "weight_hh_l0_reverse": (2 * gates, 2),
        "weight_ih_l1": (2 * gates, 4),
        "weight_hh_l1": (2 * gates, 2),
        "weight_ih_l1_reverse": (2 * gates, 4),
        "weight_hh_l1_reverse": (2 * gates, 2),
    }


def test_projected_recurrent_layers_count_their_projections() -> None:
    shapes = Scope.of(nn.LSTM(3, 4, proj_size=2)).shapes
    assert shapes == {"weight_ih_l0": (16, 3), "weight_hh_l0": (16, 2), "weight_hr_l0": (2, 4)}


def test_norms_and_embeddings_are_out() -> None:
    model = nn.Sequential(nn.Embedding(4, 3), nn.LayerNorm(3), nn.Linear(3, 2), nn.BatchNorm1d(2), nn.PReLU())
    assert Scope.of(model).names == ("2.weight",)


def test_total_counts_the_scope_and_model_total_everything() -> None:
    scope = Scope.of(nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2)))
    assert (scope.total, scope.model_total) == (6, 6 + 2 + 2 + 2)
    assert scope.ones().kept == scope.total


def test_tied_weights_count_once_under_the_first_name() -> None:
    model = TINY_NETS["tied_gru"].build()
    scope = Scope.of(model)
    assert scope.names == ("embedding.weight", "gru.weight_ih_l0", "gru.weight_hh_l0")
    assert scope.aliases == {"embedding.weight": ("output.weight",)}
    assert scope.model_total == sum(parameter.numel() for parameter in model.parameters())
    assert scope.ones().aliases == scope.aliases


def test_two_parameters_over_one_storage_are_one() -> None:
    model = nn.ModuleList([nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False)])
    model[1].weight = nn.Parameter(model[0].weight.detach().view(3, 3))
    scope = Scope.of(model)
    assert (scope.names, scope.total, scope.model_total) == (("0.weight",), 9, 9)
    assert scope.aliases == {"0.weight": ("1.weight",)}


def test_a_module_used_twice_counts_once() -> None:
    shared = nn.Linear(3, 3)
    scope = Scope.of(nn.ModuleDict({"a": shared, "b": shared}))
    assert scope.total == 9
    assert scope.aliases == {"a.weight": ("b.weight",)}


def test_parameters_that_overlap_without_being_one_are_refused() -> None:
    model = nn.ModuleList([nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False)])
    model[1].weight = nn.Parameter(model[0].weight.detach().T)
    with pytest.raises(ScopeError, match=r"'0\.weight' and '1\.weight' overlap in memory"):
        Scope.of(model)


def test_neighbours_in_one_buffer_do_not_overlap() -> None:
    buffer = torch.randn(18)
    model = nn.ModuleList([nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False)])
    model[0].weight = nn.Parameter(buffer[:9].view(3, 3))
    model[1].weight = nn.Parameter(buffer[9:].view(3, 3))
    assert Scope.of(model).total == 18


def test_the_order_is_that_of_named_parameters_whatever_the_patterns() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2), nn.Linear(2, 2))
    assert Scope.of(model, include=["2.*", "0.*"]).names == ("0.weight", "2.weight")


def test_include_chooses_among_weights_and_full_names_add_anything() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    assert Scope.of(model, include=["0.*"]).names == ("0.weight",)
    assert Scope.of(model, include=["*", "1.bias"]).names == ("0.weight", "1.weight", "1.bias")
    assert Scope.of(model, include=["1.bias"]).names == ("1.bias",)


def test_exclude_removes_last() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    assert Scope.of(model, exclude=["0.*"]).names == ("1.weight",)
    assert Scope.of(model, include=["*"], exclude=["1.weight"]).names == ("0.weight",)


def test_patterns_match_any_name_of_a_tied_parameter() -> None:
    model = TINY_NETS["tied_gru"].build()
    assert Scope.of(model, include=["output.*"]).names == ("embedding.weight",)
    assert "embedding.weight" not in Scope.of(model, exclude=["output.weight"]).names


def test_the_rule_is_kept_as_given() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    scope = Scope.of(model, include=["*"], exclude=["1.*"])
    assert (scope.include, scope.exclude) == (("*",), ("1.*",))


def test_patterns_are_case_sensitive() -> None:
    with pytest.raises(ScopeError, match=r"'Weight' matched none"):
        Scope.of(nn.Linear(2, 2), exclude=["Weight"])


@pytest.mark.parametrize("what", ["include", "exclude"])
def test_a_pattern_that_matches_nothing_names_the_nearest(what: str) -> None:
    model = nn.ModuleDict({"encoder": nn.Linear(2, 2), "decoder": nn.Linear(2, 2)})
    message = rf"{what} 'encodr\.weight' matched none of 4 parameters; nearest: 'encoder\.weight'"
    with pytest.raises(ScopeError, match=message):
        Scope.of(model, **{what: ["encodr.weight"]})


def test_a_pattern_that_matches_only_biases_says_so() -> None:
    with pytest.raises(ScopeError, match=r"no weight matrices or kernels: bias; write their full names"):
        Scope.of(nn.Linear(2, 2), include=["b*"])


def test_a_string_is_no_list_of_patterns() -> None:
    with pytest.raises(ScopeError, match=r"write \['0\.weight'\]"):
        Scope.of(nn.Linear(2, 2), include="0.weight")


@pytest.mark.parametrize("model", [nn.LayerNorm(3), nn.Embedding(3, 2), nn.ReLU()])
def test_a_model_without_weights_to_prune_is_refused(model: nn.Module) -> None:
    with pytest.raises(ScopeError, match="nothing to prune"):
        Scope.of(model)


def test_excluding_everything_is_refused() -> None:
    with pytest.raises(ScopeError, match="nothing to prune"):
        Scope.of(nn.Linear(2, 2), exclude=["*"])


def test_lazy_weights_are_refused_until_they_exist() -> None:
    model = nn.Sequential(nn.LazyLinear(2), nn.Linear(2, 2))
    with pytest.raises(ScopeError, match=r"'0\.weight' is not initialised yet; run the model once"):
        Scope.of(model)
    assert Scope.of(model, exclude=["0.*"]).names == ("1.weight",)
    model(torch.ones(1, 3))
    assert Scope.of(model).names == ("0.weight", "1.weight")


def test_integer_and_complex_parameters_are_refused_by_name() -> None:
    model = nn.Linear(2, 2)
    model.table = nn.Parameter(torch.zeros(3, dtype=torch.int64), requires_grad=False)
    with pytest.raises(ScopeError, match=r"'table' is torch\.int64"):
        Scope.of(model, include=["table"])
    with pytest.raises(ScopeError, match=r"'weight' is torch\.complex64"):
        Scope.of(nn.Linear(2, 2, dtype=torch.complex64))


@pytest.mark.parametrize(
    "wrap",
    [
        nn.utils.parametrizations.weight_norm,
        nn.utils.parametrizations.orthogonal,
        lambda layer: prune.l1_unstructured(layer, "weight", 1),
    ],
)
def test_weights_that_are_computed_are_warned_of(wrap: Callable[[nn.Module], nn.Module]) -> None:
    model = nn.Sequential(wrap(nn.Linear(2, 2)), nn.Linear(2, 2))
    with pytest.warns(NoEffectWarning, match=r"computes them: 0\.weight; remove that first"):
        assert Scope.of(model).names == ("1.weight",)
    assert Scope.of(model, exclude=["0.*"]).names == ("1.weight",)
    assert Scope.of(model, include=["1.*"]).names == ("1.weight",)


def test_tensors_share_memory_and_are_detached() -> None:
    model = nn.Linear(2, 2)
    tensors = Scope.of(model).tensors(model)
    assert tensors["weight"].data_ptr() == model.weight.data_ptr()
    assert not tensors["weight"].requires_grad


def test_scope_and_mask_count_alike_while_masks_are_on() -> None:
    model = TINY_NETS["bilstm_tagger"].build()
    scope = Scope.of(model)
    with enforced(model, Mask.ones(scope.shapes)):
        assert Scope.of(model) == scope
