"""`check_criterion` refuses every kind of bad criterion, and says why."""

from collections.abc import Callable, Collection, Iterator
from typing import Any

import pytest
import torch

from ticketkit import ConfigError, ElementwiseScores, Plugins, ScoreError, ScoreInputs
from ticketkit.hookspecs import hookimpl
from ticketkit.plugins import LoadedPlugin
from ticketkit.testing import TINY_NETS, ConformanceError, TinyNet, check_criterion, mlp

MLP = {"mlp": TINY_NETS["mlp"]}
Scores = dict[str, torch.Tensor]


def by_weight(function: Callable[[torch.Tensor], Any]) -> Callable[[ScoreInputs], Any]:
    """Return a criterion that scores every parameter by its weights alone."""
    return lambda inputs: {name: function(weights) for name, weights in inputs.weights.items()}


magnitude = by_weight(torch.abs)


def after(spoil: Callable[[ScoreInputs], object]) -> Callable[[ScoreInputs], Scores]:
    """Return magnitude, after something else was done."""

    def criterion(inputs: ScoreInputs) -> Scores:
        spoil(inputs)
        return magnitude(inputs)

    return criterion


def saliency(inputs: ScoreInputs) -> Scores:
    total = {name: torch.zeros(shape) for name, shape in inputs.mask.shapes.items()}
    for gradients in inputs.probe.gradients():
        for name, slope in gradients.items():
            total[name] += (slope * inputs.weights[name]).abs()
    return total


def noise(inputs: ScoreInputs) -> Scores:
    return {name: torch.rand(shape, generator=inputs.generator) for name, shape in inputs.mask.shapes.items()}


@pytest.mark.parametrize("good", [magnitude, noise], ids=["magnitude", "noise"])
def test_good_criteria_pass(good: Callable[..., Any]) -> None:
    check_criterion(good, nets=MLP)


def test_a_criterion_of_gradients_passes_with_the_kits_own_batches() -> None:
    check_criterion(saliency, needs={"gradients"}, nets={name: TINY_NETS[name] for name in ("convnet", "tied_gru")})


def test_a_criterion_that_regrows_passes() -> None:
    check_criterion(lambda inputs: {name: w0.abs() for name, w0 in inputs.initial.items()}, regrows=True, nets=MLP)


# Mutants


def run_backward(inputs: ScoreInputs) -> None:
    probe = inputs.probe
    probe.loss(probe.model, next(iter(probe.batches()))).backward()


def run_in_training_mode(inputs: ScoreInputs) -> None:
    probe = inputs.probe
    with torch.no_grad():
        probe.model(next(iter(probe.batches())))


def unfreeze(inputs: ScoreInputs) -> None:
    for parameter in inputs.probe.model.parameters():
        parameter.requires_grad_(True)


def forked_noise(inputs: ScoreInputs) -> Scores:
    with torch.random.fork_rng():
        return {name: torch.rand(shape) for name, shape in inputs.mask.shapes.items()}


def turning_round(at: Callable[[int], bool]) -> Callable[[ScoreInputs], Scores]:
    """Return a criterion that turns its scores round at some of the calls with one mask, counted from 1."""
    seen: dict[int, list[Any]] = {}

    def criterion(inputs: ScoreInputs) -> Scores:
        calls = seen.setdefault(id(inputs.mask), [])
        calls.append(inputs.mask)  # kept, so that no other mask gets its id
        return by_weight(lambda w: -w if at(len(calls)) else w)(inputs)

    return criterion


def there_and_back(inputs: ScoreInputs) -> None:
    for weights in inputs.weights.values():
        weights.mul_(2).div_(2)


def refuses_sparse(inputs: ScoreInputs) -> Scores:
    if inputs.mask.density < 1:
        raise ScoreError("only dense networks, please")
    return magnitude(inputs)


def refuses(inputs: ScoreInputs) -> Scores:
    raise ScoreError("no network is good enough")


def only_kept(inputs: ScoreInputs) -> Scores:
    return {name: w.abs().masked_fill(~inputs.mask[name], torch.nan) for name, w in inputs.weights.items()}


def divided_by_kept(inputs: ScoreInputs) -> Scores:
    """NaN for what the mask has emptied would not matter, but here a whole parameter is divided by it."""
    kept = min(int(inputs.mask[name].sum()) for name in inputs.mask)
    return {name: w.abs() * kept / kept if kept else w * torch.nan for name, w in inputs.weights.items()}


DATA = {"gradients"}
MUTANTS: dict[str, tuple[Callable[[ScoreInputs], Any], Collection[str], str]] = {
    "a list": (lambda inputs: list(inputs.weights.values()), (), r"return a mapping .*\n.*\n  came: a list"),
    "a parameter missing": (
        lambda inputs: dict(list(magnitude(inputs).items())[1:]),
        (),
        r"one floating-point tensor.*\n  where: mlp.*\n  came: scores do not fit the mask:\n  0.weight .*: missing",
    ),
    "a number a parameter": (by_weight(lambda w: w.abs().mean()), (), r"expected shape \(8, 6\), found \(\)"),
    "numbers, no tensors": (by_weight(lambda w: w.tolist()), (), "must be a tensor, not list"),
    "whole numbers": (by_weight(lambda w: w.abs().mul(1000).long()), (), "must be floating-point, not torch.int64"),
    "NaN": (
        by_weight(lambda w: w / (w - w)),
        (),
        r"every weight kept a finite score .*\n.*\n  came: '0.weight'\[0, 0\]",
    ),
    "overflow": (by_weight(lambda w: (w.float() * 1e6).half()), (), r"finite score.*\n.*\n.*scores -?inf"),
    "NaN once a parameter is empty": (divided_by_kept, (), r"finite score.*\n.*weights kept"),
    "NaN for weights that are all zero": (
        by_weight(lambda w: w.abs() / w.abs().max()),
        (),
        r"finite score.*\n  where: .*'0.weight' all 0.0 before and after training",
    ),
    "NaN for weights that did not move": (
        lambda inputs: {n: (w - inputs.initial[n]) / (w - inputs.initial[n]).norm() for n, w in inputs.weights.items()},
        (),
        r"finite score.*\n  where: .*all 0.0 before and after",
    ),
    "weights in place": (by_weight(torch.Tensor.abs_), (), r"only read.*\n.*\n.*the values of parameter '0.weight'"),
    "initial weights in place": (
        after(lambda inputs: [w0.zero_() for w0 in inputs.initial.values()]),
        (),
        r"only read.*\n.*\n.*it changed inputs.initial\['0.weight'\]",
    ),
    "a gradient left": (after(run_backward), DATA, r"only read.*\n.*\n.*the gradient of parameter '0.weight'"),
    "evaluation mode left": (
        after(lambda inputs: inputs.probe.model.eval()),
        DATA,
        r"only read.*\n.*\n.*the mode of module ''",
    ),
    "a frozen parameter thawed": (after(unfreeze), DATA, r"only read.*\n.*\n.*requires_grad of parameter '3.bias'"),
    "a hook left": (
        after(lambda inputs: inputs.probe.model.register_forward_pre_hook(lambda *_: None)),
        DATA,
        r"only read.*\n.*\n.*attribute '_forward_pre_hooks' of module ''",
    ),
    "the global generator moved": (by_weight(torch.rand_like), (), "the state of torch's global generator"),
    "the global generator reset": (after(lambda _: torch.manual_seed(0)), (), "the state of torch's global generator"),
    "the global generator read": (forked_noise, (), r"draw from inputs.generator alone.*\n.*\n.*'0.weight'\[0, 0\] is"),
    "a memory": (turning_round(lambda call: call > 1), (), r"the same bits for the same .*, and remember nothing"),
    "a long memory": (turning_round(lambda call: call > 2), (), "decide a pruning by its scores alone"),
    "weights in place, and back": (
        after(there_and_back),
        (),
        r"go through a pruning\n.*\n  came: ScoreError: .* changed the weights of 0.weight, 3.weight in place",
    ),
    "drawn when read": (
        lambda inputs: ElementwiseScores(lambda _, w: torch.rand(w.shape, generator=inputs.generator), inputs.weights),
        (),
        "the same every time they are read",
    ),
    "a part looked at as a whole": (
        lambda inputs: ElementwiseScores(lambda _, w: w.abs() / (1 + w.abs().sum()), inputs.weights),
        (),
        r"compute ElementwiseScores weight by weight.*\n.*\n.*'0.weight.flatten\(\)\[slice\(0, 1, 1\)\]'\[0\] is",
    ),
    "needs that nobody hears of": (
        saliency,
        (),
        r'needs=\{"gradients"\}.*\n.*\n  came: needs=\[\], and without batches',
    ),
    "numpy, which has no bfloat16": (
        by_weight(lambda w: torch.from_numpy(abs(w.numpy()))),
        (),
        r"raise nothing but a TicketkitError.*\n.*torch.bfloat16\n  came: TypeError: Got unsupported ScalarType",
    ),
    "a bug": (by_weight(lambda w: w.no), (), r"raise nothing but a TicketkitError .*\n.*mlp.*\n  came: AttributeError"),
    "masks refused": (
        refuses_sparse,
        (),
        r"score under every mask.*\n.*\n  came: ScoreError: only dense networks, please",
    ),
    "everything refused": (
        refuses,
        (),
        r"score at least one of the networks.*\n.*\n.*mlp: ScoreError: no network is good",
    ),
}


@pytest.mark.parametrize("name", MUTANTS)
def test_a_bad_criterion_is_refused(name: str) -> None:
    criterion, needs, message = MUTANTS[name]
    with pytest.raises(ConformanceError, match=message):
        check_criterion(criterion, needs=needs, nets=MLP)


def test_buffers_that_moved_are_named() -> None:
    with pytest.raises(
        ConformanceError, match=r"only read.*\n  where: convnet.*\n.*the values of buffer '1.running_mean'"
    ):
        check_criterion(after(run_in_training_mode), needs=DATA, nets={"convnet": TINY_NETS["convnet"]})


def test_a_setting_of_torch_that_was_changed_is_named(restored: None) -> None:
    with pytest.raises(ConformanceError, match="torch's default dtype"):
        check_criterion(after(lambda _: torch.set_default_dtype(torch.float64)), nets=MLP)


@pytest.fixture
def restored() -> Iterator[None]:
    yield
    torch.set_default_dtype(torch.float32)


def test_scores_of_pruned_weights_may_be_anything_but_not_if_it_regrows() -> None:
    check_criterion(only_kept, nets=MLP)
    with pytest.raises(ConformanceError, match=r"every weight, for it may bring any back a finite score"):
        check_criterion(only_kept, regrows=True, nets=MLP)


def test_networks_that_it_refuses_are_passed_over() -> None:
    def convolutions_only(inputs: ScoreInputs) -> Scores:
        if any(len(shape) == 3 for shape in inputs.mask.shapes.values()):
            raise ScoreError("no recurrent layers")
        return magnitude(inputs)

    check_criterion(convolutions_only, examples=1)


def test_a_network_to_be_run_needs_inputs() -> None:
    check_criterion(saliency, needs=DATA, nets={"own": TinyNet(mlp, lambda: torch.ones(2, 6))}, examples=1)
    with pytest.raises(ConfigError, match=r"nets: own must be a TinyNet\(build, inputs\)"):
        check_criterion(magnitude, nets={"own": mlp})


def test_what_is_registered_says_its_own_needs() -> None:
    with pytest.raises(ConfigError, match="describe a bare callable; 'lamp' is registered with its own"):
        check_criterion("lamp", needs={"gradients"}, plugins=Plugins())
    with pytest.raises(ConfigError, match="choose from"):
        check_criterion(magnitude, needs={"gradient"})
    with pytest.raises(ConfigError, match="did you mean 'lamp'"):
        check_criterion("lamb", plugins=Plugins())


class Clumsy:
    """A plugin whose criterion has a bug, which the registry reports as a PluginError."""

    @hookimpl
    def ticketkit_register_criteria(self, register: Callable[..., None]) -> None:
        register("clumsy", by_weight(lambda w: w.no))


def test_a_bug_of_a_registered_criterion_is_no_refusal() -> None:
    plugins = Plugins()
    plugins.add(Clumsy(), LoadedPlugin("clumsy", "clumsy", "clumsy", "1.0"))
    with pytest.raises(ConformanceError, match=r"criterion 'clumsy' must raise nothing but a TicketkitError"):
        check_criterion("clumsy", plugins=plugins, nets=MLP)


def test_the_global_generators_are_where_they_were() -> None:
    before = torch.get_rng_state()
    check_criterion(magnitude, nets=MLP, examples=2)
    assert torch.equal(before, torch.get_rng_state())
