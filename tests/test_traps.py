"""Traps that no single module owns; docs/guarantees.md says where the others are tested."""

import torch
from torch import nn

from ticketkit import IMP, Plugins


def test_trap_30_a_masked_filter_is_as_good_as_removed_only_with_what_reads_it() -> None:
    """A BatchNorm gives a zero map a value of its own; with `feeds` nothing reads that value, so outputs agree."""
    torch.manual_seed(1)
    model = nn.Sequential(nn.Conv2d(2, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 3, 3))
    with torch.no_grad():
        for parameter in model[1].parameters():
            parameter.uniform_(0.5, 2.0)
    images = torch.randn(4, 2, 9, 9)
    model(images)

    def pruned(**options: object) -> torch.Tensor:
        """Prune filters of the first convolution; return which stay. The model keeps its masked weights."""
        scope = ["0.weight", "3.weight"] if options else ["0.weight"]
        settings = {"granularity": {"name": "filter", **options}, "scope": {"include": scope}, "rewind": "none"}
        imp = IMP(model, rounds=1, density=0.5, allocation="uniform", plugins=Plugins(), **settings)  # type: ignore[arg-type]
        for _ in imp:
            pass
        kept: torch.Tensor = imp.tickets[1].mask["0.weight"].flatten(1).any(1)
        return kept

    def without(kept: torch.Tensor) -> torch.Tensor:
        """Return the outputs of the network from which the masked filters are physically removed."""
        small = nn.Sequential(nn.Conv2d(2, int(kept.sum()), 3), nn.BatchNorm2d(int(kept.sum())), nn.ReLU())
        with torch.no_grad():
            small[0].weight.copy_(model[0].weight[kept])
            small[0].bias.copy_(model[0].bias[kept])
            for name, tensor in model[1].state_dict().items():
                small[1].state_dict()[name].copy_(tensor[kept] if tensor.ndim else tensor)
        small.eval()
        maps: torch.Tensor = small(images)
        return nn.functional.conv2d(maps, model[3].weight[:, kept], model[3].bias)

    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model.eval()
    with torch.no_grad():
        kept = pruned()
        assert 0 < kept.sum() < 6
        assert not torch.allclose(model(images), without(kept), atol=1e-4)
        model.load_state_dict(before)
        kept = pruned(feeds={"0": ["3.weight"]})
        assert 0 < kept.sum() < 6
        assert torch.allclose(model(images), without(kept), atol=1e-5)
