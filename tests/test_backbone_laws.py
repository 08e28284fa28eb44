"""`check_backbone` refuses every kind of bad backbone, and says why."""

import random
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.optim.optimizer import register_optimizer_step_post_hook

from ticketkit.testing import TINY_NETS, ConformanceError, check_backbone, convnet, mlp


def bundled(build: Callable[[], Any]) -> Callable[[], SimpleNamespace]:
    """Return a backbone whose bundle holds what `build` makes."""
    return lambda: SimpleNamespace(module=build())


@pytest.mark.parametrize("name", TINY_NETS)
def test_good_backbones_pass(name: str) -> None:
    check_backbone(bundled(TINY_NETS[name].build))


def test_a_backbone_with_half_of_it_frozen_passes() -> None:
    def half_frozen() -> nn.Module:
        model = mlp()
        model[0].requires_grad_(False)
        return model

    check_backbone(bundled(half_frozen))


def test_embeddings_alone_need_a_scope() -> None:
    backbone = bundled(lambda: nn.Sequential(nn.Embedding(4, 3)))
    check_backbone(backbone, scope={"embeddings": True})
    with pytest.raises(ConformanceError, match=r"have weights to prune; give scope=.*\n  where: Scope.of\(module\)\n"):
        check_backbone(backbone)


# Mutants

ONE = mlp()


class Stubborn(nn.Linear):
    """Moves all its weights after every optimizer step, once somebody has asked for its parameters."""

    def parameters(self, recurse: bool = True) -> Any:
        register_optimizer_step_post_hook(lambda *_: self.weight.data.add_(1.0))
        return super().parameters(recurse)


class Restless(nn.Linear):
    """Changes its weights whenever its mode is set."""

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "training" and "weight" in self.__dict__.get("_parameters", {}):
            self.weight.data.add_(1.0)
        super().__setattr__(name, value)


class Fleeting(nn.Linear):
    """Makes itself a new parameter whenever it is read."""

    def named_parameters(self, *args: Any, **kwargs: Any) -> Any:
        self.weight = nn.Parameter(self.weight.detach().clone())
        return super().named_parameters(*args, **kwargs)


class Replacing(nn.Linear):
    """Makes itself a new parameter whenever its mode is set."""

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "training" and "weight" in self.__dict__.get("_parameters", {}):
            self._parameters["weight"] = nn.Parameter(self.weight.detach().clone())
        super().__setattr__(name, value)


class Uncopied(nn.Linear):
    def __deepcopy__(self, memo: Any) -> nn.Module:
        return self


class Locked(nn.Linear):
    def __deepcopy__(self, memo: Any) -> nn.Module:
        raise TypeError("this network cannot be copied")


class Pickled(nn.Linear):
    """Has a state that is an object of a class of its own."""

    def get_extra_state(self) -> Any:
        return SimpleNamespace(secret=1)

    def set_extra_state(self, state: Any) -> None:
        pass


def named_at_random() -> nn.Module:
    return nn.ModuleDict({f"layer{np.random.SeedSequence().entropy}": nn.Linear(3, 2)})


def sized_at_random() -> nn.Module:
    return nn.Linear(3, 1 + int(torch.randint(1000, ())))


def drawn_by_numpy() -> nn.Module:
    model = nn.Linear(3, 2)
    model.weight.data.copy_(torch.from_numpy(np.random.rand(2, 3)))
    return model


def drawn_by_python() -> nn.Module:
    model = nn.Linear(3, 2)
    model.weight.data.fill_(random.random())
    return model


def seeded_by_itself() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(7)
        return mlp()


def not_a_number() -> nn.Module:
    model = convnet()
    model[1].running_var.fill_(torch.nan)
    return model


MUTANTS: dict[str, tuple[Callable[[], Any], str]] = {
    "a network without a bundle": (
        mlp,
        r'return a bundle whose "module" is a torch.nn.Module.*\n.*\n  came: Sequential',
    ),
    "a bundle without a network": (bundled(dict), r'return a bundle whose "module".*\n.*\n.*whose module is \{\}'),
    "arguments that nobody gives": (
        lambda size: mlp(size),
        r"raise nothing but a TicketkitError.*\n.*\n  came: TypeError",
    ),
    "nothing to prune": (bundled(lambda: nn.LayerNorm(4)), r"have weights to prune.*\n.*\n  came: ScopeError"),
    "NaN": (bundled(not_a_number), r"start from finite numbers\n.*\n.*infinity in buffer/1.running_var"),
    "numpy's generator": (
        bundled(drawn_by_numpy),
        r"torch's global generator alone.*\n.*\n  came: parameter/weight\[0, 0\]",
    ),
    "Python's generator": (bundled(drawn_by_python), r"draw its initial weights from torch's global generator alone"),
    "a seed of its own": (bundled(seeded_by_itself), r"draw other initial weights from another seed.*pretrained=True"),
    "one network for all": (bundled(lambda: ONE), r"build a network of its own each time\n.*\n.*parameter/0.weight"),
    "names of the day": (
        bundled(named_at_random),
        r"the same seed gives the same bits\n.*\n.*only one of them has: param",
    ),
    "sizes of the day": (
        bundled(sized_at_random),
        r"load its state_dict strictly into another build\n.*\n  came: RuntimeError",
    ),
    "no copy": (
        bundled(lambda: Uncopied(3, 2)),
        r"go through copy.deepcopy whole.*\n.*\n.*the copy holds the memory of",
    ),
    "no copying": (
        bundled(lambda: Locked(3, 2)),
        r"go through copy.deepcopy whole.*\n.*\n  came: TypeError: this network",
    ),
    "an object in its state": (
        bundled(lambda: Pickled(3, 2)),
        r"torch.load\(weights_only=True\) reads\n.*\n  came: UnpicklingError",
    ),
    "weights brought back": (
        bundled(lambda: Stubborn(3, 2)),
        r"keep pruned weights at zero while an optimizer trains\n.*round 1 of IMP",
    ),
    "weights that wander": (
        bundled(lambda: Restless(3, 2)),
        r"rewound to its initial state, bit by bit\n.*round 0 of IMP",
    ),
    "fleeting parameters": (bundled(lambda: Fleeting(3, 2)), r"go through a run of two rounds\n.*\n  came: ScopeError"),
    "new parameters": (bundled(lambda: Replacing(3, 2)), r"keep its parameters and the keys of its state_dict"),
}


@pytest.mark.parametrize("name", MUTANTS)
def test_a_bad_backbone_is_refused(name: str, hookless: None) -> None:
    backbone, message = MUTANTS[name]
    with pytest.raises(ConformanceError, match=message):
        check_backbone(backbone)


@pytest.fixture
def hookless() -> Any:
    """Take away the hooks on all optimizers that a network has left."""
    from torch.optim import optimizer

    before = dict(optimizer._global_optimizer_post_hooks)
    yield
    optimizer._global_optimizer_post_hooks.clear()
    optimizer._global_optimizer_post_hooks.update(before)


def test_what_starts_from_a_file_may_have_one_state() -> None:
    check_backbone(bundled(seeded_by_itself), pretrained=True)
