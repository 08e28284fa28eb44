import math
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from torch import nn

from ticketkit import ConfigError, Mask, RoundRecord, Snapshot, StorageError, Ticket
from ticketkit.holder import Holder
from ticketkit.ledger import Ledger
from ticketkit.locks import LostLockError


def record(index: int, **metrics: float) -> RoundRecord:
    return RoundRecord(
        index=index, kept=2, total=4, model_total=6, densities={"weight": 0.5}, metrics=metrics, seconds=1.5,
        mask_digest="",
    )  # fmt: skip


MASK = Mask.ones({"weight": (2, 2)})


def commit(ledger: Ledger, index: int, **metrics: float) -> RoundRecord:
    return ledger.commit(Ticket(MASK), Snapshot.capture(nn.Linear(2, 2)), record(index, **metrics))


def test_committed_rounds_are_read_back(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "deep" / "run")
    written = [commit(ledger, index, wer=index / 3) for index in range(3)]
    assert Ledger(tmp_path / "deep" / "run").records() == written
    assert [record.parent for record in written] == [None, written[0].digest, written[1].digest]
    assert ledger.ticket(written[1]).mask == MASK
    assert ledger.trained(written[2]).parameters().keys() == {"weight", "bias"}


def test_non_finite_metrics_survive(tmp_path: Path) -> None:
    commit(Ledger(tmp_path), 0, wer=math.nan, loss=math.inf)
    metrics = Ledger(tmp_path).records()[0].metrics
    assert math.isnan(metrics["wer"])
    assert metrics["loss"] == math.inf


def test_a_round_without_its_record_never_happened(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    for index in range(3):
        commit(ledger, index)
    (tmp_path / "rounds" / "002" / "record.json").unlink()
    assert [r.index for r in ledger.records()] == [0, 1]


def test_a_gap_between_rounds_is_refused(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    for index in range(4):
        commit(ledger, index)
    shutil.rmtree(tmp_path / "rounds" / "002")
    with pytest.raises(StorageError, match=r"rounds/002 has vanished, but .*rounds/003 is there"):
        ledger.records()


def test_a_snapshot_of_another_run_is_found_out(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    ledger.keep_snapshot(Snapshot.capture(nn.Linear(2, 2)))
    commit(ledger, 0)
    ledger.check_snapshots()
    Snapshot.capture(nn.Linear(2, 2)).save(tmp_path / "init.safetensors")
    with pytest.raises(StorageError, match=r"init\.safetensors is not the file that this run wrote"):
        ledger.check_snapshots()
    (tmp_path / "init.safetensors").unlink()
    with pytest.raises(StorageError, match=r"init\.safetensors has vanished"):
        ledger.check_snapshots()


def test_other_settings_may_take_a_directory_in_which_nothing_was_trained(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    ledger.identify({"seed": 1})
    ledger.keep_snapshot(Snapshot.capture(nn.Linear(2, 2)))
    ledger.identify({"seed": 2})
    assert ledger.snapshot() is None
    commit(ledger, 0)
    with pytest.raises(ConfigError, match="seed: there 2, here 3"):
        ledger.identify({"seed": 3})


@pytest.mark.parametrize("content", ["", "{", "{}", "null", '{"index": "x"}'])
def test_a_damaged_record_is_named_with_what_to_do(tmp_path: Path, content: str) -> None:
    ledger = Ledger(tmp_path)
    commit(ledger, 0)
    (tmp_path / "rounds" / "000" / "record.json").write_text(content)
    with pytest.raises(StorageError, match=r"000/record\.json is damaged .*; delete .*000 and later rounds"):
        ledger.records()


@pytest.mark.parametrize("name", ["ticket.safetensors", "trained.safetensors"])
def test_a_changed_or_missing_file_is_named(tmp_path: Path, name: str) -> None:
    ledger = Ledger(tmp_path)
    written = commit(ledger, 0)
    read = {"ticket.safetensors": ledger.ticket, "trained.safetensors": ledger.trained}[name]
    path = tmp_path / "rounds" / "000" / name
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(StorageError, match=rf"000/{name} is not the file that round 0 wrote"):
        read(written)
    path.unlink()
    with pytest.raises(StorageError, match=rf"000/{name} has vanished"):
        read(written)


def test_another_identity_is_refused_with_every_setting_that_differs(tmp_path: Path) -> None:
    commit(Ledger(tmp_path), 0)
    ledger = Ledger(tmp_path)
    ledger.identify({"seed": 1, "floor": None, "plan": [4, 2]})
    ledger.identify({"plan": (4, 2), "floor": None, "seed": 1})
    with pytest.raises(ConfigError) as caught:
        ledger.identify({"seed": 2, "plan": [4, 2], "rewind": "init", "floor": 0.1})
    message = str(caught.value)
    assert "floor: there None, here 0.1" in message
    assert "rewind: there None, here 'init'" in message
    assert "seed: there 1, here 2" in message
    assert "plan" not in message


@pytest.mark.parametrize("content", ["", "[1]", "{"])
def test_a_damaged_identity_is_named(tmp_path: Path, content: str) -> None:
    (tmp_path / "run.json").write_text(content)
    with pytest.raises(StorageError, match=r"run\.json"):
        Ledger(tmp_path).identify({"seed": 1})


def test_the_snapshot_is_kept_once_and_read_back(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    assert ledger.snapshot() is None
    ledger.keep_snapshot(Snapshot.capture(nn.Linear(2, 2)))
    assert ledger.snapshot().parameters().keys() == {"weight", "bias"}


def test_one_directory_serves_one_user_at_a_time(tmp_path: Path) -> None:
    refused = pytest.raises(StorageError, match="another process is working in")
    with Ledger(tmp_path).locked(), refused, Ledger(tmp_path).locked():
        pass
    with Ledger(tmp_path).locked():
        pass


def test_another_process_is_refused_and_its_death_frees_the_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = (
        "import sys, time; from pathlib import Path; from ticketkit.ledger import Ledger\n"
        "with Ledger(Path(sys.argv[1])).locked():\n"
        "    print('locked', flush=True); time.sleep(600)"
    )
    with subprocess.Popen([sys.executable, "-c", script, str(tmp_path)], stdout=subprocess.PIPE, text=True) as holder:
        try:
            assert holder.stdout.readline() == "locked\n"
            with pytest.raises(StorageError, match=r"wait for it or choose another$"), Ledger(tmp_path).locked():
                pass
            monkeypatch.setenv("WORLD_SIZE", "2")
            joins = pytest.raises(StorageError, match=r"WORLD_SIZE=2 says .*init_process_group\(\) before IMP$")
            with joins, Ledger(tmp_path).locked():
                pass
        finally:
            holder.kill()
    with Ledger(tmp_path).locked():
        pass


def test_who_lost_the_directory_writes_nothing_more(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    with ledger.locked():
        commit(ledger, 0)
        (name,) = (path.name for path in (tmp_path / "held").iterdir())
        (tmp_path / "held" / name).rename(tmp_path / "held" / Holder.here().name)
        writes: list[Callable[[], object]] = [
            lambda: commit(ledger, 1),
            lambda: ledger.keep_checkpoint(1, Snapshot.capture(nn.Linear(2, 2))),
            lambda: ledger.keep_snapshot(Snapshot.capture(nn.Linear(2, 2))),
            lambda: ledger.identify({"seed": 1}),
        ]
        for write in writes:
            with pytest.raises(LostLockError, match="was taken over"):
                write()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["held", "rounds"]
    assert [path.name for path in (tmp_path / "rounds").iterdir()] == ["000"]


def test_a_directory_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match=r"cannot use .*file/run"), Ledger(tmp_path / "file" / "run").locked():
        pass


def test_unfinished_files_of_a_killed_process_are_removed(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    written = commit(ledger, 0)
    leftovers = [tmp_path / ".run.json.abc.partial", tmp_path / "rounds" / "000" / ".record.json.xyz.partial"]
    for leftover in leftovers:
        leftover.write_text("half")
    with ledger.locked():
        assert not any(leftover.exists() for leftover in leftovers)
        assert ledger.records() == [written]


def test_every_changed_byte_of_a_record_is_found_out(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    commit(ledger, 0, wer=0.25)
    path = tmp_path / "rounds" / "000" / "record.json"
    content = path.read_bytes()
    for place in range(len(content)):
        changed = content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :]
        path.write_bytes(changed)
        if changed.split() != content.split():
            with pytest.raises(StorageError, match="later rounds to train them again"):
                ledger.records()


def test_a_round_that_does_not_follow_on_the_one_before_is_found_out(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "a")
    for index in range(3):
        commit(ledger, index, wer=0.5)
    other = Ledger(tmp_path / "b")
    commit(other, 0, wer=0.125)
    stranger = (tmp_path / "b" / "rounds" / "000" / "record.json").read_bytes()
    (tmp_path / "a" / "rounds" / "000" / "record.json").write_bytes(stranger)
    with pytest.raises(StorageError, match="not the record that round 1 wrote"):
        ledger.records()


def test_a_round_without_those_before_it_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="lacks round 0; round 2 cannot follow"):
        commit(Ledger(tmp_path), 2)


def test_the_middle_of_a_round_is_kept_until_the_round_is_finished(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    assert ledger.checkpoint(0) is None
    ledger.keep_checkpoint(0, Snapshot.capture(nn.Linear(2, 2)))
    assert ledger.checkpoint(0) is not None
    commit(ledger, 0)
    assert ledger.checkpoint(0) is None


def test_the_middle_of_a_finished_round_is_removed_when_the_process_died_before_it_could(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    commit(ledger, 0)
    ledger.keep_checkpoint(0, Snapshot.capture(nn.Linear(2, 2)))
    with ledger.locked():
        assert ledger.checkpoint(0) is None
