"""Work on a study: one job after another, in as many processes at once as one likes."""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import torch

from ticketkit.errors import RunError
from ticketkit.experiment import run_experiment
from ticketkit.locks import Lock, LostLockError
from ticketkit.plugins import Plugins
from ticketkit.roles import Progress
from ticketkit.study.directory import StudyDirectory
from ticketkit.study.examinations import examine
from ticketkit.study.jobs import Job
from ticketkit.study.materials import prepare
from ticketkit.study.trainings import SharedTrainings

PATIENCE = 2.0  # seconds between two looks at what other processes have finished
DEATHS = 3
"""How many processes in a row may die at a job before it counts as failed."""

State = Literal["done", "failed", "blocked", "running", "waiting"]
SETTLED = ("done", "failed", "blocked")
Say = Callable[[str], None]


def work(
    study: StudyDirectory,
    jobs: Sequence[Job],
    plugins: Plugins,
    *,
    threads: int,
    stay: bool = True,
    say: Say = lambda line: None,
    progress: Callable[[Job, Progress], None] = lambda job, progress: None,
) -> None:
    """Do the jobs that are not done, beside other processes that do the same; return when nothing is left to do.

    A job that fails is written down and the others go on, without those that need it. A job that another process is at
    work on is waited for, since others may need it or its process may die; without `stay`, only while there are others
    that can be begun.
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
            if not stay and not startable(jobs, states(jobs, study)):
                return
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


def startable(jobs: Sequence[Job], known: Mapping[str, State]) -> list[Job]:
    """Return the jobs that nobody is at work on, and that need nothing more, given what has become of each."""
    return [job for job in jobs if known[job.id] == "waiting" and all(known.get(need) == "done" for need in job.needs)]


def _attempt(
    job: Job, study: StudyDirectory, plugins: Plugins, say: Say, progress: Callable[[Job, Progress], None]
) -> None:
    """Do a job unless another process has taken it; write down why it fails, if it does."""
    with study.taken(job) as lock:
        if lock is None or study.is_done(job):
            return
        if lock.takeovers > DEATHS:
            study.note_failure(job, _deadly(lock))
            return
        say(f"{job.id}: begins" + (f", after {lock.before} was gone" if lock.before else ""))
        started = time.monotonic()
        try:
            failure = _failure(lambda: perform(job, study, plugins, lambda told: progress(job, told), lock))
            lock.check()
        except LostLockError as error:
            say(f"{job.id}: lost: {error}")
            return
        if failure is not None:
            study.note_failure(job, failure)
            say(f"{job.id}: failed: {failure}")
        else:
            say(f"{job.id}: done in {time.monotonic() - started:.0f} s")


def _failure(perform: Callable[[], None]) -> Exception | None:
    """Return why a job failed, or None; raises `LostLockError` as it is, since the job has not failed then."""
    try:
        perform()
    except LostLockError:
        raise
    except Exception as error:
        return error
    return None


def _deadly(lock: Lock) -> RunError:
    """Return the failure of a job that processes die at."""
    return RunError(
        f"{lock.takeovers} processes in a row were gone before they had finished a training of this run, the last one "
        f"{lock.before}: killed for its memory or its time, or its machine went down; see its log"
    )


def perform(
    job: Job, study: StudyDirectory, plugins: Plugins, progress: Callable[[Progress], None], lock: Lock
) -> None:
    """Run a job, or go on with it, and examine what was trained under all its test conditions, holding its lock.

    Raises `LostLockError` before it writes anything more if the lock was lost.
    """

    def told_on(told: Progress) -> None:
        if told.epoch == told.epochs:
            lock.forgive()
        progress(told)

    config, directory = prepare(job, study, plugins), study.run(job.id)
    with SharedTrainings(study.path, job.id, config, lock.check) as train:
        run_experiment(config, directory, plugins, told_on, train=train)
    for name, test in job.tests.items():
        lock.check()
        examine(directory, plugins, name, test)
