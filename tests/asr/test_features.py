import pytest
import torch

from ticketkit import DataError
from ticketkit_asr.backbones.options import FeatureOptions
from ticketkit_asr.features import FeatureExtractor, centred_by_bin, standardised
from ticketkit_asr.torchaudio_shim import torchaudio

PAPER = FeatureExtractor(FeatureOptions(), 16_000)
MEL = FeatureExtractor(FeatureOptions(kind="log_mel"), 8_000)


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


@pytest.mark.parametrize("extractor", [PAPER, MEL])
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
