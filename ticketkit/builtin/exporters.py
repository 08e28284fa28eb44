"""Built-in exporters: the forms in which a trained ticket is shipped."""

from pathlib import Path

from safetensors.torch import save_model

from ticketkit.roles import Bundle
from ticketkit.ticket import Ticket


def weights(bundle: Bundle, ticket: Ticket, directory: Path) -> None:
    """The trained weights under their own names, pruned ones zero, and the mask: plain safetensors for any loader."""
    save_model(bundle.module, str(directory / "model.safetensors"))
    Ticket(ticket.mask, facts=ticket.facts).save(directory / "mask.safetensors", compact=True)
