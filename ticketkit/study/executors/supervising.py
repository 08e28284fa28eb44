"""As many workers as there is work for, and others in the place of those that die."""

import time
from collections.abc import Callable, Sequence

from ticketkit.errors import RunError
from ticketkit.ledger import CHECKPOINT
from ticketkit.study.directory import StudyDirectory
from ticketkit.study.executors.work import Executor, Work, Worker
from ticketkit.study.jobs import Job
from ticketkit.study.worker import DEATHS, SETTLED, startable, states

LOOK = 1.0
"""Seconds between two looks at the study and its workers."""


def supervise(executor: Executor, work: Work, jobs: Sequence[Job], *, workers: int, say: Callable[[str], None]) -> None:
    """Start workers as long as there are jobs to begin, at most so many at once; return when all jobs are settled.

    Workers of other commands on the same study count as nothing but help. Raises `RunError` if workers end early again
    and again, `DEATHS` more than there are at once, and nothing is reached meanwhile: no round, no job, no checkpoint.
    """
    study = StudyDirectory(work.study)
    alive: list[Worker] = []
    died: list[str] = []
    reached = _reached(study, jobs)
    try:
        while True:
            alive, ended = _parted(alive)
            for line in ended:
                say(line)
            if ended and (now := _reached(study, jobs)) != reached:
                died, reached = [], now
            died += ended
            if len(died) > workers + DEATHS:
                raise RunError(
                    f"{len(died)} workers in a row ended early, and nothing was reached meanwhile: "
                    f"{'; '.join(died[-3:])}; see their logs; the same command goes on"
                )
            known = states(jobs, study)
            if all(state in SETTLED for state in known.values()) and not alive:
                return
            busy = list(known.values()).count("running")
            about_to_begin = max(0, len(alive) - busy)
            wanted = min(workers - len(alive), len(startable(jobs, known)) - about_to_begin)
            if wanted > 0:
                started = executor.start(work, wanted)
                alive += started
                say(f"started {', '.join(map(str, started))}")
            time.sleep(LOOK)
    finally:
        for worker in alive:
            worker.stop()


def _parted(workers: Sequence[Worker]) -> tuple[list[Worker], list[str]]:
    """Return the workers that go on, and what ended those that did not leave by themselves."""
    outcomes = [(worker, worker.ended()) for worker in workers]
    return (
        [worker for worker, outcome in outcomes if outcome is None],
        [f"{worker} {outcome}" for worker, outcome in outcomes if outcome],
    )


def _reached(study: StudyDirectory, jobs: Sequence[Job]) -> tuple[object, ...]:
    """Return how many jobs and rounds are finished, and which middles of rounds are saved."""
    settled = sum(study.is_done(job) or study.failure(job) is not None for job in jobs)
    rounds = len(list(study.path.glob("runs/*/rounds/*/record.json")))
    middles = {path: path.stat().st_mtime_ns for path in study.path.glob(f"runs/*/rounds/*/{CHECKPOINT}")}
    return settled, rounds, middles
