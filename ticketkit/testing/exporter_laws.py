"""The laws of exporters."""

from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any

from torch import nn

from ticketkit.errors import TicketkitError
from ticketkit.export import export
from ticketkit.imp import IMP
from ticketkit.plugins import Plugins
from ticketkit.rng import seeded
from ticketkit.testing.models import TINY_NETS
from ticketkit.testing.moment import Moment
from ticketkit.testing.subject import Named, Subject, without_a_trace
from ticketkit.ticket import Ticket

Backbone = Callable[[], Any]


@without_a_trace
def check_exporter(
    exporter: Named,
    *,
    bundles: dict[str, Backbone] | None = None,
    plugins: Plugins | None = None,
    repeatable: bool = True,
) -> None:
    """Raise `ConformanceError` if an exporter breaks a law: files from any ticket, the same each time, nothing changed.

    `exporter` is what a config takes: a registered name, a mapping with it and options, or a callable. It is tried on
    pruned tiny networks, or on those of `bundles`, which are called for bundles by name; bundles that it refuses with a
    `TicketkitError` are passed over, unless it refuses all. An exporter that measures times is not `repeatable`: of it
    the same files are demanded, not the same bytes.

    >>> from ticketkit.testing import check_exporter
    >>> def names(bundle, ticket, directory):
    ...     (directory / "names.txt").write_text("\\\\n".join(ticket.mask))
    >>> check_exporter(names)
    """
    subject = Subject.of("exporter", exporter, plugins)
    tried = bundles or {name: _tiny(net.build) for name, net in TINY_NETS.items()}
    refusals = []
    for name, build in tried.items():
        bundle, ticket = _pruned(build)
        try:
            _writes_the_same_files_twice(subject, name, bundle, ticket, repeatable=repeatable)
        except TicketkitError as error:
            refusals.append(f"{name}: {type(error).__name__}: {error}")
    if len(refusals) == len(tried):
        law = "export some network; give bundles= with those that it takes"
        raise subject.broken(law, "all of them", "; ".join(refusals))


def _tiny(build: Callable[[], nn.Module]) -> Backbone:
    return lambda: SimpleNamespace(module=build())


def _pruned(build: Backbone) -> tuple[Any, Ticket]:
    """Return a bundle whose network holds the ticket of its first pruning."""
    with seeded(0):
        bundle = build()
    imp = IMP(bundle.module, rate=0.5, rounds=1, plugins=Plugins())
    for _ in imp:
        pass
    return bundle, imp.tickets[1]


def _writes_the_same_files_twice(subject: Subject, name: str, bundle: Any, ticket: Ticket, *, repeatable: bool) -> None:
    written = []
    with TemporaryDirectory() as folder:
        for place in ("first", "second"):
            directory = Path(folder) / place
            before = Moment.of(bundle.module)
            subject.attempt(f"network {name!r}", export, bundle, ticket, directory, subject.choice)
            if changed := before.changes():
                law = "leave network, random generators and torch's settings as they were"
                raise subject.broken(law, f"network {name!r}", ", ".join(changed))
            files = _files(directory)
            written.append(files if repeatable else dict.fromkeys(files, b""))
    if differing := sorted(file for file in {*written[0], *written[1]} if written[0].get(file) != written[1].get(file)):
        law = "write the same bytes for the same network and ticket"
        raise subject.broken(law, f"network {name!r}, exported twice", f"{', '.join(differing)} differ")


def _files(directory: Path) -> dict[str, bytes]:
    return {str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if path.is_file()}
