import pytest
import torch
from pydantic import ValidationError
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from ticketkit import Scope
from ticketkit_asr.backbones.cnn_lstm import (
    Lookahead,
    SummedBiLstm,
    build_cnn_lstm,
    over_valid,
    reversal,
    valid_frames,
)
from ticketkit_asr.backbones.options import CnnLstmOptions

LENGTHS = torch.tensor([31, 50, 7])


def features(bins: int) -> torch.Tensor:
    return torch.randn(3, 50, bins, generator=torch.Generator().manual_seed(1))


FORMS = {
    "bidirectional": {},
    "forwards": {"bidirectional": False},
    "lookahead": {"bidirectional": False, "lookahead": 3},
}


def fresh(tiny: CnnLstmOptions, **given: object) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return build_cnn_lstm(options=CnnLstmOptions(**tiny.model_dump() | given)).module


@pytest.fixture(params=FORMS)
def form(request) -> dict[str, object]:
    return FORMS[request.param]


@pytest.fixture
def module(tiny, form):
    module = fresh(tiny, **form)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module(features(12), LENGTHS)  # in training mode: batch statistics that are neither 0 nor 1
    return module.eval()


def test_the_paper_preset_has_its_86_6_million_parameters():
    with torch.device("meta"):
        bundle = build_cnn_lstm(options=CnnLstmOptions(preset="paper"))
    assert sum(parameter.numel() for parameter in bundle.module.parameters()) == 86_618_400
    assert (bundle.sample_rate, bundle.extractor.bins, bundle.alphabet.size) == (16_000, 161, 29)


def test_the_papers_unidirectional_form_has_43_5_million_parameters():
    options = CnnLstmOptions(preset="paper", bidirectional=False, lookahead=19)
    with torch.device("meta"):
        module = build_cnn_lstm(options=options).module
    assert sum(parameter.numel() for parameter in module.parameters()) == 43_475_232
    assert tuple(module.lookahead.conv.weight.shape) == (1024, 1, 20)


def test_the_small_preset_has_the_size_of_the_papers_draft():
    with torch.device("meta"):
        module = build_cnn_lstm(options=CnnLstmOptions()).module
    prunable = sum(parameter.numel() for parameter in module.parameters() if parameter.dim() > 1)
    assert prunable == 575_248


def test_given_settings_override_the_preset_and_the_rest_is_kept():
    options = CnnLstmOptions(preset="paper", hidden=64)
    assert (options.hidden, options.layers, options.sample_rate) == (64, 5, 16_000)
    assert CnnLstmOptions.model_validate(options.model_dump(mode="json")) == options
    mel = CnnLstmOptions(features={"mels": 20}).features
    assert (mel.kind, mel.centre, mel.mels) == ("log_mel", "bin", 20)


@pytest.mark.parametrize(
    "wrong",
    [
        *({"preset": "huge"}, {"hiden": 3}, {"layers": 0}, {"convs": []}),
        *({"lookahead": -1, "bidirectional": False}, {"dropout": 1.0}, {"dropout": -0.1}),
    ],
)
def test_wrong_sizes_are_refused_by_name(wrong):
    with pytest.raises(ValidationError, match=next(iter(wrong))):
        CnnLstmOptions(**wrong)


def test_even_kernels_are_refused():
    with pytest.raises(ValidationError, match=r"convs\.0\.kernel"):
        CnnLstmOptions(convs=[{"channels": 2, "kernel": (4, 3), "stride": (1, 1)}])


@pytest.mark.parametrize("given", [{}, {"bidirectional": True}, {"preset": "paper"}])
def test_a_lookahead_is_refused_where_the_lstms_hear_everything_ahead(given):
    with pytest.raises(ValidationError, match=r"lookahead 3 .* set bidirectional: false, or leave lookahead out"):
        CnnLstmOptions(lookahead=3, **given)
    assert CnnLstmOptions(lookahead=0, **given).bidirectional


def test_scores_do_not_depend_on_batch_mates_or_padding(module):
    x = features(12)
    together, lengths = module(x, LENGTHS)
    longer, _ = module(torch.cat([x, torch.randn(3, 33, 12)], dim=1), LENGTHS)
    for i, length in enumerate(LENGTHS):
        alone, alone_length = module(x[i : i + 1, :length], LENGTHS[i : i + 1])
        assert alone_length == lengths[i]
        torch.testing.assert_close(alone[0], together[i, : lengths[i]], atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(longer[i, : lengths[i]], together[i, : lengths[i]], atol=1e-5, rtol=1e-4)


def test_what_lies_beyond_an_utterance_changes_nothing_not_even_nan(module):
    x = features(12)
    spoilt = x.clone()
    spoilt[0, 31:] = float("nan")
    assert torch.equal(module(spoilt, LENGTHS)[0], module(x, LENGTHS)[0])


def test_batch_statistics_in_training_come_from_valid_frames_alone(tiny, form):
    x = features(12)
    longer = torch.cat([x, torch.zeros(3, 40, 12)], dim=1)
    module = fresh(tiny, **form).train()
    start = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    module(x, LENGTHS)
    expected = {name: buffer.clone() for name, buffer in module.named_buffers()}
    module.load_state_dict(start)
    module(longer, LENGTHS)
    for name, buffer in module.named_buffers():
        torch.testing.assert_close(buffer, expected[name], atol=1e-5, rtol=1e-4)


def test_normalisation_over_valid_frames_equals_normalising_them_alone():
    x, valid = torch.randn(3, 50, 4), valid_frames(LENGTHS, 50)
    normalised = over_valid(nn.BatchNorm1d(4), x, valid)
    torch.testing.assert_close(normalised[valid], nn.BatchNorm1d(4)(x[valid]))
    assert not normalised[~valid].any()


def test_summed_directions_equal_a_packed_bidirectional_lstm():
    ours, reference = SummedBiLstm(6, 5), nn.LSTM(6, 5, bidirectional=True)
    with torch.no_grad():
        for name, parameter in ours.forwards.named_parameters():
            getattr(reference, name).copy_(parameter)
        for name, parameter in ours.backwards.named_parameters():
            getattr(reference, f"{name}_reverse").copy_(parameter)
    x = torch.randn(50, 3, 6)
    packed, _ = reference(pack_padded_sequence(x, LENGTHS, enforce_sorted=False))
    expected = pad_packed_sequence(packed)[0].unflatten(-1, (2, 5)).sum(-2)
    got = ours(x, reversal(LENGTHS, 50))
    valid = valid_frames(LENGTHS, 50).T
    torch.testing.assert_close(got[valid], expected[valid])


def test_a_lookahead_weighs_the_frames_that_follow_within_the_utterance():
    lookahead, x, lengths = Lookahead(2, 3), torch.randn(9, 3, 2), torch.tensor([9, 2, 5])
    x *= 100  # so that sums fall below 0, above 20 and between
    weight = lookahead.conv.weight[:, 0]  # (channels, frames ahead)
    expected = torch.zeros_like(x)
    for utterance, length in enumerate(lengths):
        for frame in range(9):
            ahead = range(frame, max(frame, min(frame + 4, int(length))))
            for time in ahead:
                expected[frame, utterance] += weight[:, time - frame] * x[time, utterance]
    spoilt = x.masked_fill(~valid_frames(lengths, 9).T[:, :, None], float("nan"))
    torch.testing.assert_close(lookahead(spoilt, valid_frames(lengths, 9).T), expected.clamp(0, 20))


@pytest.mark.parametrize("lookahead", [0, 1, 4])
def test_no_output_hears_further_ahead_than_half_kernels_and_lookahead(tiny, lookahead):
    module = fresh(tiny, bidirectional=False, lookahead=lookahead).double()
    x, length = features(12)[:1].double(), torch.tensor([50])
    module(x, length)
    scores, _ = module.eval()(x, length)
    for output in range(scores.shape[1]):
        reach = output + lookahead  # an output frame of the convolutions, then the last frame of their input
        for conv in reversed(tiny.convs):
            reach = reach * conv.stride[1] + conv.kernel[1] // 2
        beyond, within = x.clone(), x.clone()
        beyond[:, reach + 1 :] += 1
        within[:, reach:] += 1
        torch.testing.assert_close(
            module(beyond, length)[0][:, : output + 1], scores[:, : output + 1], atol=1e-13, rtol=0
        )
        if reach < 50:
            assert (module(within, length)[0][0, output] - scores[0, output]).abs().max() > 1e-10
            cut = module(x[:, : reach + 1], torch.tensor([reach + 1]))[0]
            torch.testing.assert_close(cut[0, output], scores[0, output], atol=1e-13, rtol=0)


def test_dropout_of_zero_draws_nothing_and_leaves_weights_and_keys(tiny):
    plain, dropping = fresh(tiny, dropout=0.0), fresh(tiny, dropout=0.5)
    assert list(plain.state_dict()) == list(dropping.state_dict())
    assert all(torch.equal(tensor, dropping.state_dict()[name]) for name, tensor in plain.state_dict().items())
    with torch.random.fork_rng():
        state = torch.get_rng_state()
        plain.train()(features(12), LENGTHS)
        assert torch.equal(torch.get_rng_state(), state)
        dropping.train()(features(12), LENGTHS)
        assert not torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("layers", [1, 3])
def test_dropout_falls_on_the_output_of_every_lstm_layer_but_the_last(tiny, form, layers):
    module = fresh(tiny, layers=layers, dropout=0.4, **form)
    fallen: list[tuple[torch.Tensor, torch.Tensor]] = []
    module.dropout.register_forward_hook(lambda _, given, result: fallen.append((given[0], result)))
    outputs: list[torch.Tensor] = []
    for lstm in module.lstms:
        lstm.register_forward_hook(lambda _, __, out: outputs.append(out[0] if isinstance(out, tuple) else out))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module.train()(features(12), LENGTHS)
    assert len(fallen) == layers - 1
    for (given, result), output in zip(fallen, outputs, strict=False):
        assert given is output
        assert (result == 0).float().mean().item() == pytest.approx(0.4, abs=0.1)


def test_reversal_is_its_own_inverse_and_leaves_padding():
    order = reversal(torch.tensor([3, 5]), 5)
    assert order.T.tolist() == [[2, 1, 0, 3, 4], [4, 3, 2, 1, 0]]


@pytest.mark.parametrize("samples", [200, 800, 4_321, 16_000])
def test_output_frames_are_predicted_from_samples(tiny, samples):
    bundle = build_cnn_lstm(options=tiny)
    wave = torch.randn(samples)
    frames = bundle.features(wave)
    scores, lengths = bundle.module(frames.unsqueeze(0), torch.tensor([len(frames)]))
    assert scores.shape[1] == lengths.item() == bundle.frames(samples)


def test_weights_come_from_torchs_global_generator(tiny):
    def weights(seed: int) -> torch.Tensor:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            return nn.utils.parameters_to_vector(build_cnn_lstm(options=tiny).module.parameters())

    assert torch.equal(weights(3), weights(3))
    assert not torch.equal(weights(3), weights(4))


def test_loss_is_ctc_of_each_utterance_and_decoding_reads_the_best_path(tiny):
    bundle = build_cnn_lstm(options=tiny)
    path = torch.tensor([[2, 2, 0, 2, 3, 0], [4, 0, 0, 9, 9, 9]])  # A A _ A B _ and C _ _ (padding)
    scores = 30.0 * nn.functional.one_hot(path, 29).float()
    lengths = torch.tensor([6, 3])
    assert [bundle.text(written) for written in bundle.objective.greedily(scores, lengths)] == ["AAB", "C"]
    targets = [torch.tensor([2, 2, 3]), torch.tensor([4])]
    assert bundle.objective.losses_of(scores, lengths, targets).tolist() == pytest.approx([0.0, 0.0], abs=1e-6)
    assert bundle.objective.losses_of(scores, lengths, [torch.tensor([2, 3]), torch.tensor([4])])[0] > 20


def test_the_papers_model_trains_a_step_and_has_999_in_1000_weights_in_scope() -> None:
    bundle = build_cnn_lstm(options=CnnLstmOptions(preset="paper"))
    scope = Scope.of(bundle.module)
    assert (scope.total, scope.model_total) == (86_526_048, 86_618_400)
    features, lengths = torch.randn(2, 120, 161), torch.tensor([120, 90])
    scores, frames = bundle.module(features, lengths)
    assert (tuple(scores.shape), frames.tolist()) == ((2, 60, 29), [60, 45])
    bundle.objective.losses_of(scores, frames, [torch.tensor([3, 1, 20]), torch.tensor([7])]).sum().backward()
    assert all(torch.isfinite(p.grad).all() and p.grad.any() for p in bundle.module.parameters() if p.grad is not None)
    assert all(p.grad is not None for p in bundle.module.parameters())
