"""Workers as jobs of Slurm, submitted by submitit as one array."""

import shutil
import signal
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt

from ticketkit.errors import ConfigError, RunError
from ticketkit.study.executors.work import Work, Worker, until_told

FOLDER = "slurm"
"""In the study's directory: scripts and logs of the jobs."""
EVERY = 20.0
"""Seconds between two looks at Slurm's queue."""
GRACE = 60.0
"""Seconds after a job has left the queue in which its result may still come through the shared file system."""


class SlurmOptions(BaseModel):
    """What each worker asks Slurm for."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    cluster: Literal["slurm", "local", "debug"] = "slurm"
    """`local` starts the same jobs as processes of this machine, `debug` does them in this process."""
    partition: str | None = None
    time: PositiveInt = 1440
    """Minutes; a worker leaves before they are over, and another goes on."""
    cpus: PositiveInt | None = None
    """By default the study's threads."""
    gpus: int = Field(default=0, ge=0)
    memory: PositiveFloat | None = None
    """GB."""
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    setup: list[str] = []
    """Lines of shell before the work, such as `module load cuda`."""
    sbatch: dict[str, str | int | float | bool] = {}
    """Any other option of sbatch, such as `sbatch.reservation=tuesday`."""


class SlurmJobs:
    """Starts workers as jobs of Slurm; raises `ConfigError` where there is no Slurm."""

    def __init__(self, options: SlurmOptions, threads: int):
        try:
            import submitit
        except ImportError as error:
            raise ConfigError("the executor 'slurm' needs submitit; pip install 'ticketkit[slurm]'") from error
        self._submitit, self._options = submitit, options
        self._queue = _Queue() if options.cluster == "slurm" else None
        self._parameters = {
            "name": "ticketkit",
            "timeout_min": options.time,
            "cpus_per_task": options.cpus or threads,
            "gpus_per_node": options.gpus or None,
            "mem_gb": options.memory,
            "slurm_partition": options.partition,
            "slurm_account": options.account,
            "slurm_qos": options.qos,
            "slurm_constraint": options.constraint,
            "slurm_setup": options.setup or None,
            "slurm_additional_parameters": options.sbatch or None,
        }

    def start(self, work: Work, count: int) -> Sequence[Worker]:
        """Return as many jobs, of one array; raises `RunError` with what sbatch says if it takes them not."""
        executor = self._submitit.AutoExecutor(work.study / FOLDER, cluster=self._options.cluster)
        executor.update_parameters(**self._parameters)
        try:
            with executor.batch():
                submitted = [executor.submit(_worker, work) for _ in range(count)]
            return [_Job(job, self._queue) for job in submitted]
        except (self._submitit.core.utils.FailedJobError, subprocess.CalledProcessError, OSError) as error:
            raise RunError(f"Slurm takes no job: {_last_line(str(error))}; see --executor-option") from error


def _worker(work: Work) -> bool:
    """Work until nothing is left to begin, and say whether Slurm ended it before, for its time or another job."""
    return until_told(work, signal.SIGTERM, signal.SIGUSR2)


class _Job:
    def __init__(self, job: Any, queue: "_Queue | None"):
        self._job, self._queue = job, queue
        self._unlisted: float | None = None
        if queue:
            queue.watch(job.job_id)

    def __str__(self) -> str:
        return f"Slurm job {self._job.job_id}"

    def ended(self) -> str | None:
        if self._queue is None:
            if not self._job.done():
                return None
        elif not self._job.paths.result_pickle.exists():
            return self._missing(self._queue)
        error = self._job.exception()
        if error is not None:
            return f"failed: {_last_line(str(error))}; log: {self._log()}"
        return "was told by Slurm to leave, its time being over or another job first" if self._job.result() else ""

    def stop(self) -> None:
        self._job.cancel(check=False)

    def _missing(self, queue: "_Queue") -> str | None:
        """Return None as long as the queue lists the job or its result may come, and then that it vanished."""
        if queue.lists(self._job.job_id):
            self._unlisted = None
            return None
        self._unlisted = self._unlisted or time.monotonic()
        if time.monotonic() - self._unlisted < GRACE:
            return None
        return f"vanished from Slurm's queue without a result ({_accounted(self._job.job_id)}); log: {self._log()}"

    def _log(self) -> Path:
        path = self._job.paths.stderr
        return Path(path if path.exists() else self._job.paths.folder)


class _Queue:
    """Slurm's queue of waiting and running jobs, asked not too often."""

    def __init__(self) -> None:
        if missing := [name for name in ("sbatch", "squeue", "srun") if shutil.which(name) is None]:
            raise ConfigError(
                f"there is no {' and no '.join(missing)} here; submit from a machine of the Slurm cluster, or try it "
                "out by --executor-option cluster=local"
            )
        self._watched: dict[str, None] = {}
        self._listed: set[str] = set()
        self._asked: float | None = None

    def watch(self, job_id: str) -> None:
        """Ask for a job from now on; it counts as listed until the next look."""
        self._watched[job_id] = None
        self._listed.add(job_id)
        self._asked = time.monotonic()

    def lists(self, job_id: str) -> bool:
        """Say whether a job waits or runs, as far as is known."""
        if self._asked is None or time.monotonic() - self._asked >= EVERY:
            self._asked = time.monotonic()
            self._look()
        return job_id in self._listed

    def _look(self) -> None:
        arrays = dict.fromkeys(job_id.partition("_")[0] for job_id in self._watched)
        command = ["squeue", "--noheader", "--array", "--format=%i", f"--jobs={','.join(arrays)}"]
        asked = subprocess.run(command, capture_output=True, text=True, check=False)
        if asked.returncode == 0 or "Invalid job id" in asked.stderr:
            self._listed = set(asked.stdout.split())


def _accounted(job_id: str) -> str:
    """Return what Slurm's accounting says of a job, such as `OUT_OF_MEMORY`, where there is one."""
    if shutil.which("sacct") is None:
        return "there is no accounting"
    command = ["sacct", "--noheader", "--allocations", "--format=State", f"--jobs={job_id}"]
    said = subprocess.run(command, capture_output=True, text=True, check=False)
    return f"accounting says {said.stdout.strip() or 'nothing'}"


def _last_line(text: str) -> str:
    lines = [line for line in text.strip().splitlines() if line.strip(" -")]
    return lines[-1].strip() if lines else "no reason given"
