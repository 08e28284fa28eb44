import sys
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from itertools import product
from pathlib import Path
from types import ModuleType

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import distributed, nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import prune
from torch.optim.swa_utils import AveragedModel

from ticketkit import Mask, NoEffectWarning, Scope, ScopeError, Ticket, enforced
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


def recurrent_shapes(gates: int, features: int, hidden: int, layers: int, directions: int, proj: int) -> dict:
    """Return the weights of a recurrent layer, from the equations in torch's documentation of RNN, GRU and LSTM."""
    out = proj or hidden
    shapes = {}
    for layer, suffix in product(range(layers), ["", "_reverse"][:directions]):
        shapes[f"weight_ih_l{layer}{suffix}"] = (gates * hidden, features if layer == 0 else directions * out)
        shapes[f"weight_hh_l{layer}{suffix}"] = (gates * hidden, out)
        if proj:
            shapes[f"weight_hr_l{layer}{suffix}"] = (proj, hidden)
    return shapes


@pytest.mark.parametrize("kind", GATES)
@pytest.mark.parametrize(("layers", "directions", "bias"), list(product([1, 2, 3], [1, 2], [True, False])))
def test_recurrent_layers_count_every_layer_and_direction(
    kind: type[nn.RNNBase], layers: int, directions: int, bias: bool
) -> None:
    for proj in (0, 2) if kind is nn.LSTM else (0,):
        options = {"proj_size": proj} if proj else {}
        layer = kind(3, 4, num_layers=layers, bidirectional=directions == 2, bias=bias, **options)
        expected = recurrent_shapes(GATES[kind], 3, 4, layers, directions, proj)
        assert Scope.of(layer).shapes == expected
        assert list(Scope.of(layer).shapes) == list(expected)


@pytest.mark.parametrize(
    ("lazy", "inputs", "expected"),
    [
        (lambda: nn.LazyLinear(2), torch.ones(1, 3), (2, 3)),
        (lambda: nn.LazyConv1d(2, 3), torch.ones(1, 4, 5), (2, 4, 3)),
        (lambda: nn.LazyConv2d(2, 3), torch.ones(1, 4, 5, 5), (2, 4, 3, 3)),
        (lambda: nn.LazyConv3d(2, 1), torch.ones(1, 4, 2, 2, 2), (2, 4, 1, 1, 1)),
        (lambda: nn.LazyConvTranspose1d(2, 3), torch.ones(1, 4, 5), (4, 2, 3)),
        (lambda: nn.LazyConvTranspose2d(2, 3), torch.ones(1, 4, 5, 5), (4, 2, 3, 3)),
        (lambda: nn.LazyConvTranspose3d(2, 1), torch.ones(1, 4, 2, 2, 2), (4, 2, 1, 1, 1)),
    ],
)
def test_lazy_layers_are_refused_until_they_have_seen_a_batch(
    lazy: Callable[[], nn.Module], inputs: torch.Tensor, expected: tuple[int, ...]
) -> None:
    layer = lazy()
    with pytest.raises(ScopeError, match="'weight' is not initialised yet; run the model once on a batch"):
        Scope.of(layer)
    layer(inputs)
    assert Scope.of(layer).shapes == {"weight": expected}


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
    with pytest.raises(ScopeError, match=r"no weight matrices or kernels: bias; write their full names .* options"):
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


@pytest.mark.parametrize(
    ("layer", "leaves"),
    [
        (nn.LSTM(2, 3), ["weight_ih_l0", "bias_ih_l0"]),
        (nn.GRUCell(2, 3), ["weight_hh"]),
        (nn.MultiheadAttention(4, 2), ["in_proj_weight"]),
        (nn.MultiheadAttention(4, 2, kdim=3), ["q_proj_weight", "v_proj_weight"]),
    ],
    ids=lambda value: type(value).__name__,
)
def test_computed_weights_of_recurrent_and_attention_layers_are_warned_of_and_their_originals_are_not_in_scope(
    layer: nn.Module, leaves: list[str]
) -> None:
    model = nn.ModuleDict({"layer": layer})
    whole = Scope.of(model).names
    for leaf in leaves:
        prune.random_unstructured(layer, leaf, 1)
    weights = [f"layer.{leaf}" for leaf in leaves if "weight" in leaf]
    with pytest.warns(NoEffectWarning, match=f"computes them: {', '.join(weights)}; remove"):
        assert Scope.of(model).names == tuple(name for name in whole if name not in weights)


# --- options and predicates -------------------------------------------------------------------------------------------


class Experts(nn.Module):
    """A module of one's own: experts as a stack, a ParameterList, a ParameterDict, positions and a scale."""

    def __init__(self) -> None:
        super().__init__()
        self.stack = nn.Parameter(torch.ones(2, 3, 3))
        self.list = nn.ParameterList([torch.ones(3, 3), torch.ones(3)])
        self.dict = nn.ParameterDict({"up": torch.ones(3, 4), "scale": torch.ones(())})
        self.scale = nn.Parameter(torch.ones(3))
        self.linear = nn.Linear(3, 3)


def test_bare_parameters_are_out_by_default_and_in_by_option() -> None:
    assert Scope.of(Experts()).names == ("linear.weight",)
    scope = Scope.of(Experts(), bare=True)
    assert scope.names == ("stack", "list.0", "dict.up", "linear.weight")
    assert (scope.bare, scope.embeddings) == (True, False)


def test_globs_choose_among_bare_parameters_and_full_names_need_no_option() -> None:
    assert Scope.of(Experts(), include=["list.*"], bare=True).names == ("list.0",)
    assert Scope.of(Experts(), include=["stack", "scale"]).names == ("stack", "scale")
    with pytest.raises(ScopeError, match=r"kernels: list\.0, list\.1; write their full names .* embeddings and bare"):
        Scope.of(Experts(), include=["list.*"])


@pytest.mark.parametrize(
    "layer",
    [
        nn.LayerNorm((2, 2)),
        nn.RMSNorm((2, 2)),
        nn.MultiheadAttention(4, 2, add_bias_kv=True),
        nn.Embedding(3, 2),
        nn.utils.parametrizations.weight_norm(nn.Linear(2, 2)),
    ],
    ids=lambda layer: type(layer).__name__,
)
def test_bare_means_none_of_the_parameters_of_torchs_layers(layer: nn.Module) -> None:
    scope = Scope.of(nn.ModuleDict({"own": Experts(), "layer": layer}), bare=True, exclude=["layer.*weight*"])
    assert {name for name in scope.names if name.startswith("layer")} == set()


def test_layers_derived_from_torchs_count_as_those() -> None:
    class LowRank(nn.Linear):
        def __init__(self) -> None:
            super().__init__(3, 3)
            self.down = nn.Parameter(torch.ones(1, 3))

    model = nn.ModuleList([LowRank(), Experts()])
    assert Scope.of(model, include=["0.*"], bare=True).names == ("0.weight",)
    assert Scope.of(model, include=["0.down"]).names == ("0.down",)


def test_embeddings_are_in_by_option() -> None:
    model = nn.ModuleList([nn.Embedding(3, 2), nn.EmbeddingBag(4, 2), nn.Linear(2, 2)])
    assert Scope.of(model).names == ("2.weight",)
    scope = Scope.of(model, embeddings=True)
    assert scope.names == ("0.weight", "1.weight", "2.weight")
    assert (scope.embeddings, scope.total, scope.model_total) == (True, 6 + 8 + 4, 6 + 8 + 6)
    assert Scope.of(model, embeddings=True, include=["1.*"]).names == ("1.weight",)
    assert Scope.of(nn.Embedding(3, 2), embeddings=True).names == ("weight",)


def test_options_that_change_nothing_are_warned_of() -> None:
    with pytest.warns(NoEffectWarning, match="embeddings=True and bare=True changed nothing: Linear"):
        Scope.of(nn.Linear(2, 2), embeddings=True, bare=True)


def wide(_name: str, parameter: nn.Parameter, _module: nn.Module) -> bool:
    return parameter.numel() > 4


def test_where_sees_name_parameter_and_the_module_that_holds_it() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Conv1d(2, 2, 2))
    asked: list[tuple[str, int, nn.Module]] = []

    def where(name: str, parameter: nn.Parameter, module: nn.Module) -> bool:
        asked.append((name, id(parameter), module))
        return isinstance(module, nn.Conv1d)

    assert Scope.of(partial(torch.compile, backend="eager")(model), where=where).names == ("1.weight",)
    assert asked == [("0.weight", id(model[0].weight), model[0]), ("1.weight", id(model[1].weight), model[1])]


def test_where_include_and_exclude_all_have_to_agree() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 3), nn.Linear(3, 3))
    assert Scope.of(model, where=wide).names == ("1.weight", "2.weight")
    assert Scope.of(model, where=wide, exclude=["1.*"]).names == ("2.weight",)
    assert Scope.of(model, where=wide, include=["0.*", "1.*", "2.bias"]).names == ("1.weight",)


@given(st.sets(st.sampled_from(range(6))), st.sets(st.sampled_from(range(6)), min_size=1), st.sets(st.integers(0, 5)))
def test_the_rule_is_included_and_where_less_excluded(include: set[int], where: set[int], exclude: set[int]) -> None:
    model = nn.Sequential(*[nn.Linear(1, 1) for _ in range(6)])
    expected = [f"{i}.weight" for i in range(6) if (i in include or not include) and i in where and i not in exclude]

    def rule() -> Scope:
        return Scope.of(
            model,
            include=[f"{i}.*" for i in include] or None,
            where=lambda name, _parameter, _module: int(name[0]) in where,
            exclude=[f"{i}.*" for i in exclude],
        )

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        if expected:
            assert list(rule().names) == expected
        else:
            with pytest.raises(ScopeError, match="nothing to prune"):
                rule()
    assert bool(caught) == ((include or set(range(6))) <= where)


def test_a_tied_weight_stays_if_any_of_its_names_passes() -> None:
    model = TINY_NETS["tied_gru"].build()
    scope = Scope.of(model, where=lambda _name, _parameter, module: isinstance(module, nn.Linear))
    assert scope.names == ("embedding.weight",)


def test_the_name_of_the_predicate_is_recorded() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 3))
    assert str(Scope.of(model, where=wide).where).endswith("test_scope.wide")
    assert Scope.of(model, where=partial(wide)).where == "functools.partial"
    assert Scope.of(model).where is None


@pytest.mark.parametrize("answer", [None, 1, torch.tensor(True)])
def test_a_predicate_that_does_not_answer_is_refused(answer: object) -> None:
    with pytest.raises(ScopeError, match=r"where=.* returned .* for 'weight'; it must return a bool"):
        Scope.of(nn.Linear(2, 2), where=lambda *_: answer)


# --- layers of other libraries ----------------------------------------------------------------------------------------


def test_transposed_linear_layers_of_transformers_are_found_without_importing_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Conv1D(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(3, 2))
            self.bias = nn.Parameter(torch.ones(2))

    model = nn.Sequential(Conv1D(), nn.Linear(2, 2))
    monkeypatch.delitem(sys.modules, "transformers.pytorch_utils", raising=False)
    assert Scope.of(model).names == ("1.weight",)
    library = ModuleType("transformers.pytorch_utils")
    library.Conv1D = Conv1D
    monkeypatch.setitem(sys.modules, library.__name__, library)
    assert Scope.of(model).shapes == {"0.weight": (3, 2), "1.weight": (2, 2)}


# --- wrappers ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def process_group(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    store: Path = tmp_path_factory.mktemp("store") / "file"
    distributed.init_process_group("gloo", init_method=f"file://{store}", rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


@pytest.mark.usefixtures("process_group")
@pytest.mark.parametrize("net", TINY_NETS)
@pytest.mark.parametrize(
    "wrap",
    [
        nn.DataParallel,
        DistributedDataParallel,
        AveragedModel,
        checkpoint_wrapper,
        partial(torch.compile, backend="eager"),
        lambda model: AveragedModel(torch.compile(DistributedDataParallel(checkpoint_wrapper(model)), backend="eager")),
    ],
    ids=["DataParallel", "DDP", "AveragedModel", "checkpoint", "compile", "all"],
)
def test_a_wrapped_model_has_the_scope_of_the_model_and_its_mask(
    net: str, wrap: Callable[[nn.Module], nn.Module]
) -> None:
    model = TINY_NETS[net].build()
    scope = Scope.of(model)
    wrapped = wrap(model)
    assert Scope.of(wrapped) == scope
    mask = Mask({name: torch.rand(shape) < 0.5 for name, shape in scope.shapes.items()}, aliases=scope.aliases)
    Ticket(mask).apply_(wrapped)
    Ticket(mask).verify(wrapped)
    for name, values in scope.tensors(wrapped).items():
        assert torch.equal(values == 0, ~mask[name])


@pytest.mark.usefixtures("process_group")
def test_fully_sharded_parameters_are_no_ties() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    scope = Scope.of(model)
    fully_shard(model, mesh=distributed.init_device_mesh("cpu", (1,)))
    assert Scope.of(model) == scope


def test_errors_name_the_network_and_not_its_wrapper() -> None:
    with pytest.raises(ScopeError, match="parameters of LayerNorm left"):
        Scope.of(nn.DataParallel(nn.LayerNorm(2)))
    with (
        pytest.raises(ScopeError, match="Linear does not have the masked parameters"),
        enforced(nn.DataParallel(nn.Linear(2, 2)), Mask({"x": torch.ones(1, dtype=torch.bool)})),
    ):
        pass
