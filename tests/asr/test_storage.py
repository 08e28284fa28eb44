import os
import stat
from pathlib import Path

import pytest

from ticketkit import StorageError
from ticketkit_asr.storage import left_behind, loaded, made_by_one, replacing


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_file_appears_when_it_is_whole(tmp_path):
    path = tmp_path / "new" / "a"
    with replacing(path) as file:
        file.write(b"half")
        file.flush()
        assert not path.exists()
        assert left_behind(path) == list(path.parent.iterdir())
        file.seek(0)
        file.write(b"whole")
    assert contents(path.parent) == {"a": b"whole"}


def test_a_failure_leaves_the_old_file_and_nothing_else(tmp_path):
    (tmp_path / "a").write_bytes(b"old")
    with pytest.raises(ZeroDivisionError), replacing(tmp_path / "a") as file:
        file.write(b"new" * (1 // 0))
    assert contents(tmp_path) == {"a": b"old"}


def test_the_last_of_several_writers_wins(tmp_path):
    with replacing(tmp_path / "a") as first, replacing(tmp_path / "a") as second:
        first.write(b"first")
        second.write(b"second")
    assert contents(tmp_path) == {"a": b"first"}


def test_who_reads_the_old_file_goes_on_reading_it(tmp_path):
    (tmp_path / "a").write_bytes(b"old")
    with (tmp_path / "a").open("rb") as old:
        with replacing(tmp_path / "a") as file:
            file.write(b"new")
        assert old.read() == b"old"
    assert contents(tmp_path) == {"a": b"new"}


def test_what_the_file_system_refuses_is_named(tmp_path):
    (tmp_path / "a").mkdir()
    with pytest.raises(StorageError, match=r"cannot write .*/a: "), replacing(tmp_path / "a") as file:
        file.write(b"new")
    assert list(tmp_path.iterdir()) == [tmp_path / "a"]


def test_others_may_read_a_file_as_far_as_the_user_lets_them(tmp_path):
    previous = os.umask(0o027)
    try:
        with replacing(tmp_path / "a"):
            pass
    finally:
        os.umask(previous)
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o640


def test_a_missing_file_is_none_and_a_damaged_one_too_with_a_warning(tmp_path, caplog):
    path = tmp_path / "a"
    assert loaded(path, Path.read_text) is None
    assert not caplog.text
    path.write_bytes(b"\xff")
    assert loaded(path, lambda path: path.read_text(encoding="utf-8")) is None
    assert f"{path} cannot be used" in caplog.text
    path.write_text("b")
    assert loaded(path, Path.read_text) == "b"


def test_a_mistake_in_reading_is_not_taken_for_damage(tmp_path):
    (tmp_path / "a").write_bytes(b"a")
    with pytest.raises(ZeroDivisionError):
        loaded(tmp_path / "a", lambda _: 1 // 0)


def test_what_killed_writers_left_is_removed_before_one_makes_the_file(tmp_path):
    path = tmp_path / "new" / "a"
    path.parent.mkdir()
    for name in (".a.1.part", ".ab.1.part", "a.part"):
        (path.parent / name).touch()
    with made_by_one(path):
        assert left_behind(path) == []
    assert {entry.name for entry in path.parent.iterdir()} == {".a.lock", ".ab.1.part", "a.part"}


def test_the_next_one_may_make_the_file_after_a_failure(tmp_path):
    with pytest.raises(ZeroDivisionError), made_by_one(tmp_path / "a"):
        _ = 1 // 0
    with made_by_one(tmp_path / "a"):
        pass


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match=r"cannot make .*/file/a: "), made_by_one(tmp_path / "file" / "a"):
        pass
