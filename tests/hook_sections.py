"""The sections of docs/hooks.md, made from the hooks themselves; `python -m tests.hook_sections` writes them anew.

The page's text above its first section is written by hand and stays.
"""

import ast
import inspect
import textwrap
from pathlib import Path

from ticketkit import hookspecs
from ticketkit.plugin_checks import hook_names

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "hooks.md"
COMMAND = "python -m tests.hook_sections"
SOURCES = ("plugins", "ticketkit_asr", "ticketkit/builtin")


def signature(hook: str) -> str:
    """Return a hook's definition as it is written, names of types unquoted: `def hook(index: int) -> None`."""
    tree = ast.parse(inspect.getsource(hookspecs))
    found = next(node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == hook)
    arguments = ", ".join(f"{argument.arg}: {_type(argument.annotation)}" for argument in found.args.args)
    return f"def {hook}({arguments}) -> {_type(found.returns)}"


def prose(hook: str) -> str:
    """Return what a hook's docstring says, in Markdown, without its example."""
    return _documented(hook)[0]


def example(hook: str) -> str:
    """Return the worked example at the end of a hook's docstring."""
    return _documented(hook)[1]


def users(hook: str) -> list[Path]:
    """Return the modules of example plugins, of the speech plugin and of the built-ins that implement a hook."""
    return [
        path
        for source in SOURCES
        for path in sorted((ROOT / source).rglob("*.py"))
        if "tests" not in path.parts and f"def {hook}(" in path.read_text(encoding="utf-8")
    ]


def section(hook: str) -> str:
    """Return the section of one hook: its signature, what it is for and when it is called, an example, who uses it."""
    links = [f"[{_title(path)}](../{path.relative_to(ROOT).as_posix()})" for path in users(hook)]
    used = f"Used by {', '.join(links)}." if links else "No example plugin uses it yet."
    used = textwrap.fill(used, 120, break_long_words=False, break_on_hyphens=False)
    return (
        f"## {hook}\n\n```python\n{signature(hook)}\n```\n\n{prose(hook)}\n\n"
        f"```python\n{example(hook)}\n```\n\n{used}\n"
    )


def page() -> str:
    """Return what the page has to be: its own beginning, and a section for every hook in the order of `hookspecs`."""
    beginning = PAGE.read_text(encoding="utf-8").partition("\n## ticketkit_")[0]
    return "\n".join([beginning, *map(section, hook_names())])


def _documented(hook: str) -> tuple[str, str]:
    documented = inspect.getdoc(getattr(hookspecs, hook)) or ""
    text, mark, rest = documented.partition("\n\n    @ticketkit.hookimpl\n")
    code = textwrap.dedent("    @ticketkit.hookimpl\n" + rest) if mark else ""
    return text.strip(), code.rstrip()


def _type(annotation: ast.expr | None) -> str:
    if isinstance(annotation, ast.Constant) and isinstance(annotation.value, str):
        return annotation.value
    return "" if annotation is None else ast.unparse(annotation)


def _title(path: Path) -> str:
    parts = path.relative_to(ROOT).parts
    return parts[1] if parts[0] == "plugins" else ".".join(parts[:2]).removesuffix(".py")


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
