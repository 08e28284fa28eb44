import copy
from collections.abc import Callable, Iterator
from functools import partial
from itertools import product
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import distributed, nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper, offload_wrapper
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel

from ticketkit.names import named_buffers, named_modules, named_parameters, owned_parameters, tied_groups, unwrap

Wrap = Callable[[nn.Module], nn.Module]

LOCAL: dict[str, Wrap] = {
    "DataParallel": nn.DataParallel,
    "AveragedModel": AveragedModel,
    "compile": partial(torch.compile, backend="eager"),  # the default one warns when it is imported
    "checkpoint": checkpoint_wrapper,
    "offload": offload_wrapper,
}
TWICE = ["compile", "compile"]  # torch.compile of a compiled module returns a bare function
PREFIXES = ("module", "_orig_mod", "_checkpoint_wrapped_module", "_fsdp_wrapped_module", "n_averaged", "a", "0")


@pytest.fixture(scope="module")
def process_group(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    store: Path = tmp_path_factory.mktemp("store") / "file"
    distributed.init_process_group("gloo", init_method=f"file://{store}", rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


def small() -> nn.Module:
    return nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.LSTM(3, 2))


@st.composite
def trees(draw: st.DrawFn, depth: int = 2) -> tuple[nn.Module, nn.Module]:
    """Return a network and the same network with wrappers at any places, below children of any names."""
    kind = draw(st.sampled_from(["linear", "norm", "dict"])) if depth else "linear"
    if kind == "dict":
        children = {name: draw(trees(depth=depth - 1)) for name in draw(st.sets(st.sampled_from(PREFIXES), max_size=3))}
        plain: nn.Module = nn.ModuleDict({name: bare for name, (bare, _) in children.items()})
        wrapped: nn.Module = nn.ModuleDict({name: inner for name, (_, inner) in children.items()})
    else:
        plain = nn.Linear(1, 1) if kind == "linear" else nn.BatchNorm1d(1)
        wrapped = copy.deepcopy(plain)
    for wrapper in draw(st.lists(st.sampled_from(sorted(LOCAL)), max_size=2).filter(lambda names: names != TWICE)):
        wrapped = LOCAL[wrapper](wrapped)
    return plain, wrapped


@given(trees())
def test_wrappers_change_no_name_and_no_order(pair: tuple[nn.Module, nn.Module]) -> None:
    plain, wrapped = pair
    assert [name for name, _ in named_parameters(wrapped)] == [name for name, _ in plain.named_parameters()]
    assert [name for name, _ in named_modules(wrapped)] == [name for name, _ in plain.named_modules()]
    assert [name for name, _ in named_buffers(wrapped, wrappers=False)] == [name for name, _ in plain.named_buffers()]


@given(trees())
def test_what_is_named_is_what_torch_names_object_for_object(pair: tuple[nn.Module, nn.Module]) -> None:
    _, wrapped = pair
    assert [id(p) for _, p in named_parameters(wrapped)] == [id(p) for p in wrapped.parameters()]
    assert [id(b) for _, b in named_buffers(wrapped)] == [id(b) for b in wrapped.buffers()]


@given(trees())
def test_no_two_tensors_get_one_name(pair: tuple[nn.Module, nn.Module]) -> None:
    _, wrapped = pair
    names = [name for name, _ in named_parameters(wrapped)] + [name for name, _ in named_buffers(wrapped)]
    assert len(names) == len(set(names))


@pytest.mark.parametrize(
    ("outer", "inner"), [pair for pair in product(LOCAL, LOCAL) if list(pair) != TWICE], ids="-".join
)
def test_wrappers_nest_in_any_order(outer: str, inner: str) -> None:
    plain = small()
    wrapped = LOCAL[outer](LOCAL[inner](plain))
    assert dict(named_parameters(wrapped)).keys() == dict(plain.named_parameters()).keys()
    assert type(unwrap(wrapped)) is nn.Sequential


def test_the_type_decides_and_never_the_string() -> None:
    class Head(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.module = nn.Linear(2, 1)
            self._orig_mod = nn.Linear(2, 1)

    expected = ["module.weight", "module.bias", "_orig_mod.weight", "_orig_mod.bias"]
    assert [name for name, _ in named_parameters(Head())] == expected
    assert [name for name, _ in named_parameters(AveragedModel(LOCAL["compile"](Head())))] == expected
    assert unwrap(head := Head()) is head


def test_each_parameter_comes_with_the_module_that_holds_it() -> None:
    model = small()
    owners = {name: module for name, _, module in owned_parameters(LOCAL["compile"](model))}
    assert owners["0.weight"] is model[0]
    assert owners["2.weight_hh_l0"] is model[2]


def test_repetitions_are_named_on_request() -> None:
    shared = nn.Linear(2, 2)
    shared.twin = shared.weight
    model = nn.DataParallel(nn.ModuleDict({"a": shared, "b": checkpoint_wrapper(shared)}))
    plain = nn.ModuleDict({"a": shared, "b": shared})
    assert list(dict(named_parameters(model))) == ["a.weight", "a.bias"]
    assert list(dict(named_parameters(model, remove_duplicate=False))) == [
        name for name, _ in plain.named_parameters(remove_duplicate=False)
    ]
    assert tied_groups(model)["a.weight"] == ["a.weight", "a.twin", "b.weight", "b.twin"]
    assert [name for name, _ in named_modules(model, remove_duplicate=False)] == ["", "a", "b"]
    assert [name for name, _ in named_modules(model)] == ["", "a"]


def test_repeated_buffers_are_named_on_request() -> None:
    norm = nn.BatchNorm1d(2)
    model = LOCAL["compile"](nn.ModuleList([norm, norm]))
    assert [name for name, _ in named_buffers(model)] == [
        "0.running_mean",
        "0.running_var",
        "0.num_batches_tracked",
    ]
    assert len(list(named_buffers(model, remove_duplicate=False))) == 6


def test_an_average_keeps_its_own_counter_apart_from_the_networks() -> None:
    model = nn.Linear(2, 1)
    model.register_buffer("n_averaged", torch.tensor(7))
    twice = AveragedModel(AveragedModel(model))
    buffers = dict(named_buffers(twice))
    assert set(buffers) == {".n_averaged", "..n_averaged", "n_averaged"}
    assert buffers["n_averaged"] == 7
    assert buffers[".n_averaged"] is twice.n_averaged
    assert set(dict(named_buffers(twice, wrappers=False))) == {"n_averaged"}
    assert "a..n_averaged" in dict(named_buffers(nn.ModuleDict({"a": AveragedModel(model)})))


def test_what_a_wrapper_adds_does_not_clash_with_what_it_wraps() -> None:
    class Distilled(nn.DataParallel):
        def __init__(self, module: nn.Module) -> None:
            super().__init__(module)
            self.head = nn.Linear(2, 2)

    wrapped = Distilled(nn.ModuleDict({"head": nn.Linear(2, 2)}))
    assert set(dict(named_parameters(wrapped))) == {"head.weight", "head.bias", ".head.weight", ".head.bias"}
    assert [name for name, _ in named_modules(wrapped)] == ["", "head", ".head"]
    wrapped.head.register_buffer("steps", torch.tensor(0))
    assert list(dict(named_buffers(wrapped))) == [".head.steps"]
    assert list(dict(named_buffers(wrapped, wrappers=False))) == []


@pytest.mark.parametrize("wrap", LOCAL.values(), ids=LOCAL)
def test_an_empty_network_can_be_unwrapped(wrap: Wrap) -> None:
    assert type(unwrap(wrap(nn.Sequential()))) is nn.Sequential


def test_missing_submodules_and_parameters_have_no_names() -> None:
    model = nn.Sequential(nn.Linear(2, 2, bias=False))
    model.register_module("absent", None)
    assert [name for name, _ in named_parameters(model)] == ["0.weight"]
    assert [name for name, _ in named_modules(model)] == ["", "0"]


@pytest.mark.usefixtures("process_group")
def test_distributed_data_parallel_changes_no_name() -> None:
    model = small()
    wrapped = LOCAL["compile"](DistributedDataParallel(nn.Sequential(checkpoint_wrapper(model))))
    expected = [(f"0.{name}", parameter) for name, parameter in model.named_parameters()]
    assert [name for name, _ in named_parameters(wrapped)] == [name for name, _ in expected]
    assert all(ours is theirs for (_, ours), (_, theirs) in zip(named_parameters(wrapped), expected, strict=True))
    assert [name for name, _ in named_buffers(wrapped)] == [f"0.{name}" for name, _ in model.named_buffers()]
    assert any(name.startswith("_orig_mod.module.0._checkpoint") for name, _ in wrapped.named_modules())


@pytest.mark.usefixtures("process_group")
@pytest.mark.filterwarnings("ignore:FSDP is switching to use `NO_SHARD`")
def test_fully_sharded_data_parallel_changes_no_name() -> None:
    model = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 2))
    expected = [name for name, _ in model.named_parameters()]
    inner = FullyShardedDataParallel(model[1], use_orig_params=True, device_id=torch.device("cpu"))
    wrapped = FullyShardedDataParallel(
        nn.Sequential(model[0], inner), use_orig_params=True, device_id=torch.device("cpu")
    )
    assert [name for name, _ in named_parameters(wrapped)] == expected
    assert [name for name, _ in named_modules(wrapped)] == ["", "0", "1"]


@pytest.mark.usefixtures("process_group")
def test_fully_shard_keeps_names_and_ties_nothing() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    expected = {name: [name] for name, _ in model.named_parameters()}
    fully_shard(model, mesh=distributed.init_device_mesh("cpu", (1,)))
    assert type(model[0].weight) is not nn.Parameter
    assert tied_groups(model) == expected
