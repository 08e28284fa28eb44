"""One engine for all: every granularity works with every criterion, allocation, schedule and rewind."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from ticketkit import IMP, Mask, Plugins

PLUGINS = Plugins()


class Everything(nn.Module):
    """Two convolutions, attention, a two-layer bidirectional LSTM and a linear layer: (batch, 1, time, 8) → (…, 3)."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.mix = nn.Conv2d(4, 4, 1)
        self.attention = nn.MultiheadAttention(32, 4, batch_first=True)
        self.lstm = nn.LSTM(32, 8, num_layers=2, bidirectional=True, batch_first=True)
        self.head = nn.Linear(16, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        maps = self.mix(torch.relu(self.norm(self.conv(x))))  # (batch, 4, time, 8)
        frames = maps.permute(0, 2, 1, 3).flatten(2)  # (batch, time, 32)
        frames = frames + self.attention(frames, frames, frames, need_weights=False)[0]
        scores: torch.Tensor = self.head(self.lstm(frames)[0])
        return scores


# For each granularity its options, the parameters it has units for, and where a run with it may end.
GRANULARITIES: dict[str, tuple[dict[str, Any], list[str] | None, float]] = {
    "weight": ({}, None, 0.3),
    "block": ({"rows": 3, "cols": 5}, None, 0.3),
    "n_m": ({"n": 2, "m": 4}, ["attention.*", "lstm.*", "head.*"], 0.5),
    "row": ({"pool": "sum"}, None, 0.3),
    "column": ({}, None, 0.3),
    "filter": ({"feeds": {"conv": ["mix.weight"]}}, ["conv.*", "mix.*"], 0.3),
    "channel": ({}, ["mix.*"], 0.3),
    "rnn_unit": ({"feeds": {"lstm": ["head.weight"]}}, ["lstm.*", "head.*"], 0.3),
    "head": ({}, ["attention.*"], 0.3),
}
CRITERIA = [entry.name for entry in PLUGINS.registries["criterion"]]
OPTIONS: dict[str, dict[str, Any]] = {"inverted": {"of": "magnitude"}, "synflow": {"iterations": 3}}
ALLOCATIONS = ["global", "uniform", "erk", "erdos_renyi"]
SCHEDULES = ["geometric", "linear", "cubic", "cosine", "one_shot"]
REWINDS = ["init", "step:1", "none", "reinit", "learning_rate"]


def batches() -> list[torch.Tensor]:
    return [torch.randn(2, 1, 5, 8, generator=torch.Generator().manual_seed(seed)) for seed in (1, 2)]


def loss(model: nn.Module, batch: torch.Tensor) -> torch.Tensor:
    return model(batch).square().mean()


def run(granularity: str, criterion: str, allocation: str, schedule: str, rewind: str) -> list[Mask]:
    """Run two prunings, checking every law on the way; return the masks."""
    torch.manual_seed(3)
    model = Everything()
    options, include, density = GRANULARITIES[granularity]
    imp = IMP(
        model,
        rounds=2,
        density=density,
        granularity={"name": granularity, **options},
        criterion={"name": criterion, **OPTIONS.get(criterion, {})},
        allocation=allocation,
        schedule=schedule,
        rewind=rewind,
        scope={"include": include} if include else None,
        batches=batches,
        loss=loss,
        plugins=PLUGINS,
    )
    for current in imp:
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
        for batch in batches():
            optimizer.zero_grad()
            loss(model, batch).backward()
            optimizer.step()
        for name, parameter in model.named_parameters():
            if name in current.mask:
                assert not parameter.detach()[~current.mask[name]].any()
    masks = [ticket.mask for ticket in imp.tickets]
    for index, (mask, planned) in enumerate(zip(masks, imp.plan, strict=True)):
        assert mask.kept <= planned
        assert granularity not in ("weight", "n_m") or mask.kept == planned
        assert index == 0 or mask <= masks[index - 1]
    assert masks[-1].kept < masks[0].kept
    return masks


@pytest.mark.filterwarnings("ignore::ticketkit.CollapseWarning")
@pytest.mark.parametrize("granularity", list(GRANULARITIES))
@pytest.mark.parametrize("criterion", CRITERIA)
def test_every_granularity_takes_every_criterion(granularity: str, criterion: str) -> None:
    run(granularity, criterion, "global", "one_shot", "init")


@pytest.mark.filterwarnings("ignore::ticketkit.CollapseWarning")
@settings(max_examples=60)
@given(
    st.sampled_from(list(GRANULARITIES)),
    st.sampled_from(CRITERIA),
    st.sampled_from(ALLOCATIONS),
    st.sampled_from(SCHEDULES),
    st.sampled_from(REWINDS),
)
def test_any_combination_runs_to_its_end(
    granularity: str, criterion: str, allocation: str, schedule: str, rewind: str
) -> None:
    run(granularity, criterion, allocation, schedule, rewind)


def test_nothing_registered_is_missing_here() -> None:
    def names(kind: str) -> set[str]:
        return {entry.name for entry in PLUGINS.registries[kind]}

    assert set(GRANULARITIES) == names("granularity")
    assert set(ALLOCATIONS) == names("allocation") - {"by_pattern", "layer_counts"}
    assert set(SCHEDULES) == names("schedule") - {"explicit", "constant_count"}
