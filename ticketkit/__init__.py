"""Find, prove, move and ship lottery tickets: masks, rewinding and iterative pruning for any `torch.nn.Module`.

Names are imported when they are first used, so that `import ticketkit` (and every `--help`) does not wait for torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

    from ticketkit.allocation import Allocator, apportion
    from ticketkit.criterion import Criterion, ElementwiseScores, ScoreInputs
    from ticketkit.enforce import enforced
    from ticketkit.errors import (
        BudgetError,
        CollapseWarning,
        ConfigError,
        DataError,
        MaskError,
        NoEffectWarning,
        PluginError,
        RunError,
        ScopeError,
        ScoreError,
        StorageError,
        TicketError,
        TicketkitError,
    )
    from ticketkit.hookspecs import hookimpl
    from ticketkit.imp import IMP
    from ticketkit.ledger import RoundRecord
    from ticketkit.mask import Mask
    from ticketkit.plugins import Plugins
    from ticketkit.snapshot import Snapshot
    from ticketkit.roles import Progress
    from ticketkit.round import Round
    from ticketkit.schedule import Schedule, Target
    from ticketkit.scope import Scope
    from ticketkit.selection import select
    from ticketkit.ticket import Ticket, TicketFacts

_HOME_OF = {
    "Tensor": "torch",
    **dict.fromkeys(("Allocator", "apportion"), "ticketkit.allocation"),
    **dict.fromkeys(("Criterion", "ElementwiseScores", "ScoreInputs"), "ticketkit.criterion"),
    "enforced": "ticketkit.enforce",
    "hookimpl": "ticketkit.hookspecs",
    "IMP": "ticketkit.imp",
    "RoundRecord": "ticketkit.ledger",
    "Mask": "ticketkit.mask",
    "Plugins": "ticketkit.plugins",
    "Snapshot": "ticketkit.snapshot",
    "Progress": "ticketkit.roles",
    "Round": "ticketkit.round",
    **dict.fromkeys(("Schedule", "Target"), "ticketkit.schedule"),
    "Scope": "ticketkit.scope",
    "select": "ticketkit.selection",
    **dict.fromkeys(("Ticket", "TicketFacts"), "ticketkit.ticket"),
}

__all__ = [
    "IMP",
    "Allocator",
    "BudgetError",
    "CollapseWarning",
    "ConfigError",
    "Criterion",
    "DataError",
    "ElementwiseScores",
    "Mask",
    "MaskError",
    "NoEffectWarning",
    "PluginError",
    "Plugins",
    "Progress",
    "Round",
    "RoundRecord",
    "RunError",
    "Schedule",
    "Scope",
    "ScopeError",
    "ScoreError",
    "ScoreInputs",
    "Snapshot",
    "StorageError",
    "Target",
    "Tensor",
    "Ticket",
    "TicketError",
    "TicketFacts",
    "TicketkitError",
    "apportion",
    "enforced",
    "hookimpl",
    "select",
]


def __getattr__(name: str) -> Any:
    """Import a public name from its home at first use."""
    if name not in __all__:
        raise AttributeError(f"module 'ticketkit' has no attribute {name!r}")
    value = getattr(import_module(_HOME_OF.get(name, "ticketkit.errors")), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
