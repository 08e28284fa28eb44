"""What an experiment needs from a backbone, a corpus and a trainer: the roles that plugins fill."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from torch import Tensor, nn

if TYPE_CHECKING:
    from ticketkit.round import Round


@dataclass(frozen=True)
class Progress:
    """Where a training stands after one epoch; a trainer reports it, a display shows it.

    `epoch` counts from 1 to `epochs`; `loss` is the mean training loss of the epoch; `metrics` are those of dev.
    """

    epoch: int
    epochs: int
    loss: float
    metrics: Mapping[str, float] = field(default_factory=dict)


class Bundle(Protocol):
    """A model with all that belongs to it: features, labels, sample rate. The engine only looks at `module`."""

    @property
    def module(self) -> nn.Module:
        """The network to train and prune."""
        ...


@runtime_checkable
class ExampleBundle(Protocol):
    """A bundle that knows what its module is called with, for exporters that trace it or measure its layers."""

    def example(self, seconds: float, batch: int) -> tuple[Any, ...]:
        """Return inputs of the module, always the same: a batch of examples of so many seconds, or as long as fits."""
        ...


@runtime_checkable
class CorpusExampleBundle(Protocol):
    """A bundle that makes its module's inputs of a corpus, for timing on what the network is for."""

    def corpus_example(self, corpus: Any, batch: int) -> tuple[tuple[Any, ...], float]:
        """Return inputs of the module, so many examples of the test split, and their seconds together; always the same.

        Examples should be typical: for one, of middle length. Raises `DataError` for data that cannot be read.
        """
        ...


@runtime_checkable
class SteppingBundle(Protocol):
    """A bundle that knows whether its module can work on a stream, a step at a time."""

    def stepping(self) -> tuple[Callable[[], object], float] | str:
        """Return what takes the next step of a stream, and the seconds that a step stands for; or why there is none."""
        ...


@dataclass(frozen=True)
class HiddenUnits:
    """Units between layers of a network, which an export removes where nothing of them reaches what comes behind.

    Names are those in the network. Each of the `makers`, linear layers, makes as many features of every unit, unit
    after unit; `reader` is the one layer that reads them, a linear one too, and nobody else does. `vectors` are
    parameters and buffers with a value for each feature. `counted_by` names the attribute that holds the number of
    units where a unit has several features (a head); otherwise each feature is a unit. A unit whose features from
    `values`, one of the makers, are always zero adds nothing. `between` is what lies between a single maker and the
    reader where it takes each feature by itself: of (features,) it returns (features,).
    """

    makers: tuple[str, ...]
    reader: str
    vectors: tuple[str, ...] = ()
    counted_by: str | None = None
    values: str | None = None
    between: Callable[[Tensor], Tensor] | None = None


@runtime_checkable
class HidingBundle(Protocol):
    """A bundle that knows of hidden units in its network's own modules; those of torch's modules are known."""

    def hidden_units(self) -> Iterable[HiddenUnits]:
        """Return the units between layers of the module as it is now."""
        ...


class Backbone(Protocol):
    """Builds a `Bundle` from its options; initial weights come from torch's global generator."""

    def __call__(self, *, options: Any) -> Bundle:
        """Return a freshly initialised bundle."""
        ...


class Corpus(Protocol):
    """A data set with `train`, `dev` and `test` splits; what an utterance is, is between the corpus and the trainer."""

    def describe(self) -> Mapping[str, Any]:
        """Return JSON-able facts for the report: name, utterances and hours of each split, a digest of the content."""
        ...


class CorpusLoader(Protocol):
    """Finds, checks and opens a corpus by its options."""

    def __call__(self, *, options: Any) -> Corpus:
        """Return the opened corpus, or raise `DataError` saying what is missing."""
        ...


class Trainer(Protocol):
    """Trains the bundle it was made for, as often as it is asked; holds no state from one training to the next."""

    def train(self, progress: Callable[[Progress], None]) -> Mapping[str, float]:
        """Train from the module's present weights; leave in it the weights that dev chose; return their dev metrics."""
        ...

    def evaluate(self, split: str) -> Mapping[str, float]:
        """Return the metrics of the module's present weights on `split` (`"dev"` or `"test"`)."""
        ...


@dataclass(frozen=True)
class Examination:
    """What a split says of a network, example by example.

    Of each example `errors` are counted against `units`, such as word edits against words: the rate that tickets are
    judged by is the sum of errors over the sum of units. `metrics` are those of the whole split.
    """

    metrics: Mapping[str, float]
    ids: tuple[str, ...]
    errors: tuple[int, ...]
    units: tuple[int, ...]


@runtime_checkable
class ExaminingTrainer(Protocol):
    """A trainer that says of every example how wrong it is, for intervals and paired tests over examples."""

    def examine(self, split: str) -> Examination:
        """Return the examination of the module's present weights on `split`, its examples always in one order."""
        ...


@runtime_checkable
class RoundTrainer(Protocol):
    """A trainer that saves the middle of a round and goes on there: the command line lets it train the round."""

    def train_round(self, current: "Round", progress: Callable[[Progress], None]) -> Mapping[str, float]:
        """Train as `Trainer.train` does, with `current.track` and `current.checkpoint`."""
        ...


@runtime_checkable
class ScoringTrainer(Protocol):
    """A trainer whose batches and loss can score weights, for criteria that look at gradients or activations."""

    def scoring_batches(self) -> Iterable[Any]:
        """Return training batches, the same at every call."""
        ...

    def scoring_loss(self, module: nn.Module, batch: Any) -> Tensor:
        """Return the mean loss of a batch as a scalar."""
        ...


@runtime_checkable
class EpochTrainer(Protocol):
    """A trainer that knows how many optimizer steps it takes in an epoch, for rewinding to an epoch."""

    @property
    def steps_per_epoch(self) -> int:
        """The number of optimizer steps in one epoch."""
        ...


class TrainerFactory(Protocol):
    """Makes a trainer for one bundle and one corpus."""

    def __call__(self, bundle: Any, corpus: Any, *, seed: int, options: Any) -> Trainer:
        """Return a trainer whose data order and augmentation depend on `seed` alone."""
        ...
