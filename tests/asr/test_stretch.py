import numpy as np
import pytest
import soundfile
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from ticketkit_asr.corpora.stretch import SLACK_SECONDS, Stretch
from ticketkit_asr.sound.files import Fault, FaultyAudioError

RATE = 16_000
SECONDS = 5
KINDS = {
    "wav": ("WAV", "PCM_16", 0.0),
    "flac": ("FLAC", "PCM_16", 0.0),
    "sph": ("NIST", "PCM_16", 0.0),
    "ogg": ("OGG", "VORBIS", 1e-6),
    "opus": ("OGG", "OPUS", 4e-3),  # the decoder takes a while to forget where it started
    "mp3": ("MP3", "MPEG_LAYER_III", 1e-6),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The same seconds of noise in every format, and all of each as it decodes."""
    folder = tmp_path_factory.mktemp("stretches")
    wave = 0.1 * np.random.default_rng(0).standard_normal(SECONDS * RATE)
    for kind, (form, subtype, _) in KINDS.items():
        soundfile.write(folder / f"a.{kind}", wave, RATE, format=form, subtype=subtype)
    return folder


@pytest.fixture(scope="module")
def constant(tmp_path_factory):
    """A second of half the full scale at half the rate."""
    path = tmp_path_factory.mktemp("constant") / "a.wav"
    soundfile.write(path, np.full(RATE // 2, 0.5), RATE // 2)
    return path


def stretch(path, **changes):
    fields = {"start": 0.0, "samples": SECONDS * RATE, "sample_rate": RATE}
    return Stretch(str(path), **{**fields, **changes})


def fault_of(audio):
    with pytest.raises(FaultyAudioError) as raised:
        audio.read()
    assert audio.path in str(raised.value)
    return raised.value.fault


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=20, deadline=None)
@given(first=st.integers(0, SECONDS * RATE - 1), length=st.integers(1, SECONDS * RATE))
@example(first=0, length=SECONDS * RATE)
@example(first=SECONDS * RATE - 1, length=1)
@example(first=SECONDS * RATE - 5_000, length=1_000)  # within the last page of Vorbis
def test_a_stretch_is_what_the_whole_file_has_there(folder, kind, first, length):
    length = min(length, SECONDS * RATE - first)
    whole, _ = soundfile.read(folder / f"a.{kind}", dtype="float32")
    part = stretch(folder / f"a.{kind}", start=first / RATE, samples=length).read()
    assert part.dtype == np.float32
    assert len(part) == length
    assert np.abs(part - whole[first : first + length]).max() <= KINDS[kind][2]


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    source=st.sampled_from([8_000, 11_025, 11_127, 22_050, 44_100, 48_000, 15_999]),
    target=st.sampled_from([8_000, 16_000]),
    frames=st.integers(1, 3_000),
)
def test_it_reads_as_many_samples_as_it_says_whatever_the_rates(tmp_path, source, target, frames):
    soundfile.write(tmp_path / "a.wav", np.full(frames, 0.5), source)
    samples = -(-frames * target // source)
    assert len(stretch(tmp_path / "a.wav", samples=samples, sample_rate=target).read()) == samples


@pytest.mark.parametrize("subtype", ["VORBIS", "OPUS"])
def test_a_stretch_of_a_quiet_ogg_file_with_a_long_last_page_is_exact(tmp_path, subtype):
    quiet = 1e-4 * np.random.default_rng(1).standard_normal(12 * RATE)
    quiet[-RATE:] *= 1000
    soundfile.write(tmp_path / "a.ogg", quiet, RATE, format="OGG", subtype=subtype)
    whole, _ = soundfile.read(tmp_path / "a.ogg", dtype="float32")
    for first in range(4 * RATE, 12 * RATE, 7_777):
        part = stretch(tmp_path / "a.ogg", start=first / RATE, samples=100).read()
        assert np.abs(part - whole[first : first + 100]).max() <= (0 if subtype == "VORBIS" else 4e-3)


@given(st.integers(1, 400))
def test_a_stretch_at_a_higher_rate_is_filled_with_sound_to_its_last_sample(constant, samples):
    assert stretch(constant, start=0.1, samples=samples).read().all()


def test_another_rate_is_resampled_and_keeps_its_pitch(tmp_path):
    time = np.arange(44_100) / 44_100
    soundfile.write(tmp_path / "a.wav", 0.5 * np.sin(2 * np.pi * 440 * time), 44_100)
    wave = stretch(tmp_path / "a.wav", samples=RATE).read()
    assert np.abs(np.fft.rfft(wave)).argmax() == 440
    assert abs(wave[1000:-1000]).max() == pytest.approx(0.5, abs=0.01)


def test_channels_are_refused_chosen_or_mixed(tmp_path):
    left, right = np.full(RATE, 0.25), np.full(RATE, -0.5)
    soundfile.write(tmp_path / "stereo.wav", np.stack([left, right], axis=1), RATE)
    soundfile.write(tmp_path / "mono.wav", left, RATE)

    def read(name, channel):
        return set(stretch(tmp_path / name, samples=RATE, channel=channel).read().tolist())

    assert read("stereo.wav", 0) == {0.25}
    assert read("stereo.wav", 1) == {-0.5}
    assert read("stereo.wav", "mix") == {-0.125}
    assert read("mono.wav", None) == read("mono.wav", 0) == read("mono.wav", "mix") == {0.25}
    for name, channel in {"stereo.wav": None, "mono.wav": 1}.items():
        assert fault_of(stretch(tmp_path / name, samples=RATE, channel=channel)) == Fault.CHANNELS


def test_a_stretch_that_ends_a_little_after_its_file_is_filled_with_zeros(tmp_path):
    soundfile.write(tmp_path / "a.wav", np.full(RATE, 0.5), RATE)
    slack = round(SLACK_SECONDS * RATE)
    wave = stretch(tmp_path / "a.wav", samples=RATE + slack).read()
    assert wave[:RATE].min() == 0.5
    assert not wave[RATE:].any()
    assert len(wave) == RATE + slack
    assert fault_of(stretch(tmp_path / "a.wav", samples=RATE + slack + 1)) == Fault.BEYOND


@pytest.mark.parametrize("start", [1.0, 1.05, 5.0])
def test_a_stretch_that_starts_after_its_file_is_refused(tmp_path, start):
    soundfile.write(tmp_path / "a.wav", np.full(RATE, 0.5), RATE)
    with pytest.raises(FaultyAudioError, match=rf"goes on to {start + 0.05:.3f} s"):
        stretch(tmp_path / "a.wav", start=start, samples=800).read()


def test_a_cut_file_is_refused_even_where_the_stretch_is_there(folder, tmp_path):
    for kind in ("wav", "sph", "mp3", "ogg"):
        content = (folder / f"a.{kind}").read_bytes()
        (tmp_path / f"a.{kind}").write_bytes(content[: round(0.9 * len(content))])
        assert fault_of(stretch(tmp_path / f"a.{kind}", samples=100)) == Fault.CUT


def test_an_mp3_cut_between_frames_shows_by_the_stated_length(folder, tmp_path):
    content = (folder / "a.mp3").read_bytes()
    untold = content[content.index(b"\xff\xf3", 1) :]  # without the frame that states the number of frames
    half = untold.index(b"\xff\xf3", len(untold) // 2)
    (tmp_path / "a.mp3").write_bytes(untold[:half])
    with pytest.raises(FaultyAudioError, match=r"cut short|shorter than said|read whole"):
        stretch(tmp_path / "a.mp3").read()


def test_an_mp3_that_is_damaged_and_cut_shows_by_what_is_missing(folder, tmp_path):
    content = bytearray((folder / "a.mp3").read_bytes())
    third = len(content) // 3
    content[third : third + 300] = 300 * b"\x55"  # its frames cannot be counted beyond
    (tmp_path / "a.mp3").write_bytes(content[: 2 * third])
    assert fault_of(stretch(tmp_path / "a.mp3")) == Fault.CUT


def test_nan_counts_only_within_the_stretch(tmp_path):
    wave = np.full(RATE, 0.5, np.float32)
    wave[100] = np.nan
    soundfile.write(tmp_path / "a.wav", wave, RATE, subtype="FLOAT")
    assert stretch(tmp_path / "a.wav", start=101 / RATE, samples=50).read().tolist() == [0.5] * 50
    assert fault_of(stretch(tmp_path / "a.wav", samples=200)) == Fault.NOT_FINITE


def test_a_missing_file_is_named_when_read_and_when_fingerprinted(tmp_path):
    audio = stretch(tmp_path / "missing.wav")
    assert fault_of(audio) == Fault.MISSING
    with pytest.raises(FaultyAudioError, match=r"missing\.wav"):
        audio.fingerprint()


def test_the_fingerprint_tells_where_the_sound_is_and_which_version_of_the_file(tmp_path):
    path = tmp_path / "a.wav"
    soundfile.write(path, np.zeros(100), RATE)
    kinds = [{}, {"start": 0.5}, {"samples": 7}, {"sample_rate": 8_000}, {"channel": 0}, {"file_digest": "ab"}]
    prints = {stretch(path, **changes).fingerprint() for changes in kinds}
    recorded = stretch(path, file_digest="ab").fingerprint()
    soundfile.write(path, np.zeros(101), RATE)
    assert len({*prints, stretch(path).fingerprint()}) == len(kinds) + 1
    path.unlink()
    assert stretch(path, file_digest="ab").fingerprint() == recorded


def test_real_speech_starts_with_known_samples(real_data):
    path = real_data / "librispeech" / "LibriSpeech" / "test-clean" / "1089" / "134686" / "1089-134686-0000.flac"
    if not path.is_file():
        pytest.skip(f"no {path}")
    wave = stretch(path, samples=166_960).read()
    assert (wave[:5] * 32768).tolist() == [11, 10, 12, 16, 18]
    assert np.array_equal(stretch(path, start=1.5, samples=1000).read(), wave[24_000:25_000])


def test_real_files_of_every_kind_are_read_at_one_rate(real_data):
    seconds = {
        "sphere/chan3.sph": 230_108 / 11_025,
        "sphere/example3.sph": 46_242 / 16_000,
        "ljspeech/wavs/LJ001-0002.wav": 41_885 / 22_050,
        "fleurs/fleurs-en-005.ogg": 11.42,
        "commonvoice/ja/clips/common_voice_ja_24511055.mp3": 6.516,
    }
    for name, length in seconds.items():
        if not (real_data / name).is_file():
            pytest.skip(f"no {real_data / name}")
        samples = -int(-length * RATE // 1)
        wave = stretch(real_data / name, samples=samples).read()
        assert len(wave) == samples
        assert abs(wave).max() > 0.01
        assert abs(wave[: samples - round(SLACK_SECONDS * RATE)]).max() < 1.01
