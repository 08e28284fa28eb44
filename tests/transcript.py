"""A page of documentation as a program: its files are written, its commands and its Python run, its output compared.

What a fenced block is depends on its language and first line:

- a first line `# path` makes it a file, written at that path (`python`, `toml`, `yaml`);
- other `python` blocks run, one after the other, in one namespace; a `text` block right after one is what it prints;
- `console` blocks are commands after `$ `, each followed by what it prints; `sh` blocks are commands whose output
  nobody shows: `pip install -e FOLDER`, `pytest FOLDER` and `ticketkit ...` run, anything else is for the reader;
- a row "| `new` for `old` | said |" of a table is a mistake in the first module that was written, and what comes of it.

Everything happens in this process and in an empty folder. `python -m tests.transcript PAGE` writes the real output into
a page.
"""

import contextlib
import io
import os
import re
import shlex
import sys
import tempfile
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from ticketkit import IMP, Plugins, TicketkitError, cli
from ticketkit.console import PLAIN_WIDTH, console
from ticketkit.plugin_commands import plugin_commands
from ticketkit.rng import seeded
from ticketkit.testing import plugin_installed

COMMAND = "python -m tests.transcript"
_PART = re.compile(
    r"^```(?P<language>\w+)\n(?P<text>.*?)^```$|^\| `(?P<new>[^`\n]+)` for `(?P<old>[^`\n]+)` \|[^\n]*\|$",
    re.MULTILINE | re.DOTALL,
)
_FILE = re.compile(r"# ([\w/-]+\.[\w./-]+)\n")


@dataclass
class Replay:
    """What running a page has done so far, in the folder it runs in."""

    folder: Path
    installed: contextlib.ExitStack
    namespace: dict[str, Any] = field(default_factory=lambda: {"__name__": "page"})
    files: list[Path] = field(default_factory=list)
    printed: str = ""
    tests: int = 0
    """How many test functions have passed."""

    def part(self, found: re.Match[str]) -> str:
        """Do what a block or a row says and return it as it should be."""
        if found["new"]:
            said = self._mistake(found["new"], found["old"])
            return f"| `{found['new']}` for `{found['old']}` | {said} |"
        return f"```{found['language']}\n{self._block(found['language'], found['text'])}```"

    def _block(self, language: str, text: str) -> str:
        named = _FILE.match(text)
        if named and language in ("python", "toml", "yaml"):
            path = self.folder / named[1]
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
            self.files.append(path)
        elif language == "python":
            self.printed = self._printed(lambda: exec(compile(text, "<page>", "exec"), self.namespace))
        elif language == "text":
            self.printed, printed = "", self.printed
            return printed or text
        elif language == "console":
            commands = [line.removeprefix("$ ") for line in text.splitlines() if line.startswith("$ ")]
            return "".join(f"$ {command}\n{self._run(command)}" for command in commands)
        elif language == "sh":
            for line in text.splitlines():
                self._run(line)
        return text

    def _mistake(self, new: str, old: str) -> str:
        """Return what is said of a plugin that is changed in one place, when it is loaded or in a run that names it."""
        path = next(file for file in self.files if file.suffix == ".py")
        right = path.read_text(encoding="utf-8")
        if old not in right:
            raise LookupError(f"{path.name} does not hold {old!r}")
        path.write_text(right.replace(old, new, 1), encoding="utf-8")
        try:
            said = self._printed(lambda: _tried(path.stem.removeprefix("ticketkit_")))
        finally:
            path.write_text(right, encoding="utf-8")
        return " ".join(said.split()).replace("|", "\\|")

    def _run(self, command: str) -> str:
        words = shlex.split(command)
        setting = dict(words.pop(0).split("=", 1) for _ in range(sum(_is_setting(word) for word in words)))
        match words:
            case ["pip", "install", "-e", folder, *_]:
                site = Path(tempfile.mkdtemp(dir=self.folder, prefix=".site-"))
                self.installed.enter_context(plugin_installed(self.folder / folder, site))
            case ["pytest", folder]:
                for path in sorted((self.folder / folder).rglob("test_*.py")):
                    self._test(path)
            case ["ticketkit", *arguments]:
                return self._printed(lambda: _ticketkit(arguments, setting))
        return ""

    def _test(self, path: Path) -> None:
        names: dict[str, Any] = {}
        exec(compile(path.read_text(encoding="utf-8"), str(path), "exec"), names)
        for name, test in names.items():
            if name.startswith("test_"):
                test()
                self.tests += 1

    def _printed(self, action: Any) -> str:
        """Return what an action prints, wherever; it imports the page's modules as they are now."""
        stream = io.StringIO()
        for name in [name for name, module in sys.modules.items() if _lies_in(module, self.folder)]:
            del sys.modules[name]
        plugin_commands.cache_clear()
        with (
            contextlib.chdir(self.folder),
            contextlib.redirect_stdout(stream),
            contextlib.redirect_stderr(stream),
            _width(PLAIN_WIDTH),
        ):
            action()
        return stream.getvalue()


@contextlib.contextmanager
def replayed(page: str) -> Iterator[tuple[str, Replay]]:
    """Run a page and give it back as it should be, with the state in which it has left everything."""
    bytecode, sys.dont_write_bytecode = sys.dont_write_bytecode, True  # files change faster than their time stamps
    try:
        with seeded(0), tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as installed:
            replay = Replay(Path(folder).resolve(), installed)
            yield _PART.sub(replay.part, page), replay
    finally:
        sys.dont_write_bytecode = bytecode


def _ticketkit(arguments: list[str], setting: dict[str, str]) -> None:
    before, shown, environment = sys.argv, warnings.showwarning, dict(os.environ)
    sys.argv = ["ticketkit", *arguments]
    os.environ.update(setting)
    try:
        cli.main()
    except SystemExit:
        pass
    finally:
        sys.argv, warnings.showwarning = before, shown
        os.environ.clear()
        os.environ.update(environment)


@contextlib.contextmanager
def _width(columns: int) -> Iterator[None]:
    before = console.width
    console.width = columns
    try:
        yield
    finally:
        console.width = before


def _tried(name: str) -> None:
    """Print why a plugin is left out, or what ends a run with the criterion of that name."""
    plugins = Plugins.discover()
    reasons = [broken.reason for broken in plugins.broken if broken.name == name]
    print(*reasons)
    if not reasons:
        try:
            with seeded(0):
                for _ in IMP(torch.nn.Linear(20, 10), rounds=1, criterion=name, plugins=plugins):
                    pass
        except TicketkitError as error:
            print(error)


def _is_setting(word: str) -> bool:
    return re.match(r"[A-Z_]+=", word) is not None


def _lies_in(module: object, folder: Path) -> bool:
    file = getattr(module, "__file__", None)
    return bool(file) and folder in Path(str(file)).parents


if __name__ == "__main__":
    for name in sys.argv[1:]:
        with replayed(Path(name).read_text(encoding="utf-8")) as (text, _):
            Path(name).write_text(text, encoding="utf-8")
