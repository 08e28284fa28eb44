"""A model card for an exported ticket, in the layout of the Hugging Face hub: `README.md` beside the files."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ticketkit.errors import ConfigError, StorageError
from ticketkit.export import FACTS_FILE
from ticketkit.results import RESULTS_FILE, Results
from ticketkit.storage import write_text_atomically
from ticketkit.trained import TrainedTicket

FILE = "README.md"


def write_card(trained: TrainedTicket, directory: Path, *, licence: str | None = None) -> Path:
    """Write the card of an export of a run's ticket into its folder; return its path.

    Metrics are those of the run, test once it is finished. Raises `StorageError` for a folder without an export.
    """
    try:
        facts: dict[str, Any] = json.loads((directory / FACTS_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise StorageError(f"cannot read {directory / FACTS_FILE}: {error}; export the ticket first") from error
    path = directory / FILE
    write_text_atomically(path, card(trained, facts, _rows(trained), licence=licence))
    return path


def card(trained: TrainedTicket, facts: Mapping[str, Any], rows: Mapping[str, str], *, licence: str | None) -> str:
    """Return the card's text: front matter, what it is, how good, how large, where it came from, how to use it."""
    mask, ticket = trained.ticket.mask, trained.ticket.facts
    backbone, corpus = (_name(trained.run[role]) for role in ("backbone", "corpus"))
    model_left = "" if ticket.model_total is None else _model_left(ticket.model_total, mask.total, mask.kept)
    front = [
        "library_name: ticketkit",
        *([f"license: {licence}"] if licence else []),
        "tags:",
        "- pruning",
        "- lottery-ticket",
    ]
    where = ticket.criterion.entry if ticket.criterion else "unknown"
    layers = [
        f"| `{name}` | {mask.counts[name]:,} | {mask.sizes[name]:,} | {mask.densities[name]:.1%} |" for name in mask
    ]
    files = [f"| `{name}` | {file['bytes']:,} | `{file['sha256']}` |" for name, file in facts["files"].items()]
    return "\n".join(
        [
            *("---", *front, "---", ""),
            f"# A lottery ticket: {backbone}, {mask.density:.1%} of its weights",
            "",
            f"`{backbone}` trained on `{corpus}`, pruned by `{where}` in round {ticket.round} and rewound "
            f"(`{ticket.rewind}`). {mask.kept:,} of {mask.total:,} weights in scope are left ({mask.density:.2%}){model_left}.",
            "",
            *(
                "## How good",
                "",
                "| | |",
                "| --- | --- |",
                *(f"| {name} | {value} |" for name, value in rows.items()),
                "",
            ),
            *(
                "## What is left of each layer",
                "",
                "| parameter | kept | of | |",
                "| --- | --- | --- | --- |",
                *layers,
                "",
            ),
            *("## Files", "", f"Exported by `{facts['exporter']['entry']}`.", ""),
            *("| file | bytes | SHA-256 |", "| --- | --- | --- |", *files, ""),
            *("## Where it came from", "", f"- ticket: `{facts['ticket']}`", f"- mask: `{facts['mask']}`"),
            f"- seed: {ticket.seed}",
            f"- criterion, granularity, schedule: {_entries(ticket)}",
            *("", "## How to use it", "", "```python", "from pathlib import Path", ""),
            *("from ticketkit import Plugins, load_exported", ""),
            *(
                'loaded = load_exported(Path("."), Plugins.discover())  # loaded.bundle.module is the network',
                "```",
                "",
            ),
        ]
    )


def push(directory: Path, repository: str, *, private: bool = True) -> str:
    """Upload the folder of an export to the Hugging Face hub and return its address.

    Raises `ConfigError` without huggingface_hub, and whatever the hub answers otherwise.
    """
    try:
        from huggingface_hub import HfApi
    except ImportError as error:
        raise ConfigError("uploading needs huggingface_hub; pip install 'ticketkit[hf]'") from error
    if not (directory / FACTS_FILE).is_file():
        raise ConfigError(f"{directory} holds no export; write one with: ticketkit export")
    api = HfApi()
    api.create_repo(repository, private=private, exist_ok=True)
    return str(api.upload_folder(repo_id=repository, folder_path=directory))


def _rows(trained: TrainedTicket) -> dict[str, str]:
    """Return the metrics of the ticket, and of the dense network beside it."""
    config, found = trained.config, {}
    if (trained.directory / RESULTS_FILE).is_file():
        results = Results.read(trained.directory)
        rounds = {row.round: row for row in results.rows}
        own = rounds.get(trained.ticket.facts.round or 0)
        for what, row in (("this ticket", own), ("the dense network", rounds[0])):
            if row is not None:
                found |= {f"test {name}, {what}": _shown(value, config.percent) for name, value in row.test.items()}
    for name, value in trained.ticket.metrics.items():
        found[f"dev {name}, this ticket"] = _shown(value, config.percent)
    return found


def _shown(value: float, percent: bool) -> str:
    return f"{100 * value:.2f} %" if percent and 0 <= value <= 1 else f"{value:.4g}"


def _model_left(model_total: int, total: int, kept: int) -> str:
    left = model_total - total + kept
    return f", {left:,} of {model_total:,} parameters of the whole model ({left / model_total:.2%})"


def _entries(ticket: Any) -> str:
    entries = (ticket.criterion, ticket.granularity, ticket.schedule)
    return ", ".join(f"`{one.entry}` {one.version}" for one in entries if one is not None)


def _name(chosen: Any) -> str:
    return str(chosen["name"]) if isinstance(chosen, Mapping) else str(chosen)
