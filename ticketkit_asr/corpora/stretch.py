"""A stretch of a sound file: what an utterance of a corpus on disk says, read when it is needed."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ticketkit_asr.sound.audio import Waveform, resample
from ticketkit_asr.sound.files import Fault, FaultyAudioError, check_finite, opened
from ticketkit_asr.sound.ogg import ogg_facts

Channel = int | Literal["mix"] | None
"""Which channel to take, counted from 0; "mix" for the mean of all; None where there must be one alone."""

SLACK_SECONDS = 0.1
"""How much later than its file a stretch may end: times are rounded, and MP3 comes in frames of up to 72 ms."""


@dataclass(frozen=True, slots=True)
class Stretch:
    """`samples` samples at `sample_rate` Hz of one channel of a file, from `start` seconds on."""

    path: str
    start: float
    samples: int
    sample_rate: int
    channel: Channel = None
    file_digest: str | None = None
    """SHA-256 of the file when the corpus was prepared, where it was."""

    def read(self) -> Waveform:
        """Return the samples, resampled from whatever rate the file was recorded at.

        Where the stretch ends up to `SLACK_SECONDS` after the file does, zeros follow. Raises `FaultyAudioError` naming
        the file when it is missing, unreadable, empty or cut short, ends earlier than that, has another number of
        channels than `channel` supposes, or holds NaN or infinite samples in the stretch.
        """
        path = Path(self.path)
        with opened(path) as file:
            rate = int(file.samplerate)
            first = round(self.start * rate)
            wanted = -(-self.samples * rate // self.sample_rate)
            block = _block(path, file, first, wanted)
            self._check_reaches(first + wanted, first + len(block), int(file.frames), rate)
        check_finite(path, block)
        waveform = _resampled(one_channel(block, self.channel, self.path), rate, self.sample_rate)
        return _exactly(waveform, self.samples)

    def fingerprint(self) -> bytes:
        """Return where the stretch is in its file, and the file's recorded digest, or else its size and time stamp.

        Raises `FaultyAudioError` when there is neither a recorded digest nor a file.
        """
        return f"{self.samples}\0{self.sample_rate}\0{self.start!r}\0{self.channel}\0{self._version()}".encode()

    def _version(self) -> str:
        if self.file_digest:
            return self.file_digest
        try:
            stat = os.stat(self.path)
        except OSError as error:
            raise FaultyAudioError(Fault.MISSING, f"{self.path} cannot be found: {error}") from error
        return f"{stat.st_size}\0{stat.st_mtime_ns}"

    def _check_reaches(self, wanted: int, reached: int, promised: int, rate: int) -> None:
        """Raise `FaultyAudioError` when the samples read end more than the slack before those wanted do."""
        if wanted - reached <= SLACK_SECONDS * rate and reached > round(self.start * rate):
            return
        times = f"it ends after {reached / rate:.3f} s, the utterance goes on to {wanted / rate:.3f} s"
        if reached < min(wanted, promised) - SLACK_SECONDS * rate:
            raise FaultyAudioError(Fault.CUT, f"{self.path} is cut short: {times}")
        raise FaultyAudioError(
            Fault.BEYOND, f"{self.path} is shorter than said: {times}; it is cut short, or the times are wrong"
        )


def _block(path: Path, file: Any, first: int, wanted: int) -> NDArray[np.float32]:
    """Return up to `wanted` samples from the sample `first` on, (samples, channels)."""
    if first >= file.frames:
        return np.empty((0, file.channels), np.float32)
    # Within the last page of a Vorbis file libsndfile misses its aim: go to where the page begins, and read on.
    start = min(first, ogg_facts(path).last_page) if file.subtype == "VORBIS" else first
    if start:
        file.seek(start)
    block: NDArray[np.float32] = file.read(first - start + wanted, dtype="float32", always_2d=True)
    return block[first - start :]


def one_channel(block: NDArray[np.float32], channel: Channel, path: str) -> Waveform:
    """Return the samples (samples, channels) of one channel; raises `FaultyAudioError` when `channel` does not fit."""
    channels = block.shape[1]
    if channel == "mix":
        mixed: Waveform = block.mean(axis=1, dtype=np.float32)
        return mixed
    if channel is None and channels != 1:
        raise FaultyAudioError(
            Fault.CHANNELS, f"{path} has {channels} channels; choose one, or the mean, with the option channels"
        )
    if (channel or 0) >= channels:
        raise FaultyAudioError(Fault.CHANNELS, f"{path} has {channels} channels, and none with the number {channel}")
    return np.ascontiguousarray(block[:, channel or 0])


def _resampled(waveform: Waveform, source: int, target: int) -> Waveform:
    if source == target:
        return waveform
    import torch

    resampled: Waveform = resample(torch.from_numpy(waveform), source=source, target=target).numpy()
    return resampled


def _exactly(waveform: Waveform, samples: int) -> Waveform:
    """Return the first `samples` samples, followed by zeros where there are fewer."""
    if len(waveform) >= samples:
        return waveform[:samples]
    return np.pad(waveform, (0, samples - len(waveform)))
