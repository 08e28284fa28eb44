"""Find, prove, move and ship lottery tickets: masks, rewinding and iterative pruning for any `torch.nn.Module`.

Names are imported when they are first used, so that `import ticketkit` (and every `--help`) does not wait for torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

    from ticketkit.adopt import mask_from_tensors, mask_from_torch_prune, mask_from_zeros
    from ticketkit.allocation import Allocator, apportion
    from ticketkit.comparison import nestedness, overlap, sign_agreement
    from ticketkit.config import with_overrides
    from ticketkit.connectivity import instability, linear_path
    from ticketkit.controls import random_ticket, reinitialised_ticket, shuffled
    from ticketkit.criterion import Criterion, ElementwiseScores, ScoreInputs
    from ticketkit.dead import dead_units
    from ticketkit.enforce import enforced
    from ticketkit.errors import (
        BudgetError,
        CollapseError,
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
    from ticketkit.exported import ExportedTicket, load_exported
    from ticketkit.granularity import Granularity, Layout, Pattern
    from ticketkit.hookspecs import hookimpl
    from ticketkit.imp import IMP
    from ticketkit.ledger import RoundRecord
    from ticketkit.mask import Mask
    from ticketkit.members import Member
    from ticketkit.options import Options
    from ticketkit.paths import effective_density, effective_mask
    from ticketkit.plugins import Plugins
    from ticketkit.probe import Probe
    from ticketkit.rewind import Rewind
    from ticketkit.roles import Examination, ExaminingTrainer, ExampleBundle, HiddenUnits, Progress
    from ticketkit.round import Round
    from ticketkit.schedule import Schedule, Target
    from ticketkit.scope import Scope
    from ticketkit.selection import select
    from ticketkit.snapshot import Snapshot
    from ticketkit.ticket import Ticket, TicketFacts
    from ticketkit.trained import TrainedTicket, open_trained
    from ticketkit.units import Units

_HOME_OF = {
    "Tensor": "torch",
    **dict.fromkeys(("mask_from_tensors", "mask_from_torch_prune", "mask_from_zeros"), "ticketkit.adopt"),
    **dict.fromkeys(("Allocator", "apportion"), "ticketkit.allocation"),
    "dead_units": "ticketkit.dead",
    **dict.fromkeys(("nestedness", "overlap", "sign_agreement"), "ticketkit.comparison"),
    **dict.fromkeys(("instability", "linear_path"), "ticketkit.connectivity"),
    **dict.fromkeys(("random_ticket", "reinitialised_ticket", "shuffled"), "ticketkit.controls"),
    **dict.fromkeys(("Criterion", "ElementwiseScores", "ScoreInputs"), "ticketkit.criterion"),
    "enforced": "ticketkit.enforce",
    "with_overrides": "ticketkit.config",
    **dict.fromkeys(("ExportedTicket", "load_exported"), "ticketkit.exported"),
    **dict.fromkeys(("TrainedTicket", "open_trained"), "ticketkit.trained"),
    **dict.fromkeys(("Granularity", "Layout", "Pattern"), "ticketkit.granularity"),
    "hookimpl": "ticketkit.hookspecs",
    "IMP": "ticketkit.imp",
    "RoundRecord": "ticketkit.ledger",
    "Mask": "ticketkit.mask",
    "Member": "ticketkit.members",
    "Options": "ticketkit.options",
    **dict.fromkeys(("effective_density", "effective_mask"), "ticketkit.paths"),
    "Plugins": "ticketkit.plugins",
    "Probe": "ticketkit.probe",
    "Rewind": "ticketkit.rewind",
    "Snapshot": "ticketkit.snapshot",
    **dict.fromkeys(("Examination", "ExaminingTrainer", "ExampleBundle", "HiddenUnits", "Progress"), "ticketkit.roles"),
    "Round": "ticketkit.round",
    **dict.fromkeys(("Schedule", "Target"), "ticketkit.schedule"),
    "Scope": "ticketkit.scope",
    "select": "ticketkit.selection",
    **dict.fromkeys(("Ticket", "TicketFacts"), "ticketkit.ticket"),
    "Units": "ticketkit.units",
}

__all__ = [
    "IMP",
    "Allocator",
    "BudgetError",
    "CollapseError",
    "CollapseWarning",
    "ConfigError",
    "Criterion",
    "DataError",
    "ElementwiseScores",
    "Examination",
    "ExaminingTrainer",
    "ExampleBundle",
    "ExportedTicket",
    "Granularity",
    "HiddenUnits",
    "Layout",
    "Mask",
    "MaskError",
    "Member",
    "NoEffectWarning",
    "Options",
    "Pattern",
    "PluginError",
    "Plugins",
    "Probe",
    "Progress",
    "Rewind",
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
    "TrainedTicket",
    "Units",
    "apportion",
    "dead_units",
    "effective_density",
    "effective_mask",
    "enforced",
    "hookimpl",
    "instability",
    "linear_path",
    "load_exported",
    "mask_from_tensors",
    "mask_from_torch_prune",
    "mask_from_zeros",
    "nestedness",
    "open_trained",
    "overlap",
    "random_ticket",
    "reinitialised_ticket",
    "select",
    "shuffled",
    "sign_agreement",
    "with_overrides",
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
