import os
import sys
import warnings
from collections.abc import Callable

import pytest
import torch
from hypothesis import HealthCheck, settings

from ticketkit import cli

CommandLine = Callable[..., tuple[int, str]]
"""Runs a command with these words; returns its exit code and what it printed as errors."""

settings.register_profile("ci", deadline=None, derandomize=True, max_examples=50, database=None)
settings.register_profile(
    "thorough", deadline=None, max_examples=3000, database=None, suppress_health_check=[HealthCheck.too_slow]
)
torch.set_num_threads(1)  # tiny networks run no faster on two, and a hundred times slower on a busy machine
os.environ.setdefault("OMP_NUM_THREADS", "1")  # nor do the processes that tests start
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))


@pytest.fixture(autouse=True)
def _seeded() -> None:
    """Start every test from the same torch seed; what a test draws does not depend on the tests before it."""
    torch.manual_seed(0)


@pytest.fixture
def command_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> CommandLine:
    """The command line in this process, which has imported torch already."""

    def run(*arguments: str) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["ticketkit", *arguments])
        monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)
        with pytest.raises(SystemExit) as stopped:
            cli.main()
        return int(stopped.value.code or 0), capsys.readouterr().err

    return run
