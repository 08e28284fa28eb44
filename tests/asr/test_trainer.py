import logging
import math
import time

import pytest
import torch

from ticketkit_asr.backbones.cnn_lstm import build_cnn_lstm
from ticketkit_asr.corpora.corpus import InMemory, SpeechCorpus, Utterance
from ticketkit_asr.errors import TrainingError
from ticketkit_asr.training.options import SpecAugmentOptions, TrainerOptions
from ticketkit_asr.training.trainer import SpeechTrainer

FAST = TrainerOptions(epochs=3, batch_size=4, lr=0.01)


@pytest.fixture
def trainer_of(tiny, two_tones):
    def make(options=FAST, seed=0, corpus=two_tones):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            bundle = build_cnn_lstm(options=tiny)
        return SpeechTrainer(bundle, corpus, seed=seed, options=options), bundle.module

    return make


def state(module):
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def same(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def ignore(progress):
    """Take no notice."""


def test_the_defaults_are_the_papers_schedule():
    options = TrainerOptions()
    assert (options.lr, options.lr_anneal, options.weight_decay) == (3e-4, 1.1, 1e-5)
    assert (options.epochs, options.batch_size, options.grad_norm, options.augment) == (16, 32, 400.0, None)


def test_training_learns_to_recognise_what_it_never_heard(trainer_of):
    trainer, _ = trainer_of(TrainerOptions(epochs=60, batch_size=4, lr=0.02, lr_anneal=1.02))
    assert trainer.train(ignore)["wer"] == 0.0
    assert trainer.evaluate("test")["cer"] <= 0.5


def test_equal_seeds_train_to_equal_bits(trainer_of):
    results = []
    for _ in range(2):
        trainer, module = trainer_of()
        results.append((trainer.train(ignore), state(module)))
    assert results[0][0] == results[1][0]
    assert same(results[0][1], results[1][1])


def test_a_trainer_trains_again_as_if_for_the_first_time(trainer_of):
    trainer, module = trainer_of(TrainerOptions(epochs=2, batch_size=4, augment=SpecAugmentOptions(frequency_width=4)))
    start, ends = state(module), []
    for _ in range(2):
        module.load_state_dict(start)
        with torch.random.fork_rng():
            torch.manual_seed(7)
            trainer.train(ignore)
        ends.append(state(module))
    assert same(*ends)


def test_another_seed_trains_otherwise(trainer_of):
    ends = []
    for seed in (0, 1):
        trainer, module = trainer_of(seed=seed)
        trainer.train(ignore)
        ends.append(state(module))
    assert not same(*ends)


def test_dev_alone_chooses_the_epoch_and_its_weights_and_buffers_stay(trainer_of, monkeypatch):
    trainer, module = trainer_of(TrainerOptions(epochs=5, batch_size=4))
    dev = {1: (0.5, 9.0), 2: (0.25, 8.0), 3: (0.25, 7.0), 4: (0.25, 7.0), 5: (0.75, 1.0)}
    asked, states = [], []

    def evaluate(split):
        asked.append(split)
        states.append(state(module))
        wer, loss = dev[len(states)]
        return {"wer": wer, "cer": 0.0, "loss": loss}

    monkeypatch.setattr(trainer, "evaluate", evaluate)
    assert trainer.train(ignore) == {"wer": 0.25, "cer": 0.0, "loss": 7.0}
    assert asked == ["dev"] * 5
    assert same(state(module), states[2])
    assert any("running_mean" in name for name in states[2])


def test_training_never_reads_test(trainer_of, two_tones, monkeypatch):
    trainer, _ = trainer_of()
    read = []
    real = type(two_tones).split
    monkeypatch.setattr(type(two_tones), "split", lambda self, name: read.append(name) or real(self, name))
    trainer.train(ignore)
    assert set(read) == {"train", "dev"}


def test_progress_tells_every_epoch(trainer_of):
    trainer, _ = trainer_of()
    seen = []
    trainer.train(seen.append)
    assert [(p.epoch, p.epochs) for p in seen] == [(1, 3), (2, 3), (3, 3)]
    assert all(p.loss > 0 and set(p.metrics) == {"wer", "cer", "loss"} for p in seen)
    assert seen[-1].loss < seen[0].loss


def test_parameters_keep_their_identity_and_storage(trainer_of):
    trainer, module = trainer_of()
    before = [(id(p), p.data_ptr()) for p in module.parameters()]
    trainer.train(ignore)
    assert [(id(p), p.data_ptr()) for p in module.parameters()] == before


def test_weights_held_at_zero_by_hooks_stay_zero(trainer_of):
    trainer, module = trainer_of()
    weight = module.lstms[0].forwards.weight_hh_l0
    with torch.no_grad():
        weight[:10] = 0
    handle = weight.register_hook(lambda grad: torch.cat([torch.zeros_like(grad[:10]), grad[10:]]))
    trainer.train(ignore)
    handle.remove()
    assert not weight[:10].any()
    assert weight[10:].all()


def test_features_are_computed_once_for_all_trainings(trainer_of, monkeypatch):
    trainer, _ = trainer_of()
    trainer.train(ignore)
    monkeypatch.setattr("ticketkit_asr.training.trainer.open_examples", None)
    trainer.train(ignore)


def test_the_learning_rate_falls_after_every_epoch_from_the_papers_rule(trainer_of, monkeypatch):
    rates = []
    step = torch.optim.AdamW.step

    def watched(self, *args, **kwargs):
        rates.append(self.param_groups[0]["lr"])
        return step(self, *args, **kwargs)

    monkeypatch.setattr(torch.optim.AdamW, "step", watched)
    trainer, _ = trainer_of(TrainerOptions(epochs=3, batch_size=8, lr=0.011))
    trainer.train(ignore)
    assert rates == pytest.approx([0.011, 0.01, 0.011 / 1.21])


def test_a_loss_that_is_not_finite_is_told_with_its_epoch_and_batch(trainer_of):
    trainer, module = trainer_of(TrainerOptions(epochs=2, batch_size=4))

    def spoil(progress):
        with torch.no_grad():
            module.output.weight[0, 0] = math.nan

    with pytest.raises(TrainingError, match="loss is nan in epoch 2, step 1 of 2"):
        trainer.train(spoil)


def test_evaluating_changes_neither_weights_nor_mode_and_ignores_batch_size(trainer_of):
    trainer, module = trainer_of(TrainerOptions(batch_size=1))
    module.train()
    before = state(module)
    alone = trainer.evaluate("dev")
    assert module.training
    assert same(state(module), before)
    together = trainer_of(TrainerOptions(batch_size=32))[0].evaluate("dev")
    assert together == pytest.approx(alone, rel=1e-4)


def test_workers_change_no_bit_in_one_training_after_another(trainer_of):
    ends = []
    for workers in (0, 1):
        options = TrainerOptions(epochs=2, batch_size=4, accumulate=2, speed={"factors": (0.9, 1.1)}, workers=workers)
        trainer, module = trainer_of(options)
        ends.append([(trainer.train(ignore), state(module)) for _ in range(2)])
    for alone, helped in zip(*ends, strict=True):
        assert alone[0] == helped[0]
        assert same(alone[1], helped[1])


@pytest.mark.parametrize(("seconds_reading", "seconds_training"), [(0.05, 0.0), (0.0, 0.2)])
def test_waiting_for_data_is_advised_against_once_and_only_where_it_is_much(
    seconds_reading, seconds_training, trainer_of, two_tones, caplog
):
    class Slow(InMemory):
        def read(self):
            time.sleep(seconds_reading)
            return super().read()

    splits = {
        name: [Utterance(u.id, Slow(u.audio.waveform), u.text, u.speaker) for u in split]
        for name, split in two_tones.splits.items()
    }
    corpus = SpeechCorpus("slow", two_tones.sample_rate, splits)
    options = TrainerOptions(epochs=3, batch_size=2, speed={"factors": (1.0, 1.1)})
    trainer, module = trainer_of(options, corpus=corpus)
    module.register_forward_pre_hook(lambda *_: time.sleep(seconds_training))
    with caplog.at_level(logging.INFO, logger="ticketkit_asr.training.trainer"):
        trainer.train(ignore)
    told = [record.getMessage() for record in caplog.records if record.levelno == logging.INFO]
    assert len([line for line in told if "of the time went into waiting for data" in line]) == 3
    advice = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert len(advice) == (1 if seconds_reading else 0)
    assert all("trainer.workers is 0, one more would load ahead" in line for line in advice)
