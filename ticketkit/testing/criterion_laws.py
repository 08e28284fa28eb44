"""The laws of criteria."""

from collections.abc import Collection, Mapping
from functools import partial

import torch

from ticketkit.criterion import ElementwiseScores
from ticketkit.errors import ConfigError, TicketkitError
from ticketkit.mask import Mask
from ticketkit.plugins import Plugins
from ticketkit.rng import RngState
from ticketkit.selection import select
from ticketkit.testing.models import TinyNet
from ticketkit.testing.moment import alike, first_difference
from ticketkit.testing.scene import Nets, Recipe, Scene, Tensors, recipes, tiny_nets
from ticketkit.testing.subject import Named, Subject, for_every, listed, move_generators, without_a_trace
from ticketkit.testing.trial import Scores, Trial

DTYPES = (torch.float64, torch.bfloat16, torch.float16)


@without_a_trace
def check_criterion(
    criterion: Named,
    *,
    plugins: Plugins | None = None,
    needs: Collection[str] = (),
    regrows: bool = False,
    nets: Nets | None = None,
    examples: int = 3,
) -> None:
    """Raise `ConformanceError` if a criterion breaks a law: read only, repeatable, finite, of the right shape and use.

    `criterion` is what `IMP(criterion=...)` takes; `needs` and `regrows` are what a bare callable would be registered
    with. It scores every `TinyNet` of `nets` (by default the five `TINY_NETS`) whole and under `examples` drawn masks,
    with batches and a loss if it needs data. A network that it refuses with a `TicketkitError` is passed over, but not
    all of them; one that it scores whole it has to score under every mask.

    >>> from ticketkit.testing import check_criterion
    >>> check_criterion(lambda inputs: {name: weights.abs() for name, weights in inputs.weights.items()})
    """
    subject = Subject.of("criterion", criterion, plugins, needs=needs, regrows=regrows)
    builtin = Plugins()
    trial = Trial(subject, builtin.choose("granularity", "weight"), builtin.choose("allocation", "global"))
    for name, net in _scored_whole(trial, tiny_nets(nets)).items():
        for_every(recipes(), partial(_obeys, trial, name, net), examples=examples)
        _scores_weights_of_every_dtype(trial, name, net)
        _copes_with_weights_that_tell_nothing_apart(trial, name, net)


def _scored_whole(trial: Trial, nets: Mapping[str, TinyNet]) -> dict[str, TinyNet]:
    """Return the networks that the criterion scores when nothing is pruned yet."""
    found, refusals = {}, []
    for name, net in nets.items():
        scene = Scene.of(name, net, Recipe(), data=trial.data)
        try:
            trial.score(scene)
        except TicketkitError as error:
            _says_what_it_needs(trial, name, net, error)
            refusals.append(f"{name}: {type(error).__name__}: {error}")
        else:
            found[name] = net
    if not found:
        raise trial.subject.broken(
            "score at least one of the networks; give nets= with networks that it is for",
            ", ".join(nets) or "no networks at all",
            listed(refusals) or "nothing to score",
        )
    return found


def _says_what_it_needs(trial: Trial, name: str, net: TinyNet, refusal: TicketkitError) -> None:
    """Raise if a criterion that was registered without needs refuses a network only because it gets no batches."""
    if trial.data or not isinstance(refusal, ConfigError):
        return
    scene = Scene.of(name, net, Recipe(), data=True)
    try:
        trial.score(scene)
    except TicketkitError:
        return
    raise trial.subject.broken(
        'say what it looks at: with inputs.probe it is registered with needs={"gradients"} or {"activations"}, so that '
        "users are asked for batches",
        scene.where,
        f"needs={sorted(trial.subject.choice.needs)}, and without batches {type(refusal).__name__}: {refusal}",
    )


def _obeys(trial: Trial, name: str, net: TinyNet, recipe: Recipe) -> None:
    """Hold every law against one scene."""
    scene = Scene.of(name, net, recipe, data=trial.data)
    scores = _scores_under_every_mask(trial, scene)
    read = _read(scores)
    _scores_what_can_be_kept_finitely(trial, scene, read)
    _reads_the_same_every_time(trial, scene, scores, read)
    _is_the_same_in_slices(trial, scene, scores, read)
    _is_the_same_for_the_same_seed_whatever_the_global_generators(trial, scene, read)
    _prunes_to_the_budget_whatever_pruned_weights_score(trial, scene, read)


def _scores_under_every_mask(trial: Trial, scene: Scene) -> Scores:
    scores: Scores = trial.subject.insist(
        "score under every mask a network that it scores whole", scene.where, trial.score, scene
    )
    return scores


def _read(scores: Scores) -> Tensors:
    return {name: scores[name].detach().clone() for name in scores}


def _scores_what_can_be_kept_finitely(trial: Trial, scene: Scene, scores: Tensors) -> None:
    """Every weight that can be kept has a finite score: all that the mask keeps, or all if it regrows."""
    for name, values in scores.items():
        counts = torch.ones_like(scene.mask[name]) if trial.subject.choice.regrows else scene.mask[name]
        wrong = counts & ~values.isfinite().cpu()
        if wrong.any():
            place = wrong.nonzero()[0].tolist()
            who = "every weight, for it may bring any back" if trial.subject.choice.regrows else "every weight kept"
            raise trial.subject.broken(
                f"give {who} a finite score (is something divided by zero?)",
                scene.where,
                f"{name!r}{place} scores {values[tuple(place)].item()}",
            )


def _reads_the_same_every_time(trial: Trial, scene: Scene, scores: Scores, read: Tensors) -> None:
    """Scores that are computed when they are read are the same at every reading: a selection reads them twice."""
    law = "return scores that are the same every time they are read; a selection reads them more than once"
    _same(trial, law, scene, read, {name: scores[name].detach() for name in read})


def _is_the_same_in_slices(trial: Trial, scene: Scene, scores: Scores, read: Tensors) -> None:
    """`ElementwiseScores` of a slice are that slice of the scores."""
    if not isinstance(scores, ElementwiseScores):
        return
    law = (
        "compute ElementwiseScores weight by weight: the scores of a slice are that slice of all scores (what looks at "
        "a whole parameter is computed before, outside the function)"
    )
    for name, whole in read.items():
        flat = whole.reshape(-1)
        for part in (slice(0, 1, 1), slice(len(flat) // 2, len(flat), 1), slice(0, len(flat), 3)):
            here = scores.flat_slice(name, part.start, part.stop, part.step)
            _same(trial, law, scene, {f"{name}.flatten()[{part}]": flat[part]}, {f"{name}.flatten()[{part}]": here})


def _is_the_same_for_the_same_seed_whatever_the_global_generators(trial: Trial, scene: Scene, first: Tensors) -> None:
    now = RngState.capture()
    move_generators()
    moved = _read(_scores_under_every_mask(trial, scene))
    if alike(first, moved):
        return
    law = "return the same bits for the same inputs and the same seed of inputs.generator, and remember nothing"
    for _ in range(2):
        now.restore()
        _same(trial, law, scene, first, _read(_scores_under_every_mask(trial, scene)))
    law = "draw from inputs.generator alone: the same bits, wherever torch's, numpy's and Python's generators stand"
    _same(trial, law, scene, first, moved)


def _prunes_to_the_budget_whatever_pruned_weights_score(trial: Trial, scene: Scene, scores: Tensors) -> None:
    """A pruning with it keeps exactly the budget, inside the mask, and what pruned weights score decides nothing."""
    regrows = trial.subject.choice.regrows
    chosen: Mask = trial.subject.insist("go through a pruning", scene.where, trial.pruned, scene)
    garbled = {name: values.masked_fill(~scene.mask[name], torch.nan) for name, values in scores.items()}
    candidates = Mask.ones(scene.mask.shapes) if regrows else scene.mask
    expected = select(scores if regrows else garbled, candidates, scene.keep)
    if chosen != expected:
        raise trial.subject.broken(
            "decide a pruning by its scores alone: the best of the budget stay, whatever pruned weights score",
            scene.where,
            f"{chosen.kept} weights were kept, of which {(chosen & expected).kept} are among the best {scene.keep}",
        )


def _scores_weights_of_every_dtype(trial: Trial, name: str, net: TinyNet) -> None:
    """Weights of any floating dtype are scored and pruned like others, or refused with a `TicketkitError`."""
    for dtype in DTYPES:
        scene = Scene.of(name, net, Recipe(density=0.5), data=trial.data, dtype=dtype)
        if trial.data and not _runs(scene):
            continue
        try:
            scores = trial.score(scene)
        except TicketkitError:
            continue
        read = _read(scores)
        _scores_what_can_be_kept_finitely(trial, scene, read)
        _prunes_to_the_budget_whatever_pruned_weights_score(trial, scene, read)


def _copes_with_weights_that_tell_nothing_apart(trial: Trial, name: str, net: TinyNet) -> None:
    """A parameter that is zero, or all of one value and not moved, has finite scores, or a `TicketkitError`."""
    for value in (0.0, 0.5):
        scene = Scene.of(name, net, Recipe(), data=trial.data)
        first = next(iter(scene.mask))
        scene.weights[first].fill_(value)
        scene.initial[first].fill_(value)
        scene = _renamed(scene, f"{scene.where}, {first!r} all {value} before and after training")
        try:
            scores = trial.score(scene)
        except TicketkitError:
            continue
        _scores_what_can_be_kept_finitely(trial, scene, _read(scores))


def _renamed(scene: Scene, where: str) -> Scene:
    return Scene(where, scene.model, scene.initial, scene.mask, scene.keep, scene.probe)


def _runs(scene: Scene) -> bool:
    """Say whether torch itself can run and differentiate a scene's network in its dtype."""
    probe = scene.inputs().probe
    try:
        for _ in probe.gradients():
            pass
    except (RuntimeError, TicketkitError):
        return False
    return True


def _same(trial: Trial, law: str, scene: Scene, first: Tensors, second: Tensors) -> None:
    for name, one in first.items():
        if not alike(one.detach(), second[name].detach()):
            raise trial.subject.broken(law, scene.where, f"{name!r}{first_difference(one, second[name])}")
