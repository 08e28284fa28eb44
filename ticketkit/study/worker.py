"""Work on a study: one job after another, in as many processes at once as one likes."""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import torch

from ticketkit.experiment import run_experiment
from ticketkit.plugins import Plugins
from ticketkit.roles import Progress
from ticketkit.study.directory import StudyDirectory
from ticketkit.study.examinations import examine
from ticketkit.study.jobs import Job
from ticketkit.study.materials import prepare
from ticketkit.study.trainings import SharedTrainings

PATIENCE = 2.0  # seconds between two looks at what other processes have finished

State = Literal["done", "failed", "blocked", "running", "waiting"]
SETTLED = ("done", "failed", "blocked")
Say = Callable[[str], None]


def work(
    study: StudyDirectory,
    jobs: Sequence[Job],
    plugins: Plugins,
    *,
    threads: int,
    say: Say = lambda line: None,
    progress: Callable[[Job, Progress], None] = lambda job, progress: None,
) -> None:
    """Do the jobs that are not done, beside other processes that do the same; return when nothing is left to do.

    A job that fails is written down and the others go on, without those that need it. A job that another process is at
    work on is waited for, since others may need it.
    """
    torch.set_num_threads(threads)
    settled: dict[str, State] = {}
    while len(settled) < len(jobs):
        before = len(settled)
        for job in jobs:
            if job.id in settled:
                continue
            found = state(job, settled, study)
            if found == "waiting" and all(settled.get(need) == "done" for need in job.needs):
                _attempt(job, study, plugins, say, progress)
                found = state(job, settled, study)
            if found in SETTLED:
                settled[job.id] = found
        if len(settled) == before:
            time.sleep(PATIENCE)


def states(jobs: Sequence[Job], study: StudyDirectory) -> dict[str, State]:
    """Return what has become of each job, by id; jobs come after those that they need."""
    known: dict[str, State] = {}
    for job in jobs:
        known[job.id] = state(job, known, study)
    return known


def state(job: Job, known: Mapping[str, State], study: StudyDirectory) -> State:
    """Return what has become of a job, given that of those it needs: `blocked` needs one that has failed."""
    if study.is_done(job):
        return "done"
    if study.failure(job) is not None:
        return "failed"
    if any(known.get(need) in ("failed", "blocked") for need in job.needs):
        return "blocked"
    return "running" if study.is_taken(job) else "waiting"


def _attempt(
    job: Job, study: StudyDirectory, plugins: Plugins, say: Say, progress: Callable[[Job, Progress], None]
) -> None:
    """Do a job unless another process has taken it; write down why it fails, if it does."""
    with study.taken(job) as ours:
        if not ours or study.is_done(job):
            return
        say(f"{job.id}: begins")
        started = time.monotonic()
        try:
            perform(job, study, plugins, lambda told: progress(job, told))
        except Exception as error:
            study.note_failure(job, error)
            say(f"{job.id}: failed: {error}")
        else:
            say(f"{job.id}: done in {time.monotonic() - started:.0f} s")


def perform(job: Job, study: StudyDirectory, plugins: Plugins, progress: Callable[[Progress], None]) -> None:
    """Run a job, or go on with it, and examine what was trained under all its test conditions."""
    config, directory = prepare(job, study, plugins), study.run(job.id)
    with SharedTrainings(study.path, job.id, config) as train:
        run_experiment(config, directory, plugins, progress, train=train)
    for name, test in job.tests.items():
        examine(directory, plugins, name, test)
