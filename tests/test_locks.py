"""Locks that several machines share: one holder at a time, whoever dies, sleeps or is late."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from threading import Barrier

import pytest

from ticketkit import StorageError, locks
from ticketkit.holder import Holder
from ticketkit.locks import FREE, Lock, LostLockError

# Holds a lock as a process of the machine that it is told; at every line it is asked whether it still does.
HOLDER = """
import socket, sys
from pathlib import Path
socket.gethostname = lambda: sys.argv[2]
from ticketkit import locks
locks.BEAT, locks.LIMIT = 0.05, 0.6
lock = locks.Lock(Path(sys.argv[1]))
lock.wait()
print("held", flush=True)
for line in sys.stdin:
    try:
        lock.check()
        print("mine", flush=True)
    except locks.LostLockError as error:
        print(error, flush=True)
"""


class Process:
    """A process that holds a lock."""

    def __init__(self, path: Path, host: str):
        command = [sys.executable, "-W", "error", "-c", HOLDER, str(path), host]
        self._popen = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.pid = self._popen.pid
        assert self._line() == "held"

    def send(self, number: signal.Signals) -> None:
        self._popen.send_signal(number)

    def ask(self) -> str:
        assert self._popen.stdin is not None
        self._popen.stdin.write("?\n")
        self._popen.stdin.flush()
        return self._line()

    def end(self) -> None:
        self._popen.kill()
        self._popen.communicate()

    def _line(self) -> str:
        assert self._popen.stdout is not None
        return self._popen.stdout.readline().strip()


@contextmanager
def holding(path: Path, host: str) -> Iterator[Process]:
    process = Process(path, host)
    try:
        yield process
    finally:
        process.end()


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locks, "BEAT", 0.05)
    monkeypatch.setattr(locks, "LIMIT", 0.6)


HERE = os.uname().nodename


def raced(path: Path, takers: int = 8) -> list[Lock]:
    """Let takers go for a lock at the same time; return those that got it."""
    start = Barrier(takers)

    def take(lock: Lock) -> bool:
        start.wait()
        return lock.acquire()

    every = [Lock(path) for _ in range(takers)]
    with ThreadPoolExecutor(takers) as pool:
        return [lock for lock, got in zip(every, pool.map(take, every), strict=True) if got]


def test_of_many_takers_one_gets_a_lock_new_or_free(tmp_path: Path) -> None:
    for turn in range(60):
        path = tmp_path / str(turn % 30)  # new thirty times, given back thirty times
        winners = raced(path)
        assert len(winners) == 1
        assert [name for name in os.listdir(path) if name != FREE] == os.listdir(path)
        winners[0].release()
        assert os.listdir(path) == [FREE]
    assert sorted(os.listdir(tmp_path)) == sorted(map(str, range(30)))


def test_of_many_takers_one_takes_over_from_a_process_that_was_killed(tmp_path: Path) -> None:
    with holding(tmp_path / "lock", HERE) as victim:
        assert raced(tmp_path / "lock") == []
        victim.end()
        (winner,) = raced(tmp_path / "lock")
        assert winner.takeovers == 1
        assert str(winner.before) == f"process {victim.pid} on {HERE}"
        winner.release()


def test_a_killed_process_that_nobody_waited_for_is_gone(tmp_path: Path) -> None:
    with holding(tmp_path / "lock", HERE) as zombie:
        zombie.send(signal.SIGKILL)
        lock = Lock(tmp_path / "lock")
        for _ in range(200):
            if lock.acquire():
                break
            time.sleep(0.01)
        assert lock.is_held
        lock.release()


def test_another_machines_holder_keeps_the_lock_while_it_lives_and_for_a_while_after(tmp_path: Path) -> None:
    with holding(tmp_path / "lock", "elsewhere") as other:
        lock = Lock(tmp_path / "lock")
        end = time.monotonic() + 1.5
        while time.monotonic() < end:
            assert not lock.acquire()
            time.sleep(0.02)
        assert str(lock.holder()) == f"process {other.pid} on elsewhere"
        other.end()
        died = time.monotonic()
        while not lock.acquire():
            time.sleep(0.02)
        assert 0.5 < time.monotonic() - died < 5
        lock.release()


@pytest.mark.parametrize("host", [HERE, "elsewhere"], ids=["here", "elsewhere"])
def test_a_suspended_holder_loses_the_lock_and_notices_when_it_wakes(host: str, tmp_path: Path) -> None:
    with holding(tmp_path / "lock", host) as sleeper:
        assert sleeper.ask() == "mine"
        sleeper.send(signal.SIGSTOP)
        lock = Lock(tmp_path / "lock")
        assert not lock.acquire()
        lock.wait()
        sleeper.send(signal.SIGCONT)
        said = sleeper.ask()
        assert f"was taken over (process {os.getpid()} on {HERE})" in said
        assert "writes no more, the other goes on" in said
        lock.check()
        lock.release()


def test_who_read_the_count_before_it_was_raised_cannot_rob_the_holder(tmp_path: Path) -> None:
    holder = Lock(tmp_path / "lock")
    assert holder.acquire()
    (seen,) = os.listdir(tmp_path / "lock")
    holder.check()
    with pytest.raises(FileNotFoundError):
        (tmp_path / "lock" / seen).rename(tmp_path / "lock" / Holder.here().name)
    holder.check()
    holder.release()


def test_a_holder_whose_file_was_renamed_cannot_raise_its_count(tmp_path: Path) -> None:
    holder = Lock(tmp_path / "lock")
    assert holder.acquire()
    (seen,) = os.listdir(tmp_path / "lock")
    thief = Holder.here()
    (tmp_path / "lock" / seen).rename(tmp_path / "lock" / thief.name)
    with pytest.raises(LostLockError, match="was taken over"):
        holder.check()
    holder.release()
    assert os.listdir(tmp_path / "lock") == [thief.name]


def test_a_count_that_was_raised_and_not_noted_is_still_ones_own(tmp_path: Path) -> None:
    """As when a signal comes between the two, for instance one that ends the process."""
    for ask in (True, False):
        holder = Lock(tmp_path / "lock")
        assert holder.acquire()
        (seen,) = os.listdir(tmp_path / "lock")
        mine = Holder.of(seen)
        (tmp_path / "lock" / seen).rename(tmp_path / "lock" / replace(mine, beat=mine.beat + 1).name)
        if ask:
            holder.check()
        holder.release()
        assert os.listdir(tmp_path / "lock") == [FREE]


def test_a_copy_of_a_directory_is_not_held_by_who_holds_the_original(tmp_path: Path) -> None:
    original = Lock(tmp_path / "run" / "held")
    assert original.acquire()
    shutil.copytree(tmp_path / "run", tmp_path / "branch")
    copied = Lock(tmp_path / "branch" / "held")
    assert copied.holder() is None
    assert copied.acquire()
    original.check()
    copied.check()


def test_deaths_are_counted_until_they_are_forgiven_or_the_lock_is_given_back(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    for death in range(3):
        with holding(path, HERE):
            assert Holder.of(os.listdir(path)[0]).takeovers == death
    lock = Lock(path)
    assert lock.acquire()
    assert lock.takeovers == 3
    lock.forgive()
    assert lock.takeovers == 0
    lock.release()
    with holding(path, HERE):
        assert Holder.of(os.listdir(path)[0]).takeovers == 0


def test_a_claim_names_a_live_holder_at_once_and_waits_for_anothers_sign_of_life(tmp_path: Path) -> None:
    with holding(tmp_path / "near", HERE) as near, holding(tmp_path / "far", "elsewhere") as far:
        began = time.monotonic()
        assert str(Lock(tmp_path / "near").claim()) == f"process {near.pid} on {HERE}"
        assert time.monotonic() - began < 0.3
        assert str(Lock(tmp_path / "far").claim()) == f"process {far.pid} on elsewhere"
        far.end()
        lock = Lock(tmp_path / "far")
        assert lock.claim() is None
        lock.release()


def test_signs_of_life_are_told_by_the_file_servers_clock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locks, "BEAT", 100.0)
    lock, other = Lock(tmp_path / "lock"), Lock(tmp_path / "lock")
    assert other.signs() is None
    assert lock.acquire()
    time.sleep(0.3)
    lock.check()
    time.sleep(0.1)
    signs = other.signs()
    assert signs is not None
    assert 0.35 < signs.held < 5
    assert 0.05 < signs.silent < signs.held
    assert signs.holder.pid == os.getpid()
    assert [path.name for path in tmp_path.iterdir()] == ["lock"]
    lock.release()
    assert other.signs() is None


def test_what_is_no_lock_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="file"):
        Lock(tmp_path / "file").acquire()
    (tmp_path / "lock").mkdir()
    (tmp_path / "lock" / "notes.txt").write_text("")
    with pytest.raises(StorageError, match=r"'notes\.txt' in it no holder; delete this file"):
        Lock(tmp_path / "lock").acquire()


def test_an_empty_directory_is_a_lock_that_nobody_has(tmp_path: Path) -> None:
    (tmp_path / "lock").mkdir()
    lock = Lock(tmp_path / "lock")
    assert lock.holder() is None
    assert lock.acquire()
    lock.release()


def test_a_file_in_the_place_of_a_lock_is_named(tmp_path: Path) -> None:
    (tmp_path / "held").touch()
    for call in (Lock(tmp_path / "held").acquire, Lock(tmp_path / "held").holder):
        with pytest.raises(StorageError, match="held is a file, and a lock is a directory; delete this file"):
            call()
