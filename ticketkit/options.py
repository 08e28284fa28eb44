"""What an entry can be told: the base of options models."""

from pydantic import BaseModel, ConfigDict


class Options(BaseModel):
    """A pydantic model that is frozen, refuses unknown keys, and whose fields are described by the text below them.

    `ticketkit plugins NAME` shows that text.

    >>> class Strength(Options):
    ...     power: int = 1
    >>> Strength(power=3)
    Strength(power=3)
    """

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)
