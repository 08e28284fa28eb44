import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from tests.adapters.examples import run_examples
from ticketkit import IMP, ConfigError, Mask, Plugins, Round, Scope, ScopeError, Ticket, TicketError
from ticketkit.adapters.speechbrain import held, in_round
from ticketkit_asr.torchaudio_shim import torchaudio

torchaudio()  # SpeechBrain imports it, which beside a CPU build of torch works only so
import speechbrain  # noqa: E402
from speechbrain.nnet.schedulers import NewBobScheduler  # noqa: E402
from speechbrain.utils.checkpoints import Checkpointer  # noqa: E402
from speechbrain.utils.epoch_loop import EpochCounter  # noqa: E402
from speechbrain.utils.importutils import LazyModule  # noqa: E402

for name, module in list(sys.modules.items()):
    if isinstance(module, LazyModule):  # hypothesis asks every module for its file, and these import and warn then
        del sys.modules[name]


class Classifier(speechbrain.Brain):  # type: ignore[misc]
    """Classifies noise; checks the mask after every batch, and notes what each was trained with."""

    mask: Mask | None = None
    seen: list[tuple[int, float, float]]

    def compute_forward(self, batch: Any, stage: Any) -> torch.Tensor:
        return self.modules.net(batch[0])

    def compute_objectives(self, predictions: torch.Tensor, batch: Any, stage: Any) -> torch.Tensor:
        return nn.functional.cross_entropy(predictions, batch[1])

    def fit_batch(self, batch: Any) -> torch.Tensor:
        self.seen.append((self.optimizer_step, batch[0].sum().item(), self.optimizer.param_groups[0]["lr"]))
        loss = super().fit_batch(batch)
        if self.mask is not None:
            Ticket(self.mask).verify(self.modules.net)
        return loss

    def on_stage_end(self, stage: Any, stage_loss: float, epoch: int | None = None) -> None:
        if stage is speechbrain.Stage.VALID and self.checkpointer is not None:
            _, rate = self.checkpointer.recoverables["schedule"](stage_loss)
            self.optimizer.param_groups[0]["lr"] = rate
            self.checkpointer.save_checkpoint(meta={"loss": stage_loss})


class Facts:
    """A train logger that keeps what it is told."""

    def __init__(self) -> None:
        self.told: list[dict[str, Any]] = []

    def log_stats(self, stats_meta: dict[str, Any]) -> None:
        self.told.append(stats_meta)


def network(norm: type[nn.Module] = nn.BatchNorm1d) -> nn.Module:
    torch.manual_seed(3)
    np.random.seed(3)
    random.seed(3)
    return nn.Sequential(nn.Linear(6, 16), norm(16), nn.ReLU(), nn.Dropout(0.2), nn.Linear(16, 3))


def loaders() -> list[DataLoader[Any]]:
    draw = torch.Generator().manual_seed(0)
    data = TensorDataset(torch.randn(32, 6, generator=draw), torch.randint(3, (32,), generator=draw))
    return [DataLoader(data, batch_size=4, shuffle=True), DataLoader(data, batch_size=16)]


def brain(
    net: nn.Module, folder: Path | None = None, counter: EpochCounter | None = None, **options: Any
) -> Classifier:
    known = {"net": net, "schedule": NewBobScheduler(0.05, improvement_threshold=0.5), "counter": counter}
    checkpointer = None if folder is None else Checkpointer(folder, known)
    hparams = {"train_logger": Facts()}
    options = {"device": "cpu", "noprogressbar": True, **options}
    made = Classifier({"net": net}, lambda p: torch.optim.AdamW(p, lr=0.05), hparams, options, checkpointer)
    made.seen = []
    return made


def half(model: nn.Module, seed: int = 0) -> Mask:
    draw, scope = torch.Generator().manual_seed(seed), Scope.of(model)
    return Mask({name: torch.rand(shape, generator=draw) < 0.5 for name, shape in scope.shapes.items()})


def bits(model: nn.Module) -> list[bytes]:
    return [tensor.detach().numpy().tobytes() for tensor in model.state_dict().values()]


# One ticket in one training


@pytest.mark.parametrize("options", [{}, {"precision": "bf16", "grad_accumulation_factor": 3}], ids=["plain", "bf16"])
def test_pruned_weights_are_zero_after_every_step_and_clipping_sees_none(
    options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    net = network()
    made, norms = brain(net, max_grad_norm=0.1, **options), []
    made.mask = mask = half(net)

    def clip(parameters: Any, limit: float) -> None:
        norms.append([float(net.get_parameter(name).grad[~mask[name]].norm()) for name in mask])
        original(parameters, limit)

    original = nn.utils.clip_grad_norm_
    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", clip)
    with held(made, Ticket(mask), part="net"):
        made.fit(EpochCounter(2), *loaders())
    assert len(norms) == made.optimizer_step > 3
    assert not np.any(norms)
    assert made.hparams.train_logger.told == [{"density": mask.density, "kept": mask.kept}]


def test_checkpoints_hold_the_mask_and_only_its_ticket_goes_on(tmp_path: Path) -> None:
    net, counter = network(), EpochCounter(1)
    mask, made = half(net), brain(net, tmp_path, counter)
    with held(made, mask, part="net"):
        made.fit(counter, *loaders())
    (file,) = tmp_path.rglob("ticketkit.ckpt")
    assert Ticket.load(file).mask == mask
    other, counter = network(), EpochCounter(2)
    made = brain(other, tmp_path, counter)
    with held(made, half(net, seed=1), part="net"), pytest.raises(TicketError, match="trained with another mask"):
        made.fit(counter, *loaders())
    counter = EpochCounter(2)
    made = brain(other, tmp_path, counter)
    made.mask = mask
    with held(made, mask, part="net"):
        made.fit(counter, *loaders())
    assert [step for step, *_ in made.seen] == list(range(8, 16))


# Bad input


def test_models_and_optimizers_that_cannot_hold_the_mask_are_refused() -> None:
    net = network()
    mask = half(net)
    for part, message in (
        ("", "does not have the masked parameters"),
        ("encoder", "no part 'encoder'.* there are net"),
    ):
        made = brain(net)
        with held(made, mask, part=part), pytest.raises(ScopeError, match=message):
            made.fit(EpochCounter(1), *loaders())
    made = brain(net)
    made.opt_class = lambda _: torch.optim.SGD(network().parameters(), lr=0.1)
    with held(made, mask, part="net"), pytest.raises(ScopeError, match="the optimizer holds"):
        made.fit(EpochCounter(1), *loaders())
    brain(net).fit(EpochCounter(1), *loaders())  # nothing is left behind


def test_a_brain_of_another_model_or_used_before_is_refused() -> None:
    net = network()
    for current in IMP(net, rounds=1, plugins=Plugins()):
        with (
            pytest.raises(ScopeError, match=r"Classifier does not train the model of this round: 0\.weight"),
            in_round(brain(network()), current),
        ):
            pass
        with pytest.raises(ConfigError, match="every must be at least 1"), in_round(brain(net), current, every=0):
            pass
        made = brain(net)
        with in_round(made, current):
            made.fit(EpochCounter(1), *loaders())
            with pytest.raises(ConfigError, match="has fitted before"):
                made.fit(EpochCounter(1), *loaders())
        break


def test_a_round_does_not_evaluate_with_the_checkpoint_of_another(tmp_path: Path) -> None:
    net = network()
    for current in IMP(net, rounds=1, plugins=Plugins()):
        counter = EpochCounter(1)
        made = brain(net, tmp_path, counter)
        with in_round(made, current):
            made.fit(counter, *loaders())
    dense = min(made.checkpointer.list_checkpoints(), key=lambda saved: saved.meta["unixtime"])
    with pytest.raises(TicketError, match="trained with another mask"):
        made.checkpointer.load_checkpoint(dense)


# Rounds


def rounds(net: nn.Module, rewind: str = "init", **options: Any) -> Iterator[tuple[Round, Classifier]]:
    for current in IMP(net, rate=0.5, rounds=2, rewind=rewind, plugins=Plugins()):
        made = brain(net, **options)
        made.mask = current.mask
        with in_round(made, current):
            made.fit(EpochCounter(2), *loaders())
        yield current, made


def test_round_zero_is_what_speechbrain_trains_alone() -> None:
    plain = network()
    brain(plain).fit(EpochCounter(2), *loaders())
    drawn = torch.rand(())
    net = network()
    next(rounds(net))
    assert bits(plain) == bits(net)
    assert torch.rand(()) == drawn


@pytest.mark.parametrize(("rewind", "accumulate", "done"), [("step:5", 1, 5), ("step:8", 1, 8), ("step:1", 3, 3)])
def test_rewound_rounds_go_on_at_the_step_with_the_data_of_then(rewind: str, accumulate: int, done: int) -> None:
    (_, dense), *pruned = [*rounds(network(), rewind, grad_accumulation_factor=accumulate)]
    assert len(dense.seen) == 16
    assert [made.seen for _, made in pruned] == [dense.seen[done:]] * 2


def test_rounds_that_keep_their_weights_train_as_long_as_the_first() -> None:
    (_, dense), *pruned = [*rounds(network(), "none")]
    assert [len(made.seen) for _, made in pruned] == [len(dense.seen)] * 2


def test_losses_of_the_stages_are_the_rounds_metrics() -> None:
    for current, made in rounds(network()):
        assert set(current.metrics) == {"train_loss", "valid_loss"}
        assert made.hparams.train_logger.told[0]["round"] == current.index


KILLED = """
import os, signal, socket, sys, torch._dynamo
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from tests.adapters.test_speechbrain import *
import torch.distributed as dist
from torch.utils.data import DistributedSampler

class Killed(Classifier):
    kill = None
    def on_fit_batch_end(self, *rest):
        if self.kill == len(self.seen):
            os.kill(os.getpid(), signal.SIGKILL)

def run(folder, every, accumulate, rewind, kill, train_set=None, **options):
    together = dist.is_initialized()
    net = network(nn.LayerNorm if together else nn.BatchNorm1d)  # SpeechBrain makes it a SyncBatchNorm, for GPUs only
    torch.manual_seed(dist.get_rank() if together else 0)  # dropout differs between ranks
    train, dev = loaders()
    imp = IMP(net, rate=0.5, rounds=1, rewind=rewind, plugins=Plugins(), run_dir=folder / "run")
    for current in imp:
        counter = EpochCounter(2)
        made = brain(net, folder / f"brain{current.index}", counter, grad_accumulation_factor=accumulate, **options)
        made.mask = current.mask
        made.__class__ = Killed
        made.kill = kill[1] if kill and kill[0] == current.index else None
        with in_round(made, current, every=every):
            made.fit(counter, train_set or train, dev)
    for ticket in imp.tickets:
        ticket.save(folder / f"{ticket.facts.round}.ticket")

def rank(number, port, *arguments):
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": "2"}
    os.environ |= {"RANK": str(number), "LOCAL_RANK": str(number)}
    dist.init_process_group("gloo")
    data = loaders()[0].dataset
    own = DataLoader(data, batch_size=4, sampler=DistributedSampler(data))
    net, counter = network(nn.LayerNorm), EpochCounter(1)
    mask, made = half(net), brain(net, arguments[0] / "held", counter, distributed_backend="gloo")
    made.mask = mask
    with held(made, mask, part="net"):
        made.fit(counter, own, own)
    assert Ticket.load(next((arguments[0] / "held").rglob("ticketkit.ckpt"))).mask == mask
    run(*arguments, train_set=own, distributed_backend="gloo")

def forked(job, *arguments):
    pid = os.fork()
    if pid == 0:
        try:
            job(*arguments)
        except BaseException as error:
            print(repr(error), file=sys.stderr, flush=True)
            os._exit(1)
        os._exit(0)
    return pid

def alone(*arguments):
    return os.waitpid(forked(run, *arguments), 0)[1]

def together(*arguments):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    pids = [forked(rank, number, port, *arguments) for number in range(2)]
    first, second = [os.waitpid(pid, 0)[1] for pid in pids]
    return first or second

torch.set_num_threads(1)
cases = {
    "epochs": (alone, None, 1, "init", [(0, 12)]),
    "batches": (alone, 2, 2, "step:1", [(0, 7), (1, 9)]),
    "together": (together, 2, 1, "step:3", [(0, 6), (1, 3)]),
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


@pytest.mark.slow
def test_a_round_that_is_killed_goes_on_to_the_same_tickets(tmp_path: Path) -> None:
    command = [sys.executable, "-c", KILLED, str(Path(__file__).parents[2]), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    names = ("epochs", "batches", "together")
    printed = [line for line in done.stdout.splitlines() if line.startswith(names)]
    assert printed == [f"{name} {index} True" for name in names for index in range(2)]


# The examples of docs/adapters.md


def test_the_examples_for_speechbrain_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    encoder, (train_loader, dev_loader) = network(), loaders()
    Ticket(half(encoder)).save("ticket.safetensors")

    class Documented(Classifier):
        def compute_forward(self, batch: Any, stage: Any) -> torch.Tensor:
            return self.modules.encoder(batch[0])

    def build(encoder: nn.Module, counter: EpochCounter | None = None, folder: str | None = None) -> Documented:
        known = {"encoder": encoder, "schedule": NewBobScheduler(0.05), "counter": counter}
        options = {"device": "cpu", "noprogressbar": True}
        checkpointer = None if folder is None else Checkpointer(folder, known)
        made = Documented({"encoder": encoder}, lambda p: torch.optim.Adam(p), {}, options, checkpointer)
        made.seen = []
        return made

    names = {"brain": build(encoder), "encoder": encoder, "build": build}
    assert run_examples("SpeechBrain", names | {"train_loader": train_loader, "dev_loader": dev_loader}) == 3
