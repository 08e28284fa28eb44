import numpy as np
import pytest
import soundfile
from hypothesis import example, given
from hypothesis import strategies as st

from ticketkit_asr.sound.mpeg import facts_of, mpeg_facts


def encoded(path, *, seconds=0.5, rate=16_000, channels=1):
    """Return the content of an MP3 file of noise, its first frame stating how many follow."""
    noise = 0.1 * np.random.default_rng(0).standard_normal((round(seconds * rate), channels))
    soundfile.write(path, noise, rate, format="MP3")
    return path.read_bytes()


@pytest.fixture(scope="module")
def content(tmp_path_factory):
    return encoded(tmp_path_factory.mktemp("mpeg") / "noise.mp3")


@pytest.fixture(scope="module")
def untold(content):
    """The same sound without the frame that states how many follow."""
    start = content.index(b"\xff\xf3", 1)
    return content[start:]


@pytest.mark.parametrize(("rate", "per_frame"), [(8_000, 576), (16_000, 576), (44_100, 1152), (48_000, 1152)])
@pytest.mark.parametrize("channels", [1, 2])
def test_a_whole_file_has_the_frames_that_it_states(tmp_path, rate, per_frame, channels):
    facts = facts_of(encoded(tmp_path / "a.mp3", rate=rate, channels=channels))
    assert facts.promised == facts.frames
    assert facts.samples == per_frame * facts.frames
    assert 0.5 <= facts.samples / rate <= 0.5 + 4 * per_frame / rate  # padding of the encoder and of the last frame
    assert not facts.cut


def test_wherever_a_file_is_cut_it_shows(content):
    assert not facts_of(content).cut
    assert all(facts_of(content[:length]).cut for length in range(200, len(content)))


def test_where_nothing_is_stated_a_cut_within_a_frame_shows(untold):
    whole = facts_of(untold)
    assert (whole.promised, whole.cut) == (None, False)
    cuts = [facts_of(untold[:length]) for length in range(4, len(untold))]
    between_frames = [facts for facts in cuts if not facts.cut]
    assert len(between_frames) == whole.frames - 1
    assert sorted({facts.frames for facts in between_frames}) == list(range(1, whole.frames))


@pytest.mark.parametrize("end", [b"", b"TAG" + 125 * b" ", b"APETAGEX" + 24 * b"\1", 10 * b"\0"])
@pytest.mark.parametrize("start", [b"", b"ID3\x04\x00\x00\x00\x00\x01\x02" + 130 * b"x"])
def test_tags_around_the_frames_change_nothing(content, start, end):
    assert facts_of(start + content + end) == facts_of(content)


def test_what_is_not_frames_from_first_to_last_is_left_unjudged(content):
    assert facts_of(b"RIFF" + content) is None
    assert facts_of(content + b"what is this?") is None
    middle = len(content) // 2
    assert facts_of(content[:middle] + 300 * b"\x55" + content[middle + 300 :]) is None


@given(st.binary(max_size=40), st.integers(0, 2**21 - 1))
@example(b"", 0)
def test_no_bytes_are_too_odd_to_look_at(noise, header):
    facts = facts_of((0x7FF << 21 | header).to_bytes(4, "big") + noise)
    assert facts is None or facts.frames >= 0


def test_an_empty_file_holds_no_frames(tmp_path):
    (tmp_path / "empty.mp3").write_bytes(b"")
    assert mpeg_facts(tmp_path / "empty.mp3") is None


def test_a_file_that_changed_is_looked_at_again(tmp_path, content):
    path = tmp_path / "a.mp3"
    path.write_bytes(content)
    assert not mpeg_facts(path).cut
    path.write_bytes(content[:-10])
    assert mpeg_facts(path).cut


def test_real_clips_are_whole_and_as_long_as_they_decode(real_data):
    clips = sorted((real_data / "commonvoice").glob("*/clips/*.mp3"))
    if not clips:
        pytest.skip(f"no clips in {real_data}/commonvoice")
    for clip in clips:
        facts = mpeg_facts(clip)
        assert (facts.promised, facts.cut) == (None, False)
        assert facts.samples == len(soundfile.read(clip)[0])
