import pickle
import time
import wave as wav
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from ticketkit import DataError
from ticketkit_asr.backbones.cnn_lstm import build_cnn_lstm
from ticketkit_asr.corpora.corpus import InMemory, SpeechCorpus, Utterance
from ticketkit_asr.corpora.stretch import Stretch
from ticketkit_asr.features.hearing import collate
from ticketkit_asr.sound.options import BabbleOptions, CorruptionOptions, SpeedOptions
from ticketkit_asr.training.examples import Example, Fault, learn_statistics, open_examples
from ticketkit_asr.training.loading import Loader, Waiting, packed, unpacked
from ticketkit_asr.training.options import SpecAugmentOptions, TrainerOptions


@pytest.fixture
def bundle(tiny):
    return build_cnn_lstm(options=tiny)


def utterance(text, seconds=1.0, rate=8_000, name="u", speaker="s"):
    wave = np.random.default_rng(len(name)).standard_normal(round(seconds * rate)).astype(np.float32)
    return Utterance(id=name, audio=InMemory(wave), text=text, speaker=speaker)


def corpus_of(*utterances, rate=8_000):
    return SpeechCorpus("made", rate, {"train": list(utterances), "dev": list(utterances), "test": list(utterances)})


def examples_of(corpus, bundle, split="dev", **options):
    return open_examples(corpus, split, bundle, TrainerOptions(**options), seed=3)


def test_an_example_holds_the_bundles_features_and_labels(bundle):
    said = utterance("a b")
    example = examples_of(corpus_of(said), bundle)[0][0, None]
    assert torch.equal(example.features, bundle.features(torch.from_numpy(said.audio.read())))
    assert (example.id, example.target.tolist(), example.text) == ("u", [2, 28, 3], "a b")


def test_a_corpus_at_another_rate_is_resampled_to_the_bundles(bundle):
    examples, _ = examples_of(corpus_of(utterance("A", rate=22_050), rate=22_050), bundle)
    assert examples.frames == [bundle.extractor.frames(8_000)]
    assert len(examples[0, None].features) == examples.frames[0]


def test_what_the_alphabet_lacks_is_reported_and_stays_in_the_text(bundle, caplog):
    example = examples_of(corpus_of(utterance("É7A")), bundle)[0][0, None]
    assert "{'7': 1, 'É': 1}" in caplog.text
    assert (example.target.tolist(), example.text) == ([2], "É7A")


def test_texts_too_long_for_their_audio_are_refused_by_name_or_left_out_by_option(bundle, caplog):
    said = corpus_of(utterance("A", name="fits"), utterance("A" * 30, seconds=0.2, name="too-short"))
    with pytest.raises(DataError, match=r"(?s)1 of 2 utterances.*too-short: 30 labels do not fit 11 output frames"):
        examples_of(said, bundle)
    examples, faults = examples_of(said, bundle, on_bad_utterance="skip")
    assert [u.id for u in examples.utterances] == ["fits"]
    assert faults == [Fault("too-short", "30 labels do not fit 11 output frames")]
    assert "without 1 of 2 utterances" in caplog.text


def test_sound_too_short_for_features_is_refused_or_left_out_too(bundle):
    said = corpus_of(utterance("A", name="fits"), utterance("A", seconds=0.001, name="click"))
    with pytest.raises(DataError, match="click: 8 samples are too few"):
        examples_of(said, bundle)
    assert [u.id for u in examples_of(said, bundle, on_bad_utterance="skip")[0].utterances] == ["fits"]
    with pytest.raises(DataError, match="2 of 2 utterances"):
        examples_of(corpus_of(*[utterance("A", seconds=0.001, name=n) for n in "ab"]), bundle, on_bad_utterance="skip")


def test_features_from_disk_are_those_in_memory(bundle, tmp_path):
    said = corpus_of(*[utterance("A", name="u" * n, seconds=0.3 + 0.1 * n) for n in (1, 2, 3)])
    in_memory, _ = examples_of(said, bundle)
    on_disk, _ = examples_of(said, bundle, features="disk", cache_dir=tmp_path)
    for index in range(3):
        assert torch.equal(in_memory[index, None].features, on_disk[index, None].features)
    assert len(list(tmp_path.glob("features-dev-*.safetensors"))) == 1


def test_augmentation_depends_on_seed_epoch_and_utterance_and_not_on_the_order_or_the_generator(bundle):
    said = corpus_of(*[utterance("A", name="u" * n) for n in (1, 2, 3)])
    augment = SpecAugmentOptions(frequency_width=6, time_width=30)
    examples, _ = examples_of(said, bundle, split="train", augment=augment)
    first = [examples[i, 1].features for i in range(3)]
    torch.rand(5)
    again = [examples[i, 1].features for i in (2, 1, 0)][::-1]
    assert all(map(torch.equal, first, again))
    assert not torch.equal(first[0], examples[0, 2].features)
    assert not torch.equal((first[0] == 0), (first[1] == 0))
    plain, _ = examples_of(said, bundle, split="dev", augment=augment)
    assert torch.equal(plain[0, 1].features, bundle.features(torch.from_numpy(said.split("dev")[0].audio.read())))


def test_what_is_heard_changes_with_the_epoch_in_training_and_never_in_dev(bundle):
    said = corpus_of(*[utterance("A", name="u" * n, speaker=f"s{n}") for n in (1, 2, 3)])
    options = {
        "corruption": CorruptionOptions(babble=BabbleOptions(talkers=1, snr_db=(5.0,))),
        "speed": SpeedOptions(factors=(0.8, 1.25)),
    }
    train, _ = examples_of(said, bundle, split="train", **options)
    heard = {tuple(train[0, epoch].features.shape) for epoch in range(8)}
    assert len(heard) == 2
    assert torch.equal(train[0, 4].features, train[0, 4].features)
    dev, _ = examples_of(said, bundle, **options)
    clean, _ = examples_of(said, bundle)
    assert torch.equal(dev[0, 1].features, dev[0, None].features)
    assert not torch.equal(dev[0, None].features, clean[0, None].features)


def test_batches_are_the_same_from_any_number_of_workers_and_leave_the_generator_alone(bundle):
    said = corpus_of(*[utterance("A", name="u" * n) for n in range(1, 7)])
    examples, _ = examples_of(said, bundle, split="train", augment=SpecAugmentOptions(frequency_width=6))
    plan = [[(0, 1), (3, 1)], [(5, 1)], [(1, 1), (2, 1), (4, 1)]]
    state = torch.get_rng_state()
    alone, helped = (Loader(examples, workers=workers) for workers in (0, 1))
    next(alone.batches(plan))
    next(helped.batches(plan))
    for batches in (plan[::-1], plan):  # after one that was given up, and after one that was finished
        first, second = list(alone.batches(batches)), list(helped.batches(batches))
        expected = [[said.split("train")[index].id for index, _ in batch] for batch in batches]
        assert [[example.id for example in batch] for batch in first] == expected
        for one, other in zip(first, second, strict=True):
            for a, b in zip(one, other, strict=True):
                assert torch.equal(a.features, b.features)
                assert torch.equal(a.target, b.target)
                assert (a.id, a.text) == (b.id, b.text)
    assert torch.equal(torch.get_rng_state(), state)


def test_a_packed_batch_is_unpacked_as_it_was_faults_and_empty_texts_included():
    one, empty = torch.rand(3, 2), torch.rand(1, 2)
    batch = [
        Fault("bad", "noisy"),
        Example("u", one, torch.tensor([4, 5]), "AB"),
        Example("v", empty, torch.zeros(0, dtype=torch.int64), ""),
    ]
    fault, *examples = unpacked(packed(batch))
    assert fault == batch[0]
    for example, whole in zip(examples, batch[1:], strict=True):
        assert torch.equal(example.features, whole.features)
        assert torch.equal(example.target, whole.target)
        assert example.target.dtype == torch.int64
        assert (example.id, example.text) == (whole.id, whole.text)
    assert unpacked(packed(batch[:1])) == batch[:1]


def test_waiting_is_told_as_a_share_of_the_time_and_the_first_item_apart():
    def slow():
        for seconds in (0.5, 0.15, 0.15):
            time.sleep(seconds)
            yield [Fault("u", str(seconds))]

    waiting = Waiting(slow())
    next(waiting)
    assert waiting.first >= 0.5
    assert waiting.share == 0.0
    next(waiting)
    time.sleep(0.1)
    assert 0 < waiting.share < 1
    waiting.begin()
    next(waiting)
    assert waiting.share > 0.5


def test_a_file_that_goes_bad_later_is_a_fault_and_no_crash(bundle, tmp_path):
    path = tmp_path / "a.wav"
    soundfile.write(path, np.random.default_rng(0).uniform(-0.5, 0.5, 8_000), 8_000, subtype="PCM_16")
    with wav.open(str(path)) as file:
        assert file.getnframes() == 8_000
    audio = Stretch(path=str(path), start=0.0, samples=8_000, sample_rate=8_000)
    said = corpus_of(Utterance("from-file", audio, "A", "s"), utterance("B", name="fine"))
    examples, _ = examples_of(said, bundle, split="train", speed=SpeedOptions())
    assert isinstance(examples[0, 1], Example)
    path.write_bytes(path.read_bytes()[:100])
    fault = examples[0, 1]
    assert isinstance(fault, Fault)
    assert fault.id == "from-file"
    assert "a.wav" in fault.reason


def test_examples_travel_to_another_process(bundle, tmp_path):
    said = corpus_of(utterance("A"))
    for options in ({}, {"features": "disk", "cache_dir": tmp_path}):
        examples, _ = examples_of(said, bundle, **options)
        assert torch.equal(pickle.loads(pickle.dumps(examples))[0, None].features, examples[0, None].features)


def test_a_network_learns_the_statistics_of_train_and_carries_them(tiny):
    options = tiny.model_copy(update={"features": tiny.features.model_copy(update={"centre": "corpus"})})
    said = corpus_of(*[utterance("A", name="u" * n) for n in (1, 2, 3)])
    first, second = build_cnn_lstm(options=options), build_cnn_lstm(options=options)
    learn_statistics(said, first, seed=0)
    features = torch.cat([first.features(torch.from_numpy(u.audio.read())) for u in said.split("train")])
    torch.testing.assert_close(features.mean(0), torch.zeros(12), atol=1e-4, rtol=0)
    torch.testing.assert_close(features.std(0, correction=0), torch.ones(12), atol=1e-3, rtol=0)
    second.module.load_state_dict(first.module.state_dict())
    waveform = torch.from_numpy(said.split("dev")[0].audio.read())
    assert torch.equal(first.features(waveform), second.features(waveform))


def test_collating_pads_with_zeros_and_keeps_the_lengths():
    features, lengths = collate([torch.ones(2, 3), torch.ones(4, 3)])
    assert features.shape == (2, 4, 3)
    assert lengths.tolist() == [2, 4]
    assert features.sum(dim=(1, 2)).tolist() == [6, 12]


def test_the_cache_folder_is_used_only_when_asked_for(bundle, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    examples_of(corpus_of(utterance("A")), bundle)
    assert list(Path(tmp_path).iterdir()) == []
