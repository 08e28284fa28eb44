"""The command line: `ticketkit run`, `study`, `resume`, `report`, `inspect`, `compare`, `verify`, `export`, and more.

Exit codes: 0 done, 1 the run failed, 2 bad input. Heavy imports stay inside the commands, so that `--help` is quick.
"""

import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TextIO

import typer
from rich.table import Table
from typer.core import TyperGroup

from ticketkit.console import console, errors
from ticketkit.errors import ConfigError, RunError, TicketkitError
from ticketkit.plugin_commands import WithPluginCommands
from ticketkit.plugin_files import PluginFiles, load_plugins
from ticketkit.study_commands import show_report, study_app

if TYPE_CHECKING:
    from ticketkit.config import RunConfig
    from ticketkit.plugins import Plugins
    from ticketkit.results import Results

FAILED, BAD_INPUT = 1, 2

KINDS_OF_PLUGINS = (
    "criterion, schedule, granularity, allocation, backbone, corpus, trainer, exporter, observer or command"
)
STARTER = """\
# A starter config: ticketkit run {path} --out runs/first
seed: 0
corpus: {{name: spoken_digits}}       # see: ticketkit plugins
backbone: {{name: cnn_lstm, preset: small}}
trainer: {{name: asr, epochs: 10, lr: 0.001}}
prune:
  rate: 0.2                          # of what is left, each round
  rounds: 6                          # or density: 0.05
  criterion: magnitude_over_init
  scope: {{include: null, exclude: []}}
  floor: null                        # the least density of every parameter
metric: wer
tolerance: 0.0                       # how much worse than dense on dev a winning ticket may be
"""


class NamedPlugin(TyperGroup):
    """`plugins NAME` is short for `plugins show NAME`."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Return the command and what is left of its arguments."""
        known = not args or args[0].startswith("-") or args[0] in self.list_commands(ctx)
        return super().resolve_command(ctx, args if known else ["show", *args])


app = typer.Typer(
    cls=WithPluginCommands,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Find, prove, move and ship lottery tickets.",
)
plugins_app = typer.Typer(
    cls=NamedPlugin, invoke_without_command=True, help="List plugins, show one, or write a new one."
)
app.add_typer(plugins_app, name="plugins")
app.add_typer(study_app, name="study")


def _ticket_there(path: Path) -> Path:
    """Return the path of a ticket; raise an error that lists the tickets near it if nothing is there."""
    if not path.is_file():
        from ticketkit.whereabouts import no_ticket

        raise no_ticket(path)
    return path


TicketFile = Annotated[Path, typer.Argument(help="a ticket file (.safetensors)", callback=_ticket_there)]


def main() -> None:
    """Run the command line: errors become one message and an exit code, warnings one line each."""
    warnings.showwarning = _show_warning
    try:
        app()
    except TicketkitError as error:
        if "--debug" in sys.argv:
            raise
        errors.print(f"error: {error}")
        sys.exit(FAILED if isinstance(error, RunError) else BAD_INPUT)


@app.callback()
def options(debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks.")] = False) -> None:
    """Find, prove, move and ship lottery tickets."""


@app.command()
def run(
    source: Annotated[str, typer.Argument(help="a recipe's name or a YAML config", metavar="RECIPE_OR_CONFIG")],
    override: Annotated[list[str], typer.Option("--set", help="override a setting: a.b=value", metavar="A.B=C")] = [],  # noqa: B006
    out: Annotated[Path | None, typer.Option(help="run directory [default: runs/<name>]")] = None,
    plugin: PluginFiles = [],  # noqa: B006
) -> None:
    """Run a recipe or config; an interrupted run of the same config goes on."""
    from ticketkit.config import parse_config, read_settings

    plugins = load_plugins(plugin)
    config = parse_config(read_settings(source, override, plugins.recipes()), plugins)
    _run(config, out or Path("runs") / Path(source).stem, plugins)


@app.command()
def resume(
    directory: Annotated[Path, typer.Argument(help="a run directory")],
    plugin: PluginFiles = [],  # noqa: B006
) -> None:
    """Go on with an interrupted run, with the round it was in; it ends in the same bits."""
    from ticketkit.experiment import read_config

    plugins = load_plugins(plugin)
    _run(read_config(directory, plugins), directory, plugins)


@app.command()
def report(
    directories: Annotated[list[Path], typer.Argument(help="run directories, or one study's")],
    plugin: PluginFiles = [],  # noqa: B006
) -> None:
    """Show the tables of finished runs and draw their plots, or write a study's report.

    Several runs are drawn in one plot, in the first directory.
    """
    from ticketkit.report import plot
    from ticketkit.results import Results
    from ticketkit.study.directory import StudyDirectory

    if len(directories) == 1 and (study := StudyDirectory(directories[0])).exists():
        show_report(study, load_plugins(plugin))
        return
    runs = [Results.read(directory) for directory in directories]
    for results, directory in zip(runs, directories, strict=True):
        _show(results, directory)
    if len(runs) > 1:
        for path in plot(runs, directories[0] / "comparison"):
            console.print(f"wrote {path}", soft_wrap=True)


@app.command()
def inspect(ticket: TicketFile) -> None:
    """Show what a ticket holds: where it came from, what it keeps, layer by layer."""
    from ticketkit.dead import dead_units
    from ticketkit.ticket import Ticket

    loaded = Ticket.load(ticket)
    mask, facts = loaded.mask, loaded.facts
    dead = dead_units(mask)
    console.print(f"{ticket}: keeps {mask.kept:,} of {mask.total:,} weights in scope ({mask.density:.2%})")
    if facts.model_total:
        kept = facts.model_total - mask.total + mask.kept
        console.print(f"whole model: {kept:,} of {facts.model_total:,} parameters ({kept / facts.model_total:.2%})")
    rewind = f"{len(loaded.weights)} tensors" if loaded.weights is not None else "none (the mask alone)"
    console.print(f"rewind weights: {rewind}\ndigest: {loaded.digest}\nmask digest: {mask.digest}")
    for name, value in facts.model_dump(mode="json", exclude_defaults=True).items():
        console.print(f"{name}: {value}")
    table = Table("parameter", "shape", "kept", "of", "density", "dead outputs", "dead inputs")
    for name, shape in mask.shapes.items():
        row = (str(list(shape)), f"{mask.counts[name]:,}", f"{mask.sizes[name]:,}", f"{mask.densities[name]:.2%}")
        table.add_row(name, *row, str(len(dead.rows.get(name, ()))), str(len(dead.columns.get(name, ()))))
    console.print(table)


@app.command()
def compare(first: TicketFile, second: TicketFile) -> None:
    """Show what two tickets keep in common, and how likely that is by chance."""
    from ticketkit.comparison import overlap
    from ticketkit.ticket import Ticket

    masks = Ticket.load(first).mask, Ticket.load(second).mask
    shared = overlap(*masks)
    console.print(
        f"{first} keeps {shared.kept_a:,}, {second} keeps {shared.kept_b:,} of {shared.total:,} weights; "
        f"both keep {shared.both:,}, {shared.expected:,.1f} by chance (same counts in every parameter)",
        soft_wrap=True,
    )
    nested = "the second lies in the first" if masks[1] <= masks[0] else "the first lies in the second"
    nested = nested if masks[0] <= masks[1] or masks[1] <= masks[0] else "neither lies in the other"
    console.print(
        f"Jaccard {shared.jaccard:.4f}; {shared.z:.1f} standard deviations above chance, p = {shared.p_at_least:.3g} "
        f"({shared.method}); {nested}",
        soft_wrap=True,
    )
    table = Table("parameter", "both", "by chance", "Jaccard", "z", "p")
    for name, own in shared.parameters.items():
        row = (f"{own.both:,}", f"{own.expected:,.1f}", f"{own.jaccard:.4f}", f"{own.z:.1f}", f"{own.p_at_least:.3g}")
        table.add_row(name, *row)
    console.print(table)


@app.command()
def verify(
    ticket: TicketFile,
    model: Annotated[Path | None, typer.Option(help="weights (.safetensors) that must hold the ticket")] = None,
) -> None:
    """Check every byte of a ticket file and, with --model, that pruned weights are exactly zero there."""
    from ticketkit.ticket import Ticket

    loaded = Ticket.load(ticket)
    console.print(f"{ticket}: whole; {loaded.mask.kept:,} of {loaded.mask.total:,} weights kept")
    console.print(f"digest {loaded.digest}")
    if model is not None:
        loaded.verify_file(model)
        console.print(f"{model}: all {loaded.mask.total - loaded.mask.kept:,} pruned weights are exactly zero")


@app.command()
def export(
    ticket: TicketFile,
    to: Annotated[Path, typer.Option(help="a new directory")],
    exporter: Annotated[
        str,
        typer.Option("--runtime", "--exporter", help="weights, compressed, auto, dense, sparse, compact or another"),
    ] = "weights",
    dtype: Annotated[
        str | None, typer.Option(help="how values are kept: fp32, fp16 or int8 (auto, dense, sparse, compact)")
    ] = None,
    licence: Annotated[str | None, typer.Option(help="of the network, for its card, such as cc-by-4.0")] = None,
    override: Annotated[
        list[str], typer.Option("--set", help="an option of the exporter: a=value", metavar="A=B")
    ] = [],  # noqa: B006
    plugin: PluginFiles = [],  # noqa: B006
) -> None:
    """Write the trained network of a run's ticket in another form."""
    from ticketkit.card import write_card
    from ticketkit.config import with_overrides
    from ticketkit.export import export as write
    from ticketkit.trained import open_trained

    plugins = load_plugins(plugin)
    options = [*override, *([] if dtype is None else [f"dtype={dtype}"])]
    chosen = plugins.choose("exporter", with_overrides({"name": exporter}, options))
    trained = open_trained(ticket, plugins)
    facts = write(trained.bundle, trained.ticket, to, chosen, run=trained.run)
    for name, file in facts["files"].items():
        console.print(f"wrote {to / name} ({file['bytes']:,} bytes)", soft_wrap=True)
    console.print(f"wrote {write_card(trained, to, licence=licence)}", soft_wrap=True)


@app.command()
def push(
    directory: Annotated[Path, typer.Argument(help="the folder of an export")],
    repository: Annotated[str, typer.Argument(help="a repository of the Hugging Face hub, such as me/digits-ticket")],
    public: Annotated[bool, typer.Option("--public", help="make it public if it is new")] = False,
) -> None:
    """Upload an exported ticket with its card to the Hugging Face hub."""
    from ticketkit.card import push as upload

    console.print(f"uploaded: {upload(directory, repository, private=not public)}", soft_wrap=True)


@app.command()
def bench(
    ticket: TicketFile,
    seconds: Annotated[
        float | None,
        typer.Option(min=0.1, help="pass made-up examples of this length [default: examples of the run's corpus]"),
    ] = None,
    batch: Annotated[list[int], typer.Option(min=1, help="examples at once; may be given several times")] = [1, 8, 32],  # noqa: B006
    threads: Annotated[int | None, typer.Option(min=1, help="[default: as many as torch takes]")] = None,
    repeats: Annotated[int, typer.Option(min=3, help="passes of each form")] = 15,
    evaluate: Annotated[
        bool, typer.Option("--evaluate", help="evaluate each form on the test split too: as long as six evaluations")
    ] = False,
    plugin: PluginFiles = [],  # noqa: B006
) -> None:
    """Measure a run's ticket in every form that it can be exported in: time, memory, load time, bytes, test metric."""
    import torch

    from ticketkit.bench import bench as measure
    from ticketkit.bench_report import lines_of, table_of
    from ticketkit.trained import open_trained

    if threads is not None:
        torch.set_num_threads(threads)
    plugins = load_plugins(plugin)
    trained = open_trained(ticket, plugins)
    batches = list(dict.fromkeys(batch))
    found = measure(
        trained, plugins, batches=batches, seconds=seconds, repeats=repeats, evaluate=evaluate, say=errors.print
    )
    console.print(table_of(found, trained.config))
    for line in lines_of(found, trained.config):
        console.print(line, soft_wrap=True)


@plugins_app.callback()
def list_plugins(ctx: typer.Context) -> None:
    """List plugins and everything they register; `ticketkit plugins NAME` shows one with all its options."""
    if ctx.invoked_subcommand is None:
        from ticketkit.plugin_tables import overview

        found = load_plugins([])
        for table in overview(found):
            console.print(table)


@plugins_app.command()
def show(name: Annotated[str, typer.Argument(help="a plugin or an entry")]) -> None:
    """Show one plugin, or one entry, with all options."""
    from ticketkit.plugin_tables import details

    for part in details(load_plugins([]), name):
        console.print(part)


@plugins_app.command()
def new(
    name: Annotated[str, typer.Argument(help="what the plugin is called, such as sharpest")],
    kind: Annotated[str, typer.Option(help=KINDS_OF_PLUGINS)] = "criterion",
    to: Annotated[Path | None, typer.Option(help="a new directory [default: ticketkit-NAME]")] = None,
) -> None:
    """Write a ready package for a plugin, with a test that passes."""
    from ticketkit.scaffold import write_package

    directory = to or Path(f"ticketkit-{name}")
    taken = [command.name or "" for command in app.registered_commands] if kind == "command" else ()
    for path in write_package(name, kind, directory, taken=taken):
        console.print(f"wrote {path}", soft_wrap=True)
    console.print(f"now: pip install -e '{directory}[test]' && pytest {directory}", soft_wrap=True)


@app.command()
def init(path: Annotated[Path, typer.Argument(help="where to write it")] = Path("ticketkit.yaml")) -> None:
    """Write a starter config."""
    from ticketkit.storage import write_text_atomically

    if path.exists():
        raise ConfigError(f"{path} exists already; choose another name")
    write_text_atomically(path, STARTER.format(path=path))
    console.print(f"wrote {path}; now: ticketkit run {path} --out runs/first")


def _run(config: "RunConfig", directory: Path, plugins: "Plugins") -> None:
    from ticketkit.display import Display
    from ticketkit.distributed import process_group, rank
    from ticketkit.experiment import run_experiment

    with process_group():
        console.quiet = rank() > 0
        display = Display(console, config.metric, percent=config.percent)
        plugins.watch(display)
        console.print(f"run directory: {directory}", soft_wrap=True)
        with display.live():
            results = run_experiment(config, directory, plugins, display.epoch)
        if rank() == 0:
            _show(results, directory)
    for name in ("best", "extreme"):
        if (directory / f"{name}.safetensors").exists():
            console.print(f"ticket: {directory / name}.safetensors", soft_wrap=True)


def _show(results: "Results", directory: Path) -> None:
    from ticketkit.report import caption, conclusion, table, write_report

    console.print(caption(results), soft_wrap=True)
    console.print(table(results))
    console.print(conclusion(results), soft_wrap=True)
    for path in write_report(results, directory):
        console.print(f"wrote {path}", soft_wrap=True)


def _show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    """Print a warning as one line; where it was raised matters to nobody at a command line."""
    errors.print(f"warning: {message}")
