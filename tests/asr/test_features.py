import json
import pickle
from dataclasses import asdict, replace

import pytest
import soundfile
import torch
from hypothesis import given
from hypothesis import strategies as st

from ticketkit import ConfigError, DataError
from ticketkit_asr.backbones.options import FeatureOptions
from ticketkit_asr.features.extraction import (
    FeatureExtractor,
    FeatureStatistics,
    centred_by_bin,
    fitted,
    measured,
    standardised,
)
from ticketkit_asr.sound.audio import resample
from ticketkit_asr.torchaudio_shim import torchaudio

PAPER = FeatureExtractor(FeatureOptions(), 16_000)
MEL = FeatureExtractor(FeatureOptions(kind="log_mel"), 8_000)
CONFORMER = FeatureExtractor(FeatureOptions(kind="log_mel", mels=80, window_ms=25, n_fft=512), 16_000)
CENTRED = FeatureExtractor(FeatureOptions(kind="log_mel", centre="corpus"), 8_000)


def noise(samples: int) -> torch.Tensor:
    return torch.randn(samples, generator=torch.Generator().manual_seed(0))


def test_paper_features_equal_log1p_of_torch_stft():
    wave = noise(16_000)
    stft = torch.stft(wave, 320, 160, 320, torch.hamming_window(320), return_complex=True).abs()
    torch.testing.assert_close(PAPER(wave), standardised(stft.log1p().T))


def test_mel_features_equal_the_logarithm_of_mel_weighted_magnitudes():
    wave = noise(8_000)
    window = torch.hamming_window(160)
    stft = torch.stft(wave, 256, 80, 160, window, return_complex=True).abs()
    weights = torchaudio().functional.melscale_fbanks(129, 0.0, 4_000.0, 40, 8_000)
    torch.testing.assert_close(MEL(wave), standardised((stft.T @ weights + 1e-2).log()), atol=1e-4, rtol=1e-4)


def test_paper_features_have_161_bins_and_a_frame_every_10_ms():
    assert PAPER.bins == 161
    assert PAPER(noise(16_000)).shape == (101, 161)


@pytest.mark.parametrize("extractor", [PAPER, MEL, CONFORMER])
@pytest.mark.parametrize("samples", [400, 799, 800, 801, 12_345])
def test_frames_are_predicted_from_samples(extractor, samples):
    assert extractor(noise(samples)).shape == (extractor.frames(samples), extractor.bins)


@pytest.mark.parametrize("extractor", [PAPER, MEL])
def test_features_have_mean_zero_deviation_one_and_ignore_loudness(extractor):
    features = extractor(noise(8_000))
    assert features.mean().item() == pytest.approx(0, abs=1e-4)
    assert features.std().item() == pytest.approx(1, abs=1e-3)


def test_centring_by_bin_cancels_what_a_microphone_adds_to_each_bin():
    options = FeatureOptions(kind="log_mel", centre="bin")
    features = FeatureExtractor(options, 8_000)(noise(8_000))
    assert features.mean(0).abs().max() < 1e-4
    assert features.square().mean().sqrt().item() == pytest.approx(1, abs=1e-3)
    torch.testing.assert_close(centred_by_bin(features + torch.arange(40.0)), features)


def test_silence_gives_finite_features():
    assert torch.equal(MEL(torch.zeros(4_000)), torch.zeros(51, 40))


def test_too_short_a_waveform_is_refused_with_the_length_needed():
    assert PAPER(noise(161)).shape == (2, 161)
    with pytest.raises(DataError, match=r"160 samples are too few for features; at least 161"):
        PAPER(noise(160))


@pytest.mark.parametrize(("rate", "mels"), [(8_000, 40), (16_000, 40), (16_000, 80)])
def test_no_mel_band_is_empty(rate, mels):
    # torchaudio warns of empty bands, and warnings are errors here.
    assert FeatureExtractor(FeatureOptions(kind="log_mel", mels=mels), rate)(noise(rate)).isfinite().all()


def test_the_conformer_hears_80_bands_of_25_ms_in_an_fft_of_512():
    options = CONFORMER.options
    assert (options.window(16_000), options.hop(16_000), options.fft(16_000), CONFORMER.bins) == (400, 160, 512, 80)


def test_an_fft_longer_than_the_window_interpolates_the_same_spectrum():
    options = FeatureOptions(n_fft=640)
    assert (options.fft(16_000), options.bins(16_000)) == (640, 321)
    wave = noise(4_000)
    double, single = FeatureExtractor(options, 16_000).spectra(wave), PAPER.spectra(wave)
    torch.testing.assert_close(double[2:-2, ::2], single[2:-2], atol=1e-4, rtol=1e-4)


def test_an_fft_shorter_than_the_window_is_refused():
    with pytest.raises(ConfigError, match=r"n_fft 256 is shorter than a window of 20 ms at 16000 Hz.* 320 samples"):
        FeatureOptions(n_fft=256).fft(16_000)
    assert FeatureOptions(n_fft=320).fft(16_000) == FeatureOptions().fft(16_000)


def test_without_new_settings_the_features_are_what_they_were():
    wave = noise(8_000)
    for extractor in (PAPER, MEL, replace(MEL, options=FeatureOptions(kind="log_mel", centre="bin"))):
        spectra = extractor.spectra(wave)
        expected = standardised(spectra - spectra.mean(0) if extractor.options.centre == "bin" else spectra)
        assert torch.equal(extractor(wave), expected)


@given(lengths=st.lists(st.integers(1, 40), min_size=1, max_size=5), shift=st.floats(-50, 50))
def test_statistics_are_those_of_all_frames_together(lengths, shift):
    random = torch.Generator().manual_seed(len(lengths))
    spectra = [shift + torch.randn(length, 4, generator=random) for length in lengths]
    statistics, everything = measured(iter(spectra)), torch.cat(spectra).double()
    torch.testing.assert_close(torch.tensor(statistics.mean, dtype=torch.float64), everything.mean(0))
    deviation = everything.std(0, correction=0).clamp_min(1e-5)
    torch.testing.assert_close(torch.tensor(statistics.deviation, dtype=torch.float64), deviation, atol=1e-6, rtol=1e-6)
    assert measured(reversed(spectra)).mean == pytest.approx(statistics.mean, abs=1e-9)


def test_corpus_statistics_centre_and_scale_each_bin_over_all_utterances():
    waves = [scale * noise(8_000) for scale in (0.1, 1.0, 3.0)]
    extractor = fitted(CENTRED, waves)
    features = torch.cat([extractor(wave) for wave in waves]).double()
    assert features.mean(0).abs().max() < 1e-5
    assert (features.std(0, correction=0) - 1).abs().max() < 1e-5
    assert extractor(waves[0]).mean() < extractor(waves[2]).mean() - 1


def test_a_bin_that_never_changes_becomes_zero():
    spectra = torch.tensor([[-4.6, 1.0], [-4.6, 2.0]])
    assert torch.equal(measured([spectra])(spectra)[:, 0], torch.zeros(2))


def test_features_that_need_statistics_are_refused_without_them():
    assert not CENTRED.is_fitted
    with pytest.raises(ConfigError, match="need its statistics; measure them on the train split"):
        CENTRED(noise(4_000))
    with pytest.raises(DataError, match="at least one utterance"):
        fitted(CENTRED, [])


def test_an_extractor_that_needs_no_statistics_is_left_as_it_is():
    assert fitted(PAPER, [noise(10)]) is PAPER
    extractor = fitted(CENTRED, [noise(4_000)])
    assert fitted(extractor, [noise(10)]) is extractor


def test_statistics_that_do_not_fit_are_refused():
    statistics = FeatureStatistics(mean=(0.0,) * 40, deviation=(1.0,) * 39)
    with pytest.raises(ConfigError, match="of 40 means and 39 deviations; the features have 40 bins"):
        replace(CENTRED, statistics=statistics)
    with pytest.raises(ConfigError, match="features centred by utterance take no statistics"):
        replace(MEL, statistics=statistics)


def test_a_fitted_extractor_travels_and_its_statistics_are_json():
    extractor = fitted(CENTRED, [noise(4_000)])
    assert pickle.loads(pickle.dumps(extractor)) == extractor
    assert hash(extractor) != hash(CENTRED)
    facts = json.loads(json.dumps(asdict(extractor.statistics)))
    assert FeatureStatistics(tuple(facts["mean"]), tuple(facts["deviation"])) == extractor.statistics


@pytest.mark.parametrize("name", ["librivox", "ljspeech"])
@pytest.mark.parametrize("extractor", [PAPER, CONFORMER, MEL], ids=["paper", "conformer", "small"])
def test_features_of_real_speech_equal_torchaudio_s(real_data, name, extractor):
    path = min((real_data / name).rglob("*.wav"))
    samples, recorded_at = soundfile.read(path, dtype="float32")
    wave = resample(torch.from_numpy(samples), source=recorded_at, target=extractor.sample_rate)
    options, rate = extractor.options, extractor.sample_rate
    functional, transforms = torchaudio().functional, torchaudio().transforms
    window, hop, fft = options.window(rate), options.hop(rate), options.fft(rate)
    power = functional.spectrogram(wave, 0, torch.hamming_window(window), fft, hop, window, power=2.0, normalized=False)
    if options.kind == "log_spectrogram":
        expected = power.sqrt().log1p()
    else:
        mels = transforms.MelScale(options.mels, rate, 0.0, rate / 2, fft // 2 + 1)
        expected = (mels(power.sqrt()) + 1e-2).log()
    torch.testing.assert_close(extractor.spectra(wave), expected.T, atol=1e-4, rtol=1e-4)
