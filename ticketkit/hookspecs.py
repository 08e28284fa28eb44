"""The hooks of ticketkit: every way in which a plugin can take part.

A plugin is a module (or an object) with functions marked `@ticketkit.hookimpl`, found through the entry-point group
`ticketkit`. Registration hooks run once for each plugin, when plugins are loaded, and receive a `register` bound to
that plugin. Event hooks run during a run, only watch, and must return None. A hook implementation may take any subset
of the arguments named here, in any order. `docs/hooks.md` has a section for each.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING

import pluggy

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from torch import Tensor
    from typer import Typer

    from ticketkit.ledger import RoundRecord
    from ticketkit.mask import Mask
    from ticketkit.round import Round
    from ticketkit.ticket import Ticket

PROJECT = "ticketkit"
hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)

Register = Callable[..., None]
"""`register(name, obj, *, options=None)`: an object with a pydantic options model is called with `options=` too.

For criteria also `needs=` (any of "initial", "gradients", "activations": IMP asks the user for batches and a loss) and
`regrows=True` (it may bring pruned weights back; without it masks only shrink).
"""


# Registration hooks: what decides


@hookspec
def ticketkit_register_criteria(register: Register) -> None:
    """Register criteria: `criterion(inputs: ScoreInputs) -> {name: scores}`, what each weight is worth.

    A criterion is called once a pruning, by `IMP`, with the trained weights. It returns one floating-point tensor for
    each name in `inputs.mask`, shaped like the parameter; the higher score is kept. It only reads.

        @ticketkit.hookimpl
        def ticketkit_register_criteria(register):
            register("smallest", smallest)

        def smallest(inputs):
            return {name: -weights.abs() for name, weights in inputs.weights.items()}
    """


@hookspec
def ticketkit_register_schedules(register: Register) -> None:
    """Register schedules: `schedule(total, target: Target | None) -> counts`, how many weights stay after each round.

    A schedule is called when an `IMP` is made, before anything is trained. It returns whole numbers: `total` for the
    dense round, then one for each pruning, never rising, the last at `target.end(total)`. Without a target it says
    itself how far it goes, or raises what `Target.required` does.

        @ticketkit.hookimpl
        def ticketkit_register_schedules(register):
            register("at_once", at_once)

        def at_once(total, target):
            target = ticketkit.Target.required(target)
            return (total, target.end(total))[: target.rounds + 1]
    """


@hookspec
def ticketkit_register_granularities(register: Register) -> None:
    """Register granularities: `granularity(layout: Layout) -> Pattern`, how weights are grouped into units.

    A granularity is called when an `IMP` is made. It returns a `Pattern`, most simply `Units.of(shapes, labels)`, which
    says of every weight which unit it lives and dies with; it raises `ScopeError` for parameters it has no units for.

        @ticketkit.hookimpl
        def ticketkit_register_granularities(register):
            register("whole", whole)

        def whole(layout):
            return ticketkit.Units.of(layout.shapes, {name: 0 for name in layout.shapes})
    """


@hookspec
def ticketkit_register_allocators(register: Register) -> None:
    """Register allocators: `allocator(shapes, keep, *, floors, capacities) -> counts`, how layers share a budget.

    An allocator is called once a pruning, and for every planned round when an `IMP` is made. It returns whole numbers
    that sum to `keep`, one for each name in `shapes`, none below its floor nor above its capacity; or `keep` itself, to
    rank all weights together. `apportion` makes such numbers from any weights.

        @ticketkit.hookimpl
        def ticketkit_register_allocators(register):
            register("fair", fair)

        def fair(shapes, keep, *, floors, capacities):
            return ticketkit.apportion(dict.fromkeys(shapes, 1), keep, floors=floors, capacities=capacities)
    """


@hookspec
def ticketkit_register_backbones(register: Register) -> None:
    """Register backbones: `backbone(*, options) -> Bundle`, a freshly initialised model with all that belongs to it.

    A backbone is called when a config is run or resumed, and by `rewind: reinit` for fresh weights. Initial weights
    come from torch's global generator, which the run has seeded. The engine looks at `bundle.module` alone; what else
    is in the bundle is between the backbone and the trainer.

        @ticketkit.hookimpl
        def ticketkit_register_backbones(register):
            register("perceptron", perceptron, options=Sizes)

        class Sizes(ticketkit.Options):
            hidden: int = 8

        def perceptron(*, options):
            layers = torch.nn.Linear(6, options.hidden), torch.nn.ReLU(), torch.nn.Linear(options.hidden, 3)
            return types.SimpleNamespace(module=torch.nn.Sequential(*layers))
    """


@hookspec
def ticketkit_register_corpora(register: Register) -> None:
    """Register corpora: `corpus(*, options) -> Corpus` with train, dev and test splits.

    A corpus is opened when a config is run or resumed. It has `describe()`, JSON-able facts for the report: name, size
    of each split, a digest of the content. What an utterance is, is between the corpus and the trainer; those of
    `ticketkit_asr` have `split(name)` and `sample_rate`.

        @ticketkit.hookimpl
        def ticketkit_register_corpora(register):
            register("halves", Halves, options=Size)

        class Size(ticketkit.Options):
            examples: int = 32

        class Halves:
            def __init__(self, *, options):
                x = torch.randn(3, options.examples, 6, generator=torch.Generator().manual_seed(0))
                self.splits = dict(zip(("train", "dev", "test"), x))

            def describe(self):
                return {"name": "halves", "examples": len(self.splits["train"])}
    """


@hookspec
def ticketkit_register_trainers(register: Register) -> None:
    """Register trainers: `trainer(bundle, corpus, *, seed, options) -> Trainer`.

    A trainer is made once for a run and trains once a round, from whatever weights the module has, holding no state
    from one training to the next. It returns the metrics of dev, which alone choose tickets; test is read once, after
    the last round. With `scoring_batches` and `scoring_loss` it serves criteria that look at gradients, with
    `steps_per_epoch` rewinding to an epoch.

        @ticketkit.hookimpl
        def ticketkit_register_trainers(register):
            register("one_step", OneStep, options=Pace)

        class Pace(ticketkit.Options):
            lr: float = 0.1

        class OneStep:
            def __init__(self, bundle, corpus, *, seed, options):
                self.module, self.splits, self.lr = bundle.module, corpus.splits, options.lr

            def train(self, progress):
                optimizer = torch.optim.SGD(self.module.parameters(), lr=self.lr)
                loss = self.module(self.splits["train"]).square().mean()
                loss.backward()
                optimizer.step()
                metrics = self.evaluate("dev")
                progress(ticketkit.Progress(1, 1, loss.item(), metrics))
                return metrics

            def evaluate(self, split):
                with torch.no_grad():
                    return {"square": self.module(self.splits[split]).square().mean().item()}
    """


@hookspec
def ticketkit_register_exporters(register: Register) -> None:
    """Register exporters: `exporter(bundle, ticket, directory) -> None`, the form in which a ticket is shipped.

    An exporter is called by `ticketkit export` with the trained network in `bundle.module`, in evaluation mode and its
    pruned weights zero, the ticket, and an empty directory to write its files into. These appear at their place once
    it returns, with `export.json` beside them, or not at all.

        @ticketkit.hookimpl
        def ticketkit_register_exporters(register):
            register("names", names)

        def names(bundle, ticket, directory):
            kept = {name: int((weight != 0).sum()) for name, weight in bundle.module.named_parameters()}
            (directory / "kept.json").write_text(json.dumps(kept))
    """


@hookspec
def ticketkit_register_commands(cli: "Typer") -> None:
    """Add commands to the command line: `cli` is a Typer app of the plugin's own.

    It is called when `ticketkit` is asked for help or for a command that is not its own; import what is heavy inside
    the commands. A command that ticketkit or another plugin has is an error that names both.

        @ticketkit.hookimpl
        def ticketkit_register_commands(cli):
            @cli.command()
            def greet(name: str = "world"):
                "Greet somebody."
                print(f"hello, {name}")
    """


# Event hooks: what watches


@hookspec
def ticketkit_run_start(plan: tuple[int, ...], finished: int, directory: "Path | None") -> None:
    """Watch a run begin: the planned counts, the dense round first, and how many rounds are already done.

    `IMP` tells it once for each iteration over its rounds, before the first that is left. `directory` is the run
    directory, the same when an interrupted run goes on, or None: an observer may keep a file of its own there.

        @ticketkit.hookimpl
        def ticketkit_run_start(plan, finished):
            print(f"from {plan[0]} to {plan[-1]} weights, {finished} of {len(plan)} rounds are done")
    """


@hookspec
def ticketkit_round_start(round: "Round") -> None:
    """Watch a round begin: the model is rewound and its mask is held; `round` is what the loop gets.

    `IMP` tells it right before the loop body, or the trainer, begins.

        @ticketkit.hookimpl
        def ticketkit_round_start(round):
            print(f"round {round.index}: {round.density:.1%} left")
    """


@hookspec
def ticketkit_scores_ready(index: int, scores: "Mapping[str, Tensor]", mask: "Mask") -> None:
    """Watch what the criterion returned before round `index`, for the weights that `mask` keeps; do not change it.

    `IMP` tells it between two rounds, once the criterion has returned and before anything is selected.

        @ticketkit.hookimpl
        def ticketkit_scores_ready(index, scores, mask):
            print({name: scores[name][mask[name]].mean().item() for name in mask})
    """


@hookspec
def ticketkit_mask_ready(index: int, mask: "Mask", previous: "Mask") -> None:
    """Watch the mask of round `index` be decided, beside that of the round before.

    `IMP` tells it between two rounds; on several ranks they have agreed on the mask.

        @ticketkit.hookimpl
        def ticketkit_mask_ready(index, mask, previous):
            print(f"round {index} lets {previous.kept - mask.kept} weights go")
    """


@hookspec
def ticketkit_round_end(record: "RoundRecord") -> None:
    """Watch a round end: it is committed to the run directory, if there is one.

    `IMP` tells it when the loop asks for the next round; `record` holds the metrics that were logged.

        @ticketkit.hookimpl
        def ticketkit_round_end(record):
            print(record.index, record.metrics)
    """


@hookspec
def ticketkit_ticket_saved(ticket: "Ticket", path: "Path") -> None:
    """Watch a ticket be written: that of a round into the run directory, or a chosen one beside it.

    `IMP` tells it of each round with a run directory, the command line of the best and the extreme ticket.

        @ticketkit.hookimpl
        def ticketkit_ticket_saved(ticket, path):
            print(path, ticket.mask.density)
    """


@hookspec
def ticketkit_run_error(error: BaseException, index: int) -> None:
    """Watch a run fail in round `index`; the error goes on to the caller.

    Seen for whatever the engine raises, and for trainings inside `IMP.run`, `with imp.watched():` or the command line;
    an exception in the body of a bare `for` loop ends the iteration without a word to the engine.

        @ticketkit.hookimpl
        def ticketkit_run_error(error, index):
            print(f"round {index} failed: {error}")
    """


@hookspec
def ticketkit_run_end(records: "tuple[RoundRecord, ...]") -> None:
    """Watch a run end, with the records of all its rounds.

    `IMP` tells it when the iteration over its rounds is exhausted, at once if none was left.

        @ticketkit.hookimpl
        def ticketkit_run_end(records):
            print(min(record.metrics["wer"] for record in records))
    """
