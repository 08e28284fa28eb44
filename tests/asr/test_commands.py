"""`ticketkit asr`, as a user runs it: real processes, real files."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import soundfile
import torch

from tests.conftest import CommandLine
from ticketkit import Plugins, StorageError, load_exported, open_trained

pytest.importorskip("espeakng_loader", reason="speech is synthesised: pip install 'ticketkit[synth]'")

CONFIG = """
seed: 1
corpus: {name: spoken_digits, train_utterances: 40, dev_utterances: 8, test_utterances: 10, digits: [1, 2]}
backbone:
  name: cnn_lstm
  features: {mels: 12}
  convs: [{channels: 4, kernel: [5, 5], stride: [2, 2]}]
  hidden: 16
  layers: 1
trainer: {name: asr, epochs: 3, batch_size: 8, lr: 0.01}
prune: {rate: 0.5, rounds: 1, criterion: magnitude_over_init}
tolerance: 1.0
"""
TICKET = "run/rounds/001/ticket.safetensors"


def ticketkit(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "COLUMNS": "200", "XDG_CACHE_HOME": str(cwd / "cache")}
    command = [sys.executable, "-W", "error", "-m", "ticketkit", *arguments]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=300)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    (folder / "config.yaml").write_text(CONFIG)
    done = ticketkit("run", "config.yaml", "--out", "run", cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder


def test_help_lists_the_commands_without_waiting_for_torch(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "ticketkit", "asr", "--help"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert done.returncode == 0
    for command in ("prepare", "bpe", "transcribe", "evaluate", "tune"):
        assert command in done.stdout
    assert " torch\n" not in done.stderr


def test_evaluate_measures_what_the_run_measured_and_writes_every_utterance(trained: Path) -> None:
    done = ticketkit("asr", "evaluate", TICKET, "--to", "scores.jsonl", cwd=trained)
    assert done.returncode == 0, done.stderr
    measured = json.loads((trained / "run" / "test.json").read_text())["1"]
    assert f"WER {measured['wer']:.2%} (95 % interval" in done.stdout
    assert f"CER {measured['cer']:.2%}" in done.stdout
    lines = [json.loads(line) for line in (trained / "scores.jsonl").read_text().splitlines()]
    assert [line["id"] for line in lines] == [f"test-{i:05d}" for i in range(10)]
    edits = sum(line["substitutions"] + line["deletions"] + line["insertions"] for line in lines)
    assert edits / sum(line["words"] for line in lines) == pytest.approx(measured["wer"])
    beam = ticketkit("asr", "evaluate", TICKET, "--split", "dev", "--beam", "4", cwd=trained)
    assert beam.returncode == 0, beam.stderr
    assert "spoken_digits dev: 8 utterances" in beam.stdout


def test_transcribe_writes_a_line_for_every_file(trained: Path) -> None:
    from ticketkit_asr.corpora.spoken_digits import SpokenDigitsOptions, open_spoken_digits

    options = SpokenDigitsOptions(
        train_utterances=40, dev_utterances=8, test_utterances=10, digits=(1, 2), cache_dir=trained / "cache/ticketkit"
    )
    corpus = open_spoken_digits(options=options)
    names = []
    for utterance, suffix in zip(corpus.split("test"), ("wav", "flac", "ogg"), strict=False):
        names.append(f"{utterance.id}.{suffix}")
        soundfile.write(trained / names[-1], utterance.audio.read(), corpus.sample_rate)
    done = ticketkit("asr", "transcribe", TICKET, *names, cwd=trained)
    assert done.returncode == 0, done.stderr
    ticketkit("asr", "evaluate", TICKET, "--to", "all.jsonl", cwd=trained)
    heard = [json.loads(line)["hypothesis"] for line in (trained / "all.jsonl").read_text().splitlines()]
    lines = [line.split("\t") for line in done.stdout.splitlines()]
    assert [name for name, _ in lines] == names
    assert lines[1][1] == heard[1]  # FLAC loses nothing that 16 bits hold


def test_an_export_is_heard_and_judged_as_its_ticket_is(
    trained: Path, command_line: CommandLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ticketkit_asr.corpora.spoken_digits import SpokenDigitsOptions, open_spoken_digits

    monkeypatch.chdir(trained)
    monkeypatch.setenv("XDG_CACHE_HOME", str(trained / "cache"))
    code, printed = command_line("export", TICKET, "--runtime", "sparse", "--dtype", "int8", "--to", "exported")
    assert code == 0, printed
    scores = {}
    for of in (TICKET, "exported"):
        code, printed = command_line("asr", "evaluate", of, "--to", "judged.jsonl")
        assert code == 0, printed
        scores[of] = [json.loads(line) for line in Path("judged.jsonl").read_text().splitlines()]
    assert scores["exported"] == scores[TICKET]
    options = SpokenDigitsOptions(train_utterances=40, dev_utterances=8, test_utterances=10, digits=(1, 2))
    corpus = open_spoken_digits(options=options)
    soundfile.write("heard.flac", corpus.split("test")[0].audio.read(), corpus.sample_rate)
    done = ticketkit("asr", "transcribe", "exported", "heard.flac", cwd=trained)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"heard.flac\t{scores[TICKET][0]['hypothesis']}\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["transcribe", TICKET, "nothing.wav"], "nothing.wav cannot be read as audio: there is no such file"),
        (
            ["transcribe", "run/none.safetensors", "a.wav"],
            "run/none.safetensors does not exist; the tickets of run are",
        ),
        (["evaluate", TICKET, "fssd"], "unknown corpus 'fssd'; did you mean 'fsdd'?"),
        (["evaluate", TICKET, "--split", "tset"], "has no split 'tset'; it has train, dev, test"),
        (["prepare", "librispeech", "--root", "nowhere", "--out", "out"], "nowhere"),
        (["prepare", "spoken_digits", "--out", "out"], "makes its sound in memory; only corpora of sound files"),
        (["bpe", "spoken_digits", "--size", "100000", "--to", "x.model"], "100000 pieces cannot be learnt from"),
        (["tune", TICKET, "--lm", "nothing.arpa"], "nothing.arpa cannot be read: there is no such file"),
        (["bpe", "spoken_digits", "--size", "99999999999", "--to", "x.model"], "less than or equal to 1000000"),
        (["transcribe", TICKET, "a.wav", "--window", "inf"], "must be a finite number above 0, not inf"),
        (["transcribe", TICKET, "a.wav", "--window", "0"], "must be a finite number above 0, not 0"),
        (["transcribe", TICKET, "a.wav", "--words", "w", "--lm-weight", "2"], "--words and --lm-weight without --lm"),
        (["transcribe", TICKET, "a.wav", "--word-score", "nan"], "--word-score nan: a finite number is needed"),
        (["evaluate", TICKET, "--root", "nowhere"], "root: there is no such option"),
    ],
)
def test_bad_input_is_one_message(
    arguments: list[str], message: str, trained: Path, command_line: CommandLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(trained)
    monkeypatch.setenv("XDG_CACHE_HOME", str(trained / "cache"))
    code, printed = command_line("asr", *arguments)
    assert code == 2, printed
    assert message in printed
    assert "Traceback" not in printed


def test_a_file_that_cannot_be_used_does_not_stop_the_others(trained: Path, tmp_path: Path) -> None:
    soundfile.write(tmp_path / "short.wav", [0.1], 16_000)
    soundfile.write(tmp_path / "good.wav", [0.0, 0.1] * 8_000, 16_000)
    names = [str(tmp_path / name) for name in ("short.wav", "good.wav", "gone.wav")]
    done = ticketkit("asr", "transcribe", TICKET, *names, cwd=trained)
    assert done.returncode == 2, done.stderr
    assert done.stdout.startswith(f"{names[1]}\t")
    assert "2 of 3 files were not transcribed" in done.stderr
    assert f"{names[0]} cannot be transcribed: 1 samples are too few" in done.stderr
    assert f"{names[2]} cannot be read as audio: there is no such file" in done.stderr


def test_the_corpus_of_the_run_takes_settings(trained: Path) -> None:
    done = ticketkit("asr", "evaluate", TICKET, "--set", "test_utterances=3", cwd=trained)
    assert done.returncode == 0, done.stderr
    assert "spoken_digits test: 3 utterances" in done.stdout


def test_scores_that_could_not_be_written_are_refused_before_the_work(trained: Path) -> None:
    done = ticketkit("asr", "evaluate", TICKET, "--to", "config.yaml/scores.jsonl", cwd=trained)
    assert done.returncode == 1, done.stderr
    assert "cannot write config.yaml/scores.jsonl" in done.stderr
    assert done.stdout == ""


def test_skip_bad_leaves_out_files_that_opening_a_corpus_would_refuse(
    tmp_path: Path, command_line: CommandLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    soundfile.write("good.wav", [0.0, 0.1] * 8_000, 16_000)
    Path("list.jsonl").write_text(
        "".join(json.dumps({"id": name, "path": name, "text": "A"}) + "\n" for name in ("good.wav", "gone.wav"))
    )
    arguments = ["asr", "prepare", "manifest", "--set", "train=list.jsonl", "--out", "out"]
    code, printed = command_line(*arguments)
    assert code == 2, printed
    assert "--skip-bad" in printed
    assert not Path("out/train.jsonl").exists()
    code, printed = command_line(*arguments, "--skip-bad")
    assert code == 0, printed
    assert "| train | missing file | 1 | gone.wav |" in Path("out/report.md").read_text()
    assert len(Path("out/train.jsonl").read_text().splitlines()) == 1


def test_pieces_are_learnt_from_train_and_a_run_writes_them(trained: Path) -> None:
    done = ticketkit("asr", "bpe", "spoken_digits", "--size", "40", "--to", "pieces.model", cwd=trained)
    assert done.returncode == 0, done.stderr
    assert "wrote pieces.model: 41 labels" in done.stdout
    changes = ["--set", "backbone.labels.bpe=pieces.model", "--set", "trainer.epochs=1", "--set", "prune.rounds=1"]
    run = ticketkit("run", "config.yaml", "--out", "bpe", *changes, cwd=trained)
    assert run.returncode == 0, run.stderr


def test_a_prepared_corpus_is_trained_on_by_its_manifests(trained: Path, tmp_path: Path) -> None:
    from ticketkit_asr.corpora.spoken_digits import SpokenDigitsOptions, open_spoken_digits

    options = SpokenDigitsOptions(
        train_utterances=40, dev_utterances=8, test_utterances=10, digits=(1, 2), cache_dir=trained / "cache/ticketkit"
    )
    corpus = open_spoken_digits(options=options)
    for split, subset in {"train": "train-clean-5", "dev": "dev-clean", "test": "test-clean"}.items():
        chapter = tmp_path / "LibriSpeech" / subset / "1" / "2"
        chapter.mkdir(parents=True)
        lines = []
        for index, utterance in enumerate(corpus.split(split)[:6]):
            name = f"1-2-{index:04d}"
            soundfile.write(chapter / f"{name}.flac", utterance.audio.read(), corpus.sample_rate)
            lines.append(f"{name} {utterance.text}\n")
        (chapter / "1-2.trans.txt").write_text("".join(lines))
    subsets = ["min_seconds=0.1", "train=[train-clean-5]", "dev=[dev-clean]", "test=[test-clean]"]
    settings = [word for subset in subsets for word in ("--set", subset)]
    prepared = ticketkit(
        "asr", "prepare", "librispeech", "--root", str(tmp_path), "--out", str(tmp_path / "out"), *settings, cwd=trained
    )
    assert prepared.returncode == 0, prepared.stderr
    assert json.loads((tmp_path / "out" / "report.json").read_text())["splits"]["train"]["utterances"] == 6
    manifests = {split: str(tmp_path / "out" / f"{split}.jsonl") for split in ("train", "dev", "test")}
    changes = [f"corpus={json.dumps({'name': 'manifest', **manifests})}", "trainer.epochs=1"]
    run = ticketkit(
        *("run", "config.yaml", "--out", str(tmp_path / "run")),
        *(word for change in changes for word in ("--set", change)),
        cwd=trained,
    )
    assert run.returncode == 0, run.stderr


@pytest.mark.slow
def test_bench_compares_every_form_on_the_corpus_and_says_what_to_use(trained: Path) -> None:
    done = ticketkit("bench", TICKET, "--batch", "1", "--batch", "2", "--repeats", "3", "--evaluate", cwd=trained)
    assert done.returncode == 0, done.stderr
    for form in ("dense", "auto", "sparse", "dense int8", "auto fp16"):
        assert f"│ {form} " in done.stdout
        assert f"evaluating {form}\n" in done.stderr
    assert "passes are over the test split of spoken_digits: examples of " in done.stdout
    measured = json.loads((trained / "run" / "test.json").read_text())["1"]["wer"]
    rows = {line.split("│")[1].strip(): line for line in done.stdout.splitlines() if line.startswith("│ ")}
    assert f" {100 * measured:.2f} % " in rows["dense"]
    assert "sparse: " in done.stdout
    assert "on this machine, with 1 threads and batches of 1: " in done.stdout
    assert "compact: left out: nothing can be compacted" in done.stdout or "│ compact " in done.stdout
    assert "no streaming step: its LSTMs read both ways" in done.stdout


def test_an_export_has_a_model_card_of_what_was_measured(trained: Path) -> None:
    done = ticketkit("export", TICKET, "--runtime", "compressed", "--to", "card", "--licence", "cc0-1.0", cwd=trained)
    assert done.returncode == 0, done.stderr
    card = (trained / "card" / "README.md").read_text()
    facts = json.loads((trained / "card" / "export.json").read_text())
    assert card.startswith("---\nlibrary_name: ticketkit\nlicense: cc0-1.0\n")
    measured = json.loads((trained / "run" / "test.json").read_text())["1"]
    assert f"| test wer, this ticket | {100 * measured['wer']:.2f} % |" in card
    assert f"{facts['kept']:,} of {facts['total']:,} weights in scope" in card
    for name, file in facts["files"].items():
        assert f"| `{name}` | {file['bytes']:,} | `{file['sha256']}` |" in card
    code = card.partition("```python\n")[2].partition("```")[0]
    used = subprocess.run([sys.executable, "-c", code], cwd=trained / "card", capture_output=True, text=True)
    assert used.returncode == 0, used.stderr


def test_a_trained_ticket_exports_itself_as_the_command_does(trained: Path, tmp_path: Path) -> None:
    plugins = Plugins.discover()
    opened = open_trained(trained / TICKET, plugins)
    facts = opened.export(tmp_path / "half", runtime="dense", dtype="fp16", plugins=plugins)
    assert facts["run"] == opened.run
    loaded = load_exported(tmp_path / "half", plugins)
    features, lengths = opened.bundle.example(0.5, 1)  # type: ignore[attr-defined]
    with torch.no_grad():
        expected = opened.bundle.module.eval()(features, lengths)[0]
        assert torch.allclose(loaded.bundle.module(features, lengths)[0], expected, atol=1e-2)
    with pytest.raises(StorageError, match="exists already"):
        opened.export(tmp_path / "half", plugins=plugins)
