"""`ticketkit study`: run a declared grid of runs, by one process or many on many machines, and say what it shows.

Heavy imports stay inside the commands.
"""

import signal
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from ticketkit.console import console
from ticketkit.errors import RunError
from ticketkit.plugin_files import PluginFiles, load_plugins

if TYPE_CHECKING:
    from ticketkit.plugins import Plugins
    from ticketkit.roles import Progress
    from ticketkit.study.config import Kind, StudyConfig
    from ticketkit.study.directory import StudyDirectory
    from ticketkit.study.jobs import Job
    from ticketkit.study.worker import State

study_app = typer.Typer(
    no_args_is_help=True, pretty_exceptions_enable=False, help="The five studies of Audio Lottery, with statistics."
)

Config = Annotated[str, typer.Option("--config", help="a study's name or a YAML file", metavar="STUDY_OR_CONFIG")]
Out = Annotated[Path | None, typer.Option(help="the study's directory [default: studies/<name>]")]
Overrides = Annotated[list[str], typer.Option("--set", help="override a setting: a.b=value", metavar="A.B=C")]
Workers = Annotated[int, typer.Option(min=1, help="how many work at once")]
ExecutorName = Annotated[
    str | None,
    typer.Option("--executor", help="serial, processes, ray or slurm [default: serial; processes for several workers]"),
]
ExecutorOptions = Annotated[
    list[str], typer.Option("--executor-option", help="an option of the executor: key=value", metavar="KEY=VALUE")
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="say what would run, how long it takes and what it needs")]
Directory = Annotated[Path, typer.Argument(help="a study's directory")]

SUMMARIES: "dict[Kind, str]" = {
    "existence": "Is there a ticket? The whole ladder of each variant.",
    "controls": "Is it the ticket that matters? Random, one-shot, unrewound and small dense rivals.",
    "transfer": "Does a ticket move? Masks found on one corpus, trained on another.",
    "structure": "What does structure cost? Blocks, rows, N:M and RNN units at equal densities.",
    "noise": "Do tickets shrug off noise in training? Tested at each level, with noise never heard.",
}


def _command(kinds: "tuple[Kind, ...]") -> Callable[..., None]:
    def command(
        config: Config,
        out: Out = None,
        workers: Workers = 1,
        executor: ExecutorName = None,
        executor_option: ExecutorOptions = [],  # noqa: B006
        dry_run: DryRun = False,
        override: Overrides = [],  # noqa: B006
        plugin: PluginFiles = [],  # noqa: B006
    ) -> None:
        from ticketkit.config import read_settings
        from ticketkit.study.config import parse_study
        from ticketkit.study.directory import StudyDirectory
        from ticketkit.study.executors import make_executor
        from ticketkit.study.executors.supervising import supervise
        from ticketkit.study.executors.work import Work
        from ticketkit.study.grids import jobs

        plugins = load_plugins(plugin)
        study = parse_study(read_settings(config, override, plugins.studies()))
        chosen = kinds or study.kinds
        found = jobs(study, chosen)
        if dry_run:
            _show_plan(study, found, plugins)
            return
        chosen_executor = make_executor(executor, executor_option, workers=workers, threads=study.threads)
        directory = StudyDirectory(out or Path("studies") / Path(config).stem)
        directory.claim(study)
        for job in found:
            directory.forget_failure(job)
        _end_on_terminate()
        if chosen_executor is None:
            _work_here(study, directory, found, plugins)
        else:
            files = tuple(file.resolve() for file in plugin)
            task = Work(directory.path.resolve(), chosen, study.threads, files)
            supervise(chosen_executor, task, found, workers=workers, say=_say)
        _finish(directory, found, plugins)

    return command


for _kind, _summary in SUMMARIES.items():
    study_app.command(_kind, help=_summary)(_command((_kind,)))
study_app.command("all", help="All studies that the config declares.")(_command(()))


@study_app.command(hidden=True)
def work(directory: Directory, kinds: list[str], plugin: PluginFiles = []) -> None:  # noqa: B006
    """Work on a study that was started, beside the other processes that do."""
    from ticketkit.study.directory import StudyDirectory
    from ticketkit.study.grids import jobs

    chosen: Any = tuple(kinds)
    _end_on_terminate()
    study = StudyDirectory(directory)
    _work_here(study.config(), study, jobs(study.config(), chosen), load_plugins(plugin))


@study_app.command()
def status(directory: Directory) -> None:
    """Show what is done, running and by whom, waiting, blocked, failed and why."""
    from ticketkit.study.directory import StudyDirectory
    from ticketkit.study.grids import jobs
    from ticketkit.study.worker import states

    study = StudyDirectory(directory)
    config = study.config()
    found = jobs(config, config.kinds)
    known = states(found, study)
    table = Table("run", "state", "rounds", "by whom, or why")
    for job in found:
        rounds = len(list(study.run(job.id).glob("rounds/*/record.json")))
        table.add_row(job.id, known[job.id], str(rounds), _remark(study, job, known))
    console.print(table)
    counts = {state: list(known.values()).count(state) for state in dict.fromkeys(known.values())}
    console.print(f"{len(found)} runs: " + ", ".join(f"{count} {state}" for state, count in counts.items()))


def _remark(study: "StudyDirectory", job: "Job", known: "Mapping[str, State]") -> str:
    """Return who is at work on a job and since when, or why nobody is."""
    if known[job.id] == "running":
        signs = study.lock(job).signs()
        return (
            ""
            if signs is None
            else (f"{signs.holder}, for {_duration(signs.held)}; last sign of life {signs.silent:.0f} s ago")
        )
    if known[job.id] == "failed":
        failure = study.failure(job)
        return failure.error if failure else ""
    missing = sorted(need for need in job.needs if known[need] != "done")
    return f"needs {', '.join(missing)}" if missing and known[job.id] != "done" else ""


def _work_here(study: "StudyConfig", directory: "StudyDirectory", found: "list[Job]", plugins: "Plugins") -> None:
    from ticketkit.study.worker import work

    def progress(job: "Job", told: "Progress") -> None:
        if told.epoch == told.epochs:
            shown = ", ".join(f"{name} {value:.4g}" for name, value in told.metrics.items())
            console.print(f"{job.id}: a training is over: dev {shown}", soft_wrap=True)

    work(directory, found, plugins, threads=study.threads, say=_say, progress=progress)


def _say(line: str) -> None:
    console.print(line, soft_wrap=True)


def _end_on_terminate() -> None:
    """Let SIGTERM end the command as an error does: locks are given back and workers told to leave."""

    def end(number: int, frame: object) -> None:
        sys.exit(128 + number)

    signal.signal(signal.SIGTERM, end)


def show_report(directory: "StudyDirectory", plugins: "Plugins") -> None:
    """Write the report of what is done, and say where it is."""
    from ticketkit.study.report import write_report

    paths = write_report(directory, plugins)
    for path in paths[:2]:
        console.print(f"wrote {path}", soft_wrap=True)
    console.print(f"wrote {len(paths) - 2} tables and figures as CSV beside them", soft_wrap=True)


def _finish(directory: "StudyDirectory", found: "list[Job]", plugins: "Plugins") -> None:
    """Write the report of what is done; raise `RunError` if something failed."""
    from ticketkit.study.worker import states

    show_report(directory, plugins)
    known = states(found, directory)
    if bad := [job for job in known if known[job] in ("failed", "blocked")]:
        raise RunError(
            f"{len(bad)} of {len(known)} runs failed or need one that did: {', '.join(bad[:10])}; see: ticketkit study "
            f"status {directory.path}; the same command tries them again"
        )


def _show_plan(study: "StudyConfig", found: "list[Job]", plugins: "Plugins") -> None:
    """Print every run, and what each variant takes by an epoch that is timed here."""
    from ticketkit.study.estimate import base_variant, estimate, rehearse
    from ticketkit.study.jobs import described

    table = Table("run", "backbone", "corpus", "prunings", "takes from")
    for job in found:
        rounds = str(job.settings["prune"].get("rounds", ""))
        roles = (described(job.settings, "backbone"), described(job.settings, "corpus"))
        table.add_row(job.id, *roles, rounds, ", ".join(sorted(job.needs)))
    console.print(table)
    rehearsals = rehearse(study, dict.fromkeys(map(base_variant, found)), plugins)
    rows = estimate(study, found, rehearsals)
    table = Table("variant", "parameters", "runs", "trainings", "hours of sound", "an epoch", "all", "memory", "disk")
    for row in rows:
        epoch = row.rehearsal.training_seconds / row.rehearsal.epochs
        table.add_row(
            row.variant,
            f"{row.rehearsal.parameters:,}",
            str(row.runs),
            str(row.trainings),
            f"{row.hours:,.0f}" if row.hours >= 10 else f"{row.hours:.2g}",
            _duration(epoch),
            _duration(row.seconds),
            f"{row.memory_bytes / 2**30:.2f} GiB",
            f"{row.disk_bytes / 2**30:.2f} GiB",
        )
    console.print(table)
    trainings, seconds = sum(row.trainings for row in rows), sum(row.seconds for row in rows)
    console.print(
        f"{len(found)} runs, {trainings} trainings, {_duration(seconds)} of one process with {study.threads} threads "
        "on this machine, by one timed epoch of each variant (dev included; small networks counted as large ones); "
        "dense rounds that several runs share are trained once. Memory: the peak that was measured, or five numbers a "
        "weight. Disk: every trained round and its mask.",
        soft_wrap=True,
    )


def _duration(seconds: float) -> str:
    """Return a time in the unit that suits it."""
    for unit, length in (("years", 31557600), ("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.1f} {unit}"
    return f"{seconds:.1f} seconds"
