from fractions import Fraction

import numpy as np
import pytest
import soundfile
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from ticketkit import DataError
from ticketkit_asr.errors import BadAudioError
from ticketkit_asr.sound.audio import _ratio, _resampler, from_pcm, read_all, read_audio, resample, split_pcm


def test_samples_survive_the_file(tmp_path, tones):
    wave = tones(440.0)
    soundfile.write(tmp_path / "a.wav", wave, 8_000, subtype="FLOAT")
    assert np.array_equal(read_audio(tmp_path / "a.wav", sample_rate=8_000), wave)


def test_every_fault_of_a_file_is_named_with_the_file(tmp_path, tones):
    wave = tones(440.0)
    (tmp_path / "noise.wav").write_bytes(b"this is no sound")
    soundfile.write(tmp_path / "stereo.wav", np.stack([wave, wave], axis=1), 8_000)
    soundfile.write(tmp_path / "fast.wav", wave, 16_000)
    soundfile.write(tmp_path / "empty.wav", wave[:0], 8_000)
    faults = {
        "noise.wav": "cannot be read as audio",
        "missing.wav": "cannot be read as audio",
        "stereo.wav": "has 2 channels",
        "fast.wav": "was recorded at 16000 Hz; the corpus is at 8000 Hz",
        "empty.wav": "holds no samples",
    }
    for name, fault in faults.items():
        with pytest.raises(BadAudioError, match=rf"{name} {fault}"):
            read_audio(tmp_path / name, sample_rate=8_000)


def test_reading_fails_naming_all_bad_files_or_goes_on_without_them(tmp_path, tones):
    soundfile.write(tmp_path / "good.wav", tones(440.0), 8_000)
    paths = [tmp_path / name for name in ("good.wav", "bad.wav", "worse.wav")]
    with pytest.raises(DataError, match=r"2 of 3 sound files.*skip.*bad\.wav.*worse\.wav"):
        read_all(paths, sample_rate=8_000, on_bad_audio="fail")
    waveforms, skipped = read_all(paths, sample_rate=8_000, on_bad_audio="skip")
    assert list(waveforms) == paths[:1]
    assert skipped == (str(paths[1]), str(paths[2]))


def test_resampling_keeps_duration_and_pitch():
    time = torch.arange(22_050) / 22_050
    resampled = resample(torch.sin(2 * torch.pi * 440 * time), source=22_050, target=8_000)
    assert len(resampled) == 8_000
    assert torch.fft.rfft(resampled).abs().argmax() == 440


def test_equal_rates_leave_the_waveform_alone():
    wave = torch.randn(10)
    assert resample(wave, source=8_000, target=8_000) is wave


def test_pcm_becomes_floats_of_the_same_bits():
    assert from_pcm(np.array([-32768, 0, 16384], dtype=np.int16)).tolist() == [-1.0, 0.0, 0.5]


def test_pcm_is_cut_at_the_lengths():
    pieces = split_pcm(np.arange(6, dtype=np.int16), [1, 3, 2])
    assert [piece.tolist() for piece in pieces] == [[0], [1, 2, 3], [4, 5]]


def test_a_wav_file_that_ends_before_its_header_says_is_named(tmp_path):
    path = tmp_path / "whole.wav"
    soundfile.write(path, np.zeros(1000, np.float32), 8000, subtype="PCM_16")
    (tmp_path / "cut.wav").write_bytes(path.read_bytes()[:100])
    with pytest.raises(BadAudioError, match=r"cut\.wav is cut short: its header promises 2000 bytes of sound, 56"):
        read_audio(tmp_path / "cut.wav", sample_rate=8000)
    assert len(read_audio(path, sample_rate=8000)) == 1000


def test_a_streamed_wav_file_of_unknown_length_is_read(tmp_path):
    path = tmp_path / "streamed.wav"
    soundfile.write(path, np.zeros(1000, np.float32), 8000, subtype="PCM_16")
    content = bytearray(path.read_bytes())
    at = content.index(b"data") + 4
    content[at : at + 4] = b"\xff\xff\xff\xff"
    path.write_bytes(content)
    assert len(read_audio(path, sample_rate=8000)) == 1000


@pytest.mark.parametrize(("source", "target"), [(11_127, 16_000), (44_056, 8_000), (7_919, 16_000), (15_999, 16_000)])
def test_odd_rates_are_resampled_in_little_memory_and_keep_duration_and_pitch(source, target):
    time = torch.arange(source) / source
    resampled = resample(torch.sin(2 * torch.pi * 440 * time), source=source, target=target)
    assert abs(len(resampled) - target) <= 1 + target / 10_000
    spectrum = torch.fft.rfft(resampled, n=target).abs()
    assert abs(spectrum.argmax() - 440) <= 1
    assert sum(kernel.numel() for kernel in _resampler(*_ratio(source, target)).buffers()) <= 5_000_000


@given(st.integers(4_000, 200_000), st.integers(8_000, 48_000))
@example(16_000, 8_000)
@example(44_100, 16_000)
def test_ratios_of_rates_are_exact_where_their_terms_are_small_and_near_everywhere(source, target):
    terms = _ratio(source, target)
    exact, taken = Fraction(source, target), Fraction(*terms)
    assert max(terms) <= 2000
    assert taken == exact or max(exact.numerator, exact.denominator) > 2000
    assert abs(taken / exact - 1) < Fraction(1, 1900)
