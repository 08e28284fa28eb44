"""Long recordings: windows that overlap and lose nothing."""

from dataclasses import replace

import numpy as np
import pytest
import soundfile
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ticketkit import ConfigError
from ticketkit_asr.backbones.cnn_lstm import build_cnn_lstm
from ticketkit_asr.decoding.recognition import Written, longest_pause, transcribe_file, windows
from ticketkit_asr.errors import BadAudioError
from ticketkit_asr.text.alphabet import Characters

RATE = 8_000


class Hears(torch.nn.Module):
    """Writes A where the lower half of the spectrum is loud, B where the upper is; knows nothing of other frames."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def forward(self, features, lengths):
        half = features.shape[2] // 2
        low, high = features[:, :, :half].amax(2), features[:, :, half:].amax(2)
        quiet = features.mean((1, 2), keepdim=True)[:, :, 0] + 1.5
        return torch.stack([quiet.expand_as(low), low, high], 2), lengths

    def output_lengths(self, frames):
        return frames


@pytest.fixture
def bundle(tiny):
    return replace(build_cnn_lstm(options=tiny), module=Hears(), alphabet=Characters("AB"))


def said(text, tones, *, rate=RATE):
    """Return a tone for each letter with a silence behind it, 0.4 s together."""
    gap = np.zeros(round(0.2 * rate), np.float32)
    parts = [np.concatenate([tones({"A": 300.0, "B": 3000.0}[letter], seconds=0.2, rate=rate), gap]) for letter in text]
    return np.concatenate([gap, *parts])


@pytest.mark.parametrize(("window", "overlap"), [(100.0, 4.0), (5.0, 1.2), (3.0, 1.0), (2.0, 0.9)])
def test_what_is_written_does_not_depend_on_the_windows(window, overlap, bundle, tones, tmp_path):
    text = "".join("AB"[i] for i in np.random.default_rng(3).integers(0, 2, 60))
    soundfile.write(tmp_path / "long.wav", said(text, tones), RATE)
    assert transcribe_file(bundle, tmp_path / "long.wav", window_seconds=window, overlap_seconds=overlap) == text


@pytest.mark.parametrize(
    ("name", "rate", "channels", "options"),
    [
        ("a.wav", 8_000, 1, {"subtype": "PCM_16"}),
        ("a.flac", 16_000, 1, {}),
        ("a.flac", 44_100, 2, {}),
        ("a.mp3", 16_000, 1, {}),
        ("a.ogg", 22_050, 1, {}),
        ("a.opus", 16_000, 1, {"format": "OGG", "subtype": "OPUS"}),
        ("a.sph", 16_000, 1, {"format": "NIST", "subtype": "PCM_16"}),
    ],
)
def test_every_kind_of_file_is_heard(name, rate, channels, options, bundle, tones, tmp_path):
    samples = said("ABBA", tones, rate=rate)
    soundfile.write(tmp_path / name, np.stack([samples] * channels, 1), rate, **options)
    assert transcribe_file(bundle, tmp_path / name) == "ABBA"


@settings(max_examples=40)
@given(st.integers(1, 3000), st.integers(20, 900), st.floats(0, 0.49))
def test_windows_hold_every_sample_in_order_and_share_what_they_should(tmp_path_factory, samples, size, part):
    path = tmp_path_factory.mktemp("sound") / "a.wav"
    waveform = np.arange(samples, dtype=np.float32) / 4096
    soundfile.write(path, waveform, 100, subtype="FLOAT")
    overlap = int(size * part) / 100
    end = None
    for seconds, heard, rate in windows(path, size / 100, overlap):
        start = round(seconds * 100)
        assert rate == 100
        assert start == (0 if end is None else end - round(overlap * 100))
        np.testing.assert_array_equal(heard, waveform[start : start + len(heard)])
        assert len(heard) == size or start + len(heard) == samples
        end = start + len(heard)
    assert end == samples


def test_the_seam_lies_where_nobody_hears_anything():
    before = [Written(10.2, 1), Written(11.45, 2), Written(12.1, 1), Written(12.9, 2)]
    after = [Written(10.4, 3), Written(11.5, 2), Written(12.15, 1), Written(12.95, 2), Written(20.0, 3)]
    assert longest_pause(before, after, 10.0, 14.0) == pytest.approx((12.15 + 12.9) / 2)
    assert longest_pause([], [], 10.0, 14.0) == 12.0


def test_windows_that_make_no_sense_and_files_that_are_none_are_refused(bundle, tmp_path):
    with pytest.raises(ConfigError, match="below half of the window of 4 s, not 2"):
        transcribe_file(bundle, tmp_path / "a.wav", window_seconds=4, overlap_seconds=2)
    for window in (0.0, -1.0, np.inf, np.nan):
        with pytest.raises(ConfigError, match="window_seconds must be a finite number above 0"):
            transcribe_file(bundle, tmp_path / "a.wav", window_seconds=window, overlap_seconds=0.0)
    with pytest.raises(BadAudioError, match="no such file"):
        transcribe_file(bundle, tmp_path / "a.wav")


def test_a_recording_too_short_to_be_heard_is_named(bundle, tmp_path):
    soundfile.write(tmp_path / "click.wav", np.zeros(1, np.float32), RATE)
    with pytest.raises(BadAudioError, match=r"click\.wav cannot be transcribed: 1 samples are too few"):
        transcribe_file(bundle, tmp_path / "click.wav")


def test_real_recordings_of_every_format_are_read_to_their_end(bundle, real_data):
    paths = [
        next((real_data / "librispeech").rglob("*.flac")),
        next((real_data / "commonvoice" / "en" / "clips").glob("*.mp3")),
        real_data / "sphere" / "chan3.sph",
        next((real_data / "fleurs").rglob("*.o*")),
        next((real_data / "an4").rglob("*.wav")),
    ]
    for path in paths:
        cut = transcribe_file(bundle, path, window_seconds=2.0, overlap_seconds=0.5)
        assert set(cut) <= {"A", "B"}
        assert cut
