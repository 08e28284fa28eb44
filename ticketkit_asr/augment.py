"""SpecAugment: training on spectra with bands and stretches blotted out (Park et al. 2019)."""

from torch import Tensor

from ticketkit_asr.torchaudio_shim import torchaudio
from ticketkit_asr.trainer_options import SpecAugmentOptions


def spec_augment(features: Tensor, options: SpecAugmentOptions) -> Tensor:
    """Return a copy of the features (frames, bins) with masked bands and stretches set to 0, the utterance's mean.

    Each mask draws its width and its place from torch's global generator.
    """
    transforms = torchaudio().transforms
    spectrum = features.T.unsqueeze(0)  # (1, bins, frames), as torchaudio expects
    for _ in range(options.frequency_masks):
        spectrum = transforms.FrequencyMasking(options.frequency_width)(spectrum)
    for _ in range(options.time_masks):
        spectrum = transforms.TimeMasking(options.time_width, p=options.time_fraction)(spectrum)
    masked: Tensor = spectrum.squeeze(0).T
    return masked
