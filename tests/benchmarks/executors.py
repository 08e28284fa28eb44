"""P16: what an executor costs beside the jobs of a study: runs of tiny networks, one worker, its start-up apart."""

import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from figures import Figure, Goal, compared, skipped

from ticketkit import ConfigError, Plugins
from ticketkit.study.config import StudyConfig, parse_study
from ticketkit.study.directory import StudyDirectory
from ticketkit.study.executors import make_executor
from ticketkit.study.executors.supervising import supervise
from ticketkit.study.executors.work import Work
from ticketkit.study.grids import jobs
from ticketkit.study.worker import work

TOY = Path(__file__).resolve().parents[1] / "toy" / "toy_plugin.py"
UNDER_A_SECOND = Goal("<=", 1.0, "of a second")
OPTIONS: dict[str, list[str]] = {"serial": [], "processes": [], "ray": [], "slurm": ["cluster=local"]}


def executors_cost(quick: bool) -> Iterator[Figure]:
    """P16: the seconds from the last file of a job to the first of the next one, in which its network is built too."""
    plugins, config = Plugins.discover(), _study(3 if quick else 20)
    plugins.add_file(TOY)
    for name in ("serial", "processes") if quick else OPTIONS:
        try:
            start, gaps = _measured(name, config, plugins)
        except ConfigError as error:
            skipped(f"P16 {name}", error)
            continue
        yield compared(
            f"P16 own cost of a job, {name}",
            gaps,
            {"a second": [1.0] * len(gaps)},
            shape=f"{len(gaps) + 1} runs, the first begun after {start:.1f} s",
            goal=UNDER_A_SECOND,
        )


def _study(seeds: int) -> StudyConfig:
    return parse_study(
        {
            "title": "Tiny",
            "base": {"corpus": "majority", "trainer": {"name": "sgd", "epochs": 1}, "prune": {"rounds": 1}},
            "variants": {"mlp": {"backbone": {"name": "mlp", "hidden": 8}}},
            "seeds": list(range(seeds)),
            "margin": 0.1,
            "existence": {},
        }
    )


def _measured(name: str, config: StudyConfig, plugins: Plugins) -> tuple[float, list[float]]:
    """Return the seconds until the first job begins, and those from each job's last file to the next one's first."""
    executor = make_executor(name, OPTIONS[name], workers=1, threads=1)
    with tempfile.TemporaryDirectory() as folder:
        study, found = StudyDirectory(Path(folder)), jobs(config, config.kinds)
        study.claim(config)
        began = time.time()
        if executor is None:
            work(study, found, plugins, threads=1)
        else:
            task = Work(study.path, config.kinds, 1, (TOY,))
            supervise(executor, task, found, workers=1, say=lambda line: None)
        begun = sorted(path.stat().st_mtime for path in study.path.glob("runs/*/config.json"))
        ended = sorted(path.stat().st_mtime for path in study.path.glob("runs/*/examinations/*.json"))
    return begun[0] - began, [later - earlier for earlier, later in zip(ended, begun[1:], strict=False)]
