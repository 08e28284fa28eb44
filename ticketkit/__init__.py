"""Find, prove, move and ship lottery tickets: masks, rewinding and iterative pruning for any `torch.nn.Module`."""

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
    ScopeError,
    ScoreError,
    StorageError,
    TicketError,
    TicketkitError,
)
from ticketkit.hookspecs import hookimpl
from ticketkit.imp import IMP, Round
from ticketkit.ledger import RoundRecord
from ticketkit.mask import Mask
from ticketkit.plugins import Plugins
from ticketkit.rewind import Snapshot
from ticketkit.roles import Progress
from ticketkit.schedule import Schedule, Target
from ticketkit.scope import Scope
from ticketkit.select import select
from ticketkit.ticket import Ticket, TicketFacts

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
