"""Recognisers in ONNX Runtime: the scores of torch, at every length, beyond the end of an utterance too."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from ticketkit import IMP, ConfigError, ExampleBundle, Plugins
from ticketkit.export import export
from ticketkit_asr.backbones.bundle import SpeechBundle
from ticketkit_asr.backbones.cnn_lstm import build_cnn_lstm, by_running_statistics, over_valid
from ticketkit_asr.backbones.conformer import build_conformer
from ticketkit_asr.backbones.options import CnnLstmOptions
from ticketkit_asr.backbones.rnnt import build_rnnt
from ticketkit_asr.backbones.rnnt_options import RnntOptions
from ticketkit_asr.backbones.transformer import build_transformer
from ticketkit_asr.backbones.transformer_options import ConformerOptions, TransformerOptions

FEATURES = {"kind": "log_mel", "mels": 12}
CONVS = [
    {"channels": 4, "kernel": (5, 5), "stride": (2, 2)},
    {"channels": 4, "kernel": (3, 3), "stride": (2, 1)},
]


def cnn_lstm(**options: Any) -> SpeechBundle:
    sizes = {"features": FEATURES, "convs": CONVS, "hidden": 8, "layers": 2, **options}
    return build_cnn_lstm(options=CnnLstmOptions.model_validate(sizes))


def conformer() -> SpeechBundle:
    stages = [{"blocks": 1, "dim": 8, "group": 3}, {"blocks": 1, "dim": 12}]
    sizes = {"features": FEATURES, "subsampling": CONVS[:1], "stages": stages, "heads": 2, "kernel": 3}
    return build_conformer(options=ConformerOptions.model_validate(sizes))


def transformer() -> SpeechBundle:
    sizes = {"features": FEATURES, "subsampling": CONVS[:1], "blocks": 1, "dim": 8, "heads": 2}
    return build_transformer(options=TransformerOptions.model_validate(sizes))


def rnnt() -> SpeechBundle:
    sizes = {"features": FEATURES, "stack": (2,), "hidden": 4, "embedding": 3, "predictor": 3, "joint": 3}
    return build_rnnt(options=RnntOptions.model_validate(sizes))


BACKBONES: dict[str, Callable[[], SpeechBundle]] = {
    "cnn_lstm": cnn_lstm,
    "cnn_lstm that listens": lambda: cnn_lstm(bidirectional=False, lookahead=3, dropout=0.1),
    "conformer": conformer,
    "transformer": transformer,
}


def trained(build: Callable[[], SpeechBundle]) -> tuple[SpeechBundle, Any]:
    """Return a pruned recogniser whose batch normalisation has seen something, and its ticket."""
    bundle = build()
    imp = IMP(bundle.module, rate=0.5, rounds=1)
    for _ in imp:
        pass
    for module in bundle.module.modules():
        if isinstance(module, nn.BatchNorm1d):
            nn.init.normal_(module.running_mean)
            nn.init.uniform_(module.running_var, 0.5, 2)
            nn.init.normal_(module.bias)
    return bundle, imp.tickets[1]


def run(file: Path, inputs: tuple[Tensor, ...]) -> list[np.ndarray[Any, Any]]:
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    return session.run(None, {name: value.numpy() for name, value in zip(("features", "lengths"), inputs, strict=True)})


@pytest.fixture(scope="module", params=BACKBONES)
def shipped(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[SpeechBundle, Path]:
    """A pruned recogniser, and the file that it was exported to."""
    torch.manual_seed(0)
    bundle, ticket = trained(BACKBONES[request.param])
    directory = tmp_path_factory.mktemp("shipped") / "out"
    export(bundle, ticket, directory, Plugins.discover().choose("exporter", "onnx"))
    return bundle, directory / "model.onnx"


@pytest.mark.parametrize("lengths", [[53], [90, 1, 40, 89, 7], [1, 1]], ids=str)
def test_scores_and_lengths_are_those_of_torch(shipped: tuple[SpeechBundle, Path], lengths: list[int]) -> None:
    bundle, file = shipped
    inputs = torch.randn(len(lengths), max(lengths), 12), torch.tensor(lengths)
    scores, counts = run(file, inputs)
    with bundle.evaluating():
        wanted, wanted_counts = bundle.module(*inputs)
    assert counts.tolist() == wanted_counts.tolist() == bundle.module.output_lengths(inputs[1]).tolist()
    torch.testing.assert_close(torch.from_numpy(scores), wanted, rtol=0, atol=1e-4 * wanted.abs().max().item())


def test_padding_does_not_show_in_the_file_either(shipped: tuple[SpeechBundle, Path]) -> None:
    _, file = shipped
    features, lengths = torch.randn(2, 60, 12), torch.tensor([60, 31])
    other = features.clone()
    other[1, 31:] = torch.nan
    (scores, counts), (others, _) = (run(file, (each, lengths)) for each in (features, other))
    assert (scores == others).all()
    alone, _ = run(file, (features[1:, :31], lengths[1:]))
    np.testing.assert_allclose(scores[1, : counts[1]], alone[0], atol=1e-5)


def test_a_transducer_is_refused_and_nothing_is_left(tmp_path: Path) -> None:
    bundle, ticket = trained(rnnt)
    with pytest.raises(ConfigError, match="one graph: a transducer reads every label"):
        export(bundle, ticket, tmp_path / "out", Plugins.discover().choose("exporter", "onnx"))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", BACKBONES)
def test_examples_are_the_same_at_every_call_and_as_long_as_asked(name: str) -> None:
    bundle = BACKBONES[name]()
    assert isinstance(bundle, ExampleBundle)
    features, lengths = bundle.example(1.0, 3)
    assert features.shape == (3, 101, 12)
    assert lengths.tolist()[:2] == [101, 101]
    assert 0 < lengths[2] < 101
    assert bundle.example(1.0, 1)[1].tolist() == [101]
    torch.rand(1)
    assert all(map(torch.equal, (features, lengths), bundle.example(1.0, 3)))
    assert features.std().item() == pytest.approx(1, abs=0.1)


@pytest.mark.parametrize("shape", [(5, 3, 4), (5, 3, 4, 2)], ids=["features", "maps"])
def test_normalising_all_frames_and_the_valid_ones_are_the_same(shape: tuple[int, ...]) -> None:
    norm = nn.BatchNorm1d(4).eval()
    for values in (norm.running_mean, norm.weight, norm.bias):
        nn.init.normal_(values)
    x, valid = torch.randn(shape), torch.rand(5, 3) < 0.5
    torch.testing.assert_close(by_running_statistics(norm, x, valid), over_valid(norm, x, valid))
