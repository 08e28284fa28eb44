import os

import numpy as np
import pytest
import soundfile

from ticketkit_asr.errors import BadAudioError
from ticketkit_asr.sound.audio import read_audio
from ticketkit_asr.sound.files import Fault, FaultyAudioError, SoundFacts, opened, sound_facts

RATE = 16_000
FORMATS = {
    "wav": ("WAV", "PCM_16"),
    "float.wav": ("WAV", "FLOAT"),
    "flac": ("FLAC", "PCM_16"),
    "sph": ("NIST", "PCM_16"),
    "ogg": ("OGG", "VORBIS"),
    "opus": ("OGG", "OPUS"),
    "mp3": ("MP3", "MPEG_LAYER_III"),
}
OGG_CUT = [Fault.CUT, Fault.UNREADABLE]


def write(path, wave, *, rate=RATE, kind="wav"):
    form, subtype = FORMATS[kind]
    soundfile.write(path, wave, rate, format=form, subtype=subtype)
    return path


def noise(seconds=1.0, channels=1):
    wave = 0.1 * np.random.default_rng(0).standard_normal((round(seconds * RATE), channels))
    return wave.astype(np.float32)


def fault_of(path):
    with pytest.raises(FaultyAudioError) as raised:
        read_audio(path, sample_rate=RATE)
    assert str(path) in str(raised.value)
    return raised.value.fault


@pytest.mark.parametrize("kind", FORMATS)
def test_every_format_tells_its_facts_and_reads_whole(tmp_path, kind):
    path = write(tmp_path / f"a.{kind}", noise(), kind=kind)
    assert sound_facts(path) == SoundFacts(RATE, 1, RATE)
    assert len(read_audio(path, sample_rate=RATE)) == RATE


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("kept", [0.3, 0.5, 0.9, 0.99, "all but a byte"])
def test_a_file_that_is_cut_short_is_refused(tmp_path, kind, kept):
    content = write(tmp_path / f"whole.{kind}", noise(), kind=kind).read_bytes()
    path = tmp_path / f"cut.{kind}"
    path.write_bytes(content[:-1] if kept == "all but a byte" else content[: round(kept * len(content))])
    # The decoder of FLAC stumbles at the end, those of Ogg without a first page of sound; all others would say nothing.
    assert fault_of(path) in {"flac": [Fault.UNREADABLE], "ogg": OGG_CUT, "opus": OGG_CUT}.get(kind, [Fault.CUT])


def test_each_fault_has_its_kind(tmp_path):
    (tmp_path / "folder.wav").mkdir()
    (tmp_path / "nothing.wav").write_bytes(b"")
    (tmp_path / "text.wav").write_bytes(b"this is no sound")
    assert fault_of(tmp_path / "missing.wav") == Fault.MISSING
    assert fault_of(tmp_path / "folder.wav") == Fault.UNREADABLE
    os.mkfifo(tmp_path / "pipe.wav")  # reading it would wait for ever
    assert fault_of(tmp_path / "pipe.wav") == Fault.UNREADABLE
    assert fault_of(tmp_path / "nothing.wav") == Fault.EMPTY
    assert fault_of(tmp_path / "text.wav") == Fault.UNREADABLE
    assert fault_of(write(tmp_path / "empty.wav", noise(0))) == Fault.EMPTY
    assert fault_of(write(tmp_path / "stereo.wav", noise(channels=2))) == Fault.CHANNELS
    assert fault_of(write(tmp_path / "fast.wav", noise(), rate=44_100)) == Fault.RATE


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_samples_that_are_not_finite_are_refused_with_their_place(tmp_path, value):
    wave = noise()
    wave[7] = wave[9] = value
    path = write(tmp_path / "a.wav", wave, kind="float.wav")
    with pytest.raises(FaultyAudioError, match=r"2 samples that are NaN or infinite; the first at 7"):
        read_audio(path, sample_rate=RATE)


def test_samples_beyond_one_are_samples(tmp_path):
    path = write(tmp_path / "loud.wav", 30 * noise(), kind="float.wav")
    assert abs(read_audio(path, sample_rate=RATE)).max() > 1


def test_damage_within_a_flac_file_is_noticed(tmp_path):
    path = write(tmp_path / "a.flac", noise(), kind="flac")
    content = bytearray(path.read_bytes())
    content[9000:9100] = 100 * b"\x55"
    path.write_bytes(content)
    assert fault_of(path) == Fault.UNREADABLE


def test_a_streamed_flac_file_of_unknown_length_is_refused_with_the_reason(tmp_path):
    path = write(tmp_path / "a.flac", noise(), kind="flac")
    content = bytearray(path.read_bytes())
    content[21] &= 0xF0  # the 36 bits of STREAMINFO that count the samples
    content[22:26] = bytes(4)
    path.write_bytes(content)
    with pytest.raises(FaultyAudioError, match="does not tell how long it is"):
        sound_facts(path)


def test_an_mp3_file_whose_length_would_be_guessed_too_low_is_refused(tmp_path):
    wave = noise(4)
    wave[RATE:] = 0  # a loud start in big frames, then silence in small ones
    content = write(tmp_path / "told.mp3", wave, kind="mp3").read_bytes()
    untold = tmp_path / "untold.mp3"
    untold.write_bytes(content[content.index(b"\xff\xf3", 1) :])
    with soundfile.SoundFile(untold) as file:
        guessed = file.frames
    assert guessed < 4 * RATE
    with pytest.raises(FaultyAudioError, match=rf"only {guessed} of its \d+ samples would be read"):
        read_audio(untold, sample_rate=RATE)


def test_sphere_files_packed_with_shorten_are_refused(tmp_path):
    path = write(tmp_path / "a.sph", noise(), kind="sph")
    header, sound = path.read_bytes()[:1024], path.read_bytes()[1024:]
    packed = header.replace(b"sample_coding -s3 pcm\n", b"sample_coding -s26 pcm,embedded-shorten-v2.00\n")[:1024]
    path.write_bytes(packed + sound)
    assert fault_of(path) == Fault.UNREADABLE


def test_errors_while_an_opened_file_is_read_name_the_file(tmp_path):
    path = write(tmp_path / "a.flac", noise(), kind="flac")
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(BadAudioError, match=r"a\.flac cannot be read as audio"), opened(path) as file:
        file.read()


def test_a_file_that_may_not_be_read_is_refused(tmp_path):
    path = write(tmp_path / "a.wav", noise())
    path.chmod(0)
    if os.access(path, os.R_OK):
        pytest.skip("this user may read every file")
    assert fault_of(path) == Fault.UNREADABLE


@pytest.mark.parametrize(
    ("name", "facts"),
    [
        ("sphere/chan3.sph", SoundFacts(11_025, 1, 230_108)),
        ("sphere/example3.sph", SoundFacts(16_000, 1, 46_242)),
        ("sphere/stereo.sph", SoundFacts(8_000, 2, 8_000)),
        ("commonvoice/en/clips/common_voice_en_22058264.mp3", SoundFacts(48_000, 1, 171 * 1152)),
        ("fleurs/fleurs-en-005.ogg", SoundFacts(16_000, 1, 182_720)),
        ("ljspeech/wavs/LJ001-0002.wav", SoundFacts(22_050, 1, 41_885)),
    ],
)
def test_real_files_tell_their_facts(real_data, name, facts):
    if not (real_data / name).is_file():
        pytest.skip(f"no {real_data / name}")
    assert sound_facts(real_data / name) == facts
