import random
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch

from ticketkit import ConfigError
from ticketkit.testing import ConformanceError, check_exporter


def good(bundle: Any, ticket: Any, directory: Path) -> None:
    (directory / "inner").mkdir()
    (directory / "inner" / "names").write_text("\n".join(ticket.mask))


def test_a_good_exporter_passes_and_leaves_no_trace() -> None:
    before = torch.get_rng_state()
    check_exporter(good)
    assert torch.equal(torch.get_rng_state(), before)


def convolutions_only(bundle: Any, ticket: Any, directory: Path) -> None:
    if not any(isinstance(module, torch.nn.Conv2d) for module in bundle.module.modules()):
        raise ConfigError("this exporter takes convolutions alone")
    good(bundle, ticket, directory)


def test_networks_that_are_refused_are_passed_over_unless_all_are() -> None:
    check_exporter(convolutions_only)
    with pytest.raises(ConformanceError, match=r"export some network; give bundles=(.|\n)*takes convolutions alone"):
        check_exporter(convolutions_only, bundles={"linear": lambda: Bundle(torch.nn.Linear(3, 4))})


class Bundle:
    def __init__(self, module: torch.nn.Module):
        self.module = module


def nothing(bundle: Any, ticket: Any, directory: Path) -> None:
    pass


def meddling(bundle: Any, ticket: Any, directory: Path) -> None:
    good(bundle, ticket, directory)
    with torch.no_grad():
        next(bundle.module.parameters()).mul_(2)


def drawing(bundle: Any, ticket: Any, directory: Path) -> None:
    good(bundle, ticket, directory)
    torch.rand(1)


def dated(bundle: Any, ticket: Any, directory: Path) -> None:
    (directory / "id").write_text(str(random.SystemRandom().random()))


def buggy(bundle: Any, ticket: Any, directory: Path) -> None:
    raise KeyError("name")


@pytest.mark.parametrize(
    ("exporter", "message"),
    [
        (nothing, "raise nothing but a TicketkitError(.|\n)*wrote no file"),
        (meddling, "leave network, random generators and torch's settings as they were"),
        (drawing, "leave network, random generators and torch's settings as they were"),
        (dated, "write the same bytes for the same network and ticket(.|\n)*id differ"),
        (buggy, "raise nothing but a TicketkitError(.|\n)*KeyError"),
    ],
)
def test_a_bad_exporter_is_refused(exporter: Any, message: str) -> None:
    with pytest.raises(ConformanceError, match=message):
        check_exporter(exporter)


def test_of_an_exporter_that_measures_the_same_files_are_demanded_and_not_the_same_bytes() -> None:
    turns = count()

    def measuring(bundle: Any, ticket: Any, directory: Path) -> None:
        (directory / "seconds.txt").write_text(f"{next(turns)}")

    def renaming(bundle: Any, ticket: Any, directory: Path) -> None:
        (directory / f"{next(turns)}.txt").write_text("")

    with pytest.raises(ConformanceError, match="write the same bytes"):
        check_exporter(measuring)
    check_exporter(measuring, repeatable=False)
    with pytest.raises(ConformanceError, match=r"\.txt differ"):
        check_exporter(renaming, repeatable=False)
