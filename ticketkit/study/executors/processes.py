"""Workers as processes of this machine, each started afresh."""

import signal
import subprocess
from collections.abc import Sequence

from ticketkit.study.executors.work import Work, Worker

SECONDS_TO_LEAVE = 10.0


class Processes:
    """Starts workers as processes of this machine."""

    def start(self, work: Work, count: int) -> Sequence[Worker]:
        """Return as many processes."""
        return [_Process(work) for _ in range(count)]


class _Process:
    def __init__(self, work: Work):
        self._popen = subprocess.Popen(work.command)

    def __str__(self) -> str:
        return f"process {self._popen.pid}"

    def ended(self) -> str | None:
        code = self._popen.poll()
        if not code:
            return None if code is None else ""
        if code > 0:
            return f"ended with exit code {code}; what it said is above"
        return f"was killed by {signal.Signals(-code).name}" + ("; out of memory?" if -code == signal.SIGKILL else "")

    def stop(self) -> None:
        self._popen.terminate()
        try:
            self._popen.wait(SECONDS_TO_LEAVE)
        except subprocess.TimeoutExpired:
            self._popen.kill()
            self._popen.wait()
