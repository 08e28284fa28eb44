"""P14: a training step of a recogniser with half its weights pruned, beside the same step in a loop of plain torch.

The plain loop knows nothing of ticketkit: features at hand, the same padded batches, loss, backward pass, clipping,
fused AdamW, dense weights. Ours is the trainer's own epoch, from the loading of its batches to its last step; what
comes once an epoch is left out on both sides: a look at dev, copies of the best weights, the mask's working form.
Speech is white noise: what a step takes does not depend on what is said.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from figures import Figure, Goal, compared, interleaved, skipped
from torch.nn.utils.rnn import pad_sequence

from ticketkit import DataError, Mask, Plugins, Scope, enforced
from ticketkit_asr.corpora.corpus import InMemory, SpeechCorpus, Utterance
from ticketkit_asr.training.batching import training_batches
from ticketkit_asr.training.loading import Waiting
from ticketkit_asr.training.options import TrainerOptions
from ticketkit_asr.training.trainer import SpeechTrainer
from ticketkit_asr.training.training import Training

BACKBONES = ("cnn_lstm", "rnnt", "conformer", "transformer")
ROUNDS = 61
GOAL = Goal("<=", 1.05, "of the plain loop")


@dataclass(frozen=True)
class Size:
    """How much speech: utterances of so many seconds, so many in a batch."""

    utterances: int
    seconds: float
    batch: int


def speech_training(quick: bool) -> Iterator[Figure]:
    """P14: a training step of each small preset."""
    size = Size(4, 0.5, 2) if quick else Size(64, 2.0, 16)
    plugins = Plugins.discover()
    for backbone in BACKBONES:
        try:
            contestants = {
                "ours": trainer_step(plugins, backbone, size),
                "plain torch, dense": plain_step(plugins, backbone, size),
            }
        except DataError as error:
            skipped(f"P14 {backbone}", error)
            continue
        for measure in contestants.values():
            measure()  # whatever a first epoch sets up
        seconds = interleaved(contestants, 2 if quick else ROUNDS)
        shape = f"{size.utterances} utterances of {size.seconds} s, batches of {size.batch}, half the weights pruned"
        rival = {"plain torch, dense": seconds["plain torch, dense"]}
        yield compared(f"P14 training step, {backbone}, small", seconds["ours"], rival, shape=shape, goal=GOAL)


def trainer_step(plugins: Plugins, backbone: str, size: Size) -> Callable[[], float]:
    """Return what measures a step of the trainer `asr`, the mean of an epoch, on a network that holds a mask."""
    torch.manual_seed(0)
    bundle: Any = plugins.choose("backbone", backbone).call()
    options = TrainerOptions(epochs=1, batch_size=size.batch)
    trainer = SpeechTrainer(bundle, spoken(size, bundle.sample_rate), seed=0, options=options)
    mask = Mask({name: torch.rand(shape) < 0.5 for name, shape in Scope.of(bundle.module).shapes.items()})
    training = Training(bundle.module, options, None)
    plan = trainer._steps(1)

    def measure() -> float:
        loaded = Waiting(trainer._loader.batches(trainer._keys(0)))
        with enforced(bundle.module, mask):
            start = time.process_time()
            trainer._train_epoch(1, plan, 0, training, loaded)
            return (time.process_time() - start) / len(plan)

    return measure


def plain_step(plugins: Plugins, backbone: str, size: Size) -> Callable[[], float]:
    """Return what measures a step, the mean of an epoch, of a loop as one writes it without ticketkit."""
    torch.manual_seed(0)
    bundle: Any = plugins.choose("backbone", backbone).call()
    module, corpus = bundle.module, spoken(size, bundle.sample_rate)
    data = [
        (bundle.features(torch.from_numpy(u.audio.read())), torch.tensor(bundle.alphabet.encode(u.text)))
        for u in corpus.split("train")
    ]
    plan = training_batches([len(features) for features, _ in data], batch_size=size.batch, seed=0, epoch=1)
    optimizer = torch.optim.AdamW(module.parameters(), lr=3e-4, weight_decay=1e-5, fused=True)

    def step(pairs: list[tuple[torch.Tensor, torch.Tensor]]) -> None:
        optimizer.zero_grad()
        features = pad_sequence([features for features, _ in pairs], batch_first=True)
        frames = torch.tensor([len(features) for features, _ in pairs])
        bundle.objective.losses(module, features, frames, [target for _, target in pairs]).mean().backward()
        torch.nn.utils.clip_grad_norm_(module.parameters(), 400.0)
        optimizer.step()

    def measure() -> float:
        module.train()
        start = time.process_time()
        for indices in plan:
            step([data[i] for i in indices])
        return (time.process_time() - start) / len(plan)

    return measure


def spoken(size: Size, rate: int) -> SpeechCorpus:
    """Return a corpus of noise, with one utterance in dev."""
    random = np.random.default_rng(0)

    def utterance(split: str, index: int) -> Utterance:
        waveform = random.standard_normal(round(size.seconds * rate)).astype(np.float32)
        return Utterance(f"{split}-{index}", InMemory(waveform), "ONE", "nobody")

    train = [utterance("train", index) for index in range(size.utterances)]
    return SpeechCorpus("noise", rate, {"train": train, "dev": [utterance("dev", 0)], "test": []})
