"""The benchmarks run and say what they should; no test here looks at how long anything took."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
from hypothesis import given
from hypothesis import strategies as st

FOLDER = Path(__file__).parent / "benchmarks"
FIELDS = ["id", "name", "unit", "ours", "rival", "ratio", "spread", "rounds", "shape", "goal", "verdict"]
FIELDS += ["threads", "torch"]
FIGURES = [f"P{number}" for number in range(1, 19)]

seconds = st.floats(1e-6, 1e6)
paired = st.lists(st.tuples(seconds, seconds), min_size=1, max_size=9)


def load_figures() -> ModuleType:
    spec = importlib.util.spec_from_file_location("benchmark_figures", FOLDER / "figures.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


figures = load_figures()


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="P2 and P6 read Linux's /proc")
def test_one_command_prints_every_figure_as_a_json_line_and_the_table() -> None:
    command = [sys.executable, str(FOLDER / "run.py"), "--quick", "--markdown"]
    finished = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert finished.returncode == 0, finished.stderr
    printed = finished.stdout.splitlines()
    lines = [json.loads(line) for line in printed if line.startswith("{")]
    for line in lines:
        assert list(line) == FIELDS
        assert len(line["rival"]) == 1
        assert line["rounds"] == 1 or line["spread"][0] <= line["ratio"] <= line["spread"][1]
        assert line["verdict"] in ("met", "missed")
    assert list(dict.fromkeys(line["id"] for line in lines)) == FIGURES
    assert {line["verdict"] for line in lines if line["id"] == "P4"} == {"met"}
    assert sum(row.startswith("| P") for row in printed) == len(lines)
    names = {line["name"] for line in lines}
    for network in ("BiLSTM-CTC", "Conformer", "Transformer encoder", "MLP"):
        assert f"training step, {network}, SGD" in names or f"{network}: skipped" in finished.stderr


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="the gauge reads Linux's /proc")
def test_the_gauge_counts_memory_that_is_written_and_no_mapped_file(tmp_path: Path) -> None:
    size = 32 << 20
    mapped = tmp_path / "mapped"
    mapped.write_bytes(bytes(size))
    program = f"from gauge import fill, peak_bytes as p; print(p(fill, {size}), p(fill, {size}, {str(mapped)!r}))"
    command = [sys.executable, "-c", f"import processes; processes.PRELOADED = ['torch']; {program}"]
    finished = subprocess.run(command, cwd=FOLDER, capture_output=True, text=True, check=False, timeout=300)
    assert finished.returncode == 0, finished.stderr
    written, read = map(int, finished.stdout.split())
    assert abs(written - size) <= 0.05 * size
    assert read <= 0.05 * size


@given(paired)
def test_the_ratio_lies_between_its_quartiles(pairs: list[tuple[float, float]]) -> None:
    ours, theirs = zip(*pairs, strict=True)
    figure = figures.compared("P0 x", ours, {"rival": theirs}, shape="", goal=figures.NO_WORSE)
    assert figure.spread[0] <= figure.ratio <= figure.spread[1]
    assert min(a / b for a, b in pairs) <= figure.ratio <= max(a / b for a, b in pairs)
    assert figure.rounds == len(pairs)


@given(paired, st.data())
def test_what_slows_a_whole_round_down_changes_no_ratio(pairs: list[tuple[float, float]], data: st.DataObject) -> None:
    factors = data.draw(st.lists(st.sampled_from([0.25, 1.0, 8.0]), min_size=len(pairs), max_size=len(pairs)))
    slowed = [(a * factor, b * factor) for (a, b), factor in zip(pairs, factors, strict=True)]
    one, other = (
        figures.compared("P0 x", ours, {"rival": theirs}, shape="", goal=figures.NO_WORSE)
        for ours, theirs in (zip(*pairs, strict=True), zip(*slowed, strict=True))
    )
    assert one.ratio == other.ratio
    assert one.spread == other.spread


@pytest.mark.parametrize(
    ("goal", "ours", "theirs", "ratio", "verdict"),
    [
        (("<=", 1.02, "of dense"), 1.02, 1.0, 1.02, "met"),
        (("<=", 1.02, "of dense"), 1.03, 1.0, 1.03, "missed"),
        ((">=", 25, "times faster"), 1.0, 25.0, 25.0, "met"),
        ((">=", 25, "times faster"), 1.0, 24.0, 24.0, "missed"),
        (("==", 0, "of the rival"), 0.0, 9.0, 0.0, "met"),
        (("==", 0, "of the rival"), 1.0, 2.0, 0.5, "missed"),
        (("<=", 1.0, "of the rival"), 1.0, 0.0, None, "missed"),
    ],
)
def test_the_verdict_compares_the_ratio_in_the_direction_of_the_goal(
    goal: tuple[str, float, str], ours: float, theirs: float, ratio: float | None, verdict: str
) -> None:
    figure = figures.compared("P0 x", [ours], {"rival": [theirs]}, shape="", goal=figures.Goal(*goal))
    assert (figure.ratio, figure.verdict) == (ratio, verdict)


def test_rounds_that_are_not_paired_are_refused() -> None:
    with pytest.raises(ValueError, match="shorter"):
        figures.compared("P0 x", [1.0, 2.0], {"rival": [1.0]}, shape="", goal=figures.NO_WORSE)


def test_contestants_take_turns_and_each_begins_a_round() -> None:
    log: list[str] = []
    contestants = {name: lambda n=name: float(log.append(n) or len(log)) for name in "abc"}
    measured = figures.interleaved(contestants, 3)
    assert "".join(log) == "abcbcacab"
    assert measured == {"a": [1, 6, 8], "b": [2, 4, 9], "c": [3, 5, 7]}


def test_the_performance_page_says_of_every_figure_what_is_compared() -> None:
    page = (FOLDER.parents[1] / "docs" / "performance.md").read_text(encoding="utf-8")
    assert [figure for figure in FIGURES if f"\n| {figure} | " not in page] == []
