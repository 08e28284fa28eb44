"""docs/writing-plugins.md, done as it says: its files, its commands, its Python and its mistakes."""

import difflib
import re
from pathlib import Path

import pytest

from tests.transcript import COMMAND, replayed
from ticketkit import Plugins
from ticketkit.config import parse_config, read_settings
from ticketkit.scaffold import SAMPLES

PAGE = Path(__file__).parents[1] / "docs" / "writing-plugins.md"


def without_output(page: str) -> str:
    """Return the page with all that it says is printed taken out, but for what test_new_package.py looks after."""
    page = re.sub(
        r"^(```console\n)(.*?)^```$",
        lambda block: block[1] + "".join(re.findall(r"^\$ .*\n", block[2], re.MULTILINE)) + "```",
        page,
        flags=re.MULTILINE | re.DOTALL,
    )
    page = re.sub(r"^(?<!-->\n)```text\n.*?^```$", "```text\n?\n```", page, flags=re.MULTILINE | re.DOTALL)
    return re.sub(r"^(\| `[^`\n]+` for `[^`\n]+` \|).*$", r"\1 |", page, flags=re.MULTILINE)


def test_everything_on_the_page_happens_as_it_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("TICKETKIT_LOAD_PLUGINS", "TICKETKIT_BLOCK_PLUGINS", "TICKETKIT_CHECK_OBSERVERS"):
        monkeypatch.delenv(variable, raising=False)
    written = PAGE.read_text(encoding="utf-8")
    erased = without_output(written)
    assert len(erased.splitlines()) < len(written.splitlines()) - 25
    with replayed(erased) as (happened, replay):
        plugins = Plugins.discover()
        recipe = parse_config(read_settings("studio_digits", [], plugins.recipes()), plugins)
    lines = difflib.unified_diff(written.splitlines(), happened.splitlines(), "written", "happened", lineterm="", n=0)
    difference = "\n".join(lines)
    assert not difference, f"{difference}\n{PAGE.name} differs from what happens; run: {COMMAND} {PAGE}"
    assert replay.tests == 1
    assert [file.name for file in replay.files if file.suffix == ".py"] == [
        "ticketkit_loyal.py",
        "test_loyal.py",
        "ticketkit_loyal.py",
        "slope.py",
        "__init__.py",
    ]
    assert recipe.prune.criterion == {"name": "loyal", "mercy": 0.5}


def test_the_page_names_every_kind_of_new_package() -> None:
    introduction = PAGE.read_text(encoding="utf-8").partition("\n## ")[0]
    assert [kind for kind in SAMPLES if f"`{kind}`" not in introduction] == []
