"""Networks in the middle of a run, about to be scored: trained under a mask, with a state that is easy to disturb."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Self

import torch
from hypothesis import strategies as st
from torch import nn

from ticketkit.criterion import ScoreInputs
from ticketkit.errors import ConfigError
from ticketkit.mask import Mask
from ticketkit.probe import Probe
from ticketkit.rng import derived_seed, seeded
from ticketkit.scope import Scope, masked_parameters
from ticketkit.testing.models import TINY_NETS, TinyNet

Tensors = dict[str, torch.Tensor]
Nets = Mapping[str, TinyNet | Callable[[], nn.Module]]
"""Networks by the names that messages give them: a `TinyNet`, or a builder where no network is run."""

RUN_SEED = 3  # of the run that a scene is cut out of
ROUND = 1  # the round whose mask is being decided


@dataclass(frozen=True)
class Recipe:
    """What decides a scene: a seed, the mask's density, whether one parameter is pruned empty, the share that stays."""

    seed: int = 0
    density: float = 1.0
    emptied: bool = False
    share: float = 0.5


def recipes() -> st.SearchStrategy[Recipe]:
    """Return recipes of scenes, the dense one first."""
    return st.builds(
        Recipe,
        st.integers(0, 2**20),
        st.sampled_from((1.0, 0.5, 0.9, 0.1)),
        st.booleans(),
        st.sampled_from((0.5, 0.8, 0.05, 1.0)),
    )


@dataclass(frozen=True, eq=False)
class Scene:
    """A trained network, what its weights are rewound to, its mask, and how many weights are to stay.

    Its state is of every kind that scoring could disturb: gradients, a frozen parameter, a part in evaluation mode, a
    hook, buffers that have seen batches. `probe` runs it on batches of the kit's own; None where there are no data.
    """

    where: str
    model: nn.Module
    initial: Tensors
    mask: Mask
    keep: int
    probe: Callable[[int], Probe] | None

    @classmethod
    def of(cls, name: str, net: TinyNet, recipe: Recipe, *, data: bool, dtype: torch.dtype = torch.float32) -> Self:
        """Return the scene that a recipe makes of a network."""
        with seeded(recipe.seed):
            model = net.build().to(dtype)
            batches = [_cast(net.inputs(), dtype) for _ in range(2)]
            scope = Scope.of(model)
            initial = {key: tensor.clone() for key, tensor in scope.tensors(model).items()}
            mask = _mask(scope, recipe)
            _train(model, scope, mask)
        _disturb(model)
        keep = max(1, round(recipe.share * mask.kept))
        where = f"{name}, {mask.kept} of {mask.total} weights kept, {keep} to stay, {dtype}"
        probe = Probe.factory(model, lambda: batches, square_loss, scope.shapes) if data else None
        return cls(where, model, initial, mask, keep, probe)

    @property
    def weights(self) -> Tensors:
        """The trained weights in scope; they share memory with the model."""
        return {name: group[0].detach() for name, group in masked_parameters(self.model, self.mask.shapes).items()}

    def inputs(self) -> ScoreInputs:
        """Return what the criterion gets in a run, with a fresh generator."""
        seed = derived_seed(RUN_SEED, ROUND)
        return ScoreInputs(
            weights=self.weights,
            initial=dict(self.initial),
            mask=self.mask,
            generator=torch.Generator().manual_seed(seed),
            keep=self.keep,
            data=self.probe(seed) if self.probe else None,
        )


def square_loss(model: nn.Module, batch: torch.Tensor) -> torch.Tensor:
    """Return the mean square of a network's output: a loss that any output has."""
    loss: torch.Tensor = model(batch).square().mean()
    return loss


def tiny_nets(nets: Nets | None) -> dict[str, TinyNet]:
    """Return the networks to try, by default all `TINY_NETS`; raise `ConfigError` for one without inputs to run on."""
    chosen = TINY_NETS if nets is None else nets
    found = {name: net for name, net in chosen.items() if isinstance(net, TinyNet)}
    if wrong := [name for name in chosen if name not in found]:
        raise ConfigError(f"nets: {', '.join(wrong)} must be a TinyNet(build, inputs), for it is run; not a builder")
    return found


def built(net: TinyNet | Callable[[], nn.Module]) -> nn.Module:
    """Return a network, the same at every call."""
    with seeded(0):
        return net.build() if isinstance(net, TinyNet) else net()


def _mask(scope: Scope, recipe: Recipe) -> Mask:
    """Return a random mask of about the density asked for, with at least one weight."""
    flags = {name: torch.rand(shape) < recipe.density for name, shape in scope.shapes.items()}
    if recipe.emptied and len(flags) > 1:
        flags[list(flags)[recipe.seed % len(flags)]].fill_(False)
    if not any(bool(tensor.any()) for tensor in flags.values()):
        next(iter(flags.values())).view(-1)[0] = True
    return Mask(flags, aliases=scope.aliases)


def _train(model: nn.Module, scope: Scope, mask: Mask) -> None:
    """Move all weights a little and prune; let buffers move too."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape).to(parameter.dtype))
        for buffer in model.buffers():
            if buffer.is_floating_point():
                buffer.add_(torch.rand(buffer.shape).to(buffer.dtype))
    for name, tensor in scope.tensors(model).items():
        tensor.masked_fill_(~mask[name], 0)


def _disturb(model: nn.Module) -> None:
    parameters = list(model.parameters())
    for parameter in parameters:
        parameter.grad = torch.full_like(parameter, 0.25)
    parameters[-1].requires_grad_(False)
    parameters[-1].grad = None
    list(model.modules())[-1].eval()
    model.register_forward_hook(_watch)


def _watch(module: nn.Module, args: Any, output: Any) -> None:
    """Stand for a user's hook on the network."""


def _cast(batch: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    return batch.to(dtype) if batch.is_floating_point() else batch
