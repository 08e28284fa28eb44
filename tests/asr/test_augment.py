import torch

from ticketkit_asr.augment import spec_augment
from ticketkit_asr.trainer_options import SpecAugmentOptions


def masked(seed: int, options: SpecAugmentOptions) -> torch.Tensor:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return spec_augment(torch.ones(100, 40), options) == 0


def test_frequency_masks_blank_one_narrow_band_of_all_frames():
    options = SpecAugmentOptions(frequency_width=10, time_masks=0)
    for seed in range(20):
        bands = masked(seed, options)
        assert torch.equal(bands.all(0), bands.any(0))
        assert bands.any(0).sum() < 10


def test_time_masks_blank_one_short_stretch_of_all_bins():
    options = SpecAugmentOptions(frequency_masks=0, time_width=70, time_fraction=0.2)
    for seed in range(20):
        stretches = masked(seed, options)
        assert torch.equal(stretches.all(1), stretches.any(1))
        assert stretches.any(1).sum() <= 20


def test_masks_follow_the_global_generator():
    assert torch.equal(masked(5, SpecAugmentOptions()), masked(5, SpecAugmentOptions()))
    assert any(
        not torch.equal(masked(5, SpecAugmentOptions()), masked(seed, SpecAugmentOptions())) for seed in range(5)
    )


def test_the_features_given_are_left_alone():
    features = torch.ones(50, 40)
    spec_augment(features, SpecAugmentOptions())
    assert torch.equal(features, torch.ones(50, 40))
