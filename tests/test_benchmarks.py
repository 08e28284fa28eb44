import json
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parent / "benchmarks" / "run.py"
FIELDS = {"name", "ours", "rival", "ratio", "spread", "rounds", "shape", "goal", "verdict", "threads", "torch"}


def test_every_figure_is_printed_as_a_json_line() -> None:
    finished = subprocess.run([sys.executable, str(SCRIPT), "--quick"], capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr
    lines = [json.loads(line) for line in finished.stdout.splitlines()]
    assert all(line.keys() == FIELDS for line in lines)
    assert all(line["verdict"] in ("met", "missed") for line in lines)
    assert {line["name"].split()[0] for line in lines} == {"P1", "P2", "P3", "P4", "P5"}
    assert {line["verdict"] for line in lines if line["name"].startswith("P4")} == {"met"}
