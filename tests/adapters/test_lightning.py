import os
import random
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.amp.grad_scaler import GradScaler
from torch.utils.data import DataLoader, TensorDataset

from ticketkit import IMP, ConfigError, Mask, Plugins, Round, Scope, ScopeError, Ticket, TicketError

with pytest.MonkeyPatch.context() as patch:
    patch.setenv("TORCH_CPP_LOG_LEVEL", "ERROR")
    from lightning.pytorch import Callback, LightningModule, Trainer
    from lightning.pytorch.callbacks import EMAWeightAveraging, ModelCheckpoint
    from lightning.pytorch.loggers import CSVLogger
    from lightning.pytorch.plugins import MixedPrecision

from tests.adapters.examples import run_examples
from ticketkit.adapters.lightning import RoundCallback, TicketCallback

# What Lightning says of tiny trainings, of a checkpoint without its ModelCheckpoint, and of torch's own trees.
pytestmark = [
    pytest.mark.filterwarnings("ignore::lightning.fabric.utilities.warnings.PossibleUserWarning"),
    pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`:UserWarning"),
    pytest.mark.filterwarnings("ignore:Checkpoint directory .* is not empty:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*LeafSpec.*:FutureWarning"),
]


class Net(LightningModule):
    """A perceptron with dropout and a running average, trained by AdamW on a cosine schedule."""

    def __init__(self, steps: int = 16):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(6, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.2), nn.Linear(16, 3))
        self.steps = steps

    def loss(self, batch: Any) -> torch.Tensor:
        return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

    def training_step(self, batch: Any, index: int) -> torch.Tensor:
        loss = self.loss(batch)
        self.log("loss", loss)
        return loss

    def validation_step(self, batch: Any, index: int) -> None:
        self.log("wer", self.loss(batch))

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW(self.parameters(), lr=0.05)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, self.steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


class TwoOptimizers(Net):
    """The same, optimized by hand, each layer by an optimizer of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch: Any, index: int) -> None:
        loss = self.loss(batch)
        for optimizer in self.optimizers():
            optimizer.zero_grad()
        self.manual_backward(loss)
        for optimizer in self.optimizers():
            optimizer.step()

    def configure_optimizers(self) -> Any:
        first = torch.optim.Adam(self.net[0].parameters(), lr=0.05)
        return [first, torch.optim.SGD(self.net[1:].parameters(), lr=0.05, momentum=0.9)]


def loaders() -> list[DataLoader[Any]]:
    draw = torch.Generator().manual_seed(0)
    data = TensorDataset(torch.randn(32, 6, generator=draw), torch.randint(3, (32,), generator=draw))
    return [DataLoader(data, batch_size=4, shuffle=True), DataLoader(data, batch_size=16)]


def trainer(*callbacks: Callback, **settings: Any) -> Trainer:
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    if not any(isinstance(callback, ModelCheckpoint) for callback in callbacks):
        quiet["enable_checkpointing"] = False
    return Trainer(**{"max_epochs": 2, **quiet, **settings}, callbacks=list(callbacks))


def seeded(kind: type[Net] = Net) -> Net:
    torch.manual_seed(3)
    np.random.seed(3)
    random.seed(3)
    return kind()


def half(model: nn.Module, seed: int = 0) -> Mask:
    draw, scope = torch.Generator().manual_seed(seed), Scope.of(model)
    return Mask({name: torch.rand(shape, generator=draw) < 0.5 for name, shape in scope.shapes.items()})


def bits(model: nn.Module) -> list[bytes]:
    return [tensor.detach().numpy().tobytes() for tensor in model.state_dict().values()]


class Watch(Callback):
    """Checks the mask after every batch, and notes what each batch was trained with."""

    def __init__(self, mask: Mask):
        self.mask = mask
        self.seen: list[tuple[int, int, int, float, float]] = []

    def on_train_batch_start(self, trainer: Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        rate = trainer.optimizers[0].param_groups[0]["lr"]
        self.seen.append((trainer.global_step, trainer.current_epoch, batch_idx, batch[0].sum().item(), rate))

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, *rest: Any) -> None:
        Ticket(self.mask).verify(pl_module)


class ClippedNorm(Callback):
    """Notes the norm of all gradients before clipping, and that of pruned weights' gradients alone."""

    def __init__(self, mask: Mask):
        self.mask = mask
        self.pruned: list[float] = []
        self.all: list[float] = []

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: Any, optimizer: Any) -> None:
        gradients = {name: p.grad for name, p in pl_module.named_parameters() if p.grad is not None}
        self.all.append(sum(float(g.norm()) for g in gradients.values()))
        self.pruned.append(sum(float(gradients[name][~self.mask[name]].norm()) for name in self.mask))


# One ticket in one training


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        (Net, {"precision": "bf16-mixed", "accumulate_grad_batches": 3, "gradient_clip_val": 0.1}),
        (Net, {"plugins": [MixedPrecision("16-mixed", "cpu", GradScaler("cpu"))], "gradient_clip_val": 0.1}),
        (TwoOptimizers, {}),
    ],
    ids=["bf16 accumulating", "fp16 with a scaler", "two optimizers by hand"],
)
def test_pruned_weights_are_zero_after_every_step_and_clipping_sees_none(kind: Any, settings: dict[str, Any]) -> None:
    module = seeded(kind)
    mask = half(module)
    watch, norm = Watch(mask), ClippedNorm(mask)
    trainer(TicketCallback(Ticket(mask)), watch, norm, **settings).fit(module, *loaders())
    assert len(watch.seen) == 16
    assert min(norm.all) > 0.0 == max(norm.pruned)


def test_a_mask_of_ones_trains_the_bits_that_lightning_trains() -> None:
    plain, held = seeded(), seeded()
    torch.manual_seed(5)
    trainer().fit(plain, *loaders())
    drawn = torch.rand(())
    torch.manual_seed(5)
    trainer(TicketCallback(Scope.of(held).ones())).fit(held, *loaders())
    assert bits(plain) == bits(held)
    assert torch.rand(()) == drawn


def test_checkpoints_hold_the_mask_and_only_its_ticket_goes_on(tmp_path: Path) -> None:
    module = seeded()
    mask = half(module)
    save = ModelCheckpoint(tmp_path, filename="{epoch}", save_top_k=-1)
    trainer(TicketCallback(mask), save, max_epochs=1).fit(module, *loaders())
    path = str(next(tmp_path.glob("*.ckpt")))
    (state,) = [s for k, s in torch.load(path)["callbacks"].items() if "TicketCallback" in k]
    assert sum(packed.numel() for packed in state["bits"].values()) == sum(
        -(-size // 8) for size in mask.sizes.values()
    )
    other = seeded()
    with pytest.raises(TicketError, match=r"trained with another mask .* than this ticket's"):
        trainer(TicketCallback(half(module, seed=1))).fit(other, *loaders(), ckpt_path=path)
    watch = Watch(mask)
    trainer(TicketCallback(mask), watch).fit(other, *loaders(), ckpt_path=path)
    assert [seen[0] for seen in watch.seen] == list(range(8, 16))


def test_the_ticket_of_a_part_is_held_on_it_and_on_its_average(tmp_path: Path) -> None:
    module = seeded()
    mask = half(module.net)
    with pytest.raises(ScopeError, match="it fits part='net'"):
        trainer(TicketCallback(mask)).fit(module, *loaders())
    with pytest.raises(ScopeError, match="no part 'encoder'"):
        trainer(TicketCallback(mask, part="encoder")).fit(module, *loaders())
    inner = half(module.net)
    saved = trainer(TicketCallback(inner, part="net"))
    saved.fit(module, *loaders())
    saved.save_checkpoint(tmp_path / "part.ckpt")
    with pytest.raises(TicketError, match=r"was trained with TicketCallback.*'net'.*, not with TicketCallback.*''"):
        trainer(TicketCallback(half(module))).fit(module, *loaders(), ckpt_path=tmp_path / "part.ckpt")
    average = EMAWeightAveraging(decay=0.5)
    logger = CSVLogger(tmp_path)
    trainer(TicketCallback(mask, part="net"), average, logger=logger).fit(module, *loaders())
    Ticket(mask).verify(module.net)  # where the average has been copied to
    assert f"{mask.density}" in next(tmp_path.rglob("metrics.csv")).read_text()


def test_a_training_that_fails_lets_go_of_the_model() -> None:
    class Failure(Callback):
        def on_train_batch_end(self, *rest: Any) -> None:
            raise RuntimeError("out of memory")

    module = seeded()
    callback = TicketCallback(half(module))
    with pytest.raises(RuntimeError, match="out of memory"):
        trainer(callback, Failure()).fit(module, *loaders())
    trainer(callback).fit(module, *loaders())
    with pytest.raises(ConfigError, match="on another model"):
        trainer(callback).fit(seeded(), *loaders())


# Bad input


class StaleOptimizer(Net):
    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(Net().parameters(), lr=0.1)


def test_models_and_optimizers_that_cannot_hold_the_mask_are_refused() -> None:
    mask = half(Net())
    with pytest.raises(ScopeError, match="the optimizer holds"):
        trainer(TicketCallback(mask)).fit(seeded(StaleOptimizer), *loaders())
    module = seeded()
    (current, *_) = IMP(module, rounds=1, plugins=Plugins())
    with pytest.raises(ScopeError, match=r"Net does not train the model of this round: net\.0\.weight"):
        trainer(RoundCallback(current)).fit(seeded(), *loaders())
    with pytest.raises(ConfigError, match="every must be at least 1"):
        RoundCallback(current, every=0)


def test_frozen_parameters_in_scope_stay_as_they_are_but_pruned() -> None:
    module = seeded()
    module.net[0].requires_grad_(False)
    mask, before = half(module), module.net[0].weight.detach().clone()
    trainer(TicketCallback(mask)).fit(module, *loaders())
    assert module.net[0].weight.equal(before.masked_fill(~mask["net.0.weight"], 0))


# Rounds


def rounds(module: Net, rewind: str = "init", **settings: Any) -> Iterator[tuple[Round, Watch]]:
    imp = IMP(module, rate=0.5, rounds=2, rewind=rewind, floor=0.02, plugins=Plugins())
    for current in imp:
        watch = Watch(current.mask)
        fit = trainer(RoundCallback(current), watch, **settings)
        fit.fit(module, *loaders())
        yield current, watch


def test_round_zero_is_what_lightning_trains_alone() -> None:
    plain = seeded()
    trainer().fit(plain, *loaders())
    drawn = torch.rand(())
    module = seeded()
    next(rounds(module))
    assert bits(plain) == bits(module)
    assert torch.rand(()) == drawn


@pytest.mark.parametrize("settings", [{"max_epochs": 2}, {"max_epochs": -1, "max_steps": 14}], ids=["epochs", "steps"])
def test_rewound_rounds_go_on_at_the_step_with_the_data_and_rate_of_then(settings: dict[str, Any]) -> None:
    (_, dense), *pruned = [*rounds(seeded(), "step:6", **settings)]
    assert len(dense.seen) in (14, 16)
    assert [watch.seen for _, watch in pruned] == [dense.seen[6:]] * 2


def test_rounds_rewound_into_an_accumulation_draw_its_batches_again() -> None:
    (_, dense), *pruned = [*rounds(seeded(), "step:2", accumulate_grad_batches=3)]
    assert [watch.seen for _, watch in pruned] == [dense.seen[6:]] * 2


@pytest.mark.parametrize("rewind", ["none", "learning_rate"])
def test_rounds_that_keep_their_weights_train_as_long_as_the_first(rewind: str) -> None:
    (_, dense), *pruned = [*rounds(seeded(), rewind)]
    for _, watch in pruned:
        assert [seen[:3] for seen in watch.seen] == [seen[:3] for seen in dense.seen]


def test_metrics_of_the_fit_are_the_rounds() -> None:
    for current, _ in rounds(seeded()):
        assert set(current.metrics) == {"loss", "wer"}


def test_a_trainer_or_a_round_that_was_used_is_refused_and_so_is_a_checkpoint(tmp_path: Path) -> None:
    module = seeded()
    for current in IMP(module, rounds=1, plugins=Plugins()):
        save = ModelCheckpoint(tmp_path, save_last=True)
        trainer(save, max_epochs=1).fit(seeded(), *loaders())
        with pytest.raises(ConfigError, match=r"IMP\(run_dir=\.\.\.\) resumes it"):
            trainer(RoundCallback(current)).fit(module, *loaders(), ckpt_path=save.last_model_path)
        fit = trainer(RoundCallback(current))
        fit.fit(module, *loaders())
        with pytest.raises(ConfigError, match="has fitted before"):
            fit.fit(module, *loaders())
        with pytest.raises(ConfigError, match="was trained before; make a RoundCallback for each round"):
            trainer(RoundCallback(current)).fit(module, *loaders())
        break


# In processes of their own, killed and in ranks: forked from one that has imported everything, which takes seconds.

FORKED = """
import os, signal, socket, sys, warnings, torch._dynamo
from pathlib import Path
sys.path.insert(0, sys.argv[1])
warnings.simplefilter("ignore")
from tests.adapters.test_lightning import *
import torch.distributed as dist

torch.set_num_threads(1)

def forked(job, *arguments):
    pid = os.fork()
    if pid == 0:
        try:
            job(*arguments)
        except BaseException as error:
            print(repr(error), file=sys.stderr, flush=True)
            os._exit(1)
        os._exit(0)  # gloo's threads may outlive their group and abort an ordinary exit
    return pid

def status(pid):
    return os.waitpid(pid, 0)[1]

def run(run_dir, every, rewind, settings, kill, number=0):
    module = seeded()
    torch.manual_seed(number)  # dropout differs between ranks
    imp = IMP(module, rate=0.5, rounds=1, rewind=rewind, plugins=Plugins(), run_dir=run_dir)
    for current in imp:
        class Kill(Callback):
            def on_train_batch_end(self, trainer, *rest):
                if kill == (current.index, trainer.fit_loop.total_batch_idx):
                    os.kill(os.getpid(), signal.SIGKILL)
        fit = trainer(RoundCallback(current, every=every), EMAWeightAveraging(decay=0.9), Kill(), **settings)
        fit.fit(module, *loaders())
        current.log(steps=fit.global_step, epochs=fit.current_epoch)
    for ticket in imp.tickets:
        ticket.save(Path(run_dir) / f"{ticket.facts.round}.ticket")

def join(number, port):
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": "2"}
    os.environ |= {"NODE_RANK": "0", "RANK": str(number), "LOCAL_RANK": str(number)}
    return {"strategy": "ddp", "devices": 2}

def run_rank(number, port, run_dir, every, rewind, settings, kill):
    settings |= join(number, port)
    dist.init_process_group("gloo")
    run(run_dir, every, rewind, settings, kill, number)

def rank(number, port):
    settings = {**join(number, port), "gradient_clip_val": 0.1}
    module = seeded()
    mask = half(module)
    norm = ClippedNorm(mask)
    trainer(TicketCallback(mask), Watch(mask), norm, **settings).fit(module, *loaders())
    assert min(norm.all) > 0.0 == max(norm.pruned)
    digests = []
    module = seeded()
    for current in IMP(module, rate=0.5, rounds=1, plugins=Plugins()):
        trainer(RoundCallback(current), Watch(current.mask), **settings).fit(module, *loaders())
        digests.append(current.mask.digest)
    everyone = [None, None]
    dist.all_gather_object(everyone, [digests, bits(module)])
    assert everyone[0] == everyone[1]
    dist.barrier()

def alone(*arguments):
    return status(forked(run, *arguments))

def together(*arguments, job=run_rank):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    first, second = [status(pid) for pid in [forked(job, number, port, *arguments) for number in range(2)]]
    return first or second

print("ranks", together(job=rank), flush=True)
cases = {
    "epochs": (alone, None, "init", {"precision": "bf16-mixed"}, [(0, 12)]),
    "steps": (alone, 2, "step:2", {"accumulate_grad_batches": 3, "val_check_interval": 3}, [(0, 13), (1, 10)]),
    "together": (together, 2, "step:3", {}, [(0, 6), (1, 7)]),
}
for name, (way, *settings, kills) in cases.items():
    folder = Path(sys.argv[2]) / name
    assert way(folder / "whole", *settings, None) == 0
    for kill in kills:
        assert way(folder / "killed", *settings, kill) == signal.SIGKILL, kill
    assert way(folder / "killed", *settings, None) == 0
    for index in range(2):
        whole, killed = [(folder / way / f"{index}.ticket").read_bytes() for way in ("whole", "killed")]
        print(name, index, whole == killed, flush=True)
"""


@pytest.fixture(scope="module")
def forked(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """What the processes came to, a line each."""
    command = [sys.executable, "-c", FORKED, str(Path(__file__).parents[2]), str(tmp_path_factory.mktemp("forked"))]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_a_round_that_is_killed_goes_on_to_the_same_tickets(forked: list[str]) -> None:
    names = ("epochs", "steps", "together")
    assert [f"{name} {index} True" for name in names for index in range(2)] == [
        line for line in forked if line.startswith(names)
    ]


def test_two_ranks_hold_a_ticket_and_agree_on_the_rounds(forked: list[str]) -> None:
    assert "ranks 0" in forked


class Absent:
    """Finds no Lightning, as where it is not installed."""

    def find_spec(self, name: str, *rest: Any) -> None:
        if name.partition(".")[0] == "lightning":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


def test_without_lightning_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.startswith(("lightning", "ticketkit.adapters.lightning"))]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "meta_path", [Absent(), *sys.meta_path])
    with pytest.raises(
        ModuleNotFoundError, match=r"lightning is not installed; .* pip install 'ticketkit\[lightning\]'"
    ):
        import_module("ticketkit.adapters.lightning")


# The examples of docs/adapters.md


class Documented(Net):
    def validation_step(self, batch: Any, index: int) -> None:
        self.log("val_loss", self.loss(batch))


def test_the_examples_for_lightning_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    module, (train_loader, dev_loader) = seeded(Documented), loaders()
    Ticket(half(module)).save("ticket.safetensors")
    names: dict[str, Any] = {"module": module, "train_loader": train_loader, "dev_loader": dev_loader}
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False, "accelerator": "cpu"}
    with monkeypatch.context() as patch:
        patch.setattr("lightning.pytorch.Trainer", partial(Trainer, **quiet))
        assert run_examples("Lightning", names) == 3
    assert [round(record.kept / record.total, 2) for record in names["imp"].records] == [1.0, 0.8, 0.64]
    assert names["ticket"].metrics.keys() == {"loss", "val_loss"}


def test_the_example_for_plain_torch_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    model, (loader, _) = seeded().net, loaders()

    def train(model: nn.Module, optimizer: torch.optim.Optimizer, start: int = 0) -> None:
        for inputs, labels in [*loader][start:]:
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(inputs), labels).backward()
            optimizer.step()

    mask = half(model)
    Ticket(mask).save("ticket.safetensors")
    names = {"model": model, "train": train, "build": lambda model: torch.optim.AdamW(model.parameters(), lr=0.05)}
    assert run_examples("Plain torch", names) == 1
    assert names["round"].density == pytest.approx(0.64, abs=0.01)
