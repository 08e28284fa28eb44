"""Ways to read a recogniser: greedily, by beam search, or by a beam search that a language model joins."""

from collections.abc import Callable
from functools import partial

from torch import Tensor

from ticketkit_asr.backbones.bundle import SpeechBundle
from ticketkit_asr.objectives.objective import Emission

Decoder = Callable[[SpeechBundle, Tensor, Tensor], list[list[Emission]]]
"""From a bundle, features (batch, frames, bins) and their lengths (batch,) to what is written."""


def decoder(beam: int = 1) -> Decoder:
    """Return the decoder of that beam; 1 is greedy."""
    return partial(_written, beam=beam)


def _written(bundle: SpeechBundle, features: Tensor, lengths: Tensor, *, beam: int) -> list[list[Emission]]:
    return bundle.objective.written(bundle.module, features, lengths, beam=beam)


GREEDY = decoder()
