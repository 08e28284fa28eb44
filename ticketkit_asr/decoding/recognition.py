"""From sound files of any length to text, in bounded memory."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import inf
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ticketkit import ConfigError, DataError
from ticketkit_asr.backbones.bundle import SpeechBundle
from ticketkit_asr.decoding.decoder import GREEDY, Decoder
from ticketkit_asr.errors import BadAudioError
from ticketkit_asr.features.hearing import collate
from ticketkit_asr.sound.audio import Waveform, resample
from ticketkit_asr.sound.files import check_finite, opened


@dataclass(frozen=True)
class Written:
    """A label, and when it is said, in seconds from the recording's start."""

    at: float
    label: int


def transcribe_file(
    bundle: SpeechBundle,
    path: Path,
    *,
    window_seconds: float = 20.0,
    overlap_seconds: float = 4.0,
    decode: Decoder = GREEDY,
) -> str:
    """Return what is said in a sound file: FLAC, WAV, MP3, Ogg, Opus or SPHERE, of any rate, channels mixed.

    A recording longer than a window is cut into windows that overlap; each is decoded by itself, and from one to the
    next the text changes over in the longest pause of what they share. Memory is bounded by the window. Raises
    `BadAudioError` naming a file that cannot be used.
    """
    if not 0 < window_seconds < inf:
        raise ConfigError(f"window_seconds must be a finite number above 0, not {window_seconds}")
    if not 0 <= overlap_seconds < window_seconds / 2:
        raise ConfigError(
            f"overlap_seconds must be from 0 to below half of the window of {window_seconds} s, not {overlap_seconds}"
        )
    done: list[int] = []
    pending: list[Written] = []
    with bundle.evaluating():
        for start, samples, rate in windows(path, window_seconds, overlap_seconds):
            found = _decoded(bundle, _features(bundle, path, samples, rate, start), start, decode)
            if start:
                seam = longest_pause(pending, found, start, start + overlap_seconds)
                pending = [written for written in pending if written.at < seam]
                found = [written for written in found if written.at >= seam]
            done += [written.label for written in pending]
            pending = found
    return " ".join(bundle.alphabet.decode([*done, *(written.label for written in pending)]).split())


def longest_pause(before: Sequence[Written], after: Sequence[Written], start: float, end: float) -> float:
    """Return the middle of the longest stretch in which neither of two windows has heard anything.

    It is looked for in the middle half of what they share, from `start` to `end`, where both have heard what comes
    before and behind; of equal ones the first.
    """
    quarter = (end - start) / 4
    low, high = start + quarter, end - quarter
    heard = sorted(written.at for written in (*before, *after) if low < written.at < high)
    stretches = list(pairwise([low, *heard, high]))
    first, last = max(stretches, key=lambda stretch: stretch[1] - stretch[0])
    return (first + last) / 2


def windows(path: Path, length: float, overlap: float) -> Iterator[tuple[float, Waveform, int]]:
    """Yield the windows of a file: start in seconds, samples (samples,) with channels mixed, and the file's rate.

    Each holds `length` seconds, the last what is left, more than the `overlap` that it shares with the one before.
    """
    with opened(path) as file:
        rate = file.samplerate
        size, shared = max(round(length * rate), 2), round(overlap * rate)
        kept = np.zeros(0, np.float32)
        start, last = 0, False
        while not last:
            fresh = file.read(size - len(kept), dtype="float32", always_2d=True).mean(1)
            samples = np.concatenate([kept, fresh])
            check_finite(path, samples)
            ahead = file.read(1, dtype="float32", always_2d=True).mean(1)
            last = not len(ahead)
            yield start / rate, samples, rate
            kept = np.concatenate([samples[len(samples) - shared :], ahead])
            start += size - shared


def _features(bundle: SpeechBundle, path: Path, samples: Waveform, rate: int, start: float) -> tuple[Tensor, float]:
    """Return the features of a window that begins at `start` seconds, and its seconds."""
    waveform = resample(torch.from_numpy(samples), source=rate, target=bundle.sample_rate)
    if start:  # a tail may be shorter than features need
        waveform = torch.nn.functional.pad(waveform, (0, max(0, bundle.sample_rate // 4 - len(waveform))))
    try:
        return bundle.features(waveform), len(waveform) / bundle.sample_rate
    except DataError as error:
        raise BadAudioError(f"{path} cannot be transcribed: {error}") from error


def _decoded(bundle: SpeechBundle, heard: tuple[Tensor, float], start: float, decode: Decoder) -> list[Written]:
    """Return what is written for a window of some features and seconds that begins at `start` seconds."""
    window, seconds = heard
    device = next(bundle.module.parameters()).device
    features, lengths = collate([window])
    frames = bundle.output_frames(int(lengths[0]))
    (emissions,) = decode(bundle, features.to(device), lengths.to(device))
    return [Written(start + (e.frame + 0.5) / frames * seconds, e.label) for e in emissions]
