import json
import re

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ticketkit import DataError
from ticketkit_asr.corpora.manifest import Line, line_bytes, parse_line, read_manifest, write_manifest

names = st.text(min_size=1, max_size=20)
seconds = st.floats(0, 1e9)
lines = st.builds(
    Line,
    id=names,
    path=names,
    text=st.text(max_size=40),
    speaker=names,
    start=seconds,
    duration=st.none() | seconds.filter(bool),
    channel=st.none() | st.just("mix") | st.integers(0, 7),
    lang=st.none() | st.text(max_size=5),
    sha256=st.none() | st.text("0123456789abcdef", min_size=64, max_size=64),
)


@settings(max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.lists(lines, min_size=1, max_size=4, unique_by=lambda line: line.id))
def test_what_is_written_is_read_and_what_is_read_is_written(tmp_path, content):
    path = tmp_path / "a.jsonl"
    write_manifest(path, content)
    assert read_manifest(path) == content
    again = tmp_path / "b.jsonl"
    write_manifest(again, read_manifest(path))
    assert again.read_bytes() == path.read_bytes()


def test_a_line_has_one_spelling():
    line = Line(id="a", path="ä.wav", text="É", speaker="s", duration=1.5)
    assert line_bytes(line).decode() == (
        '{"duration":1.5,"id":"a","path":"ä.wav","speaker":"s","start":0.0,"text":"É"}\n'
    )
    scrambled = json.dumps({"text": "É", "duration": 1.5, "speaker": "s", "path": "ä.wav", "id": "a"}, indent=1)
    assert parse_line(scrambled) == line


def test_every_bad_line_is_named_with_its_number_and_all_its_faults(tmp_path):
    good = {"id": "a", "path": "a.wav", "text": "x"}
    faulty = {
        2: (b"not json", r"not JSON \(Expecting value at character 1\)$"),
        3: (b"[1]", "a JSON object is needed, list came"),
        4: (b'{"id": "\xff"}', "not UTF-8"),
        6: (b'{"path": "a.wav"}', "id is missing, text is missing"),
        7: (json.dumps({**good, "id": "b", "durration": 1}).encode(), "durration is unknown"),
        8: (json.dumps({**good, "id": "c", "duration": 0, "start": -1}).encode(), "start: .*got -1, duration: .*got 0"),
        9: (json.dumps({**good, "id": "d", "duration": float("nan")}).encode(), "duration: .*finite number, got nan"),
        10: (json.dumps({**good, "id": "e", "channel": -1}).encode(), "channel: .*got -1"),
        11: (json.dumps({**good, "id": "f", "text": 5}).encode(), "text: .*valid string, got 5"),
        12: (json.dumps({**good, "id": "g", "duration": "5"}).encode(), "duration: .*got '5'"),
        13: (json.dumps({**good, "id": "", "speaker": ""}).encode(), "id: .*got '', speaker: .*got ''"),
        14: (json.dumps(good).encode(), "id 'a' was used in line 1"),
        15: (json.dumps({"audio_filepath": "a.wav", "text": "x"}).encode(), "duration is missing"),
        16: (json.dumps({**good, "id": "h", "sha256": "AB"}).encode(), "sha256: .*got 'AB'"),
    }
    content = [json.dumps(good).encode()] + [faulty.get(number, (b"",))[0] for number in range(2, 17)]
    (tmp_path / "a.jsonl").write_bytes(b"\n".join(content))
    with pytest.raises(DataError) as raised:
        read_manifest(tmp_path / "a.jsonl")
    head, *faults = re.split(r"(?:: |; )(?=line \d)", str(raised.value))
    assert head == f"manifest {tmp_path / 'a.jsonl'} has {len(faulty)} bad lines"
    for (number, (_, fault)), said in zip(faulty.items(), faults, strict=True):
        assert re.match(f"line {number}: {fault}", said), said


def test_lines_as_nemo_writes_them_get_ids_of_path_and_offset(tmp_path):
    nemo = [
        {"audio_filepath": "a.wav", "duration": 2, "text": "one", "pred_text": "won", "speaker": 7},
        {"audio_filepath": "a.wav", "offset": 2.5, "duration": 1.25, "text": "two", "lang": "en"},
        {"audio_filepath": "b.wav", "offset": 0, "duration": 1, "text": "three", "speaker": "ann"},
    ]
    (tmp_path / "nemo.json").write_text("\n\n".join(map(json.dumps, nemo)))
    assert read_manifest(tmp_path / "nemo.json") == [
        Line(id="a.wav", path="a.wav", text="one", speaker="7", duration=2.0),
        Line(id="a.wav@2.5", path="a.wav", text="two", speaker="unknown", start=2.5, duration=1.25, lang="en"),
        Line(id="b.wav", path="b.wav", text="three", speaker="ann", duration=1.0),
    ]


def test_manifests_that_are_missing_or_empty_are_named(tmp_path):
    (tmp_path / "empty.jsonl").write_text("\n \n")
    with pytest.raises(DataError, match=r"empty\.jsonl holds no utterance"):
        read_manifest(tmp_path / "empty.jsonl")
    with pytest.raises(DataError, match=r"missing\.jsonl cannot be read"):
        read_manifest(tmp_path / "missing.jsonl")


def test_a_write_that_fails_leaves_the_file_as_it_was(tmp_path):
    path = tmp_path / "a.jsonl"
    write_manifest(path, [Line(id="a", path="a.wav", text="x")])
    before = path.read_bytes()

    def failing():
        yield Line(id="b", path="b.wav", text="y")
        raise RuntimeError("the source ran dry")

    with pytest.raises(RuntimeError):
        write_manifest(path, failing())
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]
