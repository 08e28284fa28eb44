import copy
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils.rnn import pad_sequence

from ticketkit import Mask, Scope, enforced
from ticketkit_asr.backbones.bundle import SpeechBundle
from ticketkit_asr.backbones.rnnt import Rnnt, build_rnnt, stacked
from ticketkit_asr.backbones.rnnt_options import RnntOptions
from ticketkit_asr.corpora.corpus import SpeechCorpus
from ticketkit_asr.objectives.rnnt_loss import rnnt_loss
from ticketkit_asr.objectives.transducer import Transducer
from ticketkit_asr.objectives.transducer_search import beam_search, greedy
from ticketkit_asr.training.precision import computing_in

FRAMES = torch.tensor([31, 50, 7])
TARGETS = [torch.tensor([3, 1, 20, 2]), torch.tensor([7]), torch.tensor([], dtype=torch.int64)]
COUNTS = torch.tensor([4, 1, 0])

TINY = {
    "features": {"mels": 12},
    "stack": (2, 3),
    "hidden": 10,
    "embedding": 6,
    "predictor": 8,
    "joint": 9,
}


def build(*, seed: int = 0, **changes: object) -> SpeechBundle:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return build_rnnt(options=RnntOptions.model_validate({**TINY, **changes}))


def features() -> Tensor:
    return torch.randn(3, 50, 12, generator=torch.Generator().manual_seed(1))


def padded(targets: list[Tensor], *, value: int = 0) -> Tensor:
    return pad_sequence(targets, batch_first=True, padding_value=value)


@pytest.fixture(params=[False, True], ids=["one way", "both ways"])
def bundle(request: pytest.FixtureRequest) -> SpeechBundle:
    return build(bidirectional=request.param)


def test_the_paper_preset_has_132_million_parameters_and_its_layers() -> None:
    options = RnntOptions(preset="paper")
    with torch.device("meta"):
        bundle = build_rnnt(options=options)
    assert sum(parameter.numel() for parameter in bundle.module.parameters()) == 132_004_573
    lstms = [module for module in bundle.module.modules() if isinstance(module, nn.LSTM)]
    assert len(lstms) == 5 + 1
    assert (bundle.sample_rate, bundle.extractor.bins, bundle.alphabet.size) == (16_000, 80, 29)
    assert (options.features.window(16_000), options.features.fft(16_000)) == (400, 512)
    assert bundle.frames(16_000) == 26  # 40 ms a frame


def test_the_small_preset_has_three_quarters_of_a_million() -> None:
    with torch.device("meta"):
        module = build_rnnt(options=RnntOptions()).module
    assert sum(parameter.numel() for parameter in module.parameters()) == 748_637


def test_given_settings_override_the_preset_and_the_rest_is_kept() -> None:
    options = RnntOptions(preset="paper", hidden=64, features={"mels": 20})
    assert (options.hidden, options.stack, options.sample_rate) == (64, (1, 2, 2, 1, 1), 16_000)
    assert (options.features.mels, options.features.kind, options.features.window_ms) == (20, "log_mel", 25.0)
    assert RnntOptions.model_validate(options.model_dump(mode="json")) == options


@pytest.mark.parametrize("wrong", [{"preset": "huge"}, {"hiden": 3}, {"stack": []}, {"stack": [2, 0]}, {"joint": 0}])
def test_wrong_sizes_are_refused_by_name(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError, match=next(iter(wrong))):
        RnntOptions.model_validate(wrong)


def test_scores_do_not_depend_on_batch_mates_or_padding(bundle: SpeechBundle) -> None:
    module, x = bundle.module.double(), features().double()
    together, lengths = module(x, FRAMES, padded(TARGETS), COUNTS)
    longer, _ = module(torch.cat([x, torch.randn(3, 33, 12)], dim=1), FRAMES, padded(TARGETS), COUNTS)
    assert lengths.tolist() == [6, 9, 2]
    for i, (frames, target) in enumerate(zip(FRAMES, TARGETS, strict=True)):
        alone, alone_lengths = module(x[i : i + 1, :frames], FRAMES[i : i + 1], target[None], COUNTS[i : i + 1])
        assert alone_lengths == lengths[i]
        own = slice(lengths[i]), slice(len(target) + 1)
        torch.testing.assert_close(alone[0], together[i][own], rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(longer[i][own], together[i][own], rtol=1e-12, atol=1e-12)


def test_what_lies_beyond_an_utterance_changes_nothing_not_even_nan(bundle: SpeechBundle) -> None:
    x = features()
    spoilt = x.clone()
    for i, frames in enumerate(FRAMES):
        spoilt[i, frames:] = float("nan")
    expected, _ = bundle.module(x, FRAMES, padded(TARGETS), COUNTS)
    got, _ = bundle.module(spoilt, FRAMES, padded(TARGETS, value=-100), COUNTS)
    assert torch.equal(got, expected)
    for beam in (1, 2):
        written = [bundle.objective.written(bundle.module, heard, FRAMES, beam=beam) for heard in (spoilt, x)]
        assert written[0] == written[1]


def test_encoder_states_are_zero_beyond_their_utterance(bundle: SpeechBundle) -> None:
    states, lengths = bundle.module.encode(features(), FRAMES)
    for state, length in zip(states, lengths, strict=True):
        assert state[:length].any(-1).all()
        assert not state[length:].any()


def test_the_encoder_hears_ahead_only_with_both_directions() -> None:
    x, later = features(), features()
    later[:, 30:] += 1.0
    for both_ways in (False, True):
        module = build(bidirectional=both_ways).module
        before, after = (module.encode(of, torch.tensor([50, 50, 50]))[0] for of in (x, later))
        assert torch.equal(before[:, :5], after[:, :5]) is not both_ways  # 30 frames, stacked by 6
        assert not torch.equal(before[:, 5:], after[:, 5:])


@given(st.integers(1, 9), st.integers(1, 4))
def test_stacking_joins_neighbours_in_order_and_fills_up_with_zeros(frames: int, size: int) -> None:
    x = torch.arange(1.0, 1 + frames * 2 * 3).view(frames, 2, 3)
    joined = stacked(x, size)
    assert joined.shape == (-(-frames // size), 2, 3 * size)
    flat = joined.view(len(joined), 2, size, 3).permute(0, 2, 1, 3).flatten(0, 1)
    assert torch.equal(flat[:frames], x)
    assert not flat[frames:].any()


@pytest.mark.parametrize("samples", [200, 800, 4_321, 16_000])
def test_output_frames_are_predicted_from_samples(bundle: SpeechBundle, samples: int) -> None:
    frames = bundle.features(torch.randn(samples))
    states, lengths = bundle.module.encode(frames[None], torch.tensor([len(frames)]))
    assert states.shape[1] == lengths.item() == bundle.frames(samples) == bundle.output_frames(len(frames))


def test_the_predictor_goes_on_from_its_state() -> None:
    module = build().module.double()
    labels = torch.randint(0, 29, (3, 7))
    whole, (hidden, cell) = module.predict(labels)
    state, parts = None, []
    for label in labels.T:
        part, state = module.predict(label[:, None], state)
        parts.append(part)
    torch.testing.assert_close(torch.cat(parts, dim=1), whole)
    torch.testing.assert_close(state, (hidden, cell))


def test_forward_joins_every_frame_with_every_number_of_labels() -> None:
    module = build().module.double()
    scores, lengths = module(features().double(), FRAMES, padded(TARGETS), COUNTS)
    encoded, _ = module.encode(features().double(), FRAMES)
    assert scores.shape == (3, int(lengths.max()), 5, 29)
    for i, target in enumerate(TARGETS):
        for count in range(len(target) + 1):
            read, _ = module.predict(torch.tensor([[0, *target[:count].tolist()]]))  # a text begins with a blank
            torch.testing.assert_close(scores[i, :, count], module.join(encoded[i], read[0, -1]))


def test_the_joiner_adds_both_states_and_bends_the_sum() -> None:
    module = build().module
    encoded, predicted = torch.randn(4, 10), torch.randn(4, 8)
    from_encoder, output = module.from_encoder, module.output
    hidden = encoded @ from_encoder.weight.T + from_encoder.bias + predicted @ module.from_predictor.weight.T
    torch.testing.assert_close(module.join(encoded, predicted), hidden.tanh() @ output.weight.T + output.bias)


def test_losses_are_rnnt_losses_of_each_utterance_through_any_wrapper(bundle: SpeechBundle) -> None:
    class Wrapper(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.calls = bundle.module, 0

        def forward(self, *inputs: Tensor) -> tuple[Tensor, Tensor]:
            self.calls += 1
            scores, lengths = self.inner(*inputs)
            return scores, lengths

    wrapper = Wrapper()
    losses = bundle.objective.losses(wrapper, features(), FRAMES, TARGETS)
    scores, lengths = bundle.module(features(), FRAMES, padded(TARGETS), COUNTS)
    assert wrapper.calls == 1
    assert torch.equal(losses, rnnt_loss(scores, padded(TARGETS), lengths, COUNTS, blank=0))
    losses.sum().backward()
    for name, parameter in bundle.module.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.any(), name


def test_one_evaluation_gives_the_losses_and_what_greedy_writes(bundle: SpeechBundle) -> None:
    with bundle.evaluating():
        losses, written = bundle.objective.evaluated(bundle.module, features(), FRAMES, TARGETS)
    torch.testing.assert_close(losses, bundle.objective.losses(bundle.module, features(), FRAMES, TARGETS))
    assert written == bundle.objective.written(bundle.module, features(), FRAMES)
    assert any(written)


def test_the_objective_searches_with_the_beam_and_the_bound_it_is_given() -> None:
    module = build(seed=4).module
    with torch.no_grad():
        module.output.weight *= 8  # far from uniform
    encoded, lengths = module.encode(features(), FRAMES)
    found = {}
    for bound in (1, 3):
        objective = Transducer(0, max_symbols=bound)
        found[bound, 1] = greedy(module, encoded, lengths, blank=0, max_symbols=bound)
        for beam in (2, 9):
            best = beam_search(module, encoded, lengths, blank=0, width=beam, max_symbols=bound)
            found[bound, beam] = [hypotheses[0].emissions for hypotheses in best]
        for beam in (1, 2, 9):
            assert objective.written(module, features(), FRAMES, beam=beam) == found[bound, beam]
    assert found[1, 1] != found[3, 1]
    assert found[3, 1] != found[3, 9]


def test_any_target_fits_where_there_is_a_frame() -> None:
    objective = build().objective
    assert objective.fits([1] * 99, 1)
    assert objective.fits([], 1)
    assert not objective.fits([1], 0)


def test_labels_of_your_own_set_the_number_of_scores() -> None:
    bundle = build(labels={"characters": "AB "})
    scores, _ = bundle.module(features(), FRAMES, padded([torch.tensor([1])] * 3), torch.tensor([1, 1, 1]))
    assert (bundle.alphabet.size, scores.shape[-1]) == (4, 4)


@pytest.fixture
def one_process_group(tmp_path: Path) -> Iterator[None]:
    if not torch.distributed.is_available():
        pytest.skip("this torch has no torch.distributed")
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.usefixtures("one_process_group")
def test_losses_go_through_distributed_data_parallel_with_all_gradients() -> None:
    bundle = build()
    expected = copy.deepcopy(bundle.module)
    bundle.objective.losses(expected, features(), FRAMES, TARGETS).mean().backward()
    bundle.objective.losses(DistributedDataParallel(bundle.module), features(), FRAMES, TARGETS).mean().backward()
    for ours, theirs in zip(bundle.module.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad)


def test_all_matrices_but_the_embedding_are_in_the_default_scope(bundle: SpeechBundle) -> None:
    module = bundle.module
    matrices = {name for name, parameter in module.named_parameters() if parameter.dim() > 1}
    assert set(Scope.of(module).names) == matrices - {"embedding.weight"}
    assert set(Scope.of(module, embeddings=True).names) == matrices
    assert {name.partition(".")[0] for name in Scope.of(module).names} == {
        *("encoder", "predictor", "from_encoder", "from_predictor", "output")
    }


def test_pruned_weights_stay_zero_through_training_steps(bundle: SpeechBundle) -> None:
    mask = Mask({name: torch.rand(shape) < 0.5 for name, shape in Scope.of(bundle.module).shapes.items()})
    optimizer = torch.optim.Adam(bundle.module.parameters(), lr=0.01)
    with enforced(bundle.module, mask):
        for _ in range(3):
            optimizer.zero_grad()
            bundle.objective.losses(bundle.module, features(), FRAMES, TARGETS).mean().backward()
            optimizer.step()
    for name, kept in mask.items():
        weight = bundle.module.get_parameter(name)
        assert not weight[~kept].any()
        assert weight[kept].all()


def test_weights_come_from_torchs_global_generator_layer_by_layer() -> None:
    first, again, other = (build(seed=seed).module for seed in (3, 3, 4))
    vector = nn.utils.parameters_to_vector
    assert torch.equal(vector(first.parameters()), vector(again.parameters()))
    assert not torch.equal(vector(first.parameters()), vector(other.parameters()))
    for module in first.modules():
        if any(True for _ in module.parameters(recurse=False)):
            assert callable(module.reset_parameters)


def test_a_copy_and_a_strictly_loaded_twin_score_the_same(bundle: SpeechBundle) -> None:
    inputs = features(), FRAMES, padded(TARGETS), COUNTS
    twin = build(seed=1, bidirectional=hasattr(bundle.module.encoder[0].lstm, "backwards")).module
    assert not torch.equal(twin(*inputs)[0], bundle.module(*inputs)[0])
    twin.load_state_dict(bundle.module.state_dict(), strict=True)
    for module in (twin, copy.deepcopy(bundle.module)):
        assert isinstance(module, Rnnt)
        assert torch.equal(module(*inputs)[0], bundle.module(*inputs)[0])


def test_bfloat16_autocast_gives_finite_losses_near_those_of_float32(bundle: SpeechBundle) -> None:
    expected = bundle.objective.losses(bundle.module, features(), FRAMES, TARGETS)
    with computing_in("bfloat16", "cpu"):
        losses = bundle.objective.losses(bundle.module, features(), FRAMES, TARGETS)
    losses.sum().backward()
    torch.testing.assert_close(losses, expected, rtol=0.05, atol=0.1)


def test_the_small_preset_learns_two_words_in_seconds(two_tones: SpeechCorpus) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        bundle = build_rnnt(options=RnntOptions())
    utterances = two_tones.split("train")
    heard = [bundle.features(torch.from_numpy(utterance.audio.read())) for utterance in utterances]
    lengths, x = torch.tensor([len(frames) for frames in heard]), pad_sequence(heard, batch_first=True)
    targets = [torch.tensor(bundle.alphabet.encode(utterance.text)) for utterance in utterances]
    optimizer = torch.optim.Adam(bundle.module.parameters(), lr=0.005)
    losses = []
    for _ in range(80):
        optimizer.zero_grad()
        loss = bundle.objective.losses(bundle.module, x, lengths, targets).mean()
        loss.backward()
        nn.utils.clip_grad_norm_(bundle.module.parameters(), 5.0)
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 300
    texts = [utterance.text for utterance in utterances]
    for beam in (1, 4):
        written = bundle.objective.written(bundle.module, x, lengths, beam=beam)
        assert [bundle.text(emissions) for emissions in written] == texts
        for emissions, frames in zip(written, bundle.module.output_lengths(lengths), strict=True):
            at = [emission.frame for emission in emissions]
            assert at == sorted(at)
            assert at[-1] < frames
