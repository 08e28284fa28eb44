"""SpecAugment: training on spectra with bands and stretches blotted out (Park et al. 2019)."""

from random import Random

from torch import Tensor

from ticketkit_asr.training.options import SpecAugmentOptions


def spec_augment(features: Tensor, options: SpecAugmentOptions, draw: str) -> Tensor:
    """Return a copy of the features (frames, bins) with masked bands and stretches set to 0, the utterance's mean.

    What is masked depends on `draw` alone, a text that names the draw, so that it is the same in whatever process or
    order utterances come. Widths are uniform below `frequency_width` and `time_width`, and no time mask covers more
    than `time_fraction` of the frames; places are uniform among those where the whole mask fits.
    """
    random, masked = Random(draw), features.clone()
    frames, bins = features.shape
    for _ in range(options.frequency_masks):
        start, stop = _stretch(bins, min(options.frequency_width, bins + 1), random)
        masked[:, start:stop] = 0
    longest = int(frames * options.time_fraction)
    for _ in range(options.time_masks):
        start, stop = _stretch(frames, min(options.time_width, longest + 1), random)
        masked[start:stop] = 0
    return masked


def _stretch(size: int, below: int, random: Random) -> tuple[int, int]:
    """Return where a stretch of fewer than `below` of `size` places begins, and the place after it."""
    width = random.randrange(below)
    start = random.randrange(size - width + 1)
    return start, start + width
