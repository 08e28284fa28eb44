"""Steps: accumulated, clipped, left out; rounds that go on in their middle; several ranks."""

import json
import logging
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from ticketkit import IMP
from ticketkit_asr.backbones.cnn_lstm import build_cnn_lstm
from ticketkit_asr.backbones.options import CnnLstmOptions
from ticketkit_asr.backbones.transformer import build_transformer
from ticketkit_asr.backbones.transformer_options import TransformerOptions
from ticketkit_asr.corpora.corpus import InMemory, SpeechCorpus, Utterance
from ticketkit_asr.errors import TrainingError
from ticketkit_asr.training.options import SpecAugmentOptions, TrainerOptions
from ticketkit_asr.training.trainer import SpeechTrainer

TRANSFORMER = TransformerOptions.model_validate(
    {
        "features": {"kind": "log_mel", "mels": 12},
        "subsampling": [{"channels": 4, "kernel": (3, 3), "stride": (2, 2)}],
        "blocks": 1,
        "dim": 16,
        "heads": 2,
        "expansion": 2,
        "dropout": 0.0,
    }
)


def ignore(progress):
    """Take no notice."""


def attending(corpus, **options):
    """Return a trainer of a network without batch statistics, so that batches can be split, and its module."""
    torch.manual_seed(0)
    bundle = build_transformer(options=TRANSFORMER)
    for module in bundle.module.modules():
        if isinstance(module, torch.nn.BatchNorm1d | torch.nn.BatchNorm2d):
            module.eval()
            module.train = lambda mode=True, module=module: module  # its running statistics stay what they are
    return SpeechTrainer(bundle, corpus, seed=0, options=TrainerOptions(**options)), bundle.module


def normalising(corpus, **options):
    """Return a trainer of a network that normalises over the batch, and its module."""
    torch.manual_seed(0)
    sizes = {
        "features": {"kind": "log_mel", "mels": 12},
        "convs": [{"channels": 4, "kernel": (5, 5), "stride": (2, 2)}],
        "hidden": 8,
        "layers": 2,
    }
    bundle = build_cnn_lstm(options=CnnLstmOptions.model_validate(sizes))
    return SpeechTrainer(bundle, corpus, seed=0, options=TrainerOptions(**options)), bundle.module


def weights(module):
    return torch.cat([parameter.detach().flatten() for parameter in module.parameters()])


def test_accumulated_batches_are_one_large_batch(two_tones):
    ends = []
    for size, accumulate in ((8, 1), (2, 4), (3, 3)):
        trainer, module = attending(
            two_tones, epochs=1, batch_size=size, accumulate=accumulate, optimizer="sgd", lr=0.1, grad_norm=1e-1
        )
        assert trainer.steps_per_epoch == 1
        trainer.train(ignore)
        ends.append(weights(module))
    start = weights(attending(two_tones)[1])
    assert (ends[0] - start).abs().max() > 1e-3
    for other in ends[1:]:
        torch.testing.assert_close(other, ends[0], atol=2e-6, rtol=0)


def test_gradients_are_clipped_to_their_norm(two_tones):
    trainer, module = attending(
        two_tones, epochs=1, batch_size=8, optimizer="sgd", momentum=0, lr=1.0, grad_norm=1e-3, weight_decay=0
    )
    start = weights(module)
    trainer.train(ignore)
    assert (weights(module) - start).norm().item() == pytest.approx(1e-3, rel=1e-3)


def test_steps_that_would_spoil_the_weights_are_left_out_counted_and_too_many_end_it(two_tones, tiny, caplog):
    def spoilt(nonfinite):
        torch.manual_seed(0)
        bundle = build_cnn_lstm(options=tiny)
        forward, calls = bundle.module.forward, []

        def sometimes(features, lengths):
            scores, lengths = forward(features, lengths)
            calls.append(bundle.module.training)
            return scores * (math.nan if bundle.module.training and sum(calls) in (2, 3) else 1), lengths

        bundle.module.forward = sometimes
        options = TrainerOptions(epochs=2, batch_size=4, nonfinite=nonfinite)
        return SpeechTrainer(bundle, two_tones, seed=0, options=options)

    with caplog.at_level(logging.WARNING):
        assert math.isfinite(spoilt(2).train(ignore)["loss"])
    assert "loss is nan in epoch 1, step 2 of 2: step left out, 1 of 2" in caplog.text
    with pytest.raises(TrainingError, match="epoch 2, step 1 of 2; 2 such steps came and nonfinite allows 1"):
        spoilt(1).train(ignore)


def test_patience_ends_a_training_that_dev_no_longer_likes(two_tones, tiny, monkeypatch):
    bundle = build_cnn_lstm(options=tiny)
    trainer = SpeechTrainer(bundle, two_tones, seed=0, options=TrainerOptions(epochs=9, batch_size=4, patience=2))
    dev = iter([0.5, 0.25, 0.5, 0.25, 0.0])
    seen = []
    monkeypatch.setattr(trainer, "evaluate", lambda split: {"wer": next(dev), "cer": 0.0, "loss": 1.0})
    assert trainer.train(seen.append)["wer"] == 0.25
    assert [progress.epoch for progress in seen] == [1, 2, 3, 4]


@pytest.mark.parametrize("precision", ["bfloat16"])
def test_training_in_half_precision_learns_too(precision, two_tones, tiny):
    torch.manual_seed(0)
    bundle = build_cnn_lstm(options=tiny)
    options = TrainerOptions(epochs=12, batch_size=4, lr=0.02, precision=precision)
    losses = []
    SpeechTrainer(bundle, two_tones, seed=0, options=options).train(lambda progress: losses.append(progress.loss))
    assert losses[-1] < losses[0] / 3
    assert {parameter.dtype for parameter in bundle.module.parameters()} == {torch.float32}


def test_an_utterance_that_goes_bad_ends_training_or_is_left_out_by_option(tiny, two_tones, caplog):
    class Flaky(InMemory):
        broken = False

        def read(self):
            if Flaky.broken:
                from ticketkit import DataError

                raise DataError("the disk is gone")
            return super().read()

    first, *others = two_tones.split("train")
    train = [Utterance("flaky", Flaky(first.audio.waveform), first.text, "s"), *others]
    corpus = SpeechCorpus("flaky", two_tones.sample_rate, {**two_tones.splits, "train": train})

    def trained(choice):
        Flaky.broken = False
        options = TrainerOptions(epochs=2, batch_size=4, speed={"factors": (0.9, 1.0)}, on_bad_utterance=choice)
        trainer = SpeechTrainer(build_cnn_lstm(options=tiny), corpus, seed=0, options=options)
        assert trainer.steps_per_epoch == 2  # the examples are found while all is well
        Flaky.broken = True
        return trainer.train(ignore)

    assert math.isfinite(trained("skip")["loss"])
    assert "training goes on without flaky: the disk is gone" in caplog.text
    with pytest.raises(TrainingError, match="flaky cannot be used: the disk is gone"):
        trained("fail")


# Rounds


def rounds(corpus, tiny, run_dir, *, stop_at=None, **options):
    """Run dense and one pruning; return tickets' digests and metrics, or stop with an error at some step."""
    torch.manual_seed(0)
    bundle = build_cnn_lstm(options=tiny)
    chosen = TrainerOptions(epochs=3, batch_size=2, augment=SpecAugmentOptions(frequency_width=4), **options)
    trainer = SpeechTrainer(bundle, corpus, seed=0, options=chosen)
    imp = IMP(bundle.module, rate=0.5, rounds=1, run_dir=run_dir)
    for current in imp:
        if stop_at is not None and current.index == stop_at[0]:
            saved, checkpoint = [], current.checkpoint

            def counted(*, step, saved=saved, checkpoint=checkpoint):
                checkpoint(step=step)
                saved.append(step)
                if len(saved) == stop_at[1]:
                    raise KeyboardInterrupt

            current.checkpoint = counted
        current.log(**trainer.train_round(current, ignore))
    return [(ticket.digest, ticket.metrics) for ticket in imp.tickets]


@pytest.mark.parametrize("every", [None, 3])
@pytest.mark.parametrize("place", [(0, 1), (1, 2)])
def test_a_round_that_was_interrupted_goes_on_to_the_same_bits(every, place, two_tones, tiny, tmp_path):
    whole = rounds(two_tones, tiny, tmp_path / "whole", checkpoint_steps=every)
    with pytest.raises(KeyboardInterrupt):
        rounds(two_tones, tiny, tmp_path / "cut", stop_at=place, checkpoint_steps=every)
    assert rounds(two_tones, tiny, tmp_path / "cut", checkpoint_steps=every) == whole


def test_a_round_rewound_to_a_step_forgets_the_best_weights_of_the_dense_one(two_tones, tiny):
    torch.manual_seed(0)
    bundle = build_cnn_lstm(options=tiny)
    trainer = SpeechTrainer(bundle, two_tones, seed=0, options=TrainerOptions(epochs=3, batch_size=4))
    epochs = []
    for current in IMP(bundle.module, rate=0.5, rounds=1, rewind="step:3"):
        with pytest.warns(UserWarning, match="saves nothing without a run directory"):
            trainer.train_round(current, lambda progress: epochs.append(progress.epoch))
        for name, parameter in bundle.module.named_parameters():
            if name in current.mask:
                assert not parameter.detach()[~current.mask[name]].any()
    assert epochs == [1, 2, 3, 2, 3]  # step 3 lies in epoch 2


CONFIG = """
seed: 1
corpus: {name: spoken_digits, train_utterances: 24, dev_utterances: 6, test_utterances: 6, digits: [1, 2]}
backbone:
  name: cnn_lstm
  features: {mels: 12}
  convs: [{channels: 4, kernel: [5, 5], stride: [2, 2]}]
  hidden: 8
  layers: 1
trainer: {name: asr, epochs: 6, batch_size: 4, checkpoint_steps: 2, augment: {frequency_width: 4}}
prune: {rate: 0.5, rounds: 1, criterion: magnitude_over_init}
"""


def test_sigkill_in_the_middle_of_a_round_and_resume_end_in_the_same_tickets(tmp_path):
    pytest.importorskip("espeakng_loader", reason="speech is synthesised: pip install 'ticketkit[synth]'")
    (tmp_path / "config.yaml").write_text(CONFIG)
    environment = os.environ | {"OMP_NUM_THREADS": "1", "XDG_CACHE_HOME": str(tmp_path / "cache")}

    def command(*arguments):
        return [sys.executable, "-m", "ticketkit", *arguments]

    subprocess.run(
        command("run", "config.yaml", "--out", "whole"), cwd=tmp_path, env=environment, check=True, capture_output=True
    )
    process = subprocess.Popen(
        command("run", "config.yaml", "--out", "cut"), cwd=tmp_path, env=environment, stdout=subprocess.DEVNULL
    )
    checkpoint = tmp_path / "cut" / "rounds" / "001" / "checkpoint.safetensors"
    while not checkpoint.exists() and process.poll() is None:
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert checkpoint.exists()
    subprocess.run(command("resume", "cut"), cwd=tmp_path, env=environment, check=True, capture_output=True)
    for name in ("rounds/000/ticket.safetensors", "rounds/001/ticket.safetensors", "test.json"):
        assert (tmp_path / "cut" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name


# Ranks


RANKS = """
import json, os, sys, torch
from pathlib import Path
from torch import distributed
from ticketkit import IMP
sys.path.insert(0, {tests!r})
from test_training import attending, ignore, normalising
from conftest import two_tones_corpus
ranks = int(sys.argv[1])
if ranks > 1:
    distributed.init_process_group("gloo")
torch.set_num_threads(1)
options = dict(epochs=2, batch_size=4, optimizer="sgd", lr=0.05)
trainer, module = {{"attending": attending, "normalising": normalising}}[sys.argv[3]](two_tones_corpus(), **options)
imp = IMP(module, rate=0.5, rounds=1)
for current in imp:
    current.log(**trainer.train(ignore))
rank = distributed.get_rank() if ranks > 1 else 0
weights = {{name: tensor.detach().clone() for name, tensor in module.state_dict().items()}}
torch.save(weights, f"{{sys.argv[2]}}-{{rank}}.pt")
facts = {{"digests": [t.mask.digest for t in imp.tickets], "metrics": [t.metrics for t in imp.tickets]}}
Path(f"{{sys.argv[2]}}-{{rank}}.json").write_text(json.dumps(facts))
if ranks > 1:
    distributed.barrier()
    os._exit(0)  # gloo's threads may outlive the group and abort an ordinary exit
"""


@pytest.mark.parametrize("kind", ["attending", "normalising"])
def test_two_ranks_train_the_network_of_one_and_hold_one_mask(kind, tmp_path):
    script = tmp_path / "train.py"
    script.write_text(RANKS.format(tests=str(Path(__file__).parent)))
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    for command in ([sys.executable, script, "1", "one", kind], [*torchrun, script, "2", "two", kind]):
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr[-3000:]
        assert "Warning" not in done.stderr
    one, first, second = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("one-0", "two-0", "two-1"))
    assert first["digests"] == second["digests"]
    assert first["digests"] == one["digests"]
    alone, *ranks = (torch.load(tmp_path / f"{name}.pt") for name in ("one-0", "two-0", "two-1"))
    for name, tensor in alone.items():
        assert torch.equal(ranks[0][name], ranks[1][name])
        torch.testing.assert_close(ranks[0][name], tensor, atol=1e-4, rtol=1e-4, msg=name)
