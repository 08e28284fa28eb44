"""The examples of docs/adapters.md, to be run as they stand there."""

import re
from pathlib import Path
from typing import Any

PAGE = Path(__file__).parents[2] / "docs" / "adapters.md"


def run_examples(section: str, names: dict[str, Any]) -> int:
    """Run the Python blocks of a section, one after another, on these names; return how many there are."""
    body = PAGE.read_text(encoding="utf-8").split(f"\n## {section}\n")[1].split("\n## ")[0]
    blocks = re.findall(r"```python\n(.*?)```", body, re.DOTALL)
    for block in blocks:
        exec(compile(block, f"{PAGE.name}: {section}", "exec"), names)
    return len(blocks)
