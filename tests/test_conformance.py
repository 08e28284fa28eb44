"""All built-ins keep the laws that third parties are held to."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from ticketkit import Mask, Plugins, Ticket, TicketFacts
from ticketkit.registry import KINDS
from ticketkit.testing import (
    TINY_NETS,
    check_allocator,
    check_criterion,
    check_exporter,
    check_granularity,
    check_schedule,
)

SHAPES = {"left": (4, 3), "right": (6,)}
TWO_NETS = {name: TINY_NETS[name] for name in ("convnet", "tied_gru")}  # for criteria that run them

PLUGINS = Plugins()

Check = Callable[[Path], None]


def criterion(name: str, **more: Any) -> Check:
    return lambda _: check_criterion({"name": name, **more}, plugins=PLUGINS, examples=1)


def scoring(name: str, **more: Any) -> Check:
    """Return the check of a criterion that runs the network, which takes its time."""
    return lambda _: check_criterion({"name": name, **more}, plugins=PLUGINS, nets=TWO_NETS, examples=1)


def schedule(name: str, **more: Any) -> Check:
    return lambda _: check_schedule({"name": name, **more}, plugins=PLUGINS, examples=6)


def granularity(name: str, **more: Any) -> Check:
    return lambda _: check_granularity({"name": name, **more}, plugins=PLUGINS, examples=1)


def allocation(name: str, *, shapes: Any = None, **more: Any) -> Check:
    return lambda _: check_allocator({"name": name, **more}, plugins=PLUGINS, shapes=shapes, examples=20)


def layer_counts(folder: Path) -> None:
    masks = [Mask.ones(SHAPES), Mask.ones(SHAPES) - Mask({n: Mask.ones(SHAPES)[n].cumsum(-1) > 2 for n in SHAPES})]
    paths = [folder / f"{mask.kept}.safetensors" for mask in masks]
    for mask, path in zip(masks, paths, strict=True):
        Ticket(mask, facts=TicketFacts(round=0)).save(path)
    chosen = {"name": "layer_counts", "tickets": [str(path) for path in paths]}
    check_allocator(chosen, plugins=PLUGINS, shapes=SHAPES, budgets=[mask.kept for mask in masks], examples=40)


@dataclass
class Known:
    """A network with what it is called with, in batches of any size."""

    module: nn.Module
    inputs: torch.Tensor

    def example(self, seconds: float, batch: int) -> tuple[torch.Tensor, ...]:
        return (self.inputs[:1].repeat(batch, *[1] * (self.inputs.dim() - 1)),)


def known(name: str) -> Callable[[], Known]:
    return lambda: Known(TINY_NETS[name].build(), TINY_NETS[name].inputs())


def narrow() -> Known:
    """Return a network whose rows have a single weight each, so that pruned ones are all zero."""
    return Known(nn.Sequential(nn.Linear(1, 8), nn.Linear(8, 2)), torch.ones(1, 1))


KNOWN = {name: known(name) for name in TINY_NETS}


def exporter(
    name: str, *, bundles: dict[str, Callable[[], Any]] | None = None, repeatable: bool = True, **more: Any
) -> Check:
    chosen = {"name": name, **more}
    return lambda _: check_exporter(chosen, bundles=bundles, plugins=PLUGINS, repeatable=repeatable)


TABLE: dict[str, dict[str, Check]] = {
    "criterion": {
        "magnitude": criterion("magnitude"),
        "magnitude_over_init": criterion("magnitude_over_init"),
        "layer_normalised_magnitude": criterion("layer_normalised_magnitude"),
        "magnitude_increase": criterion("magnitude_increase"),
        "signed_movement": criterion("signed_movement"),
        "lamp": criterion("lamp"),
        "random": criterion("random"),
        "inverted": criterion("inverted", of="lamp"),
        "snip": scoring("snip"),
        "taylor": scoring("taylor", training=True),
        "fisher": scoring("fisher"),
        "grasp": scoring("grasp"),
        "synflow": scoring("synflow", iterations=3),
        "wanda": scoring("wanda"),
    },
    "schedule": {
        "geometric": schedule("geometric"),
        "one_shot": schedule("one_shot"),
        "linear": schedule("linear"),
        "cubic": schedule("cubic"),
        "cosine": schedule("cosine"),
        "constant_count": schedule("constant_count", count=3),
        "explicit": schedule("explicit", densities=[0.5, 0.25]),
    },
    "granularity": {
        "weight": granularity("weight"),
        "block": granularity("block", rows=2, cols=3),
        "n_m": granularity("n_m", n=2, m=4),
        "row": granularity("row", pool="max"),
        "column": granularity("column"),
        "filter": granularity("filter"),
        "channel": granularity("channel"),
        "rnn_unit": granularity("rnn_unit"),
        "head": granularity("head"),
    },
    "allocation": {
        "global": allocation("global"),
        "uniform": allocation("uniform"),
        "erdos_renyi": allocation("erdos_renyi"),
        "erk": allocation("erk"),
        "by_pattern": allocation("by_pattern", shapes=SHAPES, densities={"left": 0.5}),
        "layer_counts": layer_counts,
    },
    "exporter": {
        "weights": exporter("weights"),
        "compressed": exporter("compressed"),
        "auto": exporter("auto", bundles=KNOWN, repeatable=False),
        "dense": exporter("dense", dtype="int8"),
        "sparse": exporter("sparse", dtype="fp16"),
        "compact": exporter("compact", bundles={"narrow": narrow}),
        "onnx": exporter("onnx", bundles={"mlp": KNOWN["mlp"]}),
    },
}


@pytest.mark.parametrize(("kind", "name"), [(kind, name) for kind, checks in TABLE.items() for name in checks])
def test_it_keeps_the_laws_of_its_kind(kind: str, name: str, tmp_path: Path) -> None:
    TABLE[kind][name](tmp_path)


def test_everything_that_is_built_in_is_in_the_table() -> None:
    registered = {kind: {entry.name for entry in PLUGINS.registries[kind]} for kind in KINDS}
    assert {kind: set(checks) for kind, checks in TABLE.items()} == {
        kind: names for kind, names in registered.items() if names
    }
