"""The Trainer with tickets: real trainings of tiny networks, saved, killed and resumed."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import SGD
from torch.optim import optimizer as optimizer_module
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from tests.adapters.examples import run_examples
from tests.adapters.hugging_face import Recordings, arguments, bert, trainer, transformers, wav2vec2
from ticketkit import IMP, ConfigError, Mask, Plugins, Round, Scope, ScopeError, StorageError, Ticket, TicketError
from ticketkit.adapters.transformers import (
    RoundCallback,
    TicketCallback,
    load_pretrained,
    load_ticket,
    save_pretrained,
)
from ticketkit.testing import mlp

ROOT = Path(__file__).parents[2]
AS_THE_FRAMEWORK_DOES = {"bf16": True, "gradient_accumulation_steps": 2, "max_grad_norm": 0.1, "max_steps": 4}


def half(model: nn.Module, seed: int = 0, **rule: Any) -> Mask:
    draw, scope = torch.Generator().manual_seed(seed), Scope.of(model, **rule)
    flags = {name: torch.rand(shape, generator=draw) < 0.5 for name, shape in scope.shapes.items()}
    return Mask(flags, aliases=scope.aliases)


def bits(model: nn.Module) -> dict[str, bytes]:
    return {name: value.numpy().tobytes() for name, value in model.state_dict().items()}


def hooks() -> int:
    return len(optimizer_module._global_optimizer_post_hooks)


def two_rounds(model: nn.Module, rewind: Any = "init") -> IMP:
    return IMP(model, rounds=1, rewind=rewind, plugins=Plugins())


# One ticket


class Watch(transformers.TrainerCallback):
    """Sees after every step whether pruned weights are zero, and before it whether their clipped gradients are."""

    def __init__(self, mask: Mask):
        self.mask, self.seen, self.norms = mask, 0, []

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, model: nn.Module, **_: Any) -> None:
        gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
        self.norms.append(torch.stack([gradient.norm() for gradient in gradients]).norm().item())
        assert not any(model.get_parameter(name).grad[~self.mask[name]].any() for name in self.mask)

    def on_step_end(self, args: Any, state: Any, control: Any, model: nn.Module, **_: Any) -> None:
        Ticket(self.mask).verify(model)
        self.seen += 1


def test_pruned_weights_are_zero_after_every_step_with_autocast_accumulation_and_clipping(tmp_path: Path) -> None:
    model, before = bert(), hooks()
    mask, start = half(model), bits(model)
    watch = Watch(mask)
    made = trainer(model, tmp_path, TicketCallback(mask), watch, weight_decay=0.1, **AS_THE_FRAMEWORK_DOES)
    made.train()
    assert watch.seen == 4
    assert max(watch.norms) <= 0.1 + 1e-4
    assert bits(model) != start
    assert hooks() == before
    assert {entry["ticketkit/density"] for entry in made.state.log_history} == {mask.density}


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, bytes], Mask]:
    """A training with a ticket, saved at every fifth step: its folder, how it ended, and the mask."""
    folder, model = tmp_path_factory.mktemp("saved"), bert()
    mask = half(model)
    trainer(model, folder, TicketCallback(mask), save_strategy="steps", save_steps=5).train()
    return folder, bits(model), mask


def test_a_checkpoint_holds_the_ticket_and_resumes_to_the_same_bits(
    saved: tuple[Path, dict[str, bytes], Mask], tmp_path: Path
) -> None:
    folder, expected, mask = saved
    assert load_ticket(folder / "checkpoint-5").mask == load_ticket(folder / "checkpoint-10").mask == mask
    model = bert()
    callback = TicketCallback(folder / "checkpoint-5")
    resumed = trainer(model, tmp_path, callback, save_strategy="steps", save_steps=5)
    resumed.train(resume_from_checkpoint=str(folder / "checkpoint-5"))
    assert bits(model) == expected
    resumed.save_model(str(tmp_path / "final"))
    callback.save(tmp_path / "final")
    again, ticket = load_pretrained(type(model), tmp_path / "final")
    assert bits(again) == expected
    assert ticket.mask == mask


def test_a_checkpoint_of_another_ticket_is_refused(saved: tuple[Path, Any, Mask], tmp_path: Path) -> None:
    model = bert()
    other = trainer(model, tmp_path, TicketCallback(half(model, seed=1)))
    with pytest.raises(TicketError, match=r"step 5 was trained with another mask \([\d,]+ of 3,888 weights"):
        other.train(resume_from_checkpoint=str(saved[0] / "checkpoint-5"))


def test_a_training_that_broke_off_can_be_repeated_with_the_same_callback(tmp_path: Path) -> None:
    class Fault(transformers.TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if state.global_step == 1:
                raise KeyboardInterrupt

    model, before = bert(), hooks()
    callback = TicketCallback(half(model))
    with pytest.raises(KeyboardInterrupt):
        trainer(model, tmp_path, callback, Fault(), max_steps=2).train()
    with pytest.raises(ConfigError, match=r"broke off with an error; call release\(\) of that callback"):
        trainer(model, tmp_path, max_steps=1).train()
    callback.release()
    assert hooks() == before
    trainer(model, tmp_path, max_steps=1).train()
    with pytest.raises(KeyboardInterrupt):
        trainer(model, tmp_path, callback, Fault(), max_steps=2).train()
    trainer(model, tmp_path, callback, max_steps=2).train()
    callback.ticket.verify(model)
    assert hooks() == before
    other = bert()
    with pytest.raises(ConfigError, match="has held its mask on another model"):
        trainer(other, tmp_path, callback, max_steps=2).train()


def test_frozen_parameters_are_masked_and_no_optimizer_needs_them(tmp_path: Path) -> None:
    model = bert()
    model.bert.requires_grad_(False)
    callback = TicketCallback(half(model))
    optimizer = SGD([parameter for parameter in model.parameters() if parameter.requires_grad], lr=0.1)
    trainer(model, tmp_path, callback, max_steps=1, optimizers=(optimizer, None)).train()
    callback.ticket.verify(model)


def test_what_cannot_hold_the_mask_is_refused(tmp_path: Path) -> None:
    model = bert()
    with pytest.raises(ScopeError, match=r"0\.weight"):
        trainer(model, tmp_path, TicketCallback(half(mlp()))).train()
    stale = SGD(bert().parameters(), lr=0.1)
    with pytest.raises(ScopeError, match=r"holds \d+ tensors, but not these parameters in scope: bert\."):
        trainer(model, tmp_path, TicketCallback(half(model)), optimizers=(stale, None)).train()
    with pytest.raises(TicketError, match=r"another callback of this Trainer holds another mask .* one TicketCallback"):
        trainer(model, tmp_path, TicketCallback(half(model)), TicketCallback(half(model, 1))).train()
    with torch.device("meta"):
        absent = bert()
    callback = TicketCallback(half(model))
    with pytest.raises(ScopeError, match="on the meta device, without memory"):
        callback.on_train_begin(None, transformers.TrainerState(), None, model=absent, optimizer=stale)


def test_a_ticket_that_cannot_be_put_beside_its_checkpoint_is_an_error(tmp_path: Path) -> None:
    class Elsewhere(transformers.Trainer):
        def _get_output_dir(self, trial: Any) -> str:
            return str(tmp_path / "elsewhere")

    model = bert()
    made = trainer(model, tmp_path, TicketCallback(half(model)), save_strategy="steps", save_steps=1, max_steps=1)
    made.__class__ = Elsewhere
    with pytest.raises(StorageError, match=r"has saved, but not to .*checkpoint-1"):
        made.train()


# Folders


def test_a_model_and_its_ticket_come_back_from_one_folder(tmp_path: Path) -> None:
    model = wav2vec2()
    mask = half(model, exclude=["*pos_conv_embed*"])
    with pytest.raises(TicketError, match="pruned weights that are not zero"):
        save_pretrained(model, mask, tmp_path)
    assert not list(tmp_path.iterdir())
    Ticket(mask).apply_(model)
    save_pretrained(model, mask, tmp_path)
    loaded, ticket = load_pretrained(transformers.Wav2Vec2ForCTC, tmp_path)
    assert ticket.mask == mask
    assert bits(loaded) == bits(model)
    halved, _ = load_pretrained(transformers.AutoModelForCTC, tmp_path, dtype=torch.bfloat16)
    assert halved.dtype == torch.bfloat16
    with pytest.raises(TicketError, match="for another architecture"):
        load_pretrained(transformers.Wav2Vec2Model, tmp_path)
    wav2vec2().save_pretrained(tmp_path)
    with pytest.raises(TicketError, match="pruned weights that are not zero"):
        load_pretrained(transformers.Wav2Vec2ForCTC, tmp_path)
    with pytest.raises(TicketError, match="cannot read the ticket"):
        load_ticket(tmp_path / "nowhere")


# Rounds


def fit(current: Round, folder: Path, *callbacks: Any, every: int | None = None, **options: Any) -> Any:
    callback = RoundCallback(current, every=every)
    made = trainer(current.model, folder, callback, *callbacks, **options)
    made.train(resume_from_checkpoint=callback.resume_from)
    return made


@pytest.mark.parametrize("options", [{"max_steps": 4}, AS_THE_FRAMEWORK_DOES], ids=["plain", "as the framework does"])
def test_round_zero_is_the_trainer_alone_bit_for_bit(options: dict[str, Any], tmp_path: Path) -> None:
    plain, model = bert(), bert()
    trainer(plain, tmp_path, **options).train()
    for current in two_rounds(model):
        if current.index == 0:
            fit(current, tmp_path, **options)
            assert bits(model) == bits(plain)
        else:
            watch = Watch(current.mask)
            fit(current, tmp_path, watch, **options)
            assert watch.seen == 4


@pytest.mark.filterwarnings(r"ignore:rounds \[1\] prune nothing")
@pytest.mark.parametrize("step", [4, 7], ids=["in an epoch", "between epochs"])
def test_a_round_goes_on_from_step_k_as_the_first_round_did(step: int, tmp_path: Path) -> None:
    """With nothing pruned it ends in the very bits: optimizer, schedule, generators and data are where they were."""
    model, ends, begins = bert(), [], []

    class Begin(transformers.TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            begins.append(state.global_step)

    everything = {"name": "explicit", "counts": [Scope.of(model).total]}
    for current in IMP(model, rewind=f"step:{step}", schedule=everything, plugins=Plugins()):
        made = fit(current, tmp_path, Begin(), eval_strategy="steps", eval_steps=3)
        ends.append(bits(model))
        assert made.state.global_step == 10
        assert [entry["step"] for entry in made.state.log_history if "loss" in entry] == [4, 8]
    assert ends[0] == ends[1]
    assert begins == [*range(10), *range(step, 10)]


def test_what_is_measured_is_the_rounds_and_the_density_is_in_the_trainers_history(tmp_path: Path) -> None:
    model = bert()
    imp = two_rounds(model)
    for current in imp:
        made = fit(current, tmp_path, max_steps=1)
        measured = made.evaluate()
        assert current.metrics == {"eval_loss": measured["eval_loss"]}
        assert {entry["ticketkit/density"] for entry in made.state.log_history} == {current.density}
    assert imp.best("eval_loss").facts.round == 1


def test_an_average_is_tracked_and_masked(tmp_path: Path) -> None:
    model = bert()

    class Average(transformers.TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, model: nn.Module, **_: Any) -> None:
            ema.update_parameters(model)

    for current in two_rounds(model):
        ema = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9))
        callback = RoundCallback(current, ema=ema)
        trainer(model, tmp_path, callback, Average(), max_steps=2).train()
        Ticket(current.mask).verify(ema)
        assert "ema" in current.tracked


def test_a_training_that_does_not_start_where_the_round_does_is_refused(tmp_path: Path) -> None:
    model = bert()
    for current in two_rounds(model, "step:2"):
        callback = RoundCallback(current)
        made = trainer(model, tmp_path, callback, save_strategy="steps", save_steps=2, max_steps=3)
        if current.index == 0:
            assert callback.resume_from is None
            made.train()
            with pytest.raises(ConfigError, match="has served a training already; make a RoundCallback for each"):
                made.train()
        else:
            with pytest.raises(ConfigError, match=r"starts from step 2, but the Trainer from step 0; call trainer\.tr"):
                made.train()
            break
    for current in two_rounds(model):
        made = trainer(model, tmp_path, RoundCallback(current))
        with pytest.raises(ConfigError, match="starts from step 0, but the Trainer from step 2"):
            made.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
        with pytest.raises(ConfigError, match=r"every must be at least 1, or None for whenever .*, not 0"):
            RoundCallback(current, every=0)
        with pytest.raises(ScopeError, match="does not train the model of this round"):
            trainer(bert(), tmp_path, RoundCallback(current)).train()
        break


def test_a_schedule_that_has_ended_in_the_round_before_is_refused(tmp_path: Path) -> None:
    for rewind, ends in (("none", True), ("learning_rate", False)):
        model = bert()
        for current in two_rounds(model, rewind):
            if current.index and ends:
                with pytest.raises(ConfigError, match="use rewind='learning_rate' to keep the weights"):
                    fit(current, tmp_path, max_steps=2)
                break
            fit(current, tmp_path, max_steps=2)


def test_a_loaded_model_is_reinitialised_from_its_config(tmp_path: Path) -> None:
    bert().save_pretrained(tmp_path)
    model = transformers.BertForSequenceClassification.from_pretrained(tmp_path)
    anew = {"rewind": "reinit", "initialise": lambda m: m.load_state_dict(type(m)(m.config).state_dict())}
    words = model.bert.embeddings.word_embeddings.weight
    first, second = [words[1:].detach().clone() for _ in IMP(model, rounds=1, plugins=Plugins(), **anew)]
    assert (first != second).all()


# Crashes

KILLED = """
import os, signal, sys
from pathlib import Path
import torch
torch.set_num_threads(1)
from tests.adapters.hugging_face import bert, trainer, transformers
from ticketkit import IMP, Plugins
from ticketkit.adapters.transformers import RoundCallback

def run(folder, out, kill=None, **saving):
    class Kill(transformers.TrainerCallback):
        def on_step_end(self, args, state, control, **_):
            if (current.index, state.global_step) == kill:
                os.kill(os.getpid(), signal.SIGKILL)
    every = saving.pop("every", None)
    model = bert()
    imp = IMP(model, rate=0.5, rounds=1, rewind="step:3", run_dir=folder, plugins=Plugins())
    for current in imp:
        callback = RoundCallback(current, every=every)
        made = trainer(model, folder / "trainer", callback, Kill(), eval_strategy="steps", eval_steps=4, **saving)
        made.train(resume_from_checkpoint=callback.resume_from)
        begun.append((current.index, made._initial_global_step))
        assert "eval_loss" in current.metrics
    out.mkdir()
    for ticket in imp.tickets:
        ticket.save(out / f"{ticket.facts.round}.ticket")
    (out / "begun").write_text(repr(begun))

def child(job):
    pid = os.fork()
    if pid == 0:
        try:
            job()
        except BaseException as error:
            print(repr(error), file=sys.stderr, flush=True)
            os._exit(1)
        os._exit(0)
    return os.waitpid(pid, 0)[1]

def tickets(folder):
    return [path.read_bytes() for path in sorted(folder.glob("*.ticket"))]

begun, root = [], Path(sys.argv[1])
assert child(lambda: run(root / "whole", root / "expected", save_strategy="epoch")) == 0
expected = tickets(root / "expected")
assert len(expected) == 2
for kill, saving in [((0, 6), {"every": 2}), ((1, 9), {"every": 4}), ((1, 9), {"save_strategy": "epoch"})]:
    victim, out = (root / f"{name}-{kill}-{saving}" for name in ("victim", "out"))
    assert os.WTERMSIG(child(lambda: run(victim, root / "never", kill, **saving))) == signal.SIGKILL
    assert child(lambda: run(victim, out, **saving)) == 0
    assert tickets(out) == expected, (kill, saving)
    print((out / "begun").read_text())
"""


@pytest.mark.slow
def test_a_round_killed_in_its_middle_goes_on_to_the_same_tickets(tmp_path: Path) -> None:
    command = [sys.executable, "-W", "error", "-c", KILLED, str(tmp_path)]
    finished = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr
    begun = [line for line in finished.stdout.splitlines() if line.startswith("[(")]
    assert begun == ["[(0, 4), (1, 3)]", "[(1, 8)]", "[(1, 7)]"]


def test_the_examples_of_the_document_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    model, data = wav2vec2(), Recordings()
    Ticket(half(model, exclude=["*pos_conv_embed*"])).save("ticket.safetensors")
    settings = arguments(Path("out"), max_steps=4, save_strategy="steps", save_steps=2)
    names = {"model": model, "arguments": settings, "train_set": data, "dev_set": data}
    assert run_examples("The Trainer of transformers", names) == 4
    assert names["ticket"].facts.round in (1, 2)
    assert names["ticket"].facts.rewind == "step:2"
    load_pretrained(transformers.Wav2Vec2ForCTC, "shipped")
