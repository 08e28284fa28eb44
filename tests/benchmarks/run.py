"""Measure the figures of docs/performance.md and print one JSON line for each.

    python tests/benchmarks/run.py [--only P1 P4] [--quick] [--markdown]

Everything runs on one thread. Contestants take turns within every round; `ours` and `rival` are medians over the
rounds, `ratio` is the median of the rounds' own ratios and `spread` their quartiles. The ratio is rival ÷ ours where
the goal says ">= ... times faster", else ours ÷ rival. A figure that cannot be measured here says why on stderr.
"""

import argparse
import json
from collections.abc import Callable, Iterator

import torch
from adapters import adapter_steps
from executors import executors_cost
from features import feature_speed
from figures import Figure, markdown
from files import mask_files, ticket_files
from inference import recurrent_step, whole_network
from loop import imp_overhead
from memory import rewind_time, training_memory
from selection import exactness, pruned_selection_time, selection_memory, selection_time
from sharded import sharded_selection
from speech import speech_training
from training import training_time
from transducer import transducer_loss

FIGURES: dict[str, Callable[[bool], Iterator[Figure]]] = {
    "P1": selection_time,
    "P2": selection_memory,
    "P3": pruned_selection_time,
    "P4": exactness,
    "P5": training_time,
    "P6": training_memory,
    "P7": mask_files,
    "P8": ticket_files,
    "P9": rewind_time,
    "P10": imp_overhead,
    "P11": recurrent_step,
    "P12": transducer_loss,
    "P13": feature_speed,
    "P14": speech_training,
    "P15": whole_network,
    "P16": executors_cost,
    "P17": adapter_steps,
    "P18": sharded_selection,
}


def main() -> None:
    """Print the figures that were asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=FIGURES, default=list(FIGURES), metavar="P", help="these figures")
    parser.add_argument("--quick", action="store_true", help="tiny shapes and two rounds: does it run at all?")
    parser.add_argument("--markdown", action="store_true", help="print the table for docs/performance.md at the end")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    measured = []
    for name in arguments.only:
        torch.manual_seed(0)
        for figure in FIGURES[name](arguments.quick):
            measured.append(figure)
            line = {**figure.line(), "threads": torch.get_num_threads(), "torch": torch.__version__}
            print(json.dumps(line), flush=True)
    if arguments.markdown:
        print("\n" + markdown(measured))


if __name__ == "__main__":
    main()
