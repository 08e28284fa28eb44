import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ticketkit import StorageError
from ticketkit.storage import canonical_json, file_digest, text_digest, write_atomically, write_text_atomically

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(VALUES)
def test_canonical_json_is_one_spelling(value: object) -> None:
    import json

    text = canonical_json(value)
    assert json.loads(text) == value
    assert canonical_json(json.loads(text)) == text


@given(st.dictionaries(st.text(), st.integers(), min_size=2, max_size=4))
def test_canonical_json_ignores_the_order_of_keys(value: dict[str, int]) -> None:
    assert canonical_json(dict(reversed(value.items()))) == canonical_json(value)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_canonical_json_refuses_numbers_that_json_lacks(value: float) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        canonical_json(value)


def test_digests_are_sha256(tmp_path: Path) -> None:
    expected = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    (tmp_path / "abc").write_text("abc")
    assert file_digest(tmp_path / "abc") == text_digest("abc") == expected


def test_a_file_is_written_with_its_folders_and_nothing_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "er" / "file"
    write_text_atomically(path, "ä")
    assert path.read_bytes() == "ä".encode()
    assert list(path.parent.iterdir()) == [path]


def test_permissions_follow_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        write_text_atomically(tmp_path / "file", "x")
    finally:
        os.umask(before)
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o640


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError, OSError])
def test_a_failing_writer_leaves_the_old_file_and_no_other(tmp_path: Path, error: type[BaseException]) -> None:
    path = tmp_path / "file"
    write_text_atomically(path, "old")

    def write(temporary: Path) -> None:
        temporary.write_text("half")
        raise error("stop")

    with pytest.raises(StorageError if error is OSError else error, match="stop"):
        write_atomically(path, write)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_path_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(StorageError, match=r"cannot write .*file/inside"):
        write_text_atomically(tmp_path / "file" / "inside", "x")


FULL_DISK = """
import resource, sys
from pathlib import Path
import torch
from torch import nn
import ticketkit

folder = Path(sys.argv[1])
model = nn.Linear(300, 300)
mask = ticketkit.Scope.of(model).ones()
small = ticketkit.Ticket(mask)
whole = ticketkit.Ticket(mask, ticketkit.Snapshot.capture(model).tensors)
small.save(folder / "ticket")
before = (folder / "ticket").read_bytes()
if sys.argv[2] == "limit":
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY))
for save in (whole.save, ticketkit.Snapshot.capture(model).save):
    try:
        save(folder / "ticket")
    except ticketkit.StorageError as error:
        assert "cannot write" in str(error) and str(folder / "ticket") in str(error), error
    else:
        raise SystemExit("writing succeeded")
    assert (folder / "ticket").read_bytes() == before
    assert [path.name for path in folder.iterdir()] == ["ticket"], list(folder.iterdir())
assert ticketkit.Ticket.load(folder / "ticket") == small
"""


def save_on_a_full_disk(folder: Path, how: str) -> None:
    finished = subprocess.run(
        [sys.executable, "-W", "error", "-c", FULL_DISK, str(folder), how], capture_output=True, text=True, check=False
    )
    assert finished.returncode == 0, finished.stderr


def test_a_file_size_limit_leaves_the_old_ticket_and_no_other(tmp_path: Path) -> None:
    save_on_a_full_disk(tmp_path, "limit")


def test_a_full_disk_leaves_the_old_ticket_and_no_other(tmp_path: Path) -> None:
    if sys.platform != "linux" or os.geteuid() != 0:
        pytest.skip("only root on Linux can mount a small file system")
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=128k", "tmpfs", str(tmp_path)], capture_output=True, text=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"no file system can be mounted here: {mounted.stderr.strip()}")
    try:
        save_on_a_full_disk(tmp_path, "full")
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)
