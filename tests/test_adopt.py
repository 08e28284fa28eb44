import copy
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils import prune

from ticketkit import Mask, MaskError, NoEffectWarning, Scope, Ticket
from ticketkit.adopt import mask_from_tensors, mask_from_torch_prune, mask_from_zeros
from ticketkit.testing import TINY_NETS, masks

DTYPES = [
    torch.bool,
    torch.uint8,
    torch.int8,
    torch.int64,
    torch.uint16,
    torch.uint64,
    torch.float16,
    torch.bfloat16,
    torch.float32,
    torch.float64,
    torch.float8_e4m3fn,
]


def model_with(shapes: dict[str, tuple[int, ...]]) -> nn.Module:
    """Return a network whose parameters are exactly these, of random values none of which is zero."""
    model = nn.Module()
    for name, shape in shapes.items():
        *path, leaf = name.split(".")
        parent = model
        for part in path:
            if part not in parent._modules:
                parent.add_module(part, nn.Module())
            parent = parent._modules[part]
        parent.register_parameter(leaf, nn.Parameter(torch.rand(shape) + 0.5))
    return model


def state_of(model: nn.Module) -> list[tuple[str, int, int]]:
    """Return name, identity and address of every parameter, in order."""
    return [(name, id(p), p.data_ptr()) for name, p in model.named_parameters()]


def clone_values(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters()}


# --- from zeros -------------------------------------------------------------------------------------------------------


@given(st.data())
def test_exact_zeros_of_either_sign_are_pruned_and_nothing_else(data: st.DataObject) -> None:
    mask = data.draw(masks())
    model = model_with(mask.shapes)
    awkward = torch.tensor([0.0, -0.0])
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter[~mask[name]] = awkward[torch.randint(2, (mask.sizes[name] - mask.counts[name],))]
    scope = Scope.of(model, include=[*mask])
    if mask.kept == mask.total:
        with pytest.warns(NoEffectWarning, match="keeps all"):
            assert mask_from_zeros(model, scope) == mask
    else:
        assert mask_from_zeros(model, scope) == mask


def test_tiny_values_and_nan_are_no_zeros() -> None:
    model = nn.Linear(4, 1)
    model.weight = nn.Parameter(torch.tensor([[1e-45, float("nan"), 0.0, -1e-45]]))
    assert mask_from_zeros(model)["weight"].tolist() == [[True, True, False, True]]


def test_zeros_of_a_tied_weight_count_once_and_biases_of_zero_are_no_matter() -> None:
    model = TINY_NETS["tied_gru"].build()
    with torch.no_grad():
        model.embedding.weight[0] = 0
        model.gru.bias_ih_l0.zero_()
    mask = mask_from_zeros(model)
    assert mask.total - mask.kept == 6
    assert mask.aliases == {"embedding.weight": ("output.weight",)}


# --- from torch.nn.utils.prune ----------------------------------------------------------------------------------------


def prune_half(model: nn.Module, seed: int = 0) -> dict[str, torch.Tensor]:
    """Prune every weight in scope by torch, and return what is kept, drawn independently of torch's own methods."""
    generator = torch.Generator().manual_seed(seed)
    modules = dict(model.named_modules())
    kept = {name: torch.rand(shape, generator=generator) < 0.5 for name, shape in Scope.of(model).shapes.items()}
    for name, flags in kept.items():
        prefix, _, leaf = name.rpartition(".")
        prune.custom_from_mask(modules[prefix], leaf, flags)
    return kept


@pytest.mark.parametrize("name", ["mlp", "convnet", "bilstm_tagger", "attention"])
def test_a_pruned_network_computes_the_same_and_is_ordinary_again(name: str) -> None:
    net = TINY_NETS[name]
    model, inputs = net.build().eval(), net.inputs()
    before, keys = state_of(model), list(model.state_dict())
    values = clone_values(model)
    kept = prune_half(model)
    outputs = model(inputs)
    mask = mask_from_torch_prune(model)
    assert mask == Mask(kept)
    assert list(mask) == list(Scope.of(model).names)
    assert torch.equal(model(inputs), outputs)
    assert state_of(model) == before
    assert list(model.state_dict()) == keys
    for parameter, (key, flags) in zip((model.get_parameter(key) for key in kept), kept.items(), strict=True):
        assert torch.equal(parameter, values[key].masked_fill(~flags, 0.0))
    assert not prune.is_pruned(model)
    assert copy.deepcopy(model).state_dict().keys() == model.state_dict().keys()
    Ticket(mask).verify(model)


@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")
@pytest.mark.parametrize("kind", [nn.RNN, nn.GRU, nn.LSTM])
def test_recurrent_layers_use_the_parameters_they_have_afterwards(kind: type[nn.RNNBase]) -> None:
    options = {"proj_size": 2} if kind is nn.LSTM else {}
    model = kind(3, 4, num_layers=2, bidirectional=True, **options)
    before = state_of(model)
    inputs = torch.randn(5, 2, 3)
    prune_half(model)
    prune.random_unstructured(model, "bias_hh_l1", 0.5)
    outputs = model(inputs)[0]
    mask = mask_from_torch_prune(model)
    assert "bias_hh_l1" in mask
    assert torch.equal(model(inputs)[0], outputs)
    assert state_of(model) == before
    assert all(flat is p for flat, p in zip(model._flat_weights, model.parameters(), strict=True))


def test_the_model_is_left_alone_on_request() -> None:
    model = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 2))
    kept = prune_half(model)
    keys = list(model.state_dict())
    assert mask_from_torch_prune(model, remove=False) == Mask(kept)
    assert list(model.state_dict()) == keys
    assert prune.is_pruned(model)


def test_only_what_is_pruned_is_covered_and_a_scope_extends_it() -> None:
    model = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 2))
    prune.l1_unstructured(model[1], "bias", 1)
    prune.l1_unstructured(model[0], "weight", 2)
    mask = mask_from_torch_prune(model)
    assert mask.counts == {"0.weight": 4, "1.bias": 1}
    wide = mask_from_tensors(mask, Scope.of(model, include=["*", "1.bias"]), missing="keep")
    assert wide.counts == {"0.weight": 4, "1.weight": 4, "1.bias": 1}


def test_several_prunings_of_one_weight_are_one_mask() -> None:
    model = nn.Linear(4, 4)
    prune.l1_unstructured(model, "weight", 4)
    prune.ln_structured(model, "weight", 1, n=2, dim=0)
    prune.random_unstructured(model, "weight", 2)
    expected = model.weight_mask.bool()
    assert torch.equal(mask_from_torch_prune(model)["weight"], expected)


def test_global_pruning_is_found_in_every_layer_and_below_wrappers() -> None:
    model = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 2))
    prune.global_unstructured([(layer, "weight") for layer in model], pruning_method=prune.L1Unstructured, amount=5)
    mask = mask_from_torch_prune(nn.DataParallel(model))
    assert (list(mask), mask.kept) == (["0.weight", "1.weight"], 5)


def test_pruned_infinities_become_zero_and_never_nan() -> None:
    model = nn.Linear(2, 1, bias=False)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[float("inf"), -1.0]]))
    prune.custom_from_mask(model, "weight", torch.tensor([[0, 0]]))
    mask_from_torch_prune(model)
    assert torch.equal(model.weight.detach().view(torch.int32), torch.zeros(1, 2, dtype=torch.int32))


def test_names_with_mask_in_them_say_nothing() -> None:
    model = nn.Linear(2, 2)
    model.register_buffer("weight_mask", torch.zeros(2, 2))
    model.register_parameter("weight_orig", nn.Parameter(torch.ones(2, 2)))
    with pytest.raises(MaskError, match=r"no module of Linear is pruned by torch\.nn\.utils\.prune"):
        mask_from_torch_prune(model)
    model = nn.Sequential(nn.Linear(2, 2))
    model.register_buffer("attention_mask", torch.zeros(2))
    prune.l1_unstructured(model[0], "weight", 1)
    assert list(mask_from_torch_prune(model)) == ["0.weight"]
    assert "attention_mask" in model.state_dict()


def test_a_mask_of_fractions_is_refused_and_nothing_is_removed() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1))
    prune.custom_from_mask(model[0], "weight", torch.ones(2, 2))
    prune.custom_from_mask(model[1], "weight", torch.tensor([[1.0, 0.5]]))
    with pytest.raises(MaskError, match=r"1\.weight_mask: 1 of 2 entries are neither 0 nor 1, such as 0\.5"):
        mask_from_torch_prune(model)
    assert "0.weight_mask" in model.state_dict()


def tied() -> nn.Module:
    model = nn.ModuleList([nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False)])
    model[1].weight = model[0].weight
    return model


def tied_views() -> nn.Module:
    model = nn.ModuleList([nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False)])
    model[1].weight = nn.Parameter(model[0].weight.detach().view(3, 3))
    return model


@pytest.mark.parametrize("build", [tied, tied_views])
def test_ties_survive_if_both_ends_are_pruned_alike(build: Callable[[], nn.Module]) -> None:
    model = build()
    kept = torch.rand(3, 3) < 0.5
    for layer in model:
        prune.custom_from_mask(layer, "weight", kept)
    mask = mask_from_torch_prune(model)
    assert mask == Mask({"0.weight": kept})
    assert mask.aliases == {"0.weight": ("1.weight",)}
    assert model[0].weight.data_ptr() == model[1].weight.data_ptr()
    assert (model[1].weight[~kept] == 0).all()


def test_ties_of_which_one_end_is_pruned_are_refused_untouched() -> None:
    model = tied()
    prune.l1_unstructured(model[1], "weight", 3)
    with pytest.raises(MaskError, match=r"1\.weight is pruned, but 0\.weight, tied to it, is not"):
        mask_from_torch_prune(model)
    prune.custom_from_mask(model[0], "weight", torch.ones(3, 3))
    with pytest.raises(MaskError, match=r"0\.weight, 1\.weight are tied, but their masks differ"):
        mask_from_torch_prune(model)
    assert prune.is_pruned(model[0])


def test_a_module_in_two_places_is_removed_once() -> None:
    shared = nn.Linear(3, 3)
    model = nn.ModuleDict({"a": shared, "b": shared})
    prune.l1_unstructured(shared, "weight", 3)
    mask = mask_from_torch_prune(model)
    assert (mask.total, mask.kept, mask.aliases) == (9, 6, {"a.weight": ("b.weight",)})


def test_parameters_of_own_modules_are_found_by_their_own_names() -> None:
    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bias = nn.Parameter(torch.ones(3))
            self.weight = nn.Parameter(torch.ones(3))

    model = Own()
    prune.random_unstructured(model, "bias", 1)
    assert list(mask_from_torch_prune(model)) == ["bias"]
    assert [name for name, _ in model.named_parameters()] == ["weight", "bias"]


# --- from tensors -----------------------------------------------------------------------------------------------------


@given(st.data(), st.sampled_from(DTYPES))
def test_zeros_and_ones_of_any_dtype_are_the_mask(data: st.DataObject, dtype: torch.dtype) -> None:
    mask = data.draw(masks())
    scope = Scope(shapes=mask.shapes, aliases={}, model_total=mask.total)
    tensors = {name: mask[name].to(torch.float32).to(dtype) for name in data.draw(st.permutations(list(mask)))}
    found = mask_from_tensors(tensors, scope)
    assert found == mask
    assert list(found) == list(mask)


@pytest.mark.parametrize("value", [0.5, -1, 2, 255, float("nan"), float("inf"), 1 + 2**-23])
def test_anything_but_zero_and_one_is_refused(value: float) -> None:
    with pytest.raises(MaskError, match="weight: 1 of 2 entries are neither 0 nor 1, such as"):
        mask_from_tensors({"weight": torch.tensor([[1.0, value]])}, nn.Linear(2, 1))


@pytest.mark.parametrize(
    ("content", "came"),
    [
        ([[1, 0]], "list"),
        (torch.ones(1, 2, dtype=torch.complex64), "torch.complex64"),
        (torch.ones(1, 2, device="meta"), "on meta"),
    ],
)
def test_what_is_no_tensor_of_numbers_is_refused(content: object, came: str) -> None:
    with pytest.raises(MaskError, match=f"a mask is a tensor of zeros and ones, not .*{came}"):
        mask_from_tensors({"weight": content}, nn.Linear(2, 1))


def test_sparse_masks_count_what_they_do_not_store_as_pruned() -> None:
    flags = torch.tensor([[1.0, 0.0]])
    assert mask_from_tensors({"weight": flags.to_sparse()}, nn.Linear(2, 1)).kept == 1


def test_missing_parameters_are_an_error_or_kept_whole() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    tensors = {"0.weight": torch.eye(2)}
    with pytest.raises(MaskError, match=r"1\.weight \(2, 2\): missing; missing='keep' keeps it whole"):
        mask_from_tensors(tensors, model)
    assert mask_from_tensors(tensors, model, missing="keep").counts == {"0.weight": 2, "1.weight": 4}
    with pytest.raises(MaskError, match="'error' or 'keep', not 'ignore'"):
        mask_from_tensors(tensors, model, missing="ignore")


def test_any_name_of_a_tied_parameter_will_do() -> None:
    model = tied()
    flags = torch.eye(3, dtype=torch.bool)
    for names in (["0.weight"], ["1.weight"], ["1.weight", "0.weight"]):
        mask = mask_from_tensors(dict.fromkeys(names, flags), model)
        assert mask == Mask({"0.weight": flags})
        assert mask.aliases == {"0.weight": ("1.weight",)}
    with pytest.raises(MaskError, match=r"1\.weight is tied to 0\.weight, and the two masks differ"):
        mask_from_tensors({"0.weight": flags, "1.weight": ~flags}, model)


def test_keys_of_a_state_dict_are_never_taken_for_masks() -> None:
    model = nn.Sequential(nn.Linear(2, 2))
    prune.l1_unstructured(model[0], "weight", 1)
    state = {name: tensor for name, tensor in model.state_dict().items() if "mask" in name}
    with pytest.raises(MaskError, match=r"0\.weight_mask: no parameter in scope has this name; nearest: 0\.weight"):
        mask_from_tensors(state, nn.Sequential(nn.Linear(2, 2)), missing="keep")


def test_all_misfits_are_listed_together() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2), nn.Linear(2, 2))
    tensors = {"0.weight": torch.ones(3), "1.weight": torch.full((2, 2), 7), "x": torch.ones(1)}
    with pytest.raises(MaskError) as caught:
        mask_from_tensors(tensors, model)
    for line in (
        r"0.weight: expected shape (2, 2), found (3,)",
        "1.weight: 4 of 4 entries are neither 0 nor 1, such as 7.0",
        "x: no parameter in scope has this name",
        "2.weight (2, 2): missing",
    ):
        assert line in str(caught.value)
    assert str(caught.value).count("missing;") == 1
