import numpy as np
import pytest

from ticketkit_asr.corpora.cache import cached_recordings, default_cache_dir, digest

RECORDINGS = [np.arange(5, dtype=np.int16), np.array([-7, 7], dtype=np.int16)]


def refuse():
    raise RuntimeError("made again")


def values(recordings):
    return [recording.tolist() for recording in recordings]


def test_the_same_recipe_is_made_once(tmp_path):
    path = tmp_path / "new" / "folder" / "a.safetensors"
    assert values(cached_recordings(path, {"n": 1}, lambda: RECORDINGS)) == values(RECORDINGS)
    assert values(cached_recordings(path, {"n": 1}, refuse)) == values(RECORDINGS)
    assert list(path.parent.iterdir()) == [path]


def test_equal_recordings_give_equal_files(tmp_path):
    for name in "ab":
        cached_recordings(tmp_path / name, {"n": 1}, lambda: RECORDINGS)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_another_recipe_is_made_again(tmp_path, caplog):
    cached_recordings(tmp_path / "a", {"n": 1}, lambda: RECORDINGS)
    assert values(cached_recordings(tmp_path / "a", {"n": 2}, lambda: RECORDINGS[:1])) == values(RECORDINGS[:1])
    assert "another recipe" in caplog.text


@pytest.mark.parametrize("keep", [0, 7, 60, -1])
def test_a_truncated_file_is_made_again(tmp_path, caplog, keep):
    path = tmp_path / "a"
    cached_recordings(path, {"n": 1}, lambda: RECORDINGS)
    path.write_bytes(path.read_bytes()[:keep])
    assert values(cached_recordings(path, {"n": 1}, lambda: RECORDINGS)) == values(RECORDINGS)
    assert "making it again" in caplog.text
    assert values(cached_recordings(path, {"n": 1}, refuse)) == values(RECORDINGS)


def test_flipped_samples_are_noticed(tmp_path):
    path = tmp_path / "a"
    cached_recordings(path, {"n": 1}, lambda: RECORDINGS)
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(RuntimeError, match="made again"):
        cached_recordings(path, {"n": 1}, refuse)


def test_a_failed_making_leaves_no_file(tmp_path):
    with pytest.raises(RuntimeError):
        cached_recordings(tmp_path / "a", {"n": 1}, refuse)
    assert not list(tmp_path.iterdir())


def test_recipes_are_equal_whatever_the_order_of_their_keys():
    assert digest({"a": 1, "b": 2}) == digest({"b": 2, "a": 1}) != digest({"a": 1, "b": 3})


def test_the_cache_is_in_the_users_cache_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_cache_dir() == tmp_path / "ticketkit"
