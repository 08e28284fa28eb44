"""P14: an epoch of a recogniser with half its weights pruned, beside the same network in a loop of plain torch.

The plain loop knows nothing of ticketkit: features at hand, padded batches of the same utterances, loss, backward pass,
clipping, fused AdamW, dense weights, and the same look at dev. Speech is white noise: what a step takes does not depend
on what is said.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from figures import Figure, Goal, compared, interleaved, skipped, timed
from torch.nn.utils.rnn import pad_sequence

from ticketkit import DataError, Mask, Plugins, Scope, enforced
from ticketkit_asr.batching import training_batches
from ticketkit_asr.corpora.corpus import InMemory, SpeechCorpus, Utterance
from ticketkit_asr.trainer import SpeechTrainer
from ticketkit_asr.trainer_options import TrainerOptions

BACKBONES = ("cnn_lstm", "rnnt", "conformer", "transformer")
ROUNDS = 15
GOAL = Goal("<=", 1.05, "of the plain loop")


@dataclass(frozen=True)
class Size:
    """How much speech: utterances of so many seconds, so many in a batch."""

    utterances: int
    seconds: float
    batch: int


def speech_training(quick: bool) -> Iterator[Figure]:
    """P14: an epoch of each small preset."""
    size = Size(4, 0.5, 2) if quick else Size(64, 2.0, 16)
    plugins = Plugins.discover()
    for backbone in BACKBONES:
        try:
            contestants = {
                "ours": trainer_epoch(plugins, backbone, size),
                "plain torch, dense": plain_epoch(plugins, backbone, size),
            }
        except DataError as error:
            skipped(f"P14 {backbone}", error)
            continue
        for job in contestants.values():
            job()  # whatever a first epoch sets up
        seconds = interleaved({name: timed(job) for name, job in contestants.items()}, 2 if quick else ROUNDS)
        shape = f"{size.utterances} utterances of {size.seconds} s, batches of {size.batch}, half the weights pruned"
        rival = {"plain torch, dense": seconds["plain torch, dense"]}
        yield compared(f"P14 epoch of {backbone}, small", seconds["ours"], rival, shape=shape, goal=GOAL)


def trainer_epoch(plugins: Plugins, backbone: str, size: Size) -> Callable[[], object]:
    """Return an epoch of the trainer `asr` on a network that holds a mask."""
    bundle: Any = plugins.choose("backbone", backbone).call()
    options = TrainerOptions(epochs=1, batch_size=size.batch)
    trainer = SpeechTrainer(bundle, spoken(size, bundle.sample_rate), seed=0, options=options)
    shapes = Scope.of(bundle.module).shapes
    mask = Mask({name: torch.rand(shape) < 0.5 for name, shape in shapes.items()})

    def epoch() -> None:
        with enforced(bundle.module, mask):
            trainer.train(lambda progress: None)

    return epoch


def plain_epoch(plugins: Plugins, backbone: str, size: Size) -> Callable[[], object]:
    """Return an epoch of a loop as one writes it without ticketkit."""
    bundle: Any = plugins.choose("backbone", backbone).call()
    module, corpus = bundle.module, spoken(size, bundle.sample_rate)
    data = {
        split: [
            (bundle.features(torch.from_numpy(u.audio.read())), torch.tensor(bundle.alphabet.encode(u.text)))
            for u in corpus.split(split)
        ]
        for split in ("train", "dev")
    }
    lengths = [len(features) for features, _ in data["train"]]

    def losses(pairs: list[tuple[torch.Tensor, torch.Tensor]]) -> torch.Tensor:
        features = pad_sequence([features for features, _ in pairs], batch_first=True)
        frames = torch.tensor([len(features) for features, _ in pairs])
        found: torch.Tensor = bundle.objective.losses(module, features, frames, [target for _, target in pairs])
        return found

    def epoch() -> None:
        optimizer = torch.optim.AdamW(module.parameters(), lr=3e-4, weight_decay=1e-5, fused=True)
        module.train()
        for indices in training_batches(lengths, batch_size=size.batch, seed=0, epoch=1):
            optimizer.zero_grad()
            losses([data["train"][i] for i in indices]).mean().backward()
            torch.nn.utils.clip_grad_norm_(module.parameters(), 400.0)
            optimizer.step()
        module.eval()
        with torch.no_grad():
            losses(data["dev"])

    return epoch


def spoken(size: Size, rate: int) -> SpeechCorpus:
    """Return a corpus of noise, with one utterance in dev."""
    random = np.random.default_rng(0)

    def utterance(split: str, index: int) -> Utterance:
        waveform = random.standard_normal(round(size.seconds * rate)).astype(np.float32)
        return Utterance(f"{split}-{index}", InMemory(waveform), "ONE", "nobody")

    train = [utterance("train", index) for index in range(size.utterances)]
    return SpeechCorpus("noise", rate, {"train": train, "dev": [utterance("dev", 0)], "test": []})
