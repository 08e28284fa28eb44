"""What a training knows beside network and optimizer: the epoch that dev likes best, and what went wrong."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn


class TrainingState:
    """The best epoch's metrics and weights so far, epochs since, steps left out, and the loss of the present epoch.

    It can be tracked by a `Round`, so that a training goes on in its middle. What belongs to another round, from which
    this one was rewound, is forgotten: its best weights are another network's.
    """

    def __init__(self, round_index: int):
        self.round_index = round_index
        self.metrics: dict[str, float] = {}
        self.weights: dict[str, Tensor] = {}
        self.waited = 0
        self.left_out = 0
        self.loss = 0.0
        self.utterances = 0

    def state_dict(self) -> dict[str, Any]:
        """Return everything; tensors are shared."""
        return dict(vars(self))

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Take over a state of the same round; that of another leaves this one fresh."""
        if state_dict["round_index"] == self.round_index:
            vars(self).update(state_dict)

    def consider(self, metrics: Mapping[str, float], module: nn.Module) -> None:
        """Keep the module's weights if dev likes them best: the lowest WER, then the lowest loss, then the earliest."""
        self.waited += 1
        if not self.metrics or _rank(metrics) < _rank(self.metrics):
            self.metrics, self.waited = dict(metrics), 0
            self.weights = {name: tensor.detach().clone() for name, tensor in module.state_dict().items()}

    def add(self, loss: float, utterances: int) -> None:
        """Add the summed loss of some utterances of this epoch."""
        self.loss += loss
        self.utterances += utterances

    def end_epoch(self) -> float:
        """Return the mean loss of an utterance in this epoch, and begin another."""
        mean = self.loss / self.utterances if self.utterances else float("nan")
        self.loss, self.utterances = 0.0, 0
        return mean


def _rank(metrics: Mapping[str, float]) -> tuple[float, float]:
    return metrics["wer"], metrics["loss"]
