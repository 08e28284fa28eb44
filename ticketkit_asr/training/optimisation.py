"""Optimizers and learning rates: torch's own, and rates that are a function of the step alone."""

from collections.abc import Iterable
from math import sqrt
from typing import Any

from torch import nn
from torch.optim import SGD, Adam, AdamW, Optimizer

from ticketkit_asr.training.options import TrainerOptions


def build_optimizer(parameters: Iterable[nn.Parameter], options: TrainerOptions) -> Optimizer:
    """Return the optimizer that the options ask for, in torch's fused form.

    Fused Adam does not slow down on the exact zeros that pruned weights leave in its moments.
    """
    shared: dict[str, Any] = {"lr": options.lr, "weight_decay": options.weight_decay, "fused": True}
    match options.optimizer:
        case "adamw":
            return AdamW(parameters, betas=options.betas, **shared)
        case "adam":
            return Adam(parameters, betas=options.betas, **shared)
        case "sgd":
            return SGD(parameters, momentum=options.momentum, nesterov=options.momentum > 0, **shared)


def learning_rate(step: int, epoch: int, options: TrainerOptions) -> float:
    """Return the learning rate of optimizer step `step`, counted from 0, in an epoch, counted from 1.

    `anneal` divides it by `lr_anneal` after every epoch (Audio Lottery, CNN-LSTM). `noam` lets it rise in proportion to
    the step for `warmup` steps, up to `lr`, and fall with the step's inverse square root from then on (Vaswani et al.
    2017, equation 3, with the factor written as the peak). `constant` leaves it.
    """
    match options.schedule:
        case "anneal":
            return options.lr / options.lr_anneal ** (epoch - 1)
        case "noam":
            place = (step + 1) / options.warmup
            return options.lr * min(place, 1 / sqrt(place))
        case "constant":
            return options.lr


def set_learning_rate(optimizer: Optimizer, lr: float) -> None:
    """Let every parameter learn at one rate."""
    for group in optimizer.param_groups:
        group["lr"] = lr
