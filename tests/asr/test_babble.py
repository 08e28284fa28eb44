import math
from random import Random

import numpy as np
import pytest
import torch

from ticketkit import DataError
from ticketkit_asr.corpora.corpus import InMemory, Utterance
from ticketkit_asr.sound.babble import talkers_of
from ticketkit_asr.sound.noise import power
from ticketkit_asr.sound.options import BabbleOptions

RATE = 8_000
SPEAKERS = ("ann", "bob", "cy", "di")


def spoken(speaker: str, number: int) -> Utterance:
    """A tone whose pitch tells the speaker, louder with each number."""
    time = np.arange(RATE + 100 * number) / RATE
    pitch = 500 * (1 + SPEAKERS.index(speaker))
    wave = 0.1 * (1 + number) * np.sin(2 * np.pi * pitch * time)
    return Utterance(f"{speaker}-{number}", InMemory(wave.astype(np.float32)), "A", speaker)


UTTERANCES = [spoken(speaker, number) for number in range(3) for speaker in SPEAKERS]
SPEECH = torch.randn(2 * RATE, generator=torch.Generator().manual_seed(0))


def babble(talkers: int, seed: int, utterance_id: str = "ann-1", utterances=UTTERANCES, rate: int = RATE, **options):
    chosen = BabbleOptions.model_validate({"talkers": talkers, "snr_db": [0], **options})
    source = talkers_of(utterances, chosen, recorded_at=RATE, sample_rate=rate)
    return source.drawn_for(SPEECH, Random(seed), utterance_id=utterance_id)


def heard(wave: torch.Tensor, rate: int = RATE) -> dict[str, float]:
    """Return the share that each speaker's pitch has of the energy, for those that are heard."""
    spectrum = torch.fft.rfft(wave).abs().square()
    at = [round(500 * (1 + number) * len(wave) / rate) for number in range(len(SPEAKERS))]
    shares = {s: float(spectrum[i - 20 : i + 21].sum() / spectrum.sum()) for s, i in zip(SPEAKERS, at, strict=True)}
    return {speaker: share for speaker, share in shares.items() if share > 0.02}


@pytest.mark.parametrize("talkers", [1, 2, 3])
def test_babble_is_of_so_many_others_equally_loud_and_never_of_the_speaker(talkers):
    everybody = set()
    for seed in range(12):
        shares = heard(babble(talkers, seed))
        assert len(shares) == talkers
        assert "ann" not in shares
        for share in shares.values():
            assert share == pytest.approx(1 / talkers, abs=0.05)
        everybody |= shares.keys()
    assert everybody == {"bob", "cy", "di"}


def test_babble_is_at_the_ratio_asked_for():
    for snr_db in (-5, 0, 15):
        wave = babble(3, 0, snr_db=[snr_db])
        assert 10 * math.log10(power(SPEECH) / power(wave)) == pytest.approx(snr_db, abs=1e-5)


def test_the_same_babble_is_heard_at_every_ratio():
    torch.testing.assert_close(babble(3, 7, snr_db=[0]), 10 * babble(3, 7, snr_db=[20]))


def test_babble_does_not_depend_on_the_order_of_the_corpus():
    assert torch.equal(babble(2, 3), babble(2, 3, utterances=UTTERANCES[::-1]))
    assert not torch.equal(babble(2, 3), babble(2, 4))


def test_babble_is_resampled_to_the_rate_of_the_speech():
    voices = [heard(babble(1, seed, rate=16_000), rate=16_000) for seed in range(12)]
    assert {tuple(voice) for voice in voices} == {("bob",), ("cy",), ("di",)}


def test_too_few_speakers_are_refused():
    with pytest.raises(DataError, match="babble of 4 talkers needs 5 speakers in the split; there are 4: ann, bob, cy"):
        babble(4, 0)
    with pytest.raises(DataError, match="there are 0: none"):
        babble(1, 0, utterances=[])


def test_an_utterance_from_elsewhere_is_refused_since_its_speaker_is_unknown():
    with pytest.raises(DataError, match="no utterance 'eve-0' in the split"):
        babble(1, 0, utterance_id="eve-0")


def test_silent_utterances_are_passed_over_and_counted():
    silent = [Utterance(f"mute-{s}", InMemory(np.zeros(RATE, np.float32)), "A", s) for s in SPEAKERS]
    source = talkers_of(UTTERANCES + silent, BabbleOptions(talkers=3, snr_db=(0,)), recorded_at=RATE, sample_rate=RATE)
    for seed in range(10):
        assert len(heard(source.drawn_for(SPEECH, Random(seed), utterance_id="ann-1"))) == 3
    assert source.passed_over.counts.keys() <= {"mute-bob", "mute-cy", "mute-di"}
    assert source.passed_over.counts
