"""How much of a training goes into waiting for data: real speech that sounds otherwise in every epoch.

    TICKETKIT_DATA=... python tests/benchmarks/waiting.py RECIPE [--workers 0 1] [--epochs 3]

Needs the folders noise and rir beside the corpus. Rooms, babble (where the splits have enough speakers), noise, speed
and SpecAugment are on; one thread. Each line is an epoch: its share of waiting, and its seconds with the look at dev.
"""

import argparse
import logging
import os
import time
from collections.abc import Iterator
from importlib.resources import files
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
import yaml

from ticketkit import Plugins
from ticketkit_asr.training.options import TrainerOptions
from ticketkit_asr.training.trainer import SpeechTrainer

TALKERS = 4


def main() -> None:
    """Train once with each number of workers; the trainer tells its waiting."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", choices=["fsdd", "librispeech_tiny"])
    parser.add_argument("--workers", nargs="+", type=int, default=[0, 1])
    parser.add_argument("--epochs", type=int, default=3)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    logging.getLogger("ticketkit_asr.training.trainer").setLevel(logging.INFO)
    config = yaml.safe_load((files("ticketkit_asr") / "recipes" / f"{arguments.recipe}.yaml").read_text())
    for workers in arguments.workers:
        print(f"{arguments.recipe}, workers {workers}", flush=True)
        for seconds in epochs(config, {"epochs": arguments.epochs, "workers": workers}):
            print(f"  {seconds:.2f} s", flush=True)


def epochs(config: dict[str, Any], chosen: dict[str, Any]) -> Iterator[float]:
    """Yield the seconds of each epoch of a recipe's dense training."""
    torch.manual_seed(0)
    plugins = Plugins.discover()
    corpus: Any = plugins.choose("corpus", config["corpus"]).call()
    bundle: Any = plugins.choose("backbone", config["backbone"]).call()
    recipe = {name: value for name, value in config["trainer"].items() if name != "name"}
    changes = {"corruption": corruption(corpus), "speed": {}, "augment": {"frequency_width": 8, "time_width": 30}}
    trainer = SpeechTrainer(bundle, corpus, seed=0, options=TrainerOptions.model_validate(recipe | changes | chosen))
    trainer.evaluate("dev")  # dev is prepared, which comes once
    ends = [time.monotonic()]
    trainer.train(lambda progress: ends.append(time.monotonic()))
    yield from (end - start for start, end in pairwise(ends))


def corruption(corpus: Any) -> dict[str, Any]:
    """Return rooms and noise of TICKETKIT_DATA, and babble where every split but the test has enough speakers."""
    data = Path(os.environ["TICKETKIT_DATA"])
    parts: dict[str, Any] = {
        "room": {"root": data / "rir", "probability": 0.5},
        "noise": {"root": data / "noise", "snr_db": [20, 10, 5, 0]},
    }
    if all(len({u.speaker for u in corpus.split(split)}) > TALKERS for split in ("train", "dev")):
        parts["babble"] = {"talkers": TALKERS, "snr_db": [20, 10], "probability": 0.3}
    return parts


if __name__ == "__main__":
    main()
