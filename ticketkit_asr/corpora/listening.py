"""Listen to many utterances: each is read once, and all that is kept is whether it can be used."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from hashlib import file_digest
from pathlib import Path

from ticketkit_asr.corpora.corpus import Utterance
from ticketkit_asr.corpora.stretch import Stretch
from ticketkit_asr.errors import BadAudioError
from ticketkit_asr.sound.files import Fault, FaultyAudioError

_AHEAD = 8
"""Utterances that each thread may be ahead of the one that is counted: memory stays bounded."""


@dataclass(frozen=True)
class Sound:
    """What reading an utterance showed; the samples themselves are gone."""

    fault: str | None = None
    said: str = ""
    """The error that reading it raised."""
    silent: bool = False
    """All samples are 0."""
    file_digest: str | None = None


def heard(
    utterances: Iterable[Utterance], listen: Callable[[Utterance], Sound], *, threads: int
) -> Iterator[tuple[Utterance, Sound]]:
    """Yield each utterance with what `listen` returns for it, in order; threads listen a little ahead."""
    if threads == 1:
        yield from ((utterance, listen(utterance)) for utterance in utterances)
        return
    ahead: deque[tuple[Utterance, Future[Sound]]] = deque()
    with ThreadPoolExecutor(threads) as pool:
        for utterance in utterances:
            ahead.append((utterance, pool.submit(listen, utterance)))
            if len(ahead) == _AHEAD * threads:
                first, sound = ahead.popleft()
                yield first, sound.result()
        yield from ((utterance, sound.result()) for utterance, sound in ahead)


def listen(utterance: Utterance, *, digests: bool) -> Sound:
    """Return what reading an utterance shows, and the digest of its file if wanted."""
    audio = utterance.audio
    try:
        waveform = audio.read()
        digest = _digest_of(Path(audio.path)) if digests and isinstance(audio, Stretch) else None
    except BadAudioError as error:
        fault = error.fault if isinstance(error, FaultyAudioError) else Fault.UNREADABLE
        return Sound(fault=fault.value, said=str(error))
    if not len(waveform):
        return Sound(fault=Fault.EMPTY.value, said="it holds no samples")
    return Sound(silent=not waveform.any(), file_digest=digest)


def _digest_of(path: Path) -> str:
    try:
        stat = path.stat()
        return _digest_of_version(path, stat.st_size, stat.st_mtime_ns)
    except OSError as error:
        raise FaultyAudioError(Fault.UNREADABLE, f"{path} cannot be read: {error}") from error


@lru_cache(maxsize=64)  # utterances of one long file follow each other
def _digest_of_version(path: Path, _size: int, _mtime: int) -> str:
    with path.open("rb") as file:
        return file_digest(file, "sha256").hexdigest()
