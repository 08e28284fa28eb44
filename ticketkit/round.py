"""One round, as the training loop sees it: which it is, what it may train, and where to note what was measured."""

from torch import nn
from torch.optim import Optimizer

from ticketkit.enforce import Enforcement
from ticketkit.errors import ConfigError
from ticketkit.mask import Mask


class Round:
    """One training in an IMP run: the model is rewound, the mask is held; train it, then log what you measured."""

    def __init__(self, index: int, mask: Mask, model: nn.Module, enforcement: Enforcement):
        self.index = index
        self.mask = mask
        self.model = model
        self.metrics: dict[str, float] = {}
        self._enforcement = enforcement

    @property
    def density(self) -> float:
        """Kept weights as a share of the scope."""
        return self.mask.density

    def log(self, **metrics: float) -> None:
        """Note metrics of the trained network; a later value of the same name replaces the earlier."""
        for name, value in metrics.items():
            if isinstance(value, bool) or not isinstance(value, int | float):
                raise ConfigError(f"metric {name!r} must be a number, not {value!r}; use .item() on a tensor")
            self.metrics[name] = float(value)

    def check_optimizer(self, *optimizers: Optimizer) -> None:
        """Raise `ScopeError` unless the optimizers together hold every trainable parameter in scope."""
        self._enforcement.check_optimizer(*optimizers)
