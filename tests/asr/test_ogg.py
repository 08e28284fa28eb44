import numpy as np
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st

from ticketkit_asr.sound.ogg import OggFacts, facts_of, ogg_facts


@pytest.fixture(scope="module", params=["VORBIS", "OPUS"])
def content(request, tmp_path_factory):
    path = tmp_path_factory.mktemp("ogg") / "noise.ogg"
    soundfile.write(path, 0.1 * np.random.default_rng(0).standard_normal(24_000), 16_000, request.param, format="OGG")
    return path.read_bytes()


def test_wherever_a_file_is_cut_it_shows(content):
    assert facts_of(content).lacking is None
    assert all(facts_of(content[:length]).lacking for length in range(len(content)))


def test_what_follows_the_last_page_is_not_looked_at(content):
    assert facts_of(content + b"a tag").lacking is None


@given(st.binary(max_size=60))
def test_no_bytes_are_too_odd_to_look_at(noise):
    assert facts_of(noise).lacking
    assert facts_of(b"OggS" + noise).lacking or len(noise) >= 23


def test_a_page_without_segments_may_end_a_stream(content):
    page = b"OggS\0\4" + bytes(21)
    assert facts_of(page).lacking is None
    assert facts_of(page[:-1]).lacking == "its page 1 is not whole"


def test_an_empty_file_lacks_all(tmp_path):
    (tmp_path / "a.ogg").write_bytes(b"")
    assert ogg_facts(tmp_path / "a.ogg").lacking


def test_real_recordings_are_whole(real_data):
    recordings = sorted(real_data.glob("*/*.ogg")) + sorted(real_data.glob("noise/*/*/*.ogg"))
    if not recordings:
        pytest.skip(f"no Ogg files below {real_data}")
    assert {path.name: lacks for path in recordings if (lacks := ogg_facts(path).lacking)} == {}


def test_the_last_page_begins_where_the_one_before_ends():
    def page(flags, position):
        return b"OggS\0" + bytes([flags]) + position.to_bytes(8, "little", signed=True) + bytes(12) + b"\1\3abc"

    pages = page(2, 0) + page(0, 500) + page(0, -1) + page(4, 700)
    assert facts_of(pages) == OggFacts(None, 500)
    assert facts_of(page(6, 700)) == OggFacts(None, 0)


def test_the_positions_of_a_real_encoder_are_samples(content, request):
    rate = 48_000 if request.node.callspec.params["content"] == "OPUS" else 16_000
    assert 0 < facts_of(content).last_page / rate < 24_000 / 16_000
