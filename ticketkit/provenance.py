"""Which entry of which plugin decided something."""

from typing import Any

from pydantic import BaseModel, ConfigDict


class Provenance(BaseModel):
    """Which entry of which plugin was used: `entry` is `plugin:name`, `version` that of its distribution."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    entry: str
    version: str
    distribution: str | None = None
    """What to install to have the plugin; None for what was given as a Python object."""
    options: dict[str, Any] = {}
