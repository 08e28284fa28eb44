"""Features kept on disk: computed once for each split of a corpus and each setting, then mapped into memory."""

import logging
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from hashlib import sha256
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any, BinaryIO, overload

import torch
from torch import Tensor

from ticketkit import ConfigError, DataError
from ticketkit_asr.corpora.cache import default_cache_dir, digest
from ticketkit_asr.corpora.corpus import Utterance
from ticketkit_asr.features.extraction import FeatureExtractor, measured
from ticketkit_asr.features.file import FeatureFile, FeatureForm, Precision, read_features, write_features
from ticketkit_asr.sound.audio import resample
from ticketkit_asr.sound.corruption import Corruption, corrupted
from ticketkit_asr.storage import DAMAGED, loaded, made_by_one, replacing
from ticketkit_asr.torchaudio_shim import torchaudio

_log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class CachedFeatures(Sequence[Tensor]):
    """The features of each utterance of a split, (frames, bins) in float32, in the order of the utterances.

    What is stored in float32 is returned as a view of the file's pages: nothing is read or copied until it is looked
    at, and writing into it never reaches the file. What is stored in float16 is widened utterance by utterance. When
    pickled, for another process, only the place of the file travels.
    """

    path: Path
    extractor: FeatureExtractor
    """What the features were made with; knows the statistics of the train split where it needs them."""
    form: FeatureForm
    file: FeatureFile

    def __len__(self) -> int:
        """The number of utterances."""
        return self.form.utterances

    @overload
    def __getitem__(self, index: int) -> Tensor: ...
    @overload
    def __getitem__(self, index: slice) -> list[Tensor]: ...
    def __getitem__(self, index: int | slice) -> Tensor | list[Tensor]:
        """Return the features of one utterance, or of several."""
        chosen = range(len(self))[index]
        if isinstance(chosen, range):
            return [self[i] for i in chosen]
        return self.file.features[self.file.offsets[chosen] : self.file.offsets[chosen + 1]].float()

    def __reduce__(self) -> tuple[Any, ...]:
        """Return how to open the file again, in another process; it is verified there too."""
        return _opened, (self.path, self.form, self.extractor)


def cached_features(
    corpus_digest: str,
    split: str,
    utterances: Sequence[Utterance],
    extractor: FeatureExtractor,
    cache_dir: Path | None = None,
    *,
    sample_rate: int,
    precision: Precision = "float32",
    corruption: Corruption | None = None,
    seed: int = 0,
) -> CachedFeatures:
    """Return the features of the utterances, resampled from `sample_rate` Hz, from the cache or, at first, computed.

    Every setting, corpus, split, version of torch and torchaudio has a file of its own in `cache_dir` (the user's cache
    folder by default). One process computes while others wait; a file is whole or absent, is read through when opened,
    and computed again, with a warning, when it is damaged. `corruption` is what is done to each waveform before, with
    `seed`, the same way in every epoch.

    An extractor that lacks the corpus' statistics has them measured on the split `train`; for other splits use that of
    the features returned. Raises `ConfigError` otherwise, and `DataError` naming an utterance that has no features.
    """
    if split != "train" and not extractor.is_fitted:
        raise ConfigError(
            f"features centred over the corpus need the statistics of train, and {split} is asked for; cache train "
            "first, then give the extractor of what is returned"
        )
    recipe = {
        "corpus": corpus_digest,
        "split": split,
        "utterances": _listed(utterances),
        "recorded_at": sample_rate,
        "extractor": {**asdict(extractor), "options": extractor.options.model_dump(mode="json")},
        "precision": precision,
        "corruption": corruption and {"seed": seed, **corruption.facts()},
        "made_with": {"torch": torch.__version__, "torchaudio": torchaudio().__version__},
    }
    form = FeatureForm(digest(recipe), len(utterances), extractor.bins, precision)
    path = (cache_dir or default_cache_dir()) / f"features-{split}-{form.recipe[:16]}.safetensors"
    with suppress(*DAMAGED):
        return _opened(path, form, extractor)
    with made_by_one(path):
        found = loaded(path, lambda path: _opened(path, form, extractor))
        if found is not None:
            return found
        _log.info("computing the features of %d utterances of %s into %s", len(utterances), split, path)
        spectra = _spectra(utterances, extractor, sample_rate, corruption, seed)
        with replacing(path) as file:
            _write(file, spectra, extractor, form)
        return _opened(path, form, extractor)


def _opened(path: Path, form: FeatureForm, extractor: FeatureExtractor) -> CachedFeatures:
    """Return the features in a file, with the extractor that made them; raises one of `DAMAGED`."""
    file = read_features(path, form)
    if not extractor.is_fitted and file.statistics is None:
        raise ValueError("it holds no statistics")
    fitted = extractor if extractor.is_fitted else replace(extractor, statistics=file.statistics)
    return CachedFeatures(path, fitted, form, file)


def _listed(utterances: Sequence[Utterance]) -> str:
    """Return the SHA-256 of which utterances are there, of how many samples, in which order."""
    content = sha256()
    for utterance in utterances:
        content.update(f"{utterance.id}\0{utterance.audio.samples}\0".encode())
    return content.hexdigest()


def _write(file: BinaryIO, spectra: Iterable[Tensor], extractor: FeatureExtractor, form: FeatureForm) -> None:
    """Write the normalised spectra; where statistics are missing, the spectra wait in a scratch file meanwhile."""
    if extractor.is_fitted:
        write_features(file, map(extractor.normalised, spectra), form, None)
        return
    with TemporaryFile(dir=Path(file.name).parent) as scratch:
        frames: list[int] = []
        statistics = measured(_kept(spectra, scratch, frames))
        fitted = replace(extractor, statistics=statistics)
        scratch.seek(0)
        write_features(file, map(fitted.normalised, _read_back(scratch, frames, form.bins)), form, statistics)


def _spectra(
    utterances: Iterable[Utterance],
    extractor: FeatureExtractor,
    sample_rate: int,
    corruption: Corruption | None,
    seed: int,
) -> Iterator[Tensor]:
    """Yield the spectra of each utterance; raises `DataError` naming one that has none."""
    for utterance in utterances:
        waveform = torch.from_numpy(utterance.audio.read())
        waveform = resample(waveform, source=sample_rate, target=extractor.sample_rate)
        waveform = corrupted(waveform, corruption, utterance_id=utterance.id, seed=seed)
        try:
            yield extractor.spectra(waveform)
        except DataError as error:
            raise DataError(f"utterance {utterance.id!r}: {error}") from error


def _kept(spectra: Iterable[Tensor], scratch: BinaryIO, frames: list[int]) -> Iterator[Tensor]:
    """Yield the spectra, and leave them in `scratch` and the length of each in `frames`."""
    for of_utterance in spectra:
        scratch.write(of_utterance.numpy().data)
        frames.append(len(of_utterance))
        yield of_utterance


def _read_back(scratch: BinaryIO, frames: Iterable[int], bins: int) -> Iterator[Tensor]:
    for length in frames:
        content = bytearray(scratch.read(4 * length * bins))
        yield torch.frombuffer(content, dtype=torch.float32).view(length, bins)
