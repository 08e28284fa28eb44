import torch

from ticketkit_asr.features.augment import spec_augment
from ticketkit_asr.training.options import SpecAugmentOptions


def masked(seed: int, options: SpecAugmentOptions) -> torch.Tensor:
    return spec_augment(torch.ones(100, 40), options, f"draw {seed}") == 0


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


def test_masks_follow_the_name_of_the_draw_alone():
    assert torch.equal(masked(5, SpecAugmentOptions()), masked(5, SpecAugmentOptions()))
    assert any(
        not torch.equal(masked(5, SpecAugmentOptions()), masked(seed, SpecAugmentOptions())) for seed in range(5)
    )


def test_the_features_given_are_left_alone():
    features = torch.ones(50, 40)
    spec_augment(features, SpecAugmentOptions(), "any")
    assert torch.equal(features, torch.ones(50, 40))


def test_the_conformer_s_masks_cover_at_most_what_they_may():
    options = SpecAugmentOptions(frequency_masks=2, frequency_width=27, time_masks=10, time_fraction=0.05)
    most_stretches = most_bands = 0
    for seed in range(20):
        blank = masked(seed, options)
        stretches, bands = blank.all(1), blank[~blank.all(1)].all(0)
        assert torch.equal(blank, stretches[:, None] | bands)
        most_stretches, most_bands = max(most_stretches, int(stretches.sum())), max(most_bands, int(bands.sum()))
    assert 5 < most_stretches <= 10 * 5
    assert 27 <= most_bands <= 2 * 26
