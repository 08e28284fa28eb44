"""The laws of trainers."""

import math
from collections.abc import Mapping
from typing import Any

from torch import nn

from ticketkit.plugins import Plugins
from ticketkit.probe import Probe
from ticketkit.rng import seeded
from ticketkit.roles import EpochTrainer, Progress, RoundTrainer, ScoringTrainer
from ticketkit.testing.bench import Bench, Training
from ticketkit.testing.moment import Moment, alike, first_difference
from ticketkit.testing.subject import Named, Subject, listed, without_a_trace


@without_a_trace
def check_trainer(
    trainer: Named,
    *,
    backbone: Named,
    corpus: Named,
    plugins: Plugins | None = None,
    scope: Mapping[str, Any] | None = None,
    stops_early: bool = False,
    seed: int = 0,
) -> None:
    """Raise `ConformanceError` if a trainer breaks a law: repeatable trainings, honest metrics, masks that hold.

    All three are what a config takes: a registered name, a mapping with it and options, or a callable. The trainer is
    made as an experiment makes it and trains twice under one mask; one with `train_round` also trains a round, in which
    it is killed once. So give it few epochs of little data on a small network. `scope` is a mapping of what `Scope.of`
    takes. `stops_early` says that it may train fewer epochs than it has announced.

        check_trainer({"name": "asr", "epochs": 2}, backbone={"name": "cnn_lstm", "hidden": 8}, corpus="fsdd")
    """
    known = plugins or Plugins.discover()
    subject = Subject.of("trainer", trainer, known)
    backbones, corpora = known.choose("backbone", backbone), known.choose("corpus", corpus)
    with seeded(seed):
        opened = corpora.call()

    def made() -> tuple[nn.Module, Any]:
        """Return a fresh module and its trainer, as an experiment makes them."""
        law = "be made by trainer(bundle, corpus, seed=seed)"
        with seeded(seed):
            bundle = backbones.call()
            trainer = subject.insist(law, "before the first round", subject.choice.call, bundle, opened, seed=seed)
        return bundle.module, trainer

    bench = Bench.of(subject, made, scope or {}, seed)
    first = bench.trained("the first training")
    _reports_every_epoch(bench, first, stops_early=stops_early)
    _trains(bench, first)
    _keeps_parameters_and_mask(bench, first)
    _counts_its_steps(bench, first)
    _evaluates_without_a_trace(bench)
    _returns_what_dev_says_of_the_weights_it_leaves(bench, first)
    _scores_the_same_batches_each_time(bench)
    second = bench.trained("the second training, rewound, with the same trainer")
    _keeps_parameters_and_mask(bench, second)
    _trains_the_same_again(bench, first, second)
    _goes_on_in_the_middle_of_a_round(bench, first)


def _reports_every_epoch(bench: Bench, training: Training, *, stops_early: bool) -> None:
    law = "report a ticketkit.Progress after every epoch, from epoch 1 to epochs, with the mean loss"
    law += "" if stops_early else "; say stops_early=True if it may end before"
    if wrong := [report for report in training.reports if not isinstance(report, Progress)]:
        raise bench.subject.broken(law, training.where, f"{wrong[0]!r}")
    epochs = [report.epoch for report in training.reports]
    announced = [report.epochs for report in training.reports]
    last = len(epochs) if stops_early else (announced or [1])[0]
    whole = not stops_early or all(last <= number for number in announced)
    if not epochs or epochs != list(range(1, last + 1)) or len(set(announced)) != 1 or not whole:
        raise bench.subject.broken(law, training.where, f"epochs {epochs} of {announced}")
    if wrong := [report for report in training.reports if not _is_finite(report.loss)]:
        raise bench.subject.broken(law, training.where, f"a loss of {wrong[0].loss!r} in epoch {wrong[0].epoch}")


def _trains(bench: Bench, training: Training) -> None:
    kept = {name: tensor[bench.mask[name]] for name, tensor in bench.start.parameters().items() if name in bench.mask}
    trained = {name: tensor[bench.mask[name]] for name, tensor in bench.scope.tensors(bench.module).items()}
    if alike(kept, {name: trained[name] for name in kept}):
        raise bench.subject.broken("change the weights of the module", training.where, "the bits it started from")


def _keeps_parameters_and_mask(bench: Bench, training: Training) -> None:
    """Parameters are trained in place, by an optimizer, so that a mask can be held."""
    if training.faults:
        raise bench.subject.broken(
            "train the module's own parameters in place, by a torch.optim.Optimizer alone, so that a mask holds",
            f"{training.where}, under a mask that keeps {bench.mask.density:.0%}",
            listed(training.faults),
        )


def _counts_its_steps(bench: Bench, training: Training) -> None:
    if not isinstance(bench.trainer, EpochTrainer):
        return
    law = "say how many optimizer steps it takes in an epoch, for rewinding to an epoch"
    steps, epochs = bench.trainer.steps_per_epoch, len(training.reports)
    if type(steps) is not int or steps * epochs != training.steps:
        came = f"steps_per_epoch {steps!r}, and {training.steps} steps in {epochs} epochs"
        raise bench.subject.broken(law, training.where, came)


def _evaluates_without_a_trace(bench: Bench) -> None:
    """Evaluating changes neither weights nor modes, and says the same whatever the mode."""
    found = []
    for flag in (True, False):
        bench.module.train(flag)
        where = f"module.train({flag})"
        before = Moment.of(bench.module, all=False)
        found.append({split: bench.evaluated(split, where) for split in ("dev", "test")})
        if changed := before.changes():
            law = "leave weights, buffers, gradients and modes as they are when it evaluates"
            raise bench.subject.broken(law, where, f"it changed {listed(changed)}")
    if not alike(*found):
        law = "evaluate the same weights to the same metrics, whatever mode the module is in"
        raise bench.subject.broken(law, "module.train(), then module.eval()", f"{found[0]}, then {found[1]}")


def _returns_what_dev_says_of_the_weights_it_leaves(bench: Bench, training: Training) -> None:
    dev = bench.evaluated("dev", "after the first training")
    for name, value in training.metrics.items():
        if name in dev and dev[name] != value:
            law = "leave in the module the weights that dev chose, and return their dev metrics"
            came = f"{name} {value} returned, but evaluate('dev') gives {dev[name]}"
            raise bench.subject.broken(law, training.where, came)
    if not set(training.metrics) & set(dev):
        law = "return the dev metrics by the names that evaluate('dev') gives them"
        raise bench.subject.broken(law, training.where, f"{sorted(training.metrics)} returned, {sorted(dev)} evaluated")


def _scores_the_same_batches_each_time(bench: Bench) -> None:
    """What criteria look at is the same at every call, and has a loss that can be differentiated."""
    if not isinstance(bench.trainer, ScoringTrainer):
        return
    law, where = "return scoring_batches that are the same at every call, and none too few", "scoring_batches()"
    found = []
    for seed in (1, 2):
        before = Moment.of(bench.module, all=False)
        with seeded(seed):
            found.append(list(bench.subject.insist(law, where, bench.trainer.scoring_batches)))
        if changed := before.changes():
            raise bench.subject.broken(
                "make scoring_batches of the corpus alone", where, f"it changed {listed(changed)}"
            )
    if not found[0] or not alike(*found):
        raise bench.subject.broken(law, where, f"{len(found[0])} batches, then {len(found[1])}, with other content")
    probe = Probe(bench.module, bench.trainer.scoring_batches, bench.trainer.scoring_loss, bench.mask, bench.seed)
    law = "return as scoring_loss a finite scalar that depends on the weights"
    gradients = bench.subject.insist(law, "scoring_loss(module, batch)", lambda: list(probe.gradients()))
    if wrong := [name for name, slope in gradients[0].items() if not slope.isfinite().all()]:
        raise bench.subject.broken(
            law, "scoring_loss(module, batch)", f"gradients that are not finite: {listed(wrong)}"
        )


def _trains_the_same_again(bench: Bench, first: Training, second: Training) -> None:
    """Trainings from one start and seed end in the same bits; a trainer remembers nothing of the last one."""
    law = "train to the same bits from the same weights and seeds, remembering nothing of the training before"
    _ends_alike(bench, law, first, second)
    if not alike(first.reports, second.reports):
        raise bench.subject.broken(law, second.where, f"other reports: {first.reports}, then {second.reports}")


def _goes_on_in_the_middle_of_a_round(bench: Bench, first: Training) -> None:
    """What can train a round for the command line trains it as `train` does, killed and resumed or not."""
    if isinstance(bench.trainer, RoundTrainer):
        law = "train a round to the bits that train() ends in, also when it was killed and goes on from a checkpoint"
        _ends_alike(bench, law, first, bench.resumed(len(first.reports)))


def _ends_alike(bench: Bench, law: str, first: Training, second: Training) -> None:
    for name, tensor in first.weights.items():
        if not alike(tensor, second.weights[name]):
            raise bench.subject.broken(law, second.where, f"{name}{first_difference(tensor, second.weights[name])}")
    if not alike(dict(first.metrics), dict(second.metrics)):
        came = f"other metrics: {dict(first.metrics)}, then {dict(second.metrics)}"
        raise bench.subject.broken(law, second.where, came)


def _is_finite(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
