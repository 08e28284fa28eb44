"""The laws of backbones."""

import copy
import io
import random
import warnings
from collections.abc import Mapping
from typing import Any

import numpy
import torch
from torch import nn

from ticketkit.errors import CollapseWarning, NoEffectWarning
from ticketkit.imp import IMP
from ticketkit.mask import Mask
from ticketkit.plugins import Plugins
from ticketkit.rng import seeded
from ticketkit.scope import Scope
from ticketkit.snapshot import state_tensors
from ticketkit.testing.moment import alike, first_difference
from ticketkit.testing.subject import Named, Subject, listed, without_a_trace

Tensors = Mapping[str, torch.Tensor]
RUN = "IMP(module, rate=0.2, rounds=1)"


@without_a_trace
def check_backbone(
    backbone: Named,
    *,
    plugins: Plugins | None = None,
    scope: Mapping[str, Any] | None = None,
    pretrained: bool = False,
) -> None:
    """Raise `ConformanceError` if a backbone breaks a law: drawn by seed, copied, saved, pruned and rewound to the bit.

    `backbone` is what a config takes: a registered name, a mapping with it and options, or a callable that needs no
    arguments. It is built a few times, so give it tiny options. `scope` is a mapping of what `Scope.of` takes.
    `pretrained` waives the law that another seed gives other weights.

    >>> from types import SimpleNamespace
    >>> from ticketkit.testing import check_backbone
    >>> check_backbone(lambda: SimpleNamespace(module=nn.Linear(3, 2)))
    """
    subject = Subject.of("backbone", backbone, plugins)
    module = build(subject, 0)
    _has_weights_in_scope(subject, module, scope or {})
    _starts_from_finite_weights(subject, module)
    other = build(subject, 0)
    _draws_its_weights_from_torchs_generator_alone(subject, module, other)
    _shares_nothing_between_builds(subject, module, other)
    if not pretrained:
        _draws_other_weights_from_another_seed(subject, module)
    _loads_its_state_into_another_build(subject, module)
    _is_copied_whole(subject, module)
    _is_saved_and_loaded_without_pickled_code(subject, module)
    _is_pruned_and_rewound(subject, module, scope or {})


def build(subject: Subject, seed: int) -> nn.Module:
    """Return the module of a fresh bundle; torch's generator starts from a seed, the others where they happen to be."""
    law = 'return a bundle whose "module" is a torch.nn.Module, without other arguments than its options'
    where = f"torch.manual_seed({seed})"
    with seeded(seed):
        numpy.random.seed(None)
        random.seed(None)
        bundle = subject.insist(law, where, subject.choice.call)
    module = getattr(bundle, "module", None)
    if not isinstance(module, nn.Module):
        came = f"a {type(bundle).__name__} whose module is {module!r}" if module is not None else f"{bundle!r}"
        raise subject.broken(law, where, came)
    return module


def _has_weights_in_scope(subject: Subject, module: nn.Module, scope: Mapping[str, Any]) -> None:
    law = "have weights to prune; give scope= if they are not in the default scope"
    where = f"Scope.of({', '.join(['module', *(f'{option}={value!r}' for option, value in scope.items())])})"
    subject.insist(law, where, _scope, module, scope)


def _starts_from_finite_weights(subject: Subject, module: nn.Module) -> None:
    if wrong := [key for key, tensor in state_tensors(module).items() if not tensor.isfinite().all()]:
        raise subject.broken("start from finite numbers", "a fresh build", f"NaN or infinity in {listed(wrong)}")


def _draws_its_weights_from_torchs_generator_alone(subject: Subject, module: nn.Module, other: nn.Module) -> None:
    law = "draw its initial weights from torch's global generator alone: the same seed gives the same bits"
    _same(subject, law, "two builds after torch.manual_seed(0)", state_tensors(module), state_tensors(other))


def _shares_nothing_between_builds(subject: Subject, module: nn.Module, other: nn.Module) -> None:
    places = _memory(module)
    if shared := [key for key, place in _memory(other).items() if place in places.values()]:
        law = "build a network of its own each time"
        raise subject.broken(law, "two builds", f"both hold the memory of {listed(shared)}")


def _draws_other_weights_from_another_seed(subject: Subject, module: nn.Module) -> None:
    other = build(subject, 1)
    if alike(dict(state_tensors(module)), dict(state_tensors(other))):
        raise subject.broken(
            "draw other initial weights from another seed of torch's global generator; say pretrained=True if it "
            "starts from a file",
            "two builds, after torch.manual_seed(0) and after torch.manual_seed(1)",
            "the same bits",
        )


def _loads_its_state_into_another_build(subject: Subject, module: nn.Module) -> None:
    law, where = "load its state_dict strictly into another build", "a build of seed 0 into one of seed 1"
    other = build(subject, 1)
    subject.works(law, where, other.load_state_dict, copy.deepcopy(module.state_dict()))
    _same(subject, law, where, _saved_tensors(module), _saved_tensors(other))


def _is_copied_whole(subject: Subject, module: nn.Module) -> None:
    law = "go through copy.deepcopy whole, sharing nothing with the copy"
    duplicate = subject.works(law, "a fresh build", copy.deepcopy, module)
    _same(subject, law, "a fresh build", state_tensors(module), state_tensors(duplicate))
    places = _memory(module)
    if shared := [key for key, place in _memory(duplicate).items() if place in places.values()]:
        raise subject.broken(law, "a fresh build", f"the copy holds the memory of {listed(shared)}")


def _is_saved_and_loaded_without_pickled_code(subject: Subject, module: nn.Module) -> None:
    law = "have a state_dict that torch.save writes and torch.load(weights_only=True) reads"

    def written_and_read() -> Any:
        file = io.BytesIO()
        torch.save(module.state_dict(), file)
        file.seek(0)
        return torch.load(file, weights_only=True)

    read = subject.works(law, "a fresh build", written_and_read)
    if not alike(dict(module.state_dict()), dict(read)):
        raise subject.broken(law, "a fresh build", "other values")


def _is_pruned_and_rewound(subject: Subject, module: nn.Module, scope: Mapping[str, Any]) -> None:
    """A run of two rounds, trained by noise: pruned weights stay zero, and the rest goes back to the bit."""
    names, keys = dict(module.named_parameters(remove_duplicate=False)), list(module.state_dict())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CollapseWarning)
        warnings.simplefilter("ignore", NoEffectWarning)
        subject.works("go through a run of two rounds", RUN, _run, subject, module, scope)
    now = dict(module.named_parameters(remove_duplicate=False))
    if list(module.state_dict()) != keys or any(now.get(name) is not names[name] for name in names):
        law = "keep its parameters and the keys of its state_dict while it is trained and pruned"
        raise subject.broken(law, RUN, f"parameters {listed(list(now))}")


def _run(subject: Subject, module: nn.Module, scope: Mapping[str, Any]) -> None:
    start = {key: tensor.detach().clone() for key, tensor in state_tensors(module).items()}
    draw = torch.Generator().manual_seed(0)
    for current in IMP(module, rate=0.2, rounds=1, scope=scope or None, plugins=Plugins()):
        where = f"round {current.index} of {RUN}"
        _starts_where_the_run_did(subject, where, start, state_tensors(module), current.mask)
        _step_at_random(module, draw)
        _keeps_pruned_weights_at_zero(subject, where, state_tensors(module), current.mask)


def _starts_where_the_run_did(subject: Subject, where: str, start: Tensors, now: Tensors, mask: Mask) -> None:
    expected = dict(start)
    for name in mask:
        expected[f"parameter/{name}"] = start[f"parameter/{name}"].masked_fill(~mask[name], 0)
    _same(subject, "be rewound to its initial state, bit by bit", where, expected, now)


def _step_at_random(module: nn.Module, draw: torch.Generator) -> None:
    """Take an optimizer step along random gradients, and disturb the buffers."""
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    for parameter in trained:
        parameter.grad = torch.randn(parameter.shape, generator=draw).to(parameter)
    torch.optim.SGD(trained, lr=0.1, momentum=0.9).step()
    with torch.no_grad():
        for buffer in module.buffers():
            if buffer.is_floating_point():
                buffer.add_(torch.rand(buffer.shape, generator=draw).to(buffer))


def _keeps_pruned_weights_at_zero(subject: Subject, where: str, now: Tensors, mask: Mask) -> None:
    if revived := [name for name in mask if now[f"parameter/{name}"].detach()[~mask[name]].any()]:
        law = "keep pruned weights at zero while an optimizer trains"
        raise subject.broken(law, where, f"pruned weights of {listed(revived)} came back")


def _same(subject: Subject, law: str, where: str, first: Tensors, second: Tensors) -> None:
    if first.keys() != second.keys():
        differing = sorted(first.keys() ^ second.keys())
        raise subject.broken(law, where, f"tensors that only one of them has: {listed(differing)}")
    for key, tensor in first.items():
        if not alike(tensor.detach(), second[key].detach()):
            raise subject.broken(law, where, f"{key}{first_difference(tensor.detach(), second[key].detach())}")


def _saved_tensors(module: nn.Module) -> Tensors:
    return {key: value for key, value in module.state_dict().items() if isinstance(value, torch.Tensor)}


def _memory(module: nn.Module) -> dict[str, int]:
    """Return where each tensor of a module is stored; empty ones are nowhere."""
    return {key: t.untyped_storage().data_ptr() for key, t in state_tensors(module).items() if t.numel()}


def _scope(module: nn.Module, scope: Mapping[str, Any]) -> Scope:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NoEffectWarning)
        return Scope.of(module, **scope)
