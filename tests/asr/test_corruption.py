import json
import math
import subprocess
import sys
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from ticketkit import ConfigError, DataError
from ticketkit_asr.corpora.corpus import InMemory, SpeechCorpus, Utterance
from ticketkit_asr.sound.corruption import Corruption, corrupted, open_corruption
from ticketkit_asr.sound.noise import active_power, power
from ticketkit_asr.sound.options import CorruptionOptions

RATE = 8_000


def wave(seed: int, samples: int = 2400) -> np.ndarray:
    return (0.1 * np.random.default_rng(seed).standard_normal(samples)).astype(np.float32)


def utterance(split: str, number: int) -> Utterance:
    audio = InMemory(wave(number + 100 * len(split), 2000 + 50 * number))
    return Utterance(id=f"{split}-{number}", audio=audio, text="A", speaker=f"s{number % 3}")


CORPUS = SpeechCorpus(
    name="noise",
    sample_rate=RATE,
    splits={split: [utterance(split, number) for number in range(9)] for split in ("train", "dev", "test")},
)


@pytest.fixture(scope="module")
def sounds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four types of noise and four rooms."""
    root = tmp_path_factory.mktemp("sounds")
    for number, name in enumerate(("fan", "rain", "tram", "wind")):
        (root / "noise" / name).mkdir(parents=True)
        soundfile.write(root / "noise" / name / "a.wav", wave(number, 4000), RATE, subtype="FLOAT")
        (root / "rooms").mkdir(exist_ok=True)
        response = wave(50 + number, 300) * np.exp(-np.arange(300, dtype=np.float32) / 40)
        response[number * 20] = 1.0
        soundfile.write(root / "rooms" / f"{name}.wav", response, RATE, subtype="FLOAT")
    return root


def options(sounds: Path, *parts: str, **noise: object) -> CorruptionOptions:
    everything = {
        "noise": {"root": sounds / "noise", "snr_db": [10], **noise},
        "babble": {"talkers": 2, "snr_db": [15]},
        "room": {"root": sounds / "rooms"},
    }
    return CorruptionOptions.model_validate({part: everything[part] for part in parts})


def opened(sounds: Path, *parts: str, split: str = "train", **noise: object) -> Corruption:
    corruption = open_corruption(options(sounds, *parts, **noise), CORPUS, split=split, sample_rate=RATE)
    assert corruption is not None
    return corruption


ALL = ("noise", "babble", "room")


def of(corruption: Corruption | None, number: int = 0, *, seed: int = 0, epoch: int | None = None) -> torch.Tensor:
    chosen = CORPUS.split("train" if corruption is None else corruption.split)[number]
    speech = torch.from_numpy(chosen.audio.read())
    return corrupted(speech, corruption, utterance_id=chosen.id, seed=seed, epoch=epoch)


def test_no_corruption_returns_the_waveform_itself():
    speech = torch.from_numpy(wave(0))
    for nothing in (None, CorruptionOptions()):
        corruption = open_corruption(nothing, CORPUS, split="train", sample_rate=RATE)
        assert corrupted(speech, corruption, utterance_id="train-0", seed=0) is speech


@pytest.mark.parametrize("parts", [("noise",), ("babble",), ("room",), ALL])
def test_the_given_waveform_stays_and_the_length_too(sounds, parts):
    chosen = CORPUS.split("train")[0]
    speech = torch.from_numpy(chosen.audio.read().copy())
    heard = corrupted(speech, opened(sounds, *parts), utterance_id=chosen.id, seed=0)
    assert len(heard) == len(speech)
    assert not torch.equal(heard, speech)
    assert torch.equal(speech, torch.from_numpy(chosen.audio.read()))


def test_what_is_heard_depends_on_seed_epoch_and_utterance_alone(sounds):
    corruption = opened(sounds, *ALL)
    forwards = [of(corruption, number, epoch=1) for number in range(9)]
    backwards = [of(opened(sounds, *ALL), number, epoch=1) for number in reversed(range(9))]
    assert all(map(torch.equal, forwards, reversed(backwards)))
    for other in (of(corruption, epoch=2), of(corruption, seed=1, epoch=1), of(corruption)):
        assert not torch.equal(other, forwards[0])
    assert torch.equal(of(corruption), of(corruption))


def test_utterances_that_sound_alike_hear_other_things(sounds):
    corruption, speech = opened(sounds, *ALL), torch.from_numpy(wave(0))
    heard = [corrupted(speech, corruption, utterance_id=f"train-{number}", seed=0).sum().item() for number in (0, 3, 6)]
    assert len(set(heard)) == 3


def heard_digest(sounds: Path) -> str:
    corruption = opened(sounds, *ALL)
    return sha256(b"".join(of(corruption, number, epoch=3).numpy().tobytes() for number in (5, 2))).hexdigest()


def test_another_process_hears_the_same_bits(sounds):
    program = "import runpy, sys; here = runpy.run_path(sys.argv[1]); "
    program += "print(here['heard_digest'](here['Path'](sys.argv[2])))"
    command = [sys.executable, "-c", program, __file__, sounds]
    finished = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    assert finished.stdout.strip() == heard_digest(sounds)


def ratio(speech: torch.Tensor, heard: torch.Tensor) -> float:
    return 10 * math.log10(power(speech) / power(heard.double() - speech.double()))


def test_noise_has_its_ratio_to_the_speech_in_its_room(sounds):
    for number in range(9):
        in_room = of(opened(sounds, "room"), number)
        assert ratio(in_room, of(opened(sounds, "room", "noise"), number)) == pytest.approx(10, abs=1e-4)
        assert ratio(in_room, of(opened(sounds, "room", "babble"), number)) == pytest.approx(15, abs=1e-4)


def test_parts_draw_apart_so_that_adding_one_leaves_the_others_as_they_were(sounds):
    clean = of(None)
    noise, babble = of(opened(sounds, "noise")) - clean, of(opened(sounds, "babble")) - clean
    torch.testing.assert_close(of(opened(sounds, "noise", "babble")), clean + noise + babble)


def test_one_part_leaves_out_other_utterances_than_another(sounds):
    half = CorruptionOptions.model_validate(
        {
            "noise": {"root": sounds / "noise", "snr_db": [10], "probability": 0.5},
            "babble": {"talkers": 2, "snr_db": [15], "probability": 0.5},
        }
    )
    parts = [half.model_copy(update={left_out: None}) for left_out in ("noise", "babble")]
    one, other = (open_corruption(part, CORPUS, split="train", sample_rate=RATE) for part in parts)
    changed = [
        [not torch.equal(of(part, number, epoch=epoch), of(None, number)) for number in range(9) for epoch in range(5)]
        for part in (one, other)
    ]
    assert {(a, b) for a, b in zip(*changed, strict=True)} == {(a, b) for a in (False, True) for b in (False, True)}


def test_train_and_test_hear_no_type_in_common_and_dev_hears_what_train_does(sounds):
    types = {split: opened(sounds, *ALL, split=split).facts() for split in ("train", "dev", "test")}
    for part in ("noise", "room"):
        train, dev, test = (set(facts[part]["types"]) for facts in types.values())
        assert train == dev
        assert (len(train), len(test)) == (3, 1)
        assert not train & test


def test_a_probability_is_the_share_of_the_utterances_that_are_changed(sounds):
    half, always = (opened(sounds, "noise", probability=probability) for probability in (0.5, 1.0))
    changed = 0
    for epoch in range(60):
        for number in range(9):
            heard = of(half, number, epoch=epoch)
            if torch.equal(heard, of(None, number)):
                continue
            changed += 1
            assert torch.equal(heard, of(always, number, epoch=epoch))
    assert abs(changed - 270) < 60


def test_nothing_is_clipped(sounds):
    loud = torch.full((2000,), 0.9)
    heard = corrupted(loud, opened(sounds, "noise", snr_db=[0]), utterance_id="train-0", seed=0)
    assert heard.max() > 1


def test_a_silent_utterance_is_named(sounds):
    with pytest.raises(DataError, match=r"utterance 'train-0': the speech has a power of 0\.0"):
        corrupted(torch.zeros(500), opened(sounds, "noise"), utterance_id="train-0", seed=0)


def test_what_is_missing_is_refused_when_opened(sounds, tmp_path):
    with pytest.raises(DataError, match=r"noise: the folder .* is missing"):
        opened(tmp_path / "nowhere", "noise")
    with pytest.raises(ConfigError, match="no split 'eval'"):
        opened(sounds, "babble", split="eval")


def test_facts_are_json_and_do_not_name_folders(sounds):
    corruption = opened(sounds, *ALL)
    facts = corruption.facts()
    assert json.loads(json.dumps(facts)) == facts
    assert str(sounds) not in json.dumps(facts)
    assert opened(sounds, *ALL, snr_db=[5]).facts() != facts
    assert opened(sounds, *ALL, split="test").facts() != facts


def test_silence_that_was_passed_over_is_counted(sounds, tmp_path):
    (tmp_path / "noise" / "hush").mkdir(parents=True)
    (tmp_path / "noise" / "fan").mkdir()
    soundfile.write(tmp_path / "noise" / "hush" / "h.wav", np.zeros(3000, np.float32), RATE)
    soundfile.write(tmp_path / "noise" / "fan" / "f.wav", wave(1), RATE)
    corruption = opened(tmp_path, "noise", test_share=0)
    for number in range(9):
        assert ratio(of(None, number), of(corruption, number)) == pytest.approx(10, abs=1e-4)
    assert corruption.passed_over.keys() == {"hush/h.wav"}
    assert corruption.passed_over["hush/h.wav"] >= 2


def test_real_speech_in_real_rooms_and_noise_keeps_its_ratio(real_data):
    clean = sorted((real_data / "noisy_pairs" / "clean").glob("*.wav"))
    test = [Utterance(path.stem, InMemory(soundfile.read(path, dtype="float32")[0]), "A", "p287") for path in clean]
    corpus = SpeechCorpus("pairs", 16_000, {"test": test})
    room = {"room": {"root": real_data / "rir"}}
    noise = {"noise": {"root": real_data / "noise", "snr_db": [0, 5], "level": "active"}}
    for one in test:
        in_room, in_noise = (
            corrupted(
                torch.from_numpy(one.audio.read()),
                open_corruption(CorruptionOptions.model_validate(chosen), corpus, split="test", sample_rate=16_000),
                utterance_id=one.id,
                seed=0,
            )
            for chosen in (room, {**room, **noise})
        )
        active = active_power(in_room, sample_rate=16_000)
        measured = 10 * math.log10(active / power(in_noise.double() - in_room.double()))
        assert min(abs(measured - 0), abs(measured - 5)) < 1e-4
