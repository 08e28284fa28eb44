"""One base error, one subclass per cause: catch `TicketkitError` and the message says what to do next."""


class TicketkitError(Exception):
    """Base of every error that ticketkit raises on purpose."""


class ConfigError(TicketkitError):
    """A setting is unknown, out of range, or contradicts another."""


class RunError(TicketkitError):
    """A run failed while it went; its settings were right."""


class PluginError(TicketkitError):
    """A plugin is broken, missing, or clashes with another one."""


class ScopeError(TicketkitError):
    """A scope rule, a model or an optimizer does not name the parameters it should."""


class ScoreError(RunError):
    """A criterion returned scores that cannot be ranked."""


class CollapseError(RunError):
    """A mask would leave almost nothing of some parameters, and the run was told to stop then."""


class BudgetError(TicketkitError):
    """A number of weights to keep cannot be met."""


class MaskError(TicketkitError):
    """Two masks, or a mask and a model, do not fit each other."""


class TicketError(TicketkitError):
    """A ticket file is damaged, of another format, or made for another model."""


class StorageError(RunError):
    """A file or a run directory cannot be written, read or shared."""


class DataError(TicketkitError):
    """A corpus, a recording or a transcript is missing, damaged or unusable."""


class NoEffectWarning(UserWarning):
    """Something that was asked for changed nothing."""


class CollapseWarning(UserWarning):
    """A mask leaves almost nothing of some parameters."""
