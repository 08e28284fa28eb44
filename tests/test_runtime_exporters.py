"""Exports of speech networks, and of any: what they write and hear is what the masked network writes and hears."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import ticketkit_asr.plugin
from ticketkit import IMP, ConfigError, Plugins, Ticket, hookimpl, load_exported, mask_from_zeros
from ticketkit.export import export
from ticketkit.plugins import PluginFacts
from ticketkit.runtime.saving import RUNTIME


class Encoder:
    """A plugin with torch's own Transformer encoder."""

    @staticmethod
    @hookimpl
    def ticketkit_register_backbones(register: Any) -> None:
        register("encoder", EncoderBundle)


class EncoderBundle:
    """Two layers of torch's own."""

    def __init__(self) -> None:
        self.module = nn.TransformerEncoder(nn.TransformerEncoderLayer(16, 4, 24, batch_first=True), 2)

    def example(self, seconds: float, batch: int) -> tuple[Tensor, ...]:
        return (torch.randn(batch, 7, 16, generator=torch.Generator().manual_seed(0)),)


PLUGINS = Plugins()
PLUGINS.add(ticketkit_asr.plugin, PluginFacts("asr", "ticketkit_asr", "ticketkit", "0"))
PLUGINS.add(Encoder(), PluginFacts("encoder", "encoder", "encoder", "0"))

FRONT: dict[str, Any] = {
    "features": {"kind": "log_mel", "mels": 8},
    "subsampling": [{"channels": 3, "kernel": (3, 3), "stride": (2, 2)}],
    "heads": 2,
    "expansion": 2,
}
LSTMS: dict[str, Any] = {
    "name": "cnn_lstm",
    "features": FRONT["features"],
    "convs": [{"channels": 3, "kernel": (3, 5), "stride": (2, 2)}],
    "hidden": 8,
    "layers": 2,
}
SMALL = {"stack": (2, 3), "hidden": 10, "embedding": 6, "predictor": 8, "joint": 9}
RNNT: dict[str, Any] = {"name": "rnnt", "features": {"mels": 12}, **SMALL}
STAGES = [{"blocks": 1, "dim": 8, "group": 3}, {"blocks": 1, "dim": 12, "group": 2}]
BACKBONES: dict[str, dict[str, Any]] = {
    "cnn_lstm": LSTMS,
    "cnn_lstm forwards": {**LSTMS, "bidirectional": False, "lookahead": 3},
    "rnnt": {**RNNT, "bidirectional": False},
    "rnnt both ways": {**RNNT, "bidirectional": True},
    "conformer": {"name": "conformer", **FRONT, "stages": STAGES, "kernel": 5},
    "transformer": {"name": "transformer", **FRONT, "blocks": 2, "dim": 8},
}
RNN_UNITS = {"granularity": "rnn_unit", "scope": {"include": ["*weight_ih_l0", "*weight_hh_l0"]}}
UNITS: dict[str, dict[str, Any]] = {
    "cnn_lstm": RNN_UNITS,
    "rnnt": RNN_UNITS,
    "conformer": {"granularity": "row"},
    "transformer": {"granularity": "row"},
}


def pruned(backbone: dict[str, Any], **prune: Any) -> tuple[Any, Ticket]:
    """Return a bundle with batch statistics of its own, whose network holds a ticket, and the ticket."""
    torch.manual_seed(4)
    bundle = PLUGINS.choose("backbone", backbone).call()
    for _ in range(3):
        bundle.module(*bundle.example(1.0, 2))
    for name, parameter in bundle.module.named_parameters():
        if parameter.dim() == 1:  # biases and norms that are neither 0 nor 1
            parameter.data.add_(0.3 * torch.randn_like(parameter))
        elif "embedding" not in name:
            parameter.data.mul_(2)
    if backbone["name"] in ("conformer", "transformer"):
        bundle.module.output.bias.data[bundle.alphabet.blank] -= 4  # so that something is written
    imp = IMP(bundle.module, rounds=1, allocation="uniform", seed=1, **prune)
    for _ in imp:
        pass
    bundle.module.eval()
    return bundle, imp.tickets[1]


def heard(bundle: Any) -> tuple[Tensor, list[str]]:
    """Return scores of two utterances and what is written of them."""
    inputs = bundle.example(1.5, 2)
    with torch.no_grad():
        scores = bundle.module(*inputs)[0]
        written = bundle.objective.written(bundle.module, *inputs[:2])
    return scores, [bundle.text(emissions) for emissions in written]


def there_and_back(bundle: Any, ticket: Ticket, chosen: Any, directory: Path, backbone: dict[str, Any]) -> Any:
    """Export a network, and return the bundle that comes back."""
    before = {name: tensor.clone() for name, tensor in bundle.module.state_dict().items()}
    export(bundle, ticket, directory, PLUGINS.choose("exporter", chosen), run={"backbone": backbone, "corpus": {}})
    assert all(torch.equal(tensor, before[name]) for name, tensor in bundle.module.state_dict().items())
    return load_exported(directory, PLUGINS).bundle


@pytest.mark.parametrize("exporter", ["auto", "dense", "sparse", "compressed"])
@pytest.mark.parametrize("name", BACKBONES)
def test_speech_networks_hear_the_same_from_their_exports(name, exporter, tmp_path: Path) -> None:
    bundle, ticket = pruned(BACKBONES[name], rate=0.9, criterion="random")
    loaded = there_and_back(bundle, ticket, exporter, tmp_path / "out", BACKBONES[name])
    scores, texts = heard(bundle)
    came, came_texts = heard(loaded)
    assert came_texts == texts
    assert any(texts)
    assert (came - scores).abs().max() <= 1e-5 * scores.abs().max()
    if exporter == "compressed":
        states = loaded.module.state_dict()
        assert states.keys() == bundle.module.state_dict().keys()
        assert all(torch.equal(states[key], tensor) for key, tensor in bundle.module.state_dict().items())
    if exporter == "sparse":
        layers = json.loads((tmp_path / "out" / RUNTIME).read_text())["layers"].values()
        pruned_and_supported = [layer for layer in layers if layer["density"] < 1 and not layer["left_dense"]]
        assert {layer["form"] for layer in pruned_and_supported} == {"csr"}


@pytest.mark.parametrize("name", BACKBONES)
def test_tickets_of_units_hear_the_same_when_they_are_compacted(name, tmp_path: Path) -> None:
    backbone = BACKBONES[name]
    bundle, ticket = pruned(backbone, rate=0.5, **UNITS[backbone["name"]])
    loaded = there_and_back(bundle, ticket, "compact", tmp_path / "out", backbone)
    scores, texts = heard(bundle)
    came, came_texts = heard(loaded)
    assert came_texts == texts
    assert (came - scores).abs().max() <= 1e-5 * scores.abs().max()
    dense = there_and_back(bundle, ticket, "dense", tmp_path / "dense", backbone)
    assert (heard(dense)[0] - scores).abs().max() <= 1e-5 * scores.abs().max()
    sizes = [(tmp_path / folder / "model.safetensors").stat().st_size for folder in ("out", "dense")]
    assert sizes[0] < sizes[1] + 8_000  # the headers of tiny networks outweigh their weights


def without_units(bundle: Any, share: float = 0.5) -> Ticket:
    """Set that share of every attention's heads and every layer's hidden units to zero; return the ticket of it."""
    for units in bundle.hidden_units():
        reader = bundle.module.get_submodule(units.reader)
        gone = round(share * reader.in_features)
        reader.weight.data[:, :gone] = 0
        for path in units.makers:
            bundle.module.get_submodule(path).weight.data[:gone] = 0
    return Ticket(mask_from_zeros(bundle.module))


@pytest.mark.parametrize("exporter", ["compact", "sparse", "auto"])
@pytest.mark.parametrize("name", ["conformer", "transformer"])
def test_heads_and_hidden_units_of_speech_networks_are_removed_and_nothing_is_heard_of_it(
    name, exporter, tmp_path: Path
) -> None:
    backbone = BACKBONES[name]
    bundle, _ = pruned(backbone, rate=0.1, criterion="random")
    ticket = without_units(bundle)
    loaded = there_and_back(bundle, ticket, exporter, tmp_path / "out", backbone)
    scores, texts = heard(bundle)
    came, came_texts = heard(loaded)
    assert came_texts == texts
    assert any(texts)
    assert (came - scores).abs().max() <= 1e-5 * scores.abs().max()
    before, after = list(bundle.hidden_units()), list(loaded.hidden_units())
    assert before == after
    for units in before:
        whole, left = (one.module.get_submodule(units.makers[0]).out_features for one in (bundle, loaded))
        assert left == whole // 2
    heads = {int(layer.num_heads) for layer in loaded.module.modules() if hasattr(layer, "num_heads")}
    assert heads == {FRONT["heads"] // 2}


@pytest.mark.parametrize("dtype", ["fp32", "int8"])
def test_an_export_of_torchs_encoder_is_the_ticket_in_integers_too(dtype, tmp_path: Path) -> None:
    torch.manual_seed(2)
    bundle = PLUGINS.choose("backbone", "encoder").call()
    for layer in bundle.module.layers:
        layer.linear1.weight.data[::2] = 0
        layer.self_attn.in_proj_weight.data[:, ::3] = 0
    ticket = Ticket(mask_from_zeros(bundle.module))
    (x,) = bundle.example(1.0, 2)
    with torch.no_grad():
        expected = bundle.module.eval()(x)
        for exporter in ("dense", "compact", "auto"):
            chosen = {"name": exporter, "dtype": dtype}
            loaded = there_and_back(bundle, ticket, chosen, tmp_path / exporter, {"name": "encoder"})
            came = loaded.module(x)
            apart = (came - expected).abs().max() / expected.abs().max()
            assert apart < (1e-5 if dtype == "fp32" else 0.05), exporter


@pytest.mark.parametrize("dtype", ["fp16", "int8"])
def test_values_in_fewer_bits_move_the_scores_a_little(dtype, tmp_path: Path) -> None:
    backbone = BACKBONES["cnn_lstm"]
    bundle, ticket = pruned(backbone, rate=0.9, criterion="random")
    scores = heard(bundle)[0]
    chosen = {"name": "sparse", "dtype": dtype}
    came = heard(there_and_back(bundle, ticket, chosen, tmp_path / "out", backbone))[0]
    apart = (came - scores).abs().max() / scores.abs().max()
    assert 0 < apart < {"fp16": 0.005, "int8": 0.1}[dtype]


def test_half_of_a_compressed_ticket_is_half_precision_of_what_is_left(tmp_path: Path) -> None:
    bundle, ticket = pruned(BACKBONES["cnn_lstm"], rate=0.9, criterion="random")
    chosen = {"name": "compressed", "half": True}
    loaded = there_and_back(bundle, ticket, chosen, tmp_path / "out", BACKBONES["cnn_lstm"])
    for key, tensor in bundle.module.state_dict().items():
        came = loaded.module.state_dict()[key]
        assert came.dtype == tensor.dtype
        assert torch.equal(came, tensor.half().float() if tensor.is_floating_point() else tensor)


def test_auto_measures_as_many_seconds_and_utterances_as_it_is_told(tmp_path: Path) -> None:
    bundle, ticket = pruned(BACKBONES["transformer"], rate=0.9, criterion="random")
    asked = []

    class Listening:
        module = bundle.module

        def example(self, seconds: float, batch: int) -> Any:
            asked.append((seconds, batch))
            return bundle.example(seconds, batch)

    chosen = PLUGINS.choose("exporter", {"name": "auto", "seconds": 0.5, "batch": 3})
    export(Listening(), ticket, tmp_path / "out", chosen)
    assert asked == [(0.5, 3)]
    layers = json.loads((tmp_path / "out" / RUNTIME).read_text())["layers"].values()
    assert any(layer["seconds"] for layer in layers)


def test_auto_of_a_network_without_an_example_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    bundle, ticket = pruned(BACKBONES["transformer"], rate=0.9, criterion="random")
    with pytest.raises(ConfigError, match="needs example inputs"):
        export(SimpleNamespace(module=bundle.module), ticket, tmp_path / "out", PLUGINS.choose("exporter", "auto"))
    assert list(tmp_path.iterdir()) == []
