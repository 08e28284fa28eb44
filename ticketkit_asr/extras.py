"""Optional packages: one function that imports them, or says which extra brings them."""

from importlib import import_module
from typing import Any

from ticketkit import DataError


def require(module: str, *, extra: str) -> Any:
    """Return the imported `module`, which the extra `extra` of ticketkit installs.

    Raises `DataError` naming the package and the command that installs it. A package that is there but fails to load
    (a broken shared library, say) raises its own error: installing it again would not help.
    """
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        if error.name != module.partition(".")[0]:
            raise
        raise DataError(f"{module} is not installed; it comes with: pip install 'ticketkit[{extra}]'") from error
