"""What an entry can be told: the base of options models."""

from pydantic import BaseModel, ConfigDict


class Options(BaseModel):
    """A pydantic model that is frozen, refuses unknown keys, and whose fields are described by the text below them.

    `ticketkit plugins NAME` shows that text.

    >>> class Strength(Options):
    ...     power: int = 1
    ...     '''The exponent.'''
    >>> Strength(power=3).power, Strength.model_fields["power"].description
    (3, 'The exponent.')
    """

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)
