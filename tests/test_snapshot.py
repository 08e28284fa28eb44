import random
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from ticketkit import ScopeError, Snapshot, StorageError
from ticketkit.snapshot import state_tensors
from ticketkit.testing import TINY_NETS

every_net = pytest.mark.parametrize("name", TINY_NETS)


def train(model: nn.Module, inputs: torch.Tensor, steps: int = 3) -> None:
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    for _ in range(steps):
        optimizer.zero_grad()
        model(inputs).square().mean().backward()
        optimizer.step()


def bits(model: nn.Module) -> dict[str, torch.Tensor]:
    return {key: tensor.detach().clone() for key, tensor in state_tensors(model).items()}


def equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(
        a[key].dtype == b[key].dtype
        and torch.equal(a[key].reshape(-1).view(torch.uint8), b[key].reshape(-1).view(torch.uint8))
        for key in a
    )


@every_net
def test_restoring_is_bit_exact(name: str) -> None:
    net = TINY_NETS[name]
    model, inputs = net.build(), net.inputs()
    before, snapshot = bits(model), Snapshot.capture(model)
    train(model, inputs)
    assert not equal(bits(model), before)
    snapshot.restore(model)
    assert equal(bits(model), before)


@every_net
def test_capturing_what_was_restored_gives_the_same_snapshot(name: str, tmp_path: Path) -> None:
    net = TINY_NETS[name]
    model, inputs = net.build(), net.inputs()
    snapshot = Snapshot.capture(model)
    train(model, inputs)
    snapshot.restore(model)
    snapshot.save(tmp_path / "first")
    Snapshot.capture(model).save(tmp_path / "second")
    assert (tmp_path / "first").read_bytes() == (tmp_path / "second").read_bytes()


@every_net
def test_a_snapshot_shares_no_memory_with_the_model(name: str) -> None:
    net = TINY_NETS[name]
    model, inputs = net.build(), net.inputs()
    snapshot = Snapshot.capture(model)
    kept = {key: tensor.clone() for key, tensor in snapshot.tensors.items()}
    train(model, inputs)
    assert equal(dict(snapshot.tensors), kept)
    snapshot.restore(model)
    train(model, inputs)
    assert equal(dict(snapshot.tensors), kept)


@every_net
def test_parameters_and_buffers_keep_their_identity(name: str) -> None:
    net = TINY_NETS[name]
    model, inputs = net.build(), net.inputs()
    before = {key: (id(tensor), tensor.data_ptr()) for key, tensor in state_tensors(model).items()}
    snapshot = Snapshot.capture(model)
    train(model, inputs)
    snapshot.restore(model)
    assert {key: (id(tensor), tensor.data_ptr()) for key, tensor in state_tensors(model).items()} == before


def test_gradients_are_cleared() -> None:
    model, inputs = TINY_NETS["mlp"].build(), TINY_NETS["mlp"].inputs()
    snapshot = Snapshot.capture(model)
    model(inputs).sum().backward()
    snapshot.restore(model)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_batchnorm_statistics_and_counter_go_back() -> None:
    net = TINY_NETS["convnet"]
    model, inputs = net.build(), net.inputs()
    snapshot = Snapshot.capture(model)
    model(inputs)
    assert int(model[1].num_batches_tracked) == 1
    assert model[1].running_mean.count_nonzero() > 0
    snapshot.restore(model)
    assert int(model[1].num_batches_tracked) == 0
    assert model[1].running_mean.count_nonzero() == 0


def test_non_persistent_buffers_go_back() -> None:
    model = nn.Linear(2, 2)
    model.register_buffer("calls", torch.zeros(()), persistent=False)
    snapshot = Snapshot.capture(model)
    model.calls += 1
    snapshot.restore(model)
    assert model.calls.item() == 0


def test_generators_go_back_with_restore_and_stay_with_restore_tensors() -> None:
    model = nn.Linear(2, 2)
    snapshot = Snapshot.capture(model)
    first = (random.random(), float(np.random.rand()), torch.rand(()).item())
    snapshot.restore_tensors(model)
    assert (random.random(), float(np.random.rand()), torch.rand(()).item()) != first
    snapshot.restore(model)
    assert (random.random(), float(np.random.rand()), torch.rand(()).item()) == first


def test_tied_parameters_are_kept_once_under_the_first_name() -> None:
    snapshot = Snapshot.capture(TINY_NETS["tied_gru"].build())
    assert "embedding.weight" in snapshot.parameters()
    assert "output.weight" not in snapshot.parameters()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_special_values_survive_bit_for_bit(dtype: torch.dtype, tmp_path: Path) -> None:
    model = nn.Linear(5, 1, bias=False).to(dtype)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[np.nan, np.inf, -0.0, 6e-8, -1.0]]))
    before = bits(model)
    Snapshot.capture(model).save(tmp_path / "snapshot")
    nn.init.ones_(model.weight)
    Snapshot.load(tmp_path / "snapshot").restore(model)
    assert equal(bits(model), before)


@every_net
def test_a_saved_snapshot_restores_model_and_generators(name: str, tmp_path: Path) -> None:
    net = TINY_NETS[name]
    model, inputs = net.build(), net.inputs()
    before = bits(model)
    Snapshot.capture(model).save(tmp_path / "snapshot.safetensors")
    first = torch.rand(3)
    train(model, inputs)
    Snapshot.load(tmp_path / "snapshot.safetensors").restore(model)
    assert equal(bits(model), before)
    assert torch.equal(torch.rand(3), first)


def test_a_snapshot_of_another_model_lists_what_differs_and_changes_nothing() -> None:
    model = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
    before = bits(model)
    with pytest.raises(ScopeError) as caught:
        Snapshot.capture(nn.Sequential(nn.Linear(2, 4), nn.Linear(4, 1))).restore(model)
    message = str(caught.value)
    assert "parameter/0.weight: expected shape (4, 2), found (3, 2)" in message
    assert "buffer/1.running_mean (3,): unexpected" in message
    assert equal(bits(model), before)


def test_every_flipped_byte_of_a_snapshot_is_found_out(tmp_path: Path) -> None:
    path = tmp_path / "snapshot"
    Snapshot.capture(nn.Linear(2, 1)).save(path)
    content = path.read_bytes()
    for position in [*range(300), *range(300, len(content), 97), len(content) - 1]:
        path.write_bytes(content[:position] + bytes([content[position] ^ 1]) + content[position + 1 :])
        with pytest.raises(StorageError):
            Snapshot.load(path)
    path.write_bytes(content[:-1])
    with pytest.raises(StorageError):
        Snapshot.load(path)


def test_a_missing_snapshot_is_named(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="nowhere"):
        Snapshot.load(tmp_path / "nowhere")
