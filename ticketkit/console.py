"""Where the command line prints: tables and results on stdout, warnings and errors on stderr."""

import sys

from rich.console import Console

PLAIN_WIDTH = 140  # of tables that go to a file or a pipe

console = Console(highlight=False, markup=False, width=None if sys.stdout.isatty() else PLAIN_WIDTH)
errors = Console(stderr=True, highlight=False, markup=False, soft_wrap=True)
