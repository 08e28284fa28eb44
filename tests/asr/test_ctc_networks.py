"""What holds for every network trained with CTC: padding never shows, and torch's tools work on it."""

import copy
from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from ticketkit import IMP, Scope
from ticketkit.testing import check_backbone
from ticketkit_asr.backbones.bundle import SpeechBundle
from ticketkit_asr.backbones.cnn_lstm import build_cnn_lstm, valid_frames
from ticketkit_asr.backbones.conformer import build_conformer
from ticketkit_asr.backbones.options import CnnLstmOptions
from ticketkit_asr.backbones.transformer import build_transformer
from ticketkit_asr.backbones.transformer_options import ConformerOptions, TransformerOptions
from ticketkit_asr.corpora.corpus import SpeechCorpus
from ticketkit_asr.training.options import TrainerOptions
from ticketkit_asr.training.trainer import SpeechTrainer

BINS = 8
FRONT: dict[str, Any] = {
    "features": {"kind": "log_mel", "mels": BINS},
    "subsampling": [{"channels": 3, "kernel": (3, 3), "stride": (2, 2)}],
    "heads": 2,
    "expansion": 2,
}
STAGES = [{"blocks": 1, "dim": 8, "group": 3}, {"blocks": 1, "dim": 12, "group": 2}, {"blocks": 1, "dim": 12}]
LSTMS: dict[str, Any] = {
    "features": FRONT["features"],
    "convs": [{"channels": 3, "kernel": (3, 5), "stride": (2, 2)}, {"channels": 3, "kernel": (3, 3), "stride": (2, 1)}],
    "hidden": 8,
    "layers": 2,
}
FORWARDS: dict[str, Any] = {"bidirectional": False, "lookahead": 3}
TINY: dict[str, Callable[[], SpeechBundle]] = {
    "conformer": lambda: build_conformer(options=ConformerOptions(**FRONT, stages=STAGES, kernel=5, dropout=0)),
    "transformer": lambda: build_transformer(options=TransformerOptions(**FRONT, blocks=2, dim=8, dropout=0)),
    "cnn_lstm": lambda: build_cnn_lstm(options=CnnLstmOptions(**LSTMS)),
    "cnn_lstm forwards": lambda: build_cnn_lstm(options=CnnLstmOptions(**LSTMS, **FORWARDS)),
}
SMALL: dict[str, Callable[[], SpeechBundle]] = {
    "conformer": lambda: build_conformer(options=ConformerOptions()),
    "transformer": lambda: build_transformer(options=TransformerOptions()),
    "cnn_lstm forwards": lambda: build_cnn_lstm(options=CnnLstmOptions(**FORWARDS)),
}
LENGTHS = torch.tensor([31, 40, 7])

every_network = pytest.mark.parametrize("name", TINY)


def features(seed: int = 1) -> Tensor:
    return torch.randn(3, 40, BINS, generator=torch.Generator().manual_seed(seed))


@cache
def trained(name: str) -> nn.Module:
    """Return a network in float64 with batch statistics and norms that are neither 0 nor 1; not to be changed."""
    torch.manual_seed(5)
    module = TINY[name]().module
    module(features(), LENGTHS)
    for parameter in module.parameters():
        with torch.no_grad():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return module.double().eval()


@st.composite
def batches(draw: st.DrawFn) -> tuple[Tensor, Tensor]:
    """Return features of utterances, padded beyond the longest with whatever there was, and their lengths."""
    lengths = torch.tensor(draw(st.lists(st.integers(1, 40), min_size=1, max_size=3)))
    frames = int(lengths.max()) + draw(st.integers(0, 20))
    return torch.randn(len(lengths), frames, BINS, dtype=torch.float64), lengths


@every_network
@settings(max_examples=12)
@given(case=batches())
def test_scores_do_not_depend_on_batch_mates_or_padding(name, case) -> None:
    x, lengths = case
    module = trained(name)
    together, outputs = module(x, lengths)
    assert torch.equal(outputs, module.output_lengths(lengths))
    assert together.shape[1] == module.output_lengths(torch.tensor(x.shape[1]))
    assert not together[~valid_frames(outputs, together.shape[1])].any()
    for i, length in enumerate(lengths):
        alone, frames = module(x[i : i + 1, :length], lengths[i : i + 1])
        assert frames == outputs[i] == alone.shape[1]
        torch.testing.assert_close(together[i, :frames], alone[0], atol=1e-12, rtol=1e-10)


@every_network
def test_what_lies_beyond_an_utterance_changes_nothing_not_even_nan(name) -> None:
    x = features().double()
    spoilt = x.clone()
    spoilt[0, 31:], spoilt[2, 7:] = float("nan"), float("inf")
    assert torch.equal(trained(name)(spoilt, LENGTHS)[0], trained(name)(x, LENGTHS)[0])


@every_network
def test_what_training_learns_does_not_depend_on_padding(name) -> None:
    """Scores, gradients and batch statistics of one step, with and without thirty more frames of noise."""
    x = features().double()
    longer = torch.cat([x, torch.randn(3, 30, BINS, dtype=torch.float64)], dim=1)
    results = []
    for given_features in (x, longer):
        module = copy.deepcopy(trained(name)).train()
        scores, lengths = module(given_features, LENGTHS)
        scores = scores[:, : int(lengths.max())]
        (scores * torch.arange(scores.numel()).view_as(scores).sin()).sum().backward()
        gradients = {key: parameter.grad for key, parameter in module.named_parameters()}
        results.append({"scores": scores, **gradients, **dict(module.named_buffers())})
    before = dict(trained(name).named_buffers())
    assert all(not torch.equal(results[0][key], before[key]) for key in before)
    for key, tensor in results[0].items():
        torch.testing.assert_close(results[1][key], tensor, atol=1e-10, rtol=1e-8, msg=key)


@every_network
@pytest.mark.parametrize("samples", [200, 800, 4_321, 16_000])
def test_output_frames_are_predicted_from_samples(name, samples) -> None:
    bundle = TINY[name]()
    bundle.module.eval()
    frames = bundle.features(torch.randn(samples))
    scores, lengths = bundle.module(frames.unsqueeze(0), torch.tensor([len(frames)]))
    assert scores.shape == (1, bundle.frames(samples), bundle.alphabet.size)
    assert lengths.tolist() == [bundle.frames(samples)]


@every_network
def test_every_layer_has_its_weight_in_scope_and_nothing_else_has(name) -> None:
    module = TINY[name]().module
    kinds = {("weight",): nn.Linear | nn.Conv1d | nn.Conv2d, ("weight_ih_l0", "weight_hh_l0"): nn.LSTM}
    weights = {
        f"{key}.{name}"
        for key, layer in module.named_modules()
        for names, kind in kinds.items()
        for name in names
        if isinstance(layer, kind)
    }
    assert set(Scope.of(module).names) == weights
    assert all(
        parameter.dim() == 1 for key, parameter in module.named_parameters() if key not in Scope.of(module).names
    )


@every_network
def test_every_parameter_learns(name) -> None:
    bundle = TINY[name]()
    targets = [torch.tensor([3, 1]), torch.tensor([7]), torch.tensor([2])]
    bundle.objective.losses(bundle.module, features(), torch.tensor([40, 40, 40]), targets).sum().backward()
    silent = [key for key, parameter in bundle.module.named_parameters() if not parameter.grad.any()]
    assert [key for key in silent if not key.endswith("k_proj.bias")] == []  # a shift of all scores changes no softmax


@every_network
def test_dropout_acts_in_training_alone(name) -> None:
    build, options = {
        "conformer": (build_conformer, ConformerOptions(**FRONT, stages=STAGES, dropout=0.5)),
        "transformer": (build_transformer, TransformerOptions(**FRONT, blocks=2, dim=8, dropout=0.5)),
        "cnn_lstm": (build_cnn_lstm, CnnLstmOptions(**LSTMS, dropout=0.5)),
        "cnn_lstm forwards": (build_cnn_lstm, CnnLstmOptions(**LSTMS, **FORWARDS, dropout=0.5)),
    }[name]
    module = build(options=options).module
    assert {layer.p for layer in module.modules() if isinstance(layer, nn.Dropout)} == {0.5}
    x = features()
    assert not torch.equal(module(x, LENGTHS)[0], module(x, LENGTHS)[0])
    module.eval()
    assert torch.equal(module(x, LENGTHS)[0], module(x, LENGTHS)[0])


@pytest.mark.parametrize(
    ("build", "options"), [(build_conformer, ConformerOptions), (build_transformer, TransformerOptions)]
)
def test_the_labels_are_those_asked_for(build, options) -> None:
    bundle = build(options=options(labels={"characters": "AB "}))
    assert bundle.alphabet.encode("ba b") == [2, 1, 3, 2]
    assert bundle.module(torch.randn(1, 9, 40), torch.tensor([9]))[0].shape[2] == bundle.alphabet.size == 4


@every_network
def test_it_keeps_the_laws_of_backbones(name) -> None:
    check_backbone(TINY[name])


@every_network
def test_it_can_be_drawn_anew(name) -> None:
    module = TINY[name]().module
    rounds = IMP(module, rounds=1, rewind="reinit", seed=3)
    starts = [{key: p.detach().clone() for key, p in module.named_parameters()} for _ in rounds]
    drawn = {key for key, value in starts[0].items() if value.unique().numel() > 1 or value.numel() == 1}
    assert {key for key in drawn if not torch.equal(starts[0][key], starts[1][key])} == drawn
    assert all(("norm" in key) == (key not in drawn) for key in starts[0])


@every_network
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("training", [True, False])
def test_it_runs_in_half_precision_under_autocast(name, dtype, training) -> None:
    bundle = TINY[name]()
    bundle.module.train(training)
    expected = copy.deepcopy(bundle.module)(features(), LENGTHS)[0]
    with torch.autocast("cpu", dtype=dtype):
        scores, _ = bundle.module(features(), LENGTHS)
        losses = bundle.objective.losses(bundle.module, features(), LENGTHS, [torch.tensor([3])] * 3)
    assert scores.dtype == dtype
    assert (scores.float() - expected).norm() < 8 * torch.finfo(dtype).eps * expected.norm()
    losses.sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in bundle.module.parameters())


@pytest.mark.parametrize(("name", "epochs"), [("conformer", 14), ("transformer", 22), ("cnn_lstm forwards", 40)])
def test_the_small_preset_learns_two_words(name, epochs, two_tones) -> None:
    options = TrainerOptions(epochs=epochs, batch_size=2, lr=0.002, schedule="constant")
    train = two_tones.split("train")  # which also chooses the epoch: this is about learning by heart
    corpus = SpeechCorpus("two_tones", two_tones.sample_rate, {"train": train, "dev": train})
    trainer = SpeechTrainer(SMALL[name](), corpus, seed=0, options=options)
    losses: list[float] = []
    trainer.train(lambda progress: losses.append(progress.loss))
    assert trainer.evaluate("train")["wer"] == 0.0
    assert losses[-1] < losses[0] / 50
