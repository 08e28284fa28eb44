"""The corpus and its command, on files of YesNo's shape written here; the real recordings too, where they are."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import ticketkit
from ticketkit.testing import check_corpus, plugin_installed

PROJECT = Path(__file__).parents[1]
RATE = 8_000


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("site")


@pytest.fixture(scope="module", autouse=True)
def plugins(site: Path) -> Iterator[ticketkit.Plugins]:
    """The plugins of an environment where this one is installed."""
    with plugin_installed(PROJECT, site):
        yield ticketkit.Plugins.discover()


@pytest.fixture(scope="module")
def yesno(plugins: ticketkit.Plugins) -> ModuleType:
    import ticketkit_yesno

    return ticketkit_yesno


def sixty_names() -> list[str]:
    """Return sixty different names of the corpus's kind, as many as it has."""
    numbers = Random("yesno").sample(range(256), 60)
    return ["_".join(f"{number:08b}") + ".wav" for number in numbers]


def write(path: Path, *, seconds: float = 0.4, rate: int = RATE, channels: int = 1, subtype: str = "PCM_16") -> None:
    """Write a file in which each no is a low tone and each yes a high one."""
    soundfile = pytest.importorskip("soundfile", reason="writing test recordings needs: pip install soundfile")
    time = np.arange(round(seconds / 8 * rate)) / rate
    tones = [0.5 * np.sin(2 * np.pi * (1500 if word == "1" else 400) * time) for word in path.stem.split("_")]
    wave = np.concatenate(tones)
    soundfile.write(path, np.stack([wave] * channels, axis=1), rate, subtype=subtype)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that holds sixty whole recordings in waves_yesno, and a README as the archive has; not to be changed."""
    root = tmp_path_factory.mktemp("data")
    (root / "waves_yesno").mkdir()
    (root / "waves_yesno" / "README").write_text("a tiny corpus\n")
    for name in sixty_names():
        write(root / "waves_yesno" / name)
    return root


@pytest.fixture
def copy(written: Path, tmp_path: Path) -> Path:
    """The same recordings, to be damaged."""
    folder = tmp_path / "waves_yesno"
    folder.mkdir()
    for path in (written / "waves_yesno").iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    return folder


Opened = Callable[..., Any]


@pytest.fixture(scope="module")
def opened(plugins: ticketkit.Plugins) -> Opened:
    """Open the corpus as a config would."""
    return lambda root, **options: plugins.choose("corpus", {"name": "yesno", "root": root, **options}).call()


def test_it_obeys_the_laws_of_corpora(plugins: ticketkit.Plugins, written: Path) -> None:
    check_corpus({"name": "yesno", "root": written}, plugins=plugins)


@given(st.lists(st.sampled_from("01"), min_size=8, max_size=8))
def test_the_text_is_what_the_name_says(yesno: ModuleType, digits: list[str]) -> None:
    words = yesno.transcript("_".join(digits) + ".wav").split(" ")
    assert [{"NO": "0", "YES": "1"}[word] for word in words] == digits


@given(st.sets(st.integers(0, 255), min_size=10, max_size=70), st.randoms(use_true_random=False))
def test_splits_share_nothing_lose_nothing_and_do_not_depend_on_the_order(
    yesno: ModuleType, numbers: set[int], random: Random
) -> None:
    names = ["_".join(f"{number:08b}") + ".wav" for number in sorted(numbers)]
    splits = yesno.split_names(names)
    assert sorted(name for split in splits.values() for name in split) == names
    assert all(splits.values())
    random.shuffle(names)
    assert yesno.split_names(names) == splits


def test_the_split_is_the_stated_one(opened: Opened, written: Path) -> None:
    names = sorted(name.removesuffix(".wav") for name in sixty_names())
    corpus = opened(written)
    ids = {split: [utterance.id for utterance in corpus.split(split)] for split in ("train", "dev", "test")}
    assert ids["test"] == names[30:]
    assert ids["dev"] == [names[i] for i in (4, 9, 14, 19, 24, 29)]
    assert ids["train"] == [name for i, name in enumerate(names[:30], start=1) if i % 5]
    assert {split: len(of) for split, of in ids.items()} == {"train": 24, "dev": 6, "test": 30}


def test_samples_are_those_of_the_file(opened: Opened, written: Path) -> None:
    soundfile = pytest.importorskip("soundfile", reason="an independent reader is needed: pip install soundfile")
    for utterance in opened(written).split("dev"):
        expected, rate = soundfile.read(written / "waves_yesno" / f"{utterance.id}.wav", dtype="float32")
        read = utterance.audio.read()
        assert rate == RATE
        assert read.dtype == np.float32
        assert read.flags.writeable  # torch.from_numpy warns of arrays that are not
        assert utterance.audio.samples == len(read)
        np.testing.assert_array_equal(read, expected)


def test_the_root_may_be_the_folder_itself_or_come_from_the_environment(
    opened: Opened, written: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    digest = opened(written).digest
    assert opened(written / "waves_yesno").digest == digest
    monkeypatch.setenv("TICKETKIT_DATA", str(written))
    assert opened(None).digest == digest


def test_facts_count_what_is_there(opened: Opened, written: Path) -> None:
    facts = opened(written).describe()
    assert facts["sample_rate"] == RATE
    assert {name: (of["utterances"], of["words"]) for name, of in facts["splits"].items()} == {
        "train": (24, 192),
        "dev": (6, 48),
        "test": (30, 240),
    }
    assert facts["splits"]["test"]["hours"] == round(30 * 0.4 / 3600, 4)


def test_one_changed_sample_changes_the_digest_and_another_place_does_not(
    opened: Opened, copy: Path, written: Path
) -> None:
    before = opened(written).digest
    assert opened(copy).digest == before
    path = min(copy.glob("*.wav"))
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    assert opened(copy).digest != before


def a_name(folder: Path) -> Path:
    return min(folder.glob("*.wav"))


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-7])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: a_name(folder).unlink(), "found 59 recordings.*60 are expected.*option recordings"),
        (lambda folder: write(folder / "0_1.wav"), r"names like 0_0_1_1_0_1_1_0\.wav.*holds 0_1\.wav"),
        (lambda folder: a_name(folder).rename(folder / "0_0_1_1_0_1_1_2.wav"), r"holds 0_0_1_1_0_1_1_2\.wav"),
        (
            lambda folder: write(a_name(folder), rate=16_000),
            r"1 of 60 .*\.wav has 1 .* of 16 bits at 16000 Hz; 1 of 16",
        ),
        (lambda folder: write(a_name(folder), channels=2), r"\.wav has 2 channel\(s\) of 16 bits at 8000 Hz"),
        (lambda folder: write(a_name(folder), subtype="PCM_U8"), "of 8 bits"),
        (lambda folder: write(a_name(folder), subtype="FLOAT"), "cannot be read as a WAV file: unknown format: 3"),
        (lambda folder: write(a_name(folder), seconds=0), "holds no samples"),
        (lambda folder: truncate(a_name(folder)), "is cut short"),
        (lambda folder: a_name(folder).write_bytes(b""), "cannot be read as a WAV file: it ends too early"),
        (lambda folder: a_name(folder).write_bytes(b"not a sound at all"), "cannot be read as a WAV file"),
        (lambda folder: [path.write_bytes(b"") for path in folder.glob("*.wav")], "60 of 60.*and 50 more"),
    ],
)
def test_every_fault_is_named(opened: Opened, copy: Path, damage: Callable[[Path], object], message: str) -> None:
    damage(copy)
    with pytest.raises(ticketkit.DataError, match=message):
        opened(copy)


def test_another_number_of_recordings_can_be_asked_for(opened: Opened, copy: Path) -> None:
    for path in sorted(copy.glob("*.wav"))[10:]:
        path.unlink()
    corpus = opened(copy, recordings=10)
    assert [len(corpus.split(split)) for split in ("train", "dev", "test")] == [4, 1, 5]


def test_a_missing_folder_says_how_to_get_the_corpus(opened: Opened, tmp_path: Path) -> None:
    with pytest.raises(ticketkit.DataError, match=r"waves_yesno, which is missing; download .*openslr\.org/1"):
        opened(tmp_path)


# The command


def commanded(site: Path, cwd: Path, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Run ticketkit in another process that finds the plugin as this one does."""
    path = os.pathsep.join([str(site), str(PROJECT)])
    environment = os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1", "COLUMNS": "160"}
    command = [sys.executable, "-m", "ticketkit", *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False)


def test_the_command_shows_the_splits_of_whole_recordings(site: Path, opened: Opened, written: Path) -> None:
    done = commanded(site, written, "yesno", "check", written)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == [
        f"{written / 'waves_yesno'}: 60 recordings, all of them whole",
        "train  24 recordings  192 words 0.0027 hours",
        "dev     6 recordings   48 words 0.0007 hours",
        "test   30 recordings  240 words 0.0033 hours",
        f"digest {opened(written).digest}",
    ]


def test_the_command_names_what_is_damaged_and_says_so_with_its_exit_code(site: Path, copy: Path) -> None:
    for path in sorted(copy.glob("*.wav"))[10:]:
        path.unlink()
    truncate(a_name(copy))
    done = commanded(site, copy.parent, "yesno", "check", ".", "--recordings", "10")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: corpus 'yesno': 1 of 10 recordings cannot be used: ")
    assert "is cut short" in done.stderr


# A run


CONFIG = """
corpus: {{name: yesno, root: {root}}}
backbone:
  name: cnn_lstm
  features: {{mels: 12}}
  convs: [{{channels: 4, kernel: [5, 5], stride: [2, 2]}}]
  hidden: 8
  layers: 1
trainer: {{name: asr, epochs: 1}}
prune: {{rate: 0.5, rounds: 1}}
"""


def test_a_run_of_an_installed_plugin_trains_on_it(site: Path, opened: Opened, tmp_path: Path) -> None:
    """Through the entry point, with the recogniser and the CTC trainer of ticketkit, which know nothing of it."""
    data = tmp_path / "waves_yesno"
    data.mkdir()
    for name in sixty_names():
        write(data / name, seconds=2.0)  # CTC needs a frame a character
    (tmp_path / "config.yaml").write_text(CONFIG.format(root=tmp_path))
    done = commanded(site, tmp_path, "run", "config.yaml", "--out", "run")
    assert done.returncode == 0, done.stdout + done.stderr
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert [row["round"] for row in results["rows"]] == [0, 1]
    assert all(set(row["test"]) == {"wer", "cer", "loss"} for row in results["rows"])
    assert results["corpus"] == opened(tmp_path).describe()
    assert 2 * results["rows"][1]["kept"] == results["scope_total"]
    origin = json.loads((tmp_path / "run" / "plugins.json").read_text())["yesno"]
    assert (origin["distribution"], origin["entries"]) == ("ticketkit-yesno", ["corpus 'yesno'"])


def test_the_real_recordings_are_as_described(opened: Opened) -> None:
    try:
        corpus = opened(None)
    except ticketkit.DataError:
        if (Path(os.environ.get("TICKETKIT_DATA", "")) / "waves_yesno").is_dir():
            raise
        pytest.skip("no real recordings: set TICKETKIT_DATA to the folder that holds waves_yesno")
    assert sum(len(split) for split in corpus.splits.values()) == 60
    assert all(3 < u.audio.samples / RATE < 15 and u.audio.waveform.any() for s in corpus.splits.values() for u in s)
