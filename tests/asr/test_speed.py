import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ticketkit_asr.sound.options import SpeedOptions
from ticketkit_asr.sound.speed import at_speed, speed_factor
from ticketkit_asr.torchaudio_shim import torchaudio

RATE = 8_000


@given(
    samples=st.integers(1, 5000),
    factor=st.sampled_from([0.9, 1.0, 1.1, 0.5, 1.25, 0.97]),
    rate=st.sampled_from([8_000, 16_000, 22_050]),
)
def test_lengths_shrink_with_speed(samples, factor, rate):
    wave = torch.randn(samples)
    played = at_speed(wave, factor, sample_rate=rate)
    assert len(played) == pytest.approx(samples / factor, rel=1e-4, abs=1)


@pytest.mark.parametrize("factor", [0.9, 1.1])
def test_speed_is_what_torchaudio_calls_speed(factor):
    wave = torch.randn(4000)
    theirs, _ = torchaudio().transforms.Speed(RATE, factor)(wave)
    assert torch.equal(at_speed(wave, factor, sample_rate=RATE), theirs)


def test_faster_is_higher():
    time = torch.arange(RATE) / RATE
    played = at_speed(torch.sin(2 * torch.pi * 1000 * time), 1.1, sample_rate=RATE)
    peak = torch.fft.rfft(played).abs().argmax() * RATE / len(played)
    assert peak.item() == pytest.approx(1100, abs=2)


def test_the_original_speed_is_the_waveform_itself():
    wave = torch.randn(10)
    assert at_speed(wave, 1.0, sample_rate=RATE) is wave


def test_speeds_are_equally_frequent_and_depend_on_seed_epoch_and_utterance_alone():
    def drawn(seed: int, epoch: int) -> list[float]:
        return [speed_factor(SpeedOptions(), utterance_id=str(number), seed=seed, epoch=epoch) for number in range(900)]

    once = drawn(0, 1)
    for factor in (0.9, 1.0, 1.1):
        assert abs(once.count(factor) - 300) < 60
    assert drawn(0, 1) == once
    assert drawn(0, 2) != once
    assert drawn(1, 1) != once
    assert speed_factor(SpeedOptions(), utterance_id="7", seed=0, epoch=1) == once[7]
