"""Everything that ticketkit_asr registers keeps the laws that third parties are held to."""

import importlib.util
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from ticketkit import Plugins
from ticketkit.registry import KINDS
from ticketkit.testing import check_backbone, check_corpus, check_trainer

SPLITS = ("train", "dev", "test")
FEW = {"train_utterances": 4, "dev_utterances": 2, "test_utterances": 2, "digits": [1, 2]}
HEARING: dict[str, Any] = {"features": {"kind": "log_mel", "mels": 8}}
SUBSAMPLING = [{"channels": 2, "kernel": [3, 3], "stride": [2, 2]}]
TINY: dict[str, dict[str, Any]] = {
    "cnn_lstm": {"convs": [{"channels": 2, "kernel": [5, 5], "stride": [2, 2]}], "hidden": 6, "layers": 2},
    "rnnt": {"stack": [2], "hidden": 6, "embedding": 3, "predictor": 4, "joint": 4},
    "conformer": {
        "subsampling": SUBSAMPLING,
        "stages": [{"blocks": 1, "dim": 4, "group": 2}, {"blocks": 1, "dim": 6}],
        "heads": 2,
        "expansion": 2,
        "kernel": 3,
    },
    "transformer": {"subsampling": SUBSAMPLING, "blocks": 1, "dim": 4, "heads": 2, "expansion": 2},
}


def backbone(name: str) -> dict[str, Any]:
    """Return a backbone of a few hundred weights with all its parts."""
    return {"name": name, **HEARING, **TINY[name]}


@pytest.fixture(scope="module")
def plugins() -> Iterator[Plugins]:
    """The plugins with ticketkit_asr, whatever else is installed."""
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("TICKETKIT_LOAD_PLUGINS", "asr")
        yield Plugins.discover()


# Corpora that are written for the occasion: each function returns the options with which they open.


def sound(path: Path, *, seconds: float = 1.2, rate: int = 16_000, kind: str = "WAV") -> None:
    """Write a decaying tone that depends on the file's name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    time = np.arange(round(seconds * rate)) / rate
    pitch = 200 + 20 * (sum(path.name.encode()) % 50)
    soundfile.write(path, 0.5 * np.exp(-time) * np.sin(2 * np.pi * pitch * time), rate, format=kind)


def fsdd(root: Path) -> dict[str, Any]:
    for name in (
        f"{digit}_{speaker}_{take}" for digit in range(10) for speaker in ("ann", "bob") for take in (0, 5, 10)
    ):
        sound(root / "fsdd" / "recordings" / f"{name}.wav", seconds=0.1, rate=8_000)
    return {"root": str(root), **FEW}


def spoken_digits(root: Path) -> dict[str, Any]:
    if importlib.util.find_spec("espeakng_loader") is None:
        pytest.skip("no voices: pip install 'ticketkit[synth]'")
    return {"cache_dir": str(root), **FEW}


def an4(root: Path) -> dict[str, Any]:
    lists = {"train": [f"an{number}-{who}-b" for who in ("fash", "mblb") for number in (1, 2)], "test": ["cen1-fcaw-b"]}
    folders = {"train": "an4_clstk", "test": "an4test_clstk"}
    (root / "an4" / "etc").mkdir(parents=True)
    for split, names in lists.items():
        for name in names:
            sound(root / "an4" / "wav" / folders[split] / name.split("-")[1] / f"{name}.sph", kind="NIST")
        lines = "".join(f"<s> YES </s> ({name})\n" for name in names)
        (root / "an4" / "etc" / f"an4_{split}.transcription").write_text(lines)
    return {"root": str(root), "dev_share": 0.5}


def common_voice(root: Path) -> dict[str, Any]:
    for split in SPLITS:
        sound(root / "en" / "clips" / f"{split}.mp3", rate=48_000, kind="MP3")
        table = f"client_id\tpath\tsentence\tup_votes\tlocale\n{split}\t{split}.mp3\tYes!\t2\ten\n"
        (root / "en" / f"{split}.tsv").write_text(table)
    return {"root": str(root)}


def librispeech(root: Path) -> dict[str, Any]:
    subsets = {"train": "train-clean-100", "dev": "dev-clean", "test": "test-clean"}
    for number, subset in enumerate(subsets.values(), start=1):
        folder = root / "LibriSpeech" / subset / f"{number}" / "7"
        sound(folder / f"{number}-7-0000.flac", kind="FLAC")
        (folder / f"{number}-7.trans.txt").write_text(f"{number}-7-0000 YES\n")
    return {"root": str(root), **{split: [subset] for split, subset in subsets.items()}}


def manifest(root: Path) -> dict[str, Any]:
    for split in SPLITS:
        sound(root / "wav" / f"{split}.wav")
        line = {"audio_filepath": f"wav/{split}.wav", "offset": 0.1, "duration": 1.0, "text": "yes", "speaker": "ann"}
        (root / f"{split}.json").write_text(json.dumps(line) + "\n")
    return {split: str(root / f"{split}.json") for split in SPLITS}


def tedlium(root: Path) -> dict[str, Any]:
    for split in SPLITS:
        talk = root / "TEDLIUM_release1" / split
        sound(talk / "sph" / f"{split}_2010.sph", kind="NIST")
        (talk / "stm").mkdir()
        (talk / "stm" / f"{split}_2010.stm").write_text(f"{split}_2010 1 {split} 0 1.1 <o,f0,male> yes\n")
    return {"root": str(root)}


CORPORA: Mapping[str, Callable[[Path], dict[str, Any]]] = {
    "fsdd": fsdd,
    "spoken_digits": spoken_digits,
    "an4": an4,
    "common_voice": common_voice,
    "librispeech": librispeech,
    "manifest": manifest,
    "tedlium": tedlium,
}
EPOCHS = {"cnn_lstm": 2, "rnnt": 1}  # of trainings with a backbone of every loss
TRAINERS = ("asr",)


@pytest.mark.parametrize("name", TINY)
def test_backbones_keep_their_laws(plugins: Plugins, name: str) -> None:
    check_backbone(backbone(name), plugins=plugins)


@pytest.mark.parametrize("name", CORPORA)
def test_corpora_keep_their_laws(plugins: Plugins, name: str, tmp_path: Path) -> None:
    check_corpus({"name": name, **CORPORA[name](tmp_path)}, plugins=plugins)


@pytest.mark.parametrize("trained", EPOCHS)
@pytest.mark.parametrize("name", TRAINERS)
def test_trainers_keep_their_laws(plugins: Plugins, name: str, trained: str, tmp_path: Path) -> None:
    check_trainer(
        {"name": name, "epochs": EPOCHS[trained], "batch_size": 2, "augment": {"frequency_width": 4}},
        backbone=backbone(trained),
        corpus={"name": "fsdd", **fsdd(tmp_path)},
        plugins=plugins,
    )


def test_everything_that_is_registered_is_checked(plugins: Plugins) -> None:
    ours = {kind: {entry.name for entry in plugins.registries[kind] if entry.plugin == "asr"} for kind in KINDS}
    checked = {"backbone": set(TINY), "corpus": set(CORPORA), "trainer": set(TRAINERS)}
    assert {kind: names for kind, names in ours.items() if names} == checked
