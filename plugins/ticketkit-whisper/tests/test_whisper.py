"""The backbone and its trainer at a few thousand random weights: nothing is downloaded."""

import importlib.util
import subprocess
import sys
import tempfile
import warnings
import wave
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

import ticketkit
from ticketkit.testing import check_backbone, check_trainer, plugin_installed

if importlib.util.find_spec("transformers") is None:
    pytest.skip("Whisper needs: pip install 'transformers>=4.57'", allow_module_level=True)

PROJECT = Path(__file__).parents[1]

with tempfile.TemporaryDirectory() as folder, plugin_installed(PROJECT, Path(folder)):
    from ticketkit_whisper import library
    from ticketkit_whisper.bundle import WhisperBundle, build_whisper
    from ticketkit_whisper.examples import batches, prepare
    from ticketkit_whisper.options import Seq2SeqOptions, WhisperOptions
    from ticketkit_whisper.sound import resample
    from ticketkit_whisper.text import END, START, Characters, edits, error_rates
    from ticketkit_whisper.trainer import Seq2SeqTrainer

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)
    library.transformers()

RATE = 8_000
SIZES: dict[str, Any] = {
    "width": 16,
    "encoder_layers": 1,
    "decoder_layers": 2,
    "heads": 2,
    "feedforward": 24,
    "mels": 8,
    "seconds": 1,
    "labels": 12,
    "dropout": 0.0,
}
LEARNS = {"width": 32, "feedforward": 64}
"""Sizes that suffice to learn two tones in two seconds."""


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def bundle(*, characters: str = "AB ", **sizes: Any) -> WhisperBundle:
    return build_whisper(options=WhisperOptions.model_validate({"config": SIZES | sizes, "characters": characters}))


@dataclass
class Sound:
    waveform: Any

    def read(self) -> Any:
        return self.waveform


@dataclass
class Said:
    id: str
    audio: Sound
    text: str


class Tones:
    """Two words, each a tone."""

    sample_rate = RATE

    def __init__(self) -> None:
        texts = {"train": ["A B", "B A", "A", "B", "A A", "B B"], "dev": ["B A", "A"], "test": ["A B", "B"]}
        self.splits = {
            split: [self.said(f"{split}-{i}", text) for i, text in enumerate(of)] for split, of in texts.items()
        }

    def said(self, name: str, text: str) -> Said:
        time = np.arange(RATE // 4) / RATE
        tones = [np.sin(2 * np.pi * (500 if word == "A" else 1500) * time) for word in text.split()]
        return Said(name, Sound((0.5 * np.concatenate(tones)).astype(np.float32)), text)

    def split(self, name: str) -> Sequence[Said]:
        return self.splits[name]


def trainer(of: WhisperBundle | None = None, *, seed: int = 0, **options: Any) -> Seq2SeqTrainer:
    options = {"epochs": 2, "batch_size": 4, "lr": 5e-3} | options
    return Seq2SeqTrainer(of or bundle(), Tones(), seed=seed, options=Seq2SeqOptions.model_validate(options))


def weights(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


@pytest.fixture
def plugins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ticketkit.Plugins]:
    """The plugins of an environment where this one and the corpus yesno, which lies beside it, are installed."""
    monkeypatch.setenv("TICKETKIT_LOAD_PLUGINS", "whisper,yesno")
    beside = PROJECT.parent / "ticketkit-yesno"
    with plugin_installed(PROJECT, tmp_path / "site"):
        if not (beside / "pyproject.toml").exists():
            yield ticketkit.Plugins.discover()
            return
        with plugin_installed(beside, tmp_path / "site"):
            yield ticketkit.Plugins.discover()


# Options and text


def test_it_obeys_the_laws_of_backbones(plugins: ticketkit.Plugins) -> None:
    check_backbone({"name": "whisper", "config": SIZES | {"decoder_layers": 1}}, plugins=plugins)


def test_it_obeys_the_laws_of_trainers(plugins: ticketkit.Plugins) -> None:
    backbone = {"name": "whisper", "config": SIZES | {"dropout": 0.2}, "characters": "AB "}
    check_trainer(
        {"name": "whisper_seq2seq", "epochs": 2, "batch_size": 4}, backbone=backbone, corpus=Tones, plugins=plugins
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"config": {}, "path": "x"}, "exclude each other"),
        ({"config": {"width": 10, "heads": 4}}, "multiple of heads 4"),
        ({"config": {"widht": 8}}, "widht"),
        ({"characters": "ABA"}, r"\['A'\] more than once"),
        ({"characters": "ab"}, "upper case"),
        ({"new_labels": True}, "without one all labels are new"),
    ],
)
def test_contradicting_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        WhisperOptions.model_validate(options)


@given(st.text("AB ?", max_size=20))
def test_a_text_comes_back_from_its_labels_without_what_has_none(text: str) -> None:
    labels = Characters("AB ").encode(text)
    assert all(END < label < Characters("AB ").size for label in labels)
    assert Characters("AB ").decode([START, *labels, END, 3]) == " ".join(text.split()).replace("?", "")


@given(st.text("ABC", max_size=7), st.text("ABC", max_size=7))
def test_edits_are_the_fewest(first: str, second: str) -> None:
    @cache
    def fewest(i: int, j: int) -> int:
        if i == 0 or j == 0:
            return i + j
        swap = fewest(i - 1, j - 1) + (first[i - 1] != second[j - 1])
        return min(swap, fewest(i - 1, j) + 1, fewest(i, j - 1) + 1)

    assert edits(first, second) == fewest(len(first), len(second))


def test_error_rates_weigh_every_word_and_character_alike() -> None:
    rates = error_rates(["ONE TWO THREE", "four"], ["ONE  TREE", "FOUR"])
    assert rates == {"wer": 2 / 4, "cer": (4 + 1) / (13 + 4)}
    with pytest.raises(ticketkit.DataError, match="these 2 have none"):
        error_rates(["", " "], ["A", "B"])


# Sound


@pytest.mark.parametrize(("source", "target"), [(8_000, 16_000), (22_050, 16_000), (48_000, 16_000), (16_000, 11_025)])
@given(frequency=st.floats(100, 3_000), phase=st.floats(0, 6))
@settings(max_examples=20)
def test_a_tone_stays_that_tone_at_another_rate(source: int, target: int, frequency: float, phase: float) -> None:
    def tone(rate: int, samples: int) -> torch.Tensor:
        return torch.sin(2 * torch.pi * frequency * torch.arange(samples, dtype=torch.float64) / rate + phase).float()

    resampled = resample(tone(source, source // 5), source=source, target=target)
    assert len(resampled) == -(-(source // 5) * target // source)
    inside = slice(target // 50, -target // 50)
    torch.testing.assert_close(resampled[inside], tone(target, len(resampled))[inside], atol=2e-3, rtol=0)


def test_what_the_lower_rate_cannot_hold_is_left_out_instead_of_folded_back() -> None:
    tone = torch.sin(2 * torch.pi * 9_500 * torch.arange(22_050) / 22_050)
    assert resample(tone, source=22_050, target=16_000)[500:-500].abs().max() < 0.01


def test_nothing_is_resampled_at_the_same_rate() -> None:
    tone = torch.randn(100)
    assert resample(tone, source=16_000, target=16_000) is tone


def test_features_are_those_of_the_library_padded_with_silence() -> None:
    ours, wave = bundle(), torch.randn(5_000) * 0.1
    features = ours.features(wave)
    assert (features.shape, features.dtype) == ((8, 100), torch.float32)
    padded = torch.cat([wave, torch.zeros(11_000)])
    torch.testing.assert_close(ours.features(padded), features)
    with pytest.raises(ticketkit.DataError, match=r"1\.00 s of sound came; this Whisper hears 1 s"):
        ours.features(torch.zeros(16_001))


# The network


def features(of: WhisperBundle, number: int) -> torch.Tensor:
    return torch.stack([of.features(torch.randn(4_000 + 1_000 * i) * 0.1) for i in range(number)])


def test_losses_are_the_librarys_and_padding_changes_none() -> None:
    ours = bundle()
    heard, targets = features(ours, 3), [torch.tensor(t) for t in ([3], [4, 5, 3, 4], [])]
    losses, counts = ours.losses(ours.module, heard, targets)
    assert counts.tolist() == [2, 5, 1]
    for row, target in enumerate(targets):
        labels = torch.cat([target.long(), torch.tensor([END])]).unsqueeze(0)
        expected = ours.module(input_features=heard[row : row + 1], labels=labels).loss * labels.numel()
        torch.testing.assert_close(losses[row], expected)


def test_decoding_writes_the_likeliest_label_each_time() -> None:
    """Against a loop that keeps no cache, on a network trained enough to write texts of different lengths."""
    ours = bundle(**LEARNS)
    trainer(ours, epochs=40).train(lambda _: None)
    ours.module.eval()
    heard = torch.stack([e.features for e in prepare(Tones().split("train"), ours, sample_rate=RATE)])
    expected = []
    for row in heard:
        labels = [START]
        while len(labels) <= ours.longest and labels[-1] != END:
            logits = ours.module(input_features=row.unsqueeze(0), decoder_input_ids=torch.tensor([labels])).logits
            labels.append(int(logits[0, -1].argmax()))
        expected.append(ours.characters.decode(labels[1:]))
    assert ours.transcribe(heard) == expected
    assert len({len(text) for text in expected}) > 1


def test_weights_come_back_from_a_folder(tmp_path: Path) -> None:
    ours = bundle(dropout=0.3)
    trainer(ours).train(lambda _: None)
    ours.module.save_pretrained(tmp_path)
    again = build_whisper(options=WhisperOptions(path=tmp_path, characters="AB "))
    assert same(weights(again.module), weights(ours.module))
    assert again.module.training
    assert again.module.proj_out.weight is again.module.model.decoder.embed_tokens.weight
    assert (again.samples, again.longest) == (ours.samples, ours.longest)
    assert trainer(again).evaluate("test") == trainer(ours).evaluate("test")


def test_a_network_with_other_labels_is_refused_or_gets_a_new_table(tmp_path: Path) -> None:
    ours = bundle()
    ours.module.save_pretrained(tmp_path)
    for characters in ("ABCD ", "BA "):  # of another size, and of the same
        with pytest.raises(ticketkit.DataError, match=r"has 6 labels \(characters 'AB '\).*new_labels"):
            build_whisper(options=WhisperOptions(path=tmp_path, characters=characters))
        new = build_whisper(options=WhisperOptions(path=tmp_path, characters=characters, new_labels=True))
        before, after = weights(ours.module), weights(new.module)
        tables = {"model.decoder.embed_tokens.weight", "proj_out.weight"}
        assert {name for name in before if not torch.equal(before[name], after[name])} == tables
        assert after["proj_out.weight"].shape == (new.characters.size, 16)
        assert 0.005 < after["proj_out.weight"].std() < 0.05
        assert new.module.config.eos_token_id == END


def test_a_folder_without_a_whisper_is_refused(tmp_path: Path) -> None:
    def refused(message: str) -> None:
        with pytest.raises(ticketkit.DataError, match=message):
            build_whisper(options=WhisperOptions(path=tmp_path, characters="AB "))

    refused(r"holds no readable config\.json")
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    refused("of the kind 'bert'")
    ours = bundle()
    ours.module.save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    torch.save(ours.module.state_dict(), tmp_path / "pytorch_model.bin")  # a pickle: loading it could run anything
    refused("cannot be loaded")


# Training


@given(st.integers(1, 40), st.integers(1, 9), st.integers(0, 3))
def test_every_example_trains_once_in_an_order_of_seed_and_epoch(examples: int, size: int, epoch: int) -> None:
    plan = batches(examples, batch_size=size, seed=1, epoch=epoch)
    assert sorted(i for batch in plan for i in batch) == list(range(examples))
    assert [len(batch) for batch in plan[:-1]] == [size] * (len(plan) - 1)
    assert plan == batches(examples, batch_size=size, seed=1, epoch=epoch)


def test_order_differs_by_seed_and_by_epoch() -> None:
    plans = [batches(30, batch_size=4, seed=seed, epoch=epoch) for seed in (0, 1) for epoch in (0, 1)]
    assert len({str(plan) for plan in plans}) == 4


def test_training_learns_and_leaves_the_epoch_that_dev_chose() -> None:
    ours, seen = bundle(**LEARNS), []
    of = trainer(ours, epochs=50)
    before = of.evaluate("train")["loss"]
    best = of.train(seen.append)
    assert of.evaluate("dev") == best
    assert of.evaluate("train")["loss"] < 0.5 * before
    assert [p.epoch for p in seen] == list(range(1, 51))
    assert (best["wer"], best["loss"]) == min((p.metrics["wer"], p.metrics["loss"]) for p in seen)
    assert best["wer"] == 0.0


class Judged(Seq2SeqTrainer):
    """A trainer whose dev says what the test wants, and which notes the weights that were judged."""

    verdicts = ((0.5, 1.0), (0.2, 0.9), (0.2, 0.7), (0.2, 0.7), (0.4, 0.1))

    def evaluate(self, split: str) -> dict[str, float]:
        self.judged = [*getattr(self, "judged", []), weights(self._bundle.module)]
        wer, loss = self.verdicts[len(self.judged) - 1]
        return {"wer": wer, "loss": loss}


def test_lowest_error_then_lowest_loss_then_the_earliest_epoch_is_left() -> None:
    ours = bundle()
    of = Judged(ours, Tones(), seed=0, options=Seq2SeqOptions(epochs=5))
    assert of.train(lambda _: None) == {"wer": 0.2, "loss": 0.7}
    assert [same(weights(ours.module), judged) for judged in of.judged] == [False, False, True, False, False]


def test_every_label_of_a_batch_weighs_the_same_in_its_loss() -> None:
    ours = bundle()
    of = trainer(ours)
    for batch in of.scoring_batches():
        labels = torch.full((len(batch), 4), -100)
        for row, example in enumerate(batch):
            labels[row, : len(example.target) + 1] = torch.tensor([*example.target, END])
        expected = ours.module(input_features=torch.stack([e.features for e in batch]), labels=labels).loss
        torch.testing.assert_close(of.scoring_loss(ours.module, batch), expected)


def test_dropout_acts_in_training_alone_and_modes_are_left_as_found() -> None:
    ours = bundle(dropout=0.5)
    of = trainer(ours)
    for training in (True, False):
        ours.module.train(training)
        assert of.evaluate("dev") == of.evaluate("dev")
        assert all(module.training == training for module in ours.module.modules())
    batch = of.scoring_batches()[0]
    ours.module.train()
    assert of.scoring_loss(ours.module, batch) != of.scoring_loss(ours.module, batch)
    ours.module.eval()
    assert of.scoring_loss(ours.module, batch) == of.scoring_loss(ours.module, batch)
    of.train(lambda _: None)  # puts it into training mode itself
    assert ours.module.training


def test_other_seeds_train_other_bits() -> None:
    trained = []
    for seed in (0, 1):
        torch.manual_seed(5)
        ours = bundle()
        trainer(ours, seed=seed).train(lambda _: None)
        trained.append(weights(ours.module))
    assert not same(*trained)


def test_the_loss_of_a_split_does_not_depend_on_the_batch_size() -> None:
    ours = bundle()
    one, three = (trainer(ours, batch_size=size).evaluate("train") for size in (1, 4))
    assert one == pytest.approx(three, rel=1e-5)


def test_scoring_batches_are_the_same_at_every_call_and_steps_are_counted() -> None:
    of = trainer(scoring_batches=1)
    (first,), (second,) = of.scoring_batches(), of.scoring_batches()
    assert [e.text for e in first] == [e.text for e in second]
    assert (len(first), of.steps_per_epoch) == (4, 2)


def test_a_diverged_training_names_epoch_and_batch() -> None:
    ours = bundle()
    with torch.no_grad():
        next(ours.module.parameters()).fill_(float("nan"))
    with pytest.raises(ticketkit.RunError, match="loss is nan in epoch 1, batch 1 of 2"):
        trainer(ours).train(lambda _: None)


def test_utterances_that_do_not_fit_are_named() -> None:
    corpus, ours = Tones(), bundle()
    long = [
        corpus.said("much", "A B A B A"),
        replace(corpus.said("wordy", "A"), text="A" * 12),
        corpus.said("fine", "A"),
    ]
    with pytest.raises(ticketkit.DataError, match=r"2 of 3 utterances.*much: 1\.25 s of sound came"):
        prepare(long, ours, sample_rate=RATE)
    with pytest.raises(ticketkit.DataError, match=r"wordy: its text has 12 characters.* at most 11"):
        prepare(long[1:], ours, sample_rate=RATE)
    with pytest.raises(ticketkit.DataError, match="no utterance"):
        prepare([], ours, sample_rate=RATE)


def test_it_trains_on_another_plugins_corpus(plugins: ticketkit.Plugins, tmp_path: Path) -> None:
    """The corpus yesno knows nothing of this trainer, nor this trainer of it."""
    if not any(entry.name == "yesno" for entry in plugins.registries["corpus"]):
        pytest.skip("the corpus yesno is neither installed nor beside this plugin")
    (tmp_path / "waves_yesno").mkdir()
    for number in range(10):
        with wave.open(str(tmp_path / "waves_yesno" / ("_".join(f"{number:08b}") + ".wav")), "wb") as file:
            file.setparams((1, 2, RATE, 0, "NONE", ""))
            file.writeframes(np.random.default_rng(number).integers(-3000, 3000, RATE, dtype="<i2").tobytes())
    corpus = plugins.choose("corpus", {"name": "yesno", "root": tmp_path, "recordings": 10}).call()
    ours = bundle(characters="ENOSY ", labels=40)
    of = Seq2SeqTrainer(ours, corpus, seed=0, options=Seq2SeqOptions(epochs=1))
    assert set(of.train(lambda _: None)) == {"wer", "cer", "loss"}
    assert of.evaluate("test")["wer"] <= 40 / 8


# Pruning


@pytest.mark.parametrize("criterion", ["magnitude", "snip", "grasp", "wanda"])
def test_one_pruning_keeps_exactly_half_and_rewinds_the_rest(criterion: str) -> None:
    ours = bundle(dropout=0.1)
    of, start = trainer(ours, epochs=1), weights(ours.module)
    entries = {entry.name for entry in ticketkit.Plugins().registries["criterion"]}
    if criterion not in entries:
        pytest.skip(f"this ticketkit has no criterion {criterion}")
    data = {"batches": of.scoring_batches, "loss": of.scoring_loss} if criterion != "magnitude" else {}
    imp = ticketkit.IMP(
        ours.module, rate=0.5, rounds=1, floor=0.05, criterion=criterion, plugins=ticketkit.Plugins(), **data
    )
    for round in imp:
        if round.index == 1:
            held = weights(ours.module)
            assert all(torch.equal(held[n], start[n].masked_fill(~bits, 0)) for n, bits in round.mask.items())
            assert round.mask.kept * 2 == round.mask.total
        round.log(**of.train(lambda _: None))
    mask = imp.tickets[1].mask
    assert all(not weights(ours.module)[name][~bits].any() for name, bits in mask.items())
    assert mask.aliases == {"model.decoder.embed_tokens.weight": ("proj_out.weight",)}  # tied: one mask, counted once
    assert not any("embed_positions" in name for name in mask)


# The library's door


def test_the_door_leaves_no_stub_behind() -> None:
    module = sys.modules.get("torchaudio")
    assert module is None or module.__doc__ != "Stands in for a torchaudio that does not load."


def test_without_transformers_the_command_that_installs_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ticketkit.DataError, match=r"transformers is not installed.*pip install 'transformers>=4\.57'"):
        library.transformers()


def test_checking_a_config_waits_for_no_heavy_package() -> None:
    script = (
        f"import sys; sys.path.insert(0, {str(PROJECT)!r})\n"
        "import ticketkit_whisper.plugin\nprint(*{'torch', 'transformers', 'numpy'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""
