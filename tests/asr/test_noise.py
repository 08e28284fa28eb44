import math
from collections import Counter
from pathlib import Path
from random import Random

import numpy as np
import pytest
import soundfile
import torch
from hypothesis import given
from hypothesis import strategies as st

from ticketkit import DataError
from ticketkit_asr.errors import BadAudioError
from ticketkit_asr.sound.folder import open_sounds
from ticketkit_asr.sound.noise import (
    Noises,
    PassedOver,
    active_power,
    at_snr,
    looped,
    power,
    stretch_of,
)
from ticketkit_asr.sound.options import NoiseOptions
from ticketkit_asr.torchaudio_shim import torchaudio

RATE = 8_000


def white(samples: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(samples, generator=torch.Generator().manual_seed(seed))


def decibels(speech_power: float, noise: torch.Tensor) -> float:
    return 10 * math.log10(speech_power / power(noise))


@given(
    samples=st.integers(1, 3000),
    snr_db=st.floats(-60, 60),
    speech_scale=st.floats(1e-3, 10),
    noise_scale=st.floats(1e-3, 10),
    seed=st.integers(0, 99),
)
def test_the_measured_ratio_is_the_one_asked_for(samples, snr_db, speech_scale, noise_scale, seed):
    speech, noise = speech_scale * white(samples, seed), noise_scale * white(samples, seed + 100)
    scaled = at_snr(noise, speech, snr_db, sample_rate=RATE)
    assert decibels(power(speech), scaled) == pytest.approx(snr_db, abs=1e-5)
    active = at_snr(noise, speech, snr_db, sample_rate=RATE, level="active")
    assert decibels(active_power(speech, sample_rate=RATE), active) == pytest.approx(snr_db, abs=1e-5)


def test_noise_is_scaled_as_torchaudio_scales_it():
    speech, noise = white(4000), 0.3 * white(4000, 1)
    theirs = torchaudio().functional.add_noise(speech, noise, torch.tensor(7.5))
    torch.testing.assert_close(speech + at_snr(noise, speech, 7.5, sample_rate=RATE), theirs)


def test_scaling_leaves_what_it_is_given_alone():
    speech, noise = white(100), white(100, 1)
    at_snr(noise, speech, 3.0, sample_rate=RATE)
    assert torch.equal(speech, white(100))
    assert torch.equal(noise, white(100, 1))


@pytest.mark.parametrize("silent", ["speech", "noise"])
@pytest.mark.parametrize("level", ["utterance", "active"])
def test_silence_reaches_no_ratio(silent, level):
    waves = {"speech": white(900), "noise": white(900), silent: torch.zeros(900)}
    with pytest.raises(DataError, match=rf"the {silent} has a power of 0.0; no scale reaches an SNR of 5 dB"):
        at_snr(waves["noise"], waves["speech"], 5.0, sample_rate=RATE, level=level)


@pytest.mark.parametrize("level", ["utterance", "active"])
def test_no_samples_count_as_silence(level):
    with pytest.raises(DataError, match="the speech has a power of 0"):
        at_snr(torch.zeros(0), torch.zeros(0), 5.0, sample_rate=RATE, level=level)


def test_noise_of_another_length_is_refused():
    with pytest.raises(DataError, match="noise of 2 samples does not fit speech of 3"):
        at_snr(white(2), white(3), 0.0, sample_rate=RATE)


def test_active_power_does_not_count_silence_and_the_plain_power_does():
    speech = white(4000)  # 20 frames of 25 ms
    padded = torch.cat([torch.zeros(400), speech, 1e-4 * white(3600, 1)])
    assert active_power(padded, sample_rate=RATE) == pytest.approx(power(speech), rel=1e-12)
    assert power(padded) == pytest.approx(power(speech) / 2, rel=1e-6)


@given(samples=st.integers(1, 2000), seed=st.integers(0, 50), scale=st.sampled_from([2.0**-8, 0.5, 4.0]))
def test_active_power_is_at_least_the_power_and_grows_with_the_square_of_the_scale(samples, seed, scale):
    speech = white(samples, seed) * torch.linspace(0, 1, samples + 1)[1:].pow(4)
    active = active_power(speech, sample_rate=RATE)
    assert active >= power(speech) * (1 - 1e-12)
    assert active_power(scale * speech, sample_rate=RATE) == scale**2 * active


def test_frames_40_db_below_the_strongest_are_active_and_weaker_ones_are_not():
    frame = torch.ones(200)
    just_active, too_weak = frame * 10 ** (-39.9 / 20), frame * 10 ** (-40.1 / 20)
    assert active_power(torch.cat([frame, just_active]), sample_rate=RATE) == pytest.approx(0.5, rel=1e-3)
    assert active_power(torch.cat([frame, too_weak]), sample_rate=RATE) == 1.0
    assert active_power(torch.cat([frame, torch.full((50,), 0.5)]), sample_rate=RATE) == pytest.approx(212.5 / 250)


def test_a_long_noise_is_heard_from_a_random_place_on():
    sound = torch.arange(1000.0)
    starts = []
    for seed in range(50):
        stretch = stretch_of(sound, 900, Random(seed), sample_rate=RATE)
        assert torch.equal(stretch, torch.arange(900) + stretch[0])
        starts.append(int(stretch[0]))
    assert min(starts) < 10
    assert 90 < max(starts) <= 100
    assert torch.equal(stretch_of(sound, 1000, Random(0), sample_rate=RATE), sound)
    assert {int(stretch_of(sound[:3], 2, Random(seed), sample_rate=RATE)[0]) for seed in range(9)} == {0, 1}


@given(length=st.integers(1, 60), samples=st.integers(0, 400), start=st.integers(0, 100), fade=st.integers(0, 80))
def test_a_loop_repeats_with_the_period_that_its_overlap_leaves(length, samples, start, fade):
    sound = white(length)
    period = length - min(fade, length // 2)
    once = looped(sound, samples, start=start, fade=fade)
    assert len(once) == samples
    assert torch.equal(once, looped(sound, samples + start, start=0, fade=fade)[start:])
    assert torch.equal(once[period:], once[:-period] if samples > period else once[:0])


@given(length=st.integers(8, 60), fade=st.integers(2, 40))
def test_a_loop_has_no_seam(length, fade):
    # A straight line jumps by its whole height where it is looped without an overlap.
    sound = torch.arange(float(length))
    fade = min(fade, length // 2)
    steps = looped(sound, 5 * length, start=0, fade=fade).diff().abs()
    assert steps.max() <= 3.2 * length / fade
    assert looped(sound, 5 * length, start=0, fade=0).diff().abs().max() == length - 1


def test_an_overlap_keeps_the_power_of_noise():
    sound = white(20_000)
    loop = looped(sound, 20_000 - 8_000, start=0, fade=8_000)
    assert power(loop[:8_000]) == pytest.approx(power(loop[8_000:]), rel=0.1)


def test_outside_its_overlap_a_loop_is_the_sound():
    sound = white(100)
    assert torch.equal(looped(sound, 60, start=20, fade=20), sound[20:80])


def test_silent_draws_are_counted_by_name_and_drawn_again():
    draws = iter([("a", torch.zeros(4)), ("b", torch.full((4,), 1e-6)), ("a", torch.zeros(4)), ("c", torch.ones(4))])
    passed = PassedOver()
    assert torch.equal(passed.first_audible(lambda: next(draws), what="noise"), torch.ones(4))
    assert passed.counts == Counter(a=2, b=1)


def test_nothing_but_silence_is_an_error():
    with pytest.raises(DataError, match="noise: 100 draws gave nothing to hear, the last of them hush"):
        PassedOver().first_audible(lambda: ("hush", torch.zeros(4)), what="noise")


def noises(root: Path, **options: object) -> Noises:
    chosen = NoiseOptions.model_validate({"root": root, "snr_db": [10], "test_share": 0, **options})
    return Noises(chosen, open_sounds(chosen, what="noise", split="train"), RATE)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for number in range(3):
        soundfile.write(tmp_path / f"{number}.wav", 0.1 * white(3000, number).numpy(), RATE, subtype="FLOAT")
    return tmp_path


def test_noise_of_the_right_length_is_drawn_at_one_of_the_ratios(folder):
    source = noises(folder, snr_db=[0, 10, 20])
    measured = set()
    for seed in range(30):
        speech = white(2000 + 100 * seed, 50)
        noise = source.drawn_for(speech, Random(seed))
        assert len(noise) == len(speech)
        ratio = decibels(power(speech), noise)
        assert ratio == pytest.approx(round(ratio), abs=1e-5)
        measured.add(round(ratio))
    assert measured == {0, 10, 20}


def test_the_same_stretch_is_heard_at_every_ratio(folder):
    speech = white(2500, 50)
    for seed in range(10):
        weak = noises(folder, snr_db=[20]).drawn_for(speech, Random(seed))
        strong = noises(folder, snr_db=[0]).drawn_for(speech, Random(seed))
        torch.testing.assert_close(10 * weak, strong)


def test_the_level_of_active_speech_makes_noise_louder_when_speech_pauses(folder):
    speech = torch.cat([white(2000, 50), torch.zeros(2000)])
    plain = noises(folder).drawn_for(speech, Random(0))
    active = noises(folder, level="active").drawn_for(speech, Random(0))
    torch.testing.assert_close(active, math.sqrt(2) * plain)


def test_files_that_fail_later_are_passed_over_only_by_option(folder):
    soundfile.write(folder / "nan.wav", np.full(3000, np.nan, np.float32), RATE, subtype="FLOAT")
    speech = white(2500, 50)
    skipping, failing = noises(folder, on_bad_audio="skip"), noises(folder)
    for seed in range(20):
        assert skipping.drawn_for(speech, Random(seed)).isfinite().all()
    assert sum(skipping.passed_over.counts.values()) > 0
    nan_first = next(seed for seed in range(20) if failing.library.draw(Random(seed)).name == "nan.wav")
    with pytest.raises(BadAudioError, match=r"nan\.wav holds 3000 samples that are NaN"):
        failing.drawn_for(speech, Random(nan_first))


def test_real_noise_is_mixed_at_the_ratio_it_was_recorded_with(real_data):
    """What a published corpus added to its clean speech is scaled away and found again."""
    for clean in sorted((real_data / "noisy_pairs" / "clean").glob("*.wav")):
        speech, noisy = (
            torch.from_numpy(soundfile.read(path, dtype="float32")[0])
            for path in (clean, clean.parents[1] / "noisy" / clean.name)
        )
        noise = noisy - speech
        ratio = decibels(power(speech), noise)
        again = speech + at_snr(0.037 * noise, speech, ratio, sample_rate=16_000)
        torch.testing.assert_close(again, noisy, atol=1e-6, rtol=0)


def test_real_noises_are_drawn_at_the_ratio_asked_for(real_data):
    options = NoiseOptions(root=real_data / "noise", snr_db=(5.0,), test_share=0)
    source = Noises(options, open_sounds(options, what="noise", split="train"), 16_000)
    speech = torch.from_numpy(soundfile.read(real_data / "noisy_pairs/clean/p287_001.wav", dtype="float32")[0])
    for seed in range(40):
        noise = source.drawn_for(speech, Random(seed))
        assert decibels(power(speech), noise) == pytest.approx(5, abs=1e-5)
