"""What the documents say is what the program does."""

import ast
import json
import re
import subprocess
import sys
from pathlib import Path

from ticketkit.plugins import Plugins
from ticketkit.ticket import TicketHeader

ROOT = Path(__file__).parent.parent


def test_the_json_schema_of_the_ticket_header_is_current() -> None:
    assert json.loads((ROOT / "docs" / "ticket.schema.json").read_text()) == TicketHeader.model_json_schema()


def test_the_readme_example_runs_and_prints_the_densities_shown(tmp_path: Path) -> None:
    readme = (ROOT / "README.md").read_text()
    match = re.search(r"```python\n(.*?)```\n\n```text\n(.*?)```", readme, re.DOTALL)
    assert match is not None, "README needs a python block followed by its output"
    code, shown = match.groups()
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    densities = re.compile(r"round \d+: +[\d.]+% left")
    assert densities.findall(done.stdout) == densities.findall(shown) != []
    assert (tmp_path / "ticket.safetensors").exists()


def test_relative_links_of_the_documents_lead_somewhere() -> None:
    link = re.compile(r"\]\((?!https?://|#)([^)#]+)")
    pages = [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]
    links = [(page, target) for page in pages for target in link.findall(page.read_text())]
    assert [f"{page.name}: {target}" for page, target in links if not (page.parent / target).exists()] == []


def test_every_recipe_is_a_config_that_checks() -> None:
    from ticketkit.config import parse_config, read_settings

    plugins = Plugins.discover()
    recipes = plugins.recipes()
    assert {"fsdd", "spoken_digits"} <= recipes.keys()
    for name in recipes:
        parse_config(read_settings(name, [], recipes), plugins)


def test_every_guarantee_names_tests_that_exist() -> None:
    page = (ROOT / "docs" / "guarantees.md").read_text()
    named = re.findall(r"`(tests/\w+\.py)::(\w+)`", page)
    defined = {
        file: {node.name for node in ast.walk(ast.parse((ROOT / file).read_text())) if hasattr(node, "name")}
        for file in {file for file, _ in named}
    }
    assert [f"{file}::{name}" for file, name in named if name not in defined[file]] == []
    invariants, traps = page.split("## Traps")
    assert re.findall(r"^\| (\d+) \|", invariants, re.MULTILINE) == [str(number) for number in range(1, 11)]
    assert re.findall(r"^\| (\d+) \|", traps, re.MULTILINE) == [str(number) for number in range(1, 32)]
    assert all("`tests/" in row for row in page.splitlines() if re.match(r"\| (\d+|all) \|", row))
