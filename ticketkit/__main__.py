"""`python -m ticketkit` is `ticketkit`."""

from ticketkit.cli import main

main()
