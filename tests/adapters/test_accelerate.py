"""Loops with an `Accelerator` and tickets: one process, and two of torchrun's over gloo."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState
from torch import nn
from torch.optim import AdamW, Optimizer
from torch.optim import optimizer as optimizer_module
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader

from tests.adapters.examples import run_examples
from ticketkit import IMP, ConfigError, Mask, Plugins, Round, Scope, ScopeError, Ticket, TicketError, enforced
from ticketkit.adapters.accelerate import HeldTicket, held, track
from ticketkit.testing import mlp

ROOT = Path(__file__).parents[2]
STEPS = 6


@pytest.fixture(autouse=True)
def _one_accelerator() -> Iterator[None]:
    """Forget before and after a test the settings that all accelerators of a process share."""

    def forget() -> None:
        AcceleratorState._reset_state(reset_partial_state=True)
        GradientState._reset_state()

    forget()
    yield
    forget()


def half(model: nn.Module, seed: int = 0) -> Mask:
    draw, scope = torch.Generator().manual_seed(seed), Scope.of(model)
    return Mask({name: torch.rand(shape, generator=draw) < 0.5 for name, shape in scope.shapes.items()})


def bits(model: nn.Module) -> dict[str, bytes]:
    return {name: value.numpy().tobytes() for name, value in model.state_dict().items()}


def network() -> nn.Module:
    torch.manual_seed(2)
    return mlp(dropout=0.2)


def batch(number: int) -> torch.Tensor:
    return torch.randn(4, 6, generator=torch.Generator().manual_seed(number))


def optimizer_of(model: nn.Module) -> tuple[Optimizer, LambdaLR]:
    optimizer = AdamW(model.parameters(), lr=0.05, weight_decay=0.1)
    return optimizer, LambdaLR(optimizer, lambda step: 1 / (1 + step))


def steps(accelerator: Accelerator, model: nn.Module, optimizer: Any, scheduler: Any, start: int = 0) -> Iterator[int]:
    """Train as accelerate's users do, and yield after every batch."""
    for number in range(start, 2 * STEPS):
        with accelerator.accumulate(model):
            accelerator.backward(model(batch(number)).square().mean())
            if accelerator.sync_gradients:
                accelerator.clip_grad_norm_(model.parameters(), 0.1)
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad()
        yield number


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_pruned_weights_are_zero_after_every_step_with_autocast_accumulation_and_clipping(precision: str) -> None:
    accelerator = Accelerator(cpu=True, mixed_precision=precision, gradient_accumulation_steps=2)
    model, before = network(), len(optimizer_module._global_optimizer_post_hooks)
    mask, start = half(model), bits(model)
    prepared = accelerator.prepare(model, *optimizer_of(model))
    with held(accelerator, prepared[0], mask, prepared[1]) as holder:
        for number in steps(accelerator, *prepared):
            Ticket(mask).verify(model)
            assert holder.steps == (number + 1) // 2
    assert isinstance(holder, HeldTicket)
    assert holder.density == mask.density
    assert bits(model) != start
    assert len(optimizer_module._global_optimizer_post_hooks) == before


def test_a_saved_state_goes_on_to_the_same_bits_and_is_refused_with_another_ticket(tmp_path: Path) -> None:
    def training(seed: int, load: bool) -> dict[str, bytes]:
        accelerator = Accelerator(cpu=True)
        model = network()
        prepared = accelerator.prepare(model, *optimizer_of(model))
        with held(accelerator, prepared[0], half(model, seed), prepared[1]) as holder:
            if load:
                accelerator.load_state(str(tmp_path))
                assert holder.steps == 5
            for number in steps(accelerator, *prepared, start=5 if load else 0):
                if number == 4:
                    accelerator.save_state(str(tmp_path))
            assert holder.steps == 2 * STEPS
        assert accelerator._custom_objects == []
        return bits(model)

    assert training(seed=0, load=False) == training(seed=0, load=True)
    with pytest.raises(TicketError, match=r"trained with another mask .* resume with the ticket it was trained with"):
        training(seed=1, load=True)


def test_what_the_engine_takes_may_be_prepared() -> None:
    """An accelerated optimizer is none of torch's own making, but the one inside it steps."""
    accelerator = Accelerator(cpu=True)
    model = network()
    prepared, optimizer, scheduler = accelerator.prepare(model, *optimizer_of(model))
    with enforced(prepared, half(model)) as enforcement:
        enforcement.check_optimizer(optimizer)
        for _ in steps(accelerator, prepared, optimizer, scheduler):
            pass
        assert enforcement.steps == 2 * STEPS
    for current in IMP(prepared, rounds=1, plugins=Plugins()):
        current.check_optimizer(optimizer)
        assert current.track(optimizer=optimizer, scheduler=scheduler) == 0
        break


def test_what_cannot_hold_the_mask_is_refused() -> None:
    accelerator = Accelerator(cpu=True)
    model = network()
    stale = accelerator.prepare(optimizer_of(network())[0])
    with pytest.raises(ScopeError, match="not these parameters in scope"), held(accelerator, model, half(model), stale):
        pass
    with pytest.raises(ScopeError, match=r"3\.weight"), held(accelerator, model, half(mlp(9))):
        pass
    assert not accelerator._custom_objects
    with held(accelerator, model, half(model)) as holder, pytest.raises(TicketError, match="does not hold a mask"):
        holder.load_state_dict({"mask": 1})


# Rounds


def fit(accelerator: Accelerator, model: nn.Module, current: Round, stop: int | None = None) -> int:
    """Train a round, with a checkpoint at every fourth batch; return the batch from which it was trained."""
    accelerator.free_memory()
    prepared, optimizer, scheduler = accelerator.prepare(model, *optimizer_of(model))
    assert prepared is model
    start = track(accelerator, current, optimizer=optimizer, scheduler=scheduler)
    for number in steps(accelerator, model, optimizer, scheduler, start):
        Ticket(current.mask).verify(model)
        if number == stop:
            raise KeyboardInterrupt
        if number % 4 == 3:
            current.checkpoint(step=number + 1)
    current.log(norm=sum(parameter.norm().item() for parameter in model.parameters()))
    return start


def run(run_dir: Path, stop: dict[int, int]) -> tuple[IMP, list[int]]:
    accelerator = Accelerator(cpu=True, mixed_precision="bf16")
    model = accelerator.prepare(network())
    imp = IMP(model, rate=0.5, rounds=2, floor=0.05, rewind="step:3", run_dir=run_dir, plugins=Plugins())
    return imp, [fit(accelerator, model, current, stop.get(current.index)) for current in imp]


def test_rounds_go_back_to_step_k_and_go_on_after_an_interruption_to_the_same_tickets(tmp_path: Path) -> None:
    whole, starts = run(tmp_path / "whole", {})
    assert starts == [0, 3, 3]
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "victim", {1: 9})
    resumed, starts = run(tmp_path / "victim", {})
    assert starts == [8, 3]
    assert [ticket.digest for ticket in resumed.tickets] == [ticket.digest for ticket in whole.tickets]


def test_round_zero_is_accelerate_alone_bit_for_bit(tmp_path: Path) -> None:
    accelerator = Accelerator(cpu=True, mixed_precision="bf16")
    plain, model = network(), network()
    prepared = accelerator.prepare(plain, *optimizer_of(plain))
    drawn = torch.get_rng_state()
    for _ in steps(accelerator, *prepared):
        pass
    torch.set_rng_state(drawn)
    model = accelerator.prepare(model)
    for current in IMP(model, rounds=1, run_dir=tmp_path, plugins=Plugins()):
        fit(accelerator, model, current)
        break
    assert bits(model) == bits(plain)


def test_the_optimizers_of_the_round_before_must_be_freed() -> None:
    accelerator = Accelerator(cpu=True)
    model = accelerator.prepare(network())
    for current in IMP(model, rounds=1, plugins=Plugins()):
        optimizer = accelerator.prepare(optimizer_of(model)[0])
        if current.index == 1:
            with pytest.raises(
                ConfigError, match=r"1 optimizers besides those that round 1 tracks; begin each round wi"
            ):
                track(accelerator, current, optimizer=optimizer)
            break
        with pytest.raises(ConfigError, match=r"track what accelerator\.prepare returned"):
            track(accelerator, current, optimizer=optimizer.optimizer)
        assert track(accelerator, current, optimizer=optimizer) == 0
        model(batch(0)).sum().backward()
        optimizer.step()


def test_the_scaler_of_mixed_precision_goes_back_with_the_round() -> None:
    """On a CPU accelerate makes none, but takes one as it does on a GPU: steps are skipped, and scales grow, by it."""
    accelerator = Accelerator(cpu=True)
    accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**4, growth_interval=1)
    model, scales = accelerator.prepare(network()), []
    for current in IMP(model, rounds=1, plugins=Plugins()):
        accelerator.free_memory()
        _, optimizer = accelerator.prepare(model, optimizer_of(model)[0])
        track(accelerator, current, optimizer=optimizer)
        for factor in (1.0, float("inf"), 1.0, 1.0):
            scales.append(accelerator.scaler.get_scale())
            accelerator.backward(model(batch(0)).square().mean() * factor)
            optimizer.step()
            assert optimizer.step_was_skipped == (factor != 1.0)
            optimizer.zero_grad()
            Ticket(current.mask).verify(model)
        assert "scaler" in current.tracked
    assert scales == [16.0, 32.0, 16.0, 32.0] * 2


@pytest.mark.parametrize(("library", "extra"), [("accelerate", "accelerate"), ("transformers", "hf")])
def test_a_missing_library_says_what_to_install(library: str, extra: str, monkeypatch: pytest.MonkeyPatch) -> None:
    adapter = f"ticketkit.adapters.{library}"

    class Absent:
        def find_spec(self, name: str, *_: Any) -> None:
            if name == library:
                raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    for name in [name for name in sys.modules if name.partition(".")[0] == library or name == adapter]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "meta_path", [Absent(), *sys.meta_path])
    with pytest.raises(ModuleNotFoundError, match=rf"{library} is not installed; .*pip install 'ticketkit\[{extra}\]'"):
        __import__(adapter)


def test_the_examples_of_the_document_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    model = network()
    Ticket(half(model)).save("ticket.safetensors")
    names = {
        "model": model,
        "network": model,
        "optimizer": optimizer_of(model)[0],
        "loader": DataLoader([batch(number)[0] for number in range(8)], batch_size=2),
        "build": optimizer_of,
        "loss": lambda model, inputs: model(inputs).square().mean(),
        "batch_of": batch,
    }
    assert run_examples("accelerate", names) == 2
    assert (tmp_path / "state" / "custom_checkpoint_0.pkl").exists()
    assert names["ticket"].steps == 2
    assert names["round"].index == 2


# Two ranks

RANK = """
import os, sys
from pathlib import Path
import torch
torch.set_num_threads(1)
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch.utils.data import DataLoader
from tests.adapters.hugging_face import bert, trainer
from ticketkit import IMP, Plugins, Ticket, TicketError
from ticketkit.adapters.accelerate import held, track
from ticketkit.adapters.transformers import RoundCallback
from ticketkit.names import unwrap
from ticketkit.testing import mlp

def same_everywhere(model):
    weights = torch.cat([p.detach().flatten() for p in model.parameters()])
    assert all(other.equal(weights) for other in accelerator.gather(weights[None]))

folder = Path(sys.argv[1])
accelerator = Accelerator(cpu=True, mixed_precision="bf16", gradient_accumulation_steps=2)
assert accelerator.num_processes == 2
torch.manual_seed(0)
network = mlp()
model = accelerator.prepare(network)
assert unwrap(model) is network is not model
imp = IMP(model, rate=0.5, rounds=1, run_dir=folder / "run", plugins=Plugins())
for current in imp:
    accelerator.free_memory()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.05)
    model, optimizer, loader = accelerator.prepare(model, optimizer, DataLoader(torch.randn(32, 6), 4))
    track(accelerator, current, optimizer=optimizer)
    for batch in loader:
        with accelerator.accumulate(model):
            accelerator.backward(model(batch).square().mean() * (1 + accelerator.process_index))
            if accelerator.sync_gradients:
                accelerator.clip_grad_norm_(model.parameters(), 0.1)
            optimizer.step()
            optimizer.zero_grad()
        Ticket(current.mask).verify(network)
    current.checkpoint(step=4)
    same_everywhere(network)
with held(accelerator, model, imp.tickets[1], optimizer):
    accelerator.save_state(str(folder / "state"))
    accelerator.wait_for_everyone()
    accelerator.load_state(str(folder / "state"))
accelerator._custom_objects.clear()
try:
    with held(accelerator, model, imp.tickets[0]):
        accelerator.load_state(str(folder / "state"))
except TicketError:
    print("refused", flush=True)

# The Trainer, whose generators are of each rank, because dropout has drawn more on one of them
def rounds(run_dir, stop=None):
    model, last = bert(), {}
    class Extra(trainer_callback):
        def on_step_end(self, args, state, control, **_):
            torch.rand(args.process_index)
            control.should_training_stop |= state.global_step == stop
            last[current.index] = torch.get_rng_state()
    imp = IMP(model, rate=0.5, rounds=1, run_dir=run_dir, plugins=Plugins())
    for current in imp:
        callback = RoundCallback(current, every=2)
        made = trainer(model, folder / "out", callback, Extra(), max_steps=5)
        made.train(resume_from_checkpoint=callback.resume_from)
        same_everywhere(model)
        Ticket(current.mask).verify(model)
        if stop:
            break
    return [ticket.digest for ticket in imp.tickets], last[0]

from transformers import TrainerCallback as trainer_callback
expected, generators = rounds(folder / "whole")
rounds(folder / "victim", stop=3)
accelerator.wait_for_everyone()
resumed, again = rounds(folder / "victim")
assert resumed == expected
assert again.equal(generators)
assert len({bytes(state.numpy()) for state in gather_object([generators])}) == 2
print("done", flush=True)
accelerator.wait_for_everyone()
os._exit(0)  # gloo's threads may outlive the group and abort an ordinary exit
"""


@pytest.mark.slow
def test_two_ranks_hold_one_mask(tmp_path: Path) -> None:
    script = tmp_path / "rank.py"
    script.write_text(f"import sys\nsys.path.insert(0, {str(ROOT)!r})\n" + RANK)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", str(script)]
    finished = subprocess.run([*command, str(tmp_path)], capture_output=True, text=True, check=False, timeout=500)
    assert finished.returncode == 0, finished.stderr[-3000:]
    assert [finished.stdout.count(word) for word in ("refused", "done")] == [2, 2]
