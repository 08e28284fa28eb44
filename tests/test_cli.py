"""The command line, run as a user runs it: real processes, a real third-party plugin, real files."""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.conftest import CommandLine

TOY = Path(__file__).parent / "toy"
CONFIG = str(TOY / "toy.yaml")


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(TOY), "COLUMNS": "160", "NO_COLOR": "1"}


def ticketkit(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "ticketkit", *arguments]
    return subprocess.run(command, cwd=cwd, env=environment(), capture_output=True, text=True, timeout=300)


@pytest.fixture
def in_process(command_line: CommandLine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> CommandLine:
    """Run the same `main()` without waiting for another process, beside the toy plugin."""
    monkeypatch.syspath_prepend(str(TOY))
    monkeypatch.chdir(tmp_path)
    return command_line


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("finished")
    result = ticketkit("run", CONFIG, "--out", "run", cwd=directory)
    assert result.returncode == 0, result.stderr
    (directory / "stdout.txt").write_text(result.stdout)
    return directory


def test_run_prints_plain_lines_and_a_table_with_a_row_for_every_round(finished: Path) -> None:
    printed = (finished / "stdout.txt").read_text()
    assert "round 3/3 (12.5% left)  epoch 2/2  loss" in printed
    assert "\x1b" not in printed
    for column in ("scope left", "model left", "emptiest parameter", "dev wer %", "test wer %", "ticket", "time"):
        assert column in printed
    assert "Epochs and tickets were chosen on dev; test was read once" in printed


def test_run_writes_results_report_plots_and_tickets(finished: Path) -> None:
    results = json.loads((finished / "run" / "results.json").read_text())
    assert [row["kept"] for row in results["rows"]] == [240, 120, 60, 30]
    assert all(set(row["test"]) == {"wer"} for row in results["rows"])
    assert results["corpus"] == {"name": "majority", "examples": 64}
    for name in ("report.md", "report.png", "report.svg", "best.safetensors", "config.json", "test.json"):
        assert (finished / "run" / name).stat().st_size > 0, name


def test_report_of_a_finished_run_repeats_its_table(finished: Path) -> None:
    result = ticketkit("report", "run", cwd=finished)
    assert result.returncode == 0, result.stderr
    assert "mlp on majority, pruned by magnitude: 240 weights in scope of 266, seed 3 (one seed)" in result.stdout


def test_resume_of_a_finished_run_trains_nothing_and_changes_no_result(finished: Path) -> None:
    before = (finished / "run" / "results.json").read_bytes()
    result = ticketkit("resume", "run", cwd=finished)
    assert result.returncode == 0, result.stderr
    assert "going on: 4 of 4 rounds are done" in result.stdout
    assert "epoch" not in result.stdout.replace("Epochs", "")
    assert (finished / "run" / "results.json").read_bytes() == before


def test_inspect_shows_origin_and_layers(finished: Path) -> None:
    result = ticketkit("inspect", "run/best.safetensors", cwd=finished)
    assert result.returncode == 0, result.stderr
    assert "builtin:magnitude" in result.stdout
    assert "0.weight" in result.stdout
    assert "3.weight" in result.stdout


def test_a_plugin_in_a_file_and_a_pin_reach_a_run(finished: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "import ticketkit\n"
        "@ticketkit.hookimpl\n"
        "def ticketkit_register_criteria(register):\n"
        "    register('newest', lambda inputs: {n: w.abs() for n, w in inputs.weights.items()})\n"
    )
    config = ("run", CONFIG, "--set", "prune.criterion=newest", "--set", "prune.rounds=1", "--out", "run")
    unknown = ticketkit(*config, cwd=tmp_path)
    assert unknown.returncode == 2
    assert "unknown criterion 'newest'" in unknown.stderr
    ran = ticketkit(*config, "--plugin", "mine.py", cwd=tmp_path)
    assert ran.returncode == 0, ran.stderr
    assert "mine:newest" in ticketkit("inspect", "run/rounds/001/ticket.safetensors", cwd=tmp_path).stdout
    pinned = ticketkit(*config, "--set", "plugins={mine: '>=2'}", "--out", "other", cwd=tmp_path)
    assert pinned.returncode == 2
    assert "the config asks for plugins:\n  mine>=2: it is not installed" in pinned.stderr


def test_compare_shows_what_two_tickets_share_against_chance(finished: Path) -> None:
    first, second = (f"run/rounds/00{index}/ticket.safetensors" for index in (1, 3))
    compared = ticketkit("compare", first, second, cwd=finished)
    assert compared.returncode == 0, compared.stderr
    assert "the second lies in the first" in compared.stdout
    assert "standard deviations above chance, p = " in compared.stdout
    assert "0.weight" in compared.stdout


def test_a_config_reaches_every_part_of_the_engine(finished: Path, tmp_path: Path) -> None:
    """A data-driven criterion, a structured grain, another split, another way down, another way back, from a mask."""
    settings = {
        "criterion": "snip",
        "granularity": "{name: row, pool: sum}",
        "allocation": "uniform",
        "schedule": "linear",
        "rewind": "epoch:1",
        "rounds": "2",
        "rate": "null",
        "density": "0.25",
        "start": str(finished / "run" / "rounds" / "001" / "ticket.safetensors"),
        "on_collapse": "reallocate",
    }
    options = [word for key, value in settings.items() for word in ("--set", f"prune.{key}={value}")]
    finished_run = ticketkit("run", CONFIG, "--out", "run", *options, cwd=tmp_path)
    assert finished_run.returncode == 0, finished_run.stderr
    shown = ticketkit("inspect", "run/rounds/002/ticket.safetensors", cwd=tmp_path).stdout
    for fact in ("builtin:snip", "builtin:row", "builtin:uniform", "builtin:linear", "rewind: epoch:1", "dead outputs"):
        assert fact in shown
    again = ticketkit("run", CONFIG, "--out", "again", "--set", "prune.rewind=reinit", cwd=tmp_path)
    assert again.returncode == 0, again.stderr


def test_verify_accepts_its_own_round_and_refuses_another_rounds_weights(finished: Path) -> None:
    ticket = "run/rounds/002/ticket.safetensors"
    own = ticketkit("verify", ticket, "--model", "run/rounds/002/trained.safetensors", cwd=finished)
    assert own.returncode == 0, own.stderr
    assert "all 180 pruned weights are exactly zero" in own.stdout
    other = ticketkit("verify", ticket, "--model", "run/rounds/001/trained.safetensors", cwd=finished)
    assert other.returncode == 2
    assert "pruned weights that are not zero" in other.stderr


def test_sigkill_between_and_inside_rounds_then_resume_gives_the_same_tickets(finished: Path, tmp_path: Path) -> None:
    for committed in (0, 1, 3):
        out = tmp_path / f"killed-{committed}"
        command = [sys.executable, "-m", "ticketkit", "run", CONFIG, "--out", str(out)]
        process = subprocess.Popen(command, cwd=tmp_path, env=environment(), stdout=subprocess.DEVNULL)
        wanted = out / "rounds" / f"{committed:03d}" / "record.json"
        while not wanted.exists() and process.poll() is None:
            time.sleep(0.001)
        process.kill()
        process.wait()
        result = ticketkit("resume", str(out), cwd=tmp_path)
        assert result.returncode == 0, result.stderr
        for name in [f"rounds/{index:03d}/ticket.safetensors" for index in range(4)] + ["best.safetensors"]:
            assert (out / name).read_bytes() == (finished / "run" / name).read_bytes(), name
        rows = [json.loads((run / "results.json").read_text())["rows"] for run in (out, finished / "run")]
        assert [{**row, "seconds": 0} for row in rows[0]] == [{**row, "seconds": 0} for row in rows[1]]


def test_plugins_lists_entries_and_who_brought_them(tmp_path: Path) -> None:
    result = ticketkit("plugins", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    row = next(line for line in result.stdout.splitlines() if line.startswith("│ toy "))
    assert "1.2" in row
    assert "toy-plugin" in row
    for name in ("magnitude_over_init", "signed", "majority", "cnn_lstm", "fsdd", "spoken_digits"):
        assert name in result.stdout


def test_plugins_name_shows_one_with_its_options(tmp_path: Path) -> None:
    shown = ticketkit("plugins", "toy", cwd=tmp_path)
    assert shown.returncode == 0, shown.stderr
    for expected in ("toy: toy-plugin 1.2, imported from toy_plugin", "backbone mlp", "hidden", "32", "trainer sgd"):
        assert expected in shown.stdout
    assert "magnitude" not in shown.stdout
    entry = ticketkit("plugins", "block", cwd=tmp_path)
    assert "granularity block (builtin" in entry.stdout
    assert "rows" in entry.stdout
    unknown = ticketkit("plugins", "blok", cwd=tmp_path)
    assert unknown.returncode == 2
    assert "no plugin and no entry called 'blok'; did you mean 'block'?" in unknown.stderr


def test_export_writes_weights_that_any_loader_reads_or_nothing(finished: Path, tmp_path: Path) -> None:
    ticket, to = "run/rounds/002/ticket.safetensors", tmp_path / "out"
    exported = ticketkit("export", ticket, "--to", str(to), cwd=finished)
    assert exported.returncode == 0, exported.stderr
    weights = load_file(to / "model.safetensors")
    trained = load_file(finished / "run" / "rounds" / "002" / "trained.safetensors")
    assert all(torch.equal(tensor, trained[f"parameter/{name}"]) for name, tensor in weights.items())
    assert sum(int((tensor != 0).sum()) for name, tensor in weights.items() if tensor.dim() == 2) == 60
    again = ticketkit("export", ticket, "--to", str(to), cwd=finished)
    assert again.returncode == 1
    assert f"{to} exists already" in again.stderr
    alone = tmp_path / "alone.safetensors"
    shutil.copy(finished / ticket, alone)
    lost = ticketkit("export", str(alone), "--to", str(tmp_path / "other"), cwd=tmp_path)
    assert lost.returncode == 2
    assert "is in no run directory" in lost.stderr
    unknown = ticketkit("export", ticket, "--to", str(tmp_path / "o"), "--exporter", "weight", cwd=finished)
    assert "unknown exporter 'weight'; did you mean 'weights'?" in unknown.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["alone.safetensors", "out"]


def test_a_run_goes_on_only_with_the_plugins_it_was_started_with(finished: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished / "run", run)
    origins = json.loads((run / "plugins.json").read_text())
    assert origins == {
        "toy": {
            "distribution": "toy-plugin",
            "version": "1.2",
            "entries": ["corpus 'majority'", "backbone 'mlp'", "trainer 'sgd'"],
        }
    }
    command = [sys.executable, "-m", "ticketkit", "resume", "run"]
    gone = {name: value for name, value in environment().items() if name != "PYTHONPATH"}
    missing = subprocess.run(command, cwd=tmp_path, env=gone, capture_output=True, text=True, timeout=300)
    assert missing.returncode == 2
    assert (
        "backbone 'mlp', trainer 'sgd' came from toy-plugin 1.2 (plugin 'toy'): it is not installed" in missing.stderr
    )
    assert "pip install 'toy-plugin==1.2'" in missing.stderr
    blocked = subprocess.run(
        command, cwd=tmp_path, env=environment() | {"TICKETKIT_BLOCK_PLUGINS": "toy"}, capture_output=True, text=True
    )
    assert blocked.returncode == 2
    assert "it is left out: TICKETKIT_BLOCK_PLUGINS blocks 'toy'" in blocked.stderr
    origins["toy"]["version"] = "1.1"
    (run / "plugins.json").write_text(json.dumps(origins))
    other = ticketkit("resume", "run", cwd=tmp_path)
    assert other.returncode == 2
    assert "toy-plugin 1.1 (plugin 'toy'), but toy-plugin 1.2 is installed" in other.stderr
    (run / "plugins.json").write_text("[]")
    damaged = ticketkit("resume", "run", cwd=tmp_path)
    assert damaged.returncode == 1
    assert "plugins.json is damaged" in damaged.stderr


def test_commands_of_plugins_are_listed_and_run_and_clashes_are_named(tmp_path: Path) -> None:
    site = tmp_path / "site"
    for name, source in {
        "hello": "@cli.command()\n    def greet(who: str):\n        print('hello', who)",
        "thief": "@cli.command()\n    def verify():\n        print('stolen')",
        "broken": "1 / 0",
    }.items():
        info = site / f"{name}-1.0.dist-info"
        info.mkdir(parents=True)
        hook = f"import ticketkit\n@ticketkit.hookimpl\ndef ticketkit_register_commands(cli):\n    {source}\n"
        (site / f"{name}_plugin.py").write_text(hook)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(f"[ticketkit]\n{name} = {name}_plugin\n")

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-X", "importtime", "-m", "ticketkit", *arguments]
        return subprocess.run(
            command, env={**environment(), "PYTHONPATH": str(site)}, capture_output=True, text=True, cwd=tmp_path
        )

    greeted = run("greet", "you")
    assert (greeted.returncode, greeted.stdout) == (0, "hello you\n")
    assert " torch\n" not in greeted.stderr
    listed = run("--help")
    assert "greet" in listed.stdout
    assert (
        "the command 'verify' of plugin 'thief' (distribution thief 1.0) is that of ticketkit itself" in listed.stderr
    )
    assert "plugin 'broken' (distribution broken 1.0) is broken: ZeroDivisionError" in listed.stderr
    own = run("verify", "--help")
    assert "Check every byte of a ticket file" in own.stdout
    assert "warning:" not in own.stderr
    assert run("greeet").returncode == 2


def test_init_writes_a_config_that_run_accepts_and_never_overwrites(tmp_path: Path) -> None:
    assert ticketkit("init", "mine.yaml", cwd=tmp_path).returncode == 0
    again = ticketkit("init", "mine.yaml", cwd=tmp_path)
    assert again.returncode == 2
    assert "exists already" in again.stderr
    from ticketkit.config import parse_config, read_settings
    from ticketkit.plugins import Plugins

    plugins = Plugins.discover()
    assert parse_config(read_settings(str(tmp_path / "mine.yaml"), [], plugins.recipes()), plugins).prune.rounds == 6


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["run", "spoken_digit"], 2, "did you mean 'spoken_digits'?"),
        (["run", CONFIG, "--set", "prune.criterion=magnitud"], 2, "did you mean 'magnitude'?"),
        (["run", CONFIG, "--set", "prune.rate=1.5"], 2, "strictly between 0 and 1"),
        (["run", CONFIG, "--set", "nonsense"], 2, "a setting is written a.b=value"),
        (["run", CONFIG, "--set", "prune.scope.include=[encoder.*]"], 2, "'encoder.*' matched none of 4 parameters"),
        (["run", CONFIG, "--set", "trainer.diverge_in_round=0"], 1, "score of parameter '0.weight' is nan"),
        (["resume", "nowhere"], 2, "nowhere holds no run"),
        (["report", "nowhere"], 1, "nowhere holds no results.json"),
        (["inspect", "nothing.safetensors"], 2, "nothing.safetensors does not exist"),
    ],
)
def test_bad_input_is_one_message_and_an_exit_code(
    arguments: list[str], code: int, message: str, in_process: CommandLine
) -> None:
    returned, printed = in_process(*arguments)
    assert returned == code, printed
    assert message in printed
    assert "Traceback" not in printed


def test_a_metric_that_is_not_measured_is_named_after_the_first_round_which_is_kept(tmp_path: Path) -> None:
    wrong = ticketkit("run", CONFIG, "--set", "metric=wwer", "--out", "run", cwd=tmp_path)
    assert wrong.returncode == 2
    assert "metric 'wwer' was not measured; did you mean 'wer'?" in wrong.stderr
    assert (tmp_path / "run" / "rounds" / "000" / "record.json").exists()
    right = ticketkit("run", CONFIG, "--out", "run", cwd=tmp_path)
    assert right.returncode == 0, right.stderr


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("latin.yaml", b"\xff\xfe", "latin.yaml cannot be read as UTF-8 text"),
        ("[/b].yaml", None, "'[/b].yaml' is neither a config file nor a recipe"),
        ("seed.yaml", b"seed: 99999999999999999999999999", "seed: Input should be less than"),
    ],
)
def test_odd_config_files_are_one_message(
    name: str, content: bytes | None, message: str, tmp_path: Path, in_process: CommandLine
) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    code, errors = in_process("run", name)
    assert code == 2
    assert message in errors
    assert "Traceback" not in errors


def test_damaged_files_of_a_run_are_named(finished: Path, tmp_path: Path) -> None:
    shutil.copytree(finished / "run", tmp_path / "run")
    for name in ("test.json", "config.json"):
        (tmp_path / "run" / name).write_text("{")
        broken = ticketkit("run", CONFIG, "--out", "run", cwd=tmp_path)
        assert broken.returncode == 1
        assert f"{name} cannot be read" in broken.stderr


def test_debug_shows_the_traceback(tmp_path: Path) -> None:
    result = ticketkit("--debug", "resume", "nowhere", cwd=tmp_path)
    assert result.returncode == 1
    assert "Traceback" in result.stderr


def test_all_faults_of_a_config_come_at_once(in_process: CommandLine) -> None:
    faults = ["--set", "colour=1", "--set", "backbone.hiden=3", "--set", "prune.rate=0", "--set", "corpus=majorty"]
    returned, printed = in_process("run", CONFIG, *faults)
    assert returned == 2
    for message in (
        "the config has 4 faults",
        "colour",
        "hiden",
        "strictly between 0 and 1",
        "did you mean 'majority'?",
    ):
        assert message in printed


def test_a_directory_with_another_config_is_refused_and_keeps_its_run(finished: Path) -> None:
    before = (finished / "run" / "results.json").read_bytes()
    result = ticketkit("run", CONFIG, "--set", "seed=4", "--out", "run", cwd=finished)
    assert result.returncode == 2
    assert "seed: there 3, here 4" in result.stderr
    assert (finished / "run" / "results.json").read_bytes() == before


def test_a_full_disk_is_a_clear_error_and_the_run_goes_on_later(tmp_path: Path) -> None:
    command = f'ulimit -f 8; exec "{sys.executable}" -m ticketkit run "{CONFIG}" --set backbone.hidden=600 --out run'
    result = subprocess.run(
        ["bash", "-c", command], cwd=tmp_path, env=environment(), capture_output=True, text=True, timeout=300
    )
    assert result.returncode == 1, result.stderr
    assert "cannot write" in result.stderr
    assert not list(tmp_path.rglob("*.partial"))
    assert ticketkit("resume", "run", cwd=tmp_path).returncode == 0


def test_help_does_not_import_torch() -> None:
    code = (
        "import sys, typer.testing, ticketkit.cli as cli;"
        "typer.testing.CliRunner().invoke(cli.app, ['--help']);"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0
