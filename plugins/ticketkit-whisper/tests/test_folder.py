"""A run of the installed plugin, and what its exporter ships, from end to end."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

import ticketkit
from ticketkit.testing import check_exporter, plugin_installed

pytest.importorskip("transformers", reason="Whisper needs: pip install 'transformers>=4.57'")
soundfile = pytest.importorskip("soundfile", reason="writing test recordings needs: pip install soundfile")

PROJECT = Path(__file__).parents[1]
RATE = 8_000
CONFIG = """
corpus: {{name: fsdd, root: {root}, train_utterances: 12, dev_utterances: 4, test_utterances: 4, digits: [1, 2]}}
backbone:
  name: whisper
  config: {{width: 16, encoder_layers: 1, decoder_layers: 1, heads: 2, feedforward: 24, mels: 8, seconds: 2}}
trainer: {{name: whisper_seq2seq, epochs: 1, batch_size: 4}}
prune: {{rate: 0.5, rounds: 1, criterion: snip, rewind: "epoch:1"}}
"""


@dataclass(frozen=True)
class Commands:
    """Runs ticketkit in other processes that find the plugin as this one does."""

    site: Path
    folder: Path

    def __call__(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        path = os.pathsep.join([str(self.site), str(PROJECT)])
        environment = os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1", "COLUMNS": "160"}
        command = [sys.executable, "-m", "ticketkit", *arguments]
        return subprocess.run(command, cwd=self.folder, env=environment, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def commands(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Commands]:
    site = tmp_path_factory.mktemp("site")
    with plugin_installed(PROJECT, site), pytest.MonkeyPatch.context() as patch:
        patch.setenv("TICKETKIT_LOAD_PLUGINS", "whisper,asr")
        yield Commands(site, tmp_path_factory.mktemp("work"))


@pytest.fixture(scope="module")
def finished(commands: Commands) -> Path:
    """The directory of a finished run of the command line."""
    recordings = commands.folder / "fsdd" / "recordings"
    recordings.mkdir(parents=True)
    for digit in range(10):
        for take in (0, 5, 10):
            tone = 0.5 * np.sin(2 * np.pi * (200 + 100 * digit) * np.arange(RATE // 10) / RATE)
            soundfile.write(recordings / f"{digit}_ann_{take}.wav", tone, RATE)
    (commands.folder / "config.yaml").write_text(CONFIG.format(root=commands.folder))
    done = commands("run", "config.yaml", "--out", "run")
    assert done.returncode == 0, done.stdout + done.stderr
    return commands.folder / "run"


@pytest.fixture(scope="module")
def exported(commands: Commands, finished: Path) -> Path:
    """The folder that the command line writes of the run's pruned ticket."""
    ticket = str(finished / "rounds" / "001" / "ticket.safetensors")
    done = commands("export", ticket, "--to", "shipped", "--exporter", "hf_folder")
    assert done.returncode == 0, done.stdout + done.stderr
    return commands.folder / "shipped"


@pytest.fixture(scope="module")
def transformers(commands: Commands) -> Any:
    from ticketkit_whisper.library import transformers

    return transformers()


def test_it_obeys_the_laws_of_exporters(commands: Commands) -> None:
    plugins = ticketkit.Plugins.discover()
    sizes = {"width": 16, "encoder_layers": 1, "decoder_layers": 1, "heads": 2, "feedforward": 24, "mels": 8}
    build = plugins.choose("backbone", {"name": "whisper", "config": sizes}).call
    check_exporter("hf_folder", bundles={"whisper": build}, plugins=plugins)


def test_a_run_of_an_installed_plugin_prunes_on_a_corpus_of_ticketkits_own(finished: Path) -> None:
    results = json.loads((finished / "results.json").read_text())
    assert [set(row["test"]) for row in results["rows"]] == [{"wer", "cer", "loss"}] * 2
    assert 2 * results["rows"][1]["kept"] == results["scope_total"]


def test_transformers_loads_the_folder_with_pruned_weights_zero_and_the_others_as_trained(
    exported: Path, finished: Path, transformers: Any
) -> None:
    module = transformers.WhisperForConditionalGeneration.from_pretrained(exported, local_files_only=True)
    trained = ticketkit.Snapshot.load(finished / "rounds" / "001" / "trained.safetensors").parameters()
    weights = dict(module.named_parameters(remove_duplicate=False))
    assert trained.keys() <= weights.keys()
    assert all(torch.equal(weights[name], tensor) for name, tensor in trained.items())
    ticket = ticketkit.Ticket.load(exported / "mask.safetensors")
    assert ticket.mask.kept * 2 == ticket.mask.total
    assert all(not weights[name][~kept].any() for name, kept in ticket.mask.items())
    assert module.proj_out.weight is module.model.decoder.embed_tokens.weight


def test_what_is_written_of_a_sound_is_what_the_trained_network_writes(
    exported: Path, commands: Commands, transformers: Any
) -> None:
    """The decoding of transformers and ours, each with the features of its own, of sounds of any kind."""
    from ticketkit_whisper.bundle import build_whisper
    from ticketkit_whisper.options import WhisperOptions

    ours = build_whisper(options=WhisperOptions(path=exported))
    ours.module.eval()
    theirs = transformers.WhisperForConditionalGeneration.from_pretrained(exported, local_files_only=True)
    extractor = transformers.WhisperFeatureExtractor.from_pretrained(exported, local_files_only=True)
    sounds = [0.1 * torch.randn(4_000 * length, generator=torch.Generator().manual_seed(length)) for length in (1, 4)]
    heard = torch.stack([ours.features(sound) for sound in sounds])
    features = extractor([s.numpy() for s in sounds], sampling_rate=16_000, return_tensors="pt").input_features
    assert torch.equal(features, heard)
    written = [ours.characters.decode(labels) for labels in theirs.generate(features).tolist()]
    assert written == [text[: ours.longest - 1] for text in ours.transcribe(heard)]


def test_the_model_card_says_where_the_ticket_comes_from_and_its_code_runs(
    exported: Path, capsys: pytest.CaptureFixture[str], transformers: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    card, ticket = (exported / "README.md").read_text(), ticketkit.Ticket.load(exported / "mask.safetensors")
    assert f"keeps {ticket.mask.kept:,} of {ticket.mask.total:,} weights" in card
    for line in (
        "| round | 1 |",
        "| criterion | `builtin:snip` ",
        "| rewind | epoch:1",
        f"| wer on dev | {ticket.metrics['wer']:.4g} |",
        f"| mask digest | {ticket.mask.digest} |",
    ):
        assert line in card
    (code,) = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    monkeypatch.chdir(exported)
    exec(code, {})
    assert set(capsys.readouterr().out.strip()) <= set("'ABCDEFGHIJKLMNOPQRSTUVWXYZ ")


def test_whoever_gets_the_folder_can_verify_it(exported: Path) -> None:
    ticketkit.Ticket.load(exported / "mask.safetensors").verify_file(exported / "model.safetensors")
    facts = json.loads((exported / "export.json").read_text())
    assert facts["exporter"]["entry"] == "whisper:hf_folder"
    assert {"README.md", "config.json", "mask.safetensors", "model.safetensors"} < facts["files"].keys()


def test_a_network_of_another_backbone_is_refused(commands: Commands, tmp_path: Path) -> None:
    exporter = ticketkit.Plugins.discover().choose("exporter", "hf_folder")
    ticket = ticketkit.Ticket(ticketkit.Mask({"weight": torch.ones(2, 3, dtype=torch.bool)}))
    with pytest.raises(ticketkit.ConfigError, match="has a Linear of another; the exporter 'weights' takes any"):
        exporter.call(SimpleNamespace(module=torch.nn.Linear(3, 2)), ticket, tmp_path)
    assert list(tmp_path.iterdir()) == []
