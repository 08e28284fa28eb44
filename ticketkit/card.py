"""A model card for an exported ticket, in the layout of the Hugging Face hub: `README.md` beside the files."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ticketkit.errors import ConfigError, RunError, StorageError
from ticketkit.export import FACTS_FILE
from ticketkit.exported import check_files
from ticketkit.results import RESULTS_FILE, Results
from ticketkit.storage import write_text_atomically
from ticketkit.study.examinations import read_examinations
from ticketkit.study.jobs import OWN
from ticketkit.study.statistics import bootstrap
from ticketkit.trained import TrainedTicket

FILE = "README.md"
RESAMPLES = 10_000
CARD = """\
---
library_name: ticketkit
{licence}tags:
- pruning
- lottery-ticket
---

# A lottery ticket: {backbone}, {density:.1%} of its weights

`{backbone}` trained on `{corpus}`, pruned by {entries} in round {round} and rewound (`{rewind}`), seed {seed}.
{kept:,} of {total:,} weights in scope are left ({density:.2%}){model_left}.

## How good

{metrics}

## What is left of each layer

{layers}

## Files

Exported by `{exporter}`; ticket `{ticket}`, mask `{mask}`.

{files}

## How to use it

```python
from pathlib import Path
from ticketkit import Plugins, load_exported

loaded = load_exported(Path("."), Plugins.discover())
loaded.bundle.module  # the network
```
"""


def write_card(trained: TrainedTicket, directory: Path, *, licence: str | None = None) -> Path:
    """Write the card of an export of a run's ticket into its folder, unless the exporter wrote one; return its path.

    Metrics are those of the run, test once it is finished. Raises `StorageError` for a folder without an export.
    """
    try:
        facts: dict[str, Any] = json.loads((directory / FACTS_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise StorageError(f"cannot read {directory / FACTS_FILE}: {error}; export the ticket first") from error
    path = directory / FILE
    if not path.exists():
        write_text_atomically(path, card(trained, facts, licence=licence))
    return path


def card(trained: TrainedTicket, facts: Mapping[str, Any], *, licence: str | None) -> str:
    """Return the card's text: what it is, how good, how large, where it came from, how to use it."""
    mask, ticket = trained.ticket.mask, trained.ticket.facts
    entries = [one for one in (ticket.criterion, ticket.granularity, ticket.schedule) if one is not None]
    layers = [
        (f"`{name}`", f"{mask.counts[name]:,}", f"{mask.sizes[name]:,}", f"{mask.densities[name]:.1%}") for name in mask
    ]
    files = [(f"`{name}`", f"{file['bytes']:,}", f"`{file['sha256']}`") for name, file in facts["files"].items()]
    return CARD.format(
        licence=f"license: {licence}\n" if licence else "",
        backbone=_name(trained.run["backbone"]),
        corpus=_name(trained.run["corpus"]),
        entries=", ".join(f"`{one.entry}` {one.version}" for one in entries) or "means unknown",
        round=ticket.round,
        rewind=ticket.rewind,
        seed=ticket.seed,
        kept=mask.kept,
        total=mask.total,
        density=mask.density,
        model_left="" if ticket.model_total is None else _model_left(ticket.model_total, mask.total, mask.kept),
        metrics=_table(("", ""), _metrics(trained)),
        layers=_table(("parameter", "kept", "of", ""), layers),
        exporter=facts["exporter"]["entry"],
        ticket=facts["ticket"],
        mask=facts["mask"],
        files=_table(("file", "bytes", "SHA-256"), files),
    )


def push(directory: Path, repository: str, *, private: bool = True) -> str:
    """Upload the folder of an export to the Hugging Face hub and return the address of the commit.

    Its files are checked against their digests first. A repository that is new is private or public as told, one that
    is there stays what it is. Raises `ConfigError` without huggingface_hub, `StorageError` for a folder that is no
    export or whose files have changed, and `RunError` with what the hub answered if it did not take them.
    """
    try:
        from huggingface_hub import HfApi
    except ImportError as error:
        raise ConfigError("uploading needs huggingface_hub; pip install 'ticketkit[hf]'") from error
    check_files(directory)
    api = HfApi()
    try:
        api.create_repo(repository, private=private, exist_ok=True)
        uploaded = api.upload_folder(repo_id=repository, folder_path=directory, commit_message="Upload a ticket")
    except Exception as error:  # of the hub's client, whose kinds of errors change with its versions
        raise RunError(
            f"{directory} is not uploaded to {repository}: {error}; log in with: hf auth login, as somebody who may "
            "write there, and push again"
        ) from error
    return str(uploaded)


def _metrics(trained: TrainedTicket) -> list[tuple[str, str]]:
    """Return the metric that tickets are judged by, of the ticket and of the dense network."""
    config, index = trained.config, trained.ticket.facts.round or 0
    rounds = {row.round: row for row in Results.read(trained.directory).rows} if _is_finished(trained) else {}
    found = [
        (
            f"test {config.metric}, {what}",
            _shown(row.test[config.metric], config.percent) + _interval(trained, row.round),
        )
        for what, row in (("this ticket", rounds.get(index)), ("the dense network", rounds.get(0)))
        if row is not None and config.metric in row.test
    ]
    if config.metric in trained.ticket.metrics:
        value = trained.ticket.metrics[config.metric]
        found.append((f"dev {config.metric}, this ticket", _shown(value, config.percent)))
    return found


def _is_finished(trained: TrainedTicket) -> bool:
    return (trained.directory / RESULTS_FILE).is_file()


def _interval(trained: TrainedTicket, index: int) -> str:
    """Return the bootstrap interval over the test's examples, where a study has looked at each of them."""
    examination = read_examinations(trained.directory, OWN).get(index)
    if examination is None:
        return ""
    errors, units = np.array([examination.errors]), np.array(examination.units)
    low, high = np.quantile(bootstrap(errors, units, resamples=RESAMPLES, seed=0), [0.025, 0.975])
    shown = [_shown(float(end), trained.config.percent) for end in (low, high)]
    return f" (95 % of resampled tests: {shown[0]} to {shown[1]})"


def _shown(value: float, percent: bool) -> str:
    return f"{100 * value:.2f} %" if percent else f"{value:.4g}"


def _model_left(model_total: int, total: int, kept: int) -> str:
    left = model_total - total + kept
    return f", {left:,} of {model_total:,} parameters of the whole model ({left / model_total:.2%})"


def _table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [headings, ["---"] * len(headings), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _name(chosen: Any) -> str:
    return str(chosen["name"]) if isinstance(chosen, Mapping) else str(chosen)
