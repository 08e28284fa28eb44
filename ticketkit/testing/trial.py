"""A criterion under test: how it scores a scene, which it may only read, and how a pruning goes with it."""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from ticketkit.criterion import check_scores
from ticketkit.errors import CollapseWarning, ScoreError
from ticketkit.granularity import Weights
from ticketkit.mask import Mask
from ticketkit.pruning import Pruner
from ticketkit.registry import Choice
from ticketkit.testing.moment import Moment, alike
from ticketkit.testing.scene import ROUND, RUN_SEED, Scene, Tensors
from ticketkit.testing.subject import Subject, listed

DATA = frozenset({"gradients", "activations"})
Scores = Mapping[str, torch.Tensor]


@dataclass(frozen=True)
class Trial:
    """A criterion under test, and the other parts of the prunings that it is tried in."""

    subject: Subject
    granularity: Choice
    allocation: Choice

    @property
    def data(self) -> bool:
        """Whether it gets batches and a loss."""
        return not DATA.isdisjoint(self.subject.choice.needs)

    def score(self, scene: Scene) -> Scores:
        """Return the scores of a scene, which is left as it was; raises what the criterion refuses it with."""
        before, initial = Moment.of(scene.model), {name: tensor.clone() for name, tensor in scene.initial.items()}
        scores: Any = self.subject.attempt(scene.where, self.subject.choice.call, scene.inputs())
        self._returns_a_floating_tensor_for_every_parameter(scene, scores)
        for name in scores:
            scores[name]  # computed now, if it was not before
        self._leaves_everything_as_it_was(scene, before, initial)
        return scores  # type: ignore[no-any-return]

    def pruned(self, scene: Scene) -> Mask:
        """Return the mask that a pruning of the scene's network with the criterion decides."""
        pruner = Pruner(
            criterion=self.subject.choice,
            pattern=Weights(scene.mask.shapes),
            granularity=self.granularity,
            allocation=self.allocation,
            floors={},
            seed=RUN_SEED,
            probe=scene.probe,
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", CollapseWarning)  # of tiny layers that are pruned empty
            return pruner.next_mask(scene.mask, scene.keep, weights=scene.weights, initial=scene.initial, index=ROUND)

    def _returns_a_floating_tensor_for_every_parameter(self, scene: Scene, scores: Any) -> None:
        law = "return a mapping with one floating-point tensor, of the weights' shape, for every name of inputs.mask"
        if not isinstance(scores, Mapping):
            raise self.subject.broken(law, scene.where, f"a {type(scores).__name__}")
        try:
            check_scores(scores, scene.mask)
        except ScoreError as error:
            raise self.subject.broken(law, scene.where, str(error)) from error

    def _leaves_everything_as_it_was(self, scene: Scene, before: Moment, initial: Tensors) -> None:
        changed = before.changes()
        changed += [f"inputs.initial[{name!r}]" for name in initial if not alike(initial[name], scene.initial[name])]
        if changed:
            raise self.subject.broken(
                "only read: leave the model, inputs.initial, torch's settings and the global random generators as they "
                "are, and run the model through inputs.probe alone",
                scene.where,
                f"it changed {listed(changed)}",
            )
