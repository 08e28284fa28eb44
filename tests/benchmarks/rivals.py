"""What torch itself offers to hold a mask: torch.nn.utils.prune and torch.nn.utils.parametrize."""

from collections.abc import Mapping

import torch
from torch import nn
from torch.nn.utils import parametrize, prune


class Masked(nn.Module):
    """A reparametrisation w * m, as torch.nn.utils.parametrize wants it."""

    def __init__(self, mask: torch.Tensor):
        super().__init__()
        self.register_buffer("mask", mask.float())

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        """Return the masked weight."""
        return weight * self.mask


def hold_with_prune(model: nn.Module, mask: Mapping[str, torch.Tensor]) -> nn.Module:
    """Hold a mask with torch.nn.utils.prune and return the model.

    Attention reads its output projection without calling it, so prune's hook never renews that weight: left dense.
    """
    for name in mask:
        path, _, leaf = name.rpartition(".")
        if not path.endswith("out_proj"):
            prune.custom_from_mask(model.get_submodule(path), leaf, mask[name])
    return model


def hold_with_parametrize(model: nn.Module, mask: Mapping[str, torch.Tensor]) -> nn.Module:
    """Hold a mask with torch.nn.utils.parametrize and return the model."""
    for name in mask:
        path, _, leaf = name.rpartition(".")
        parametrize.register_parametrization(model.get_submodule(path), leaf, Masked(mask[name]))
    return model
