"""P11 and P15: inference on exported tickets beside dense networks: a step of an LSTM, and the paper's CNN-LSTM."""

from collections.abc import Iterator
from copy import deepcopy
from dataclasses import replace
from typing import Any

import torch
from figures import Figure, Goal, compared, interleaved, skipped, timed
from torch import nn

from ticketkit import DataError, Plugins
from ticketkit.names import named_modules
from ticketkit.runtime.choosing import applied, choose, measured
from ticketkit.runtime.layers import matrices, stand_in

STEPS = {1: 3.0, 8: 6.0, 32: 6.0}  # batch size: how many times faster at 95.6 % sparsity
SPARSE = 0.044
NEVER_SLOWER = Goal("<=", 1.05, "of the dense layer")


def recurrent_step(quick: bool) -> Iterator[Figure]:
    """P11: one step of an LSTM of 1024 units, 95.6 % of its weights pruned; and what auto makes of other densities."""
    units, rounds = (64, 2) if quick else (1024, 61)
    dense = nn.LSTMCell(units, units)
    sparse = _pruned(deepcopy(dense), SPARSE)
    ours = stand_in(sparse, "csr")
    for batch, times in STEPS.items():
        x, state = torch.randn(batch, units), (torch.randn(batch, units), torch.randn(batch, units))
        calls = {
            "ours": timed(lambda x=x, state=state: ours(x, state)),  # type: ignore[misc]
            "dense LSTMCell": timed(lambda x=x, state=state: dense(x, state)),  # type: ignore[misc]
        }
        with torch.no_grad():
            seconds = interleaved(calls, rounds)
        yield compared(
            f"P11 LSTM step at 95.6 % sparsity, batch {batch}",
            seconds["ours"],
            {"dense LSTMCell": seconds["dense LSTMCell"]},
            shape=f"{units} units, CSR",
            goal=Goal(">=", times, "times faster"),
        )
    for density in (0.05, 0.2, 0.5, 0.9):
        yield _automatic(units, density, rounds)


def _automatic(units: int, density: float, rounds: int) -> Figure:
    """Return how the form that was chosen by measurement compares with the dense layer, measured anew."""
    layer = _pruned(nn.LSTM(units, units), density)
    x = torch.randn(20, 1, units)
    choice = measured(layer, ((x,), {}))
    ours: Any = layer if choice.form == "dense" else stand_in(layer, choice.form)
    with torch.no_grad():
        seconds = interleaved({"ours": timed(lambda: ours(x)), "dense": timed(lambda: layer(x))}, max(2, rounds // 4))
    return compared(
        f"P11 the chosen form of an LSTM with {density:.0%} of its weights",
        seconds["ours"],
        {"dense nn.LSTM": seconds["dense"]},
        shape=f"{units} units, 20 steps, batch 1: {choice.form}",
        goal=NEVER_SLOWER,
    )


def whole_network(quick: bool) -> Iterator[Figure]:
    """P15: the CNN-LSTM, an utterance at a time, 95.6 % sparse with half of the LSTMs' units, and by steps."""
    try:
        bundle: Any = (
            Plugins.discover().choose("backbone", {"name": "cnn_lstm", "preset": "small" if quick else "paper"}).call()
        )
    except DataError as error:
        skipped("P15", error)
        return
    seconds_of_sound, rounds = (0.5, 2) if quick else (5.0, 15)
    example = bundle.example(seconds_of_sound, 1)
    dense = bundle.module.eval()
    pruned = {
        "95.6 % sparse": (_pruned(deepcopy(dense), SPARSE), "auto", Goal(">=", 2.5, "times faster")),
        "half of the LSTMs' units": (_halved(deepcopy(dense)), "auto", Goal(">=", 2.0, "times faster")),
    }
    for name, (module, runtime, goal) in pruned.items():
        with torch.no_grad():
            choices = choose(module, runtime, example)  # type: ignore[arg-type]
            expected = module(*example)[0]
            ours = applied(module, choices)
            deviation = (ours(*example)[0] - expected).abs().max().item()
            calls = {"ours": timed(lambda ours=ours: ours(*example)), "dense": timed(lambda: dense(*example))}  # type: ignore[misc]
            seconds = interleaved(calls, rounds)
        forms = ", ".join(f"{path} {choice.form}" for path, choice in choices.items() if choice.form != "dense")
        yield compared(
            f"P15 CNN-LSTM, {name}, one utterance",
            seconds["ours"],
            {"dense": seconds["dense"]},
            shape=f"{seconds_of_sound:g} s of sound; {forms or 'all dense'}; outputs deviate by {deviation:.1e}",
            goal=goal,
        )
    yield from _streamed_step(quick)


def _streamed_step(quick: bool) -> Iterator[Figure]:
    """The CNN-LSTM that reads forwards, one output frame of a stream: 95.6 % sparse, its LSTMs in CSR."""
    options = {"preset": "small" if quick else "paper", "bidirectional": False, "lookahead": 20}
    try:
        bundle: Any = Plugins.discover().choose("backbone", {"name": "cnn_lstm", **options}).call()
    except DataError as error:
        skipped("P15", error)
        return
    module = _pruned(bundle.module.eval(), SPARSE)
    dense, seconds_of_sound = replace(bundle, module=deepcopy(module)).stepping()
    choices = choose(module, "sparse")
    lstms = {path: choice for path, choice in choices.items() if "lstm" in path}
    ours, _ = replace(bundle, module=applied(module, lstms)).stepping()
    seconds = interleaved({"ours": timed(ours), "dense": timed(dense)}, 2 if quick else 61)
    yield compared(
        "P15 CNN-LSTM forwards, 95.6 % sparse, one step of a stream",
        seconds["ours"],
        {"dense": seconds["dense"]},
        shape=f"an output frame, {1e3 * seconds_of_sound:g} ms of sound; {len(lstms)} LSTMs in CSR",
        goal=Goal(">=", 2.0, "times faster"),
    )


def _pruned(module: Any, density: float) -> Any:
    """Return the module with that share of each matrix's weights, at random places."""
    with torch.no_grad():
        for _, layer in named_modules(module):
            for name in matrices(layer):
                weight = getattr(layer, name)
                weight.mul_(torch.rand_like(weight) < density)
    return module


def _halved(module: Any) -> Any:
    """Return the module without every second unit of its LSTMs: gate rows and recurrent columns zero."""
    with torch.no_grad():
        for _, layer in named_modules(module):
            if isinstance(layer, nn.LSTM):
                gone = torch.arange(layer.hidden_size) % 2 == 1
                for leaf in ("weight_ih_l0", "weight_hh_l0"):
                    getattr(layer, leaf)[gone.repeat(4)] = 0
                layer.weight_hh_l0[:, gone] = 0
    return module
