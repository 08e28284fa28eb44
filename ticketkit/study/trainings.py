"""Trainings that runs of a study share: one with the same start, mask and settings is done once.

A training is a function of the network and the generators it starts from, its mask, the corpus, the trainer and the
seed; the digest of all these names it. The dense round of a ladder is that of its controls too.
"""

import json
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

from ticketkit.config import RunConfig
from ticketkit.experiment import Report, train_round
from ticketkit.ledger import INIT, Ledger
from ticketkit.locks import Lock
from ticketkit.rewind import Rewind
from ticketkit.roles import Progress, Trainer
from ticketkit.round import Round
from ticketkit.snapshot import Snapshot, content_digest
from ticketkit.storage import canonical_json, write_text_atomically

SHAREABLE = ("init", "pretrained", "reinit")
"""Policies under which a round carries nothing over, so that nothing but the network is needed of its end."""


@dataclass
class SharedTrainings(AbstractContextManager["SharedTrainings"]):
    """Trains the rounds of one run, or takes what another run of the study has trained.

    A training is held by a lock until its round is committed: another process that needs it waits.
    """

    study: Path
    run: str
    config: RunConfig
    check: Callable[[], None] = lambda: None
    """Raises an error if the run is another process's by now; asked after every epoch, before anything is written."""
    _held: ExitStack = field(default_factory=ExitStack)

    def __call__(self, current: Round, trainer: Trainer, progress: Report) -> Mapping[str, float]:
        """Return the dev metrics of a round, trained here or elsewhere."""
        self._held.close()
        watched = self._watched(progress)
        if not self._shares():
            return train_round(current, trainer, watched)
        path = self.study / "trainings" / f"{self._key(current)}.json"
        lock = Lock(path.with_suffix(".held"))
        lock.wait()
        self._held.callback(lock.release)
        if self._recall(path, current):
            return {}
        metrics = train_round(current, trainer, watched)
        lock.check()
        write_text_atomically(path, json.dumps({"run": self.run, "round": current.index}))
        return metrics

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Let go of the last round."""
        self._held.close()

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def _watched(self, progress: Report) -> Report:
        def watched(told: Progress) -> None:
            self.check()
            progress(told)

        return watched

    def _shares(self) -> bool:
        policy = Rewind.of(self.config.prune.rewind)
        return policy.name in SHAREABLE and not policy.keep

    def _key(self, current: Round) -> str:
        start = Snapshot.capture(current.model)
        settings = self.config.model_dump(mode="json", include={"corpus", "backbone", "trainer", "seed", "metric"})
        header = canonical_json([settings, current.mask.digest])
        return content_digest(header, {**start.tensors, **start.rng.to_tensors()})

    def _recall(self, path: Path, current: Round) -> bool:
        """Take over a training that is done, and say whether it is."""
        if not path.exists():
            return False
        done = json.loads(path.read_text(encoding="utf-8"))
        if done["run"] == self.run:
            return False  # cut short between training and commit
        ledger = Ledger(self.study / "runs" / done["run"])
        records, initial = ledger.records(), ledger.snapshot(INIT)
        if len(records) <= done["round"] or initial is None:
            return False
        record = records[done["round"]]
        current.recall(ledger.trained(record), initial.training, record.metrics)
        return True
