"""From what a corpus lists to what is trained on: lengths looked up, texts normalised, limits applied."""

import logging
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from hashlib import sha256
from heapq import nsmallest
from pathlib import Path
from typing import Any, NamedTuple

from ticketkit import DataError
from ticketkit_asr.corpora.corpus import SpeechCorpus, Utterance
from ticketkit_asr.corpora.file_options import FileCorpusOptions
from ticketkit_asr.corpora.manifest import Line
from ticketkit_asr.corpora.stretch import Channel, Stretch
from ticketkit_asr.sound.files import Fault, FaultyAudioError, sound_facts
from ticketkit_asr.text.rules import AS_WRITTEN, normalised, removed

_log = logging.getLogger(__name__)

_HEADERS_AT_ONCE = 256
"""Files whose headers one thread reads in one go."""

Reasons = dict[str, list[str]]
"""Reason -> ids of the utterances left out for it."""


class _Heard(NamedTuple):
    """A line that says something."""

    line: Line
    text: str
    path: str


@dataclass(frozen=True)
class Listing:
    """What a corpus lists for one split, and what it leaves out by its own rules."""

    lines: Sequence[Line]
    left_out: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """Reason -> ids."""
    folder: str = "."
    """What relative paths are relative to."""


def assemble(
    name: str,
    listings: Mapping[str, Listing],
    options: FileCorpusOptions,
    *,
    facts: Mapping[str, Any] | None = None,
) -> SpeechCorpus:
    """Return the corpus of the lines listed for each split, read from their files when needed.

    Left out and counted are: the second use of an id, empty texts, training utterances outside the limits of seconds,
    and those above the number wanted. No file is opened for a line that states its duration.

    Raises `DataError` naming every file that is missing or cannot be used, unless they are to be skipped, and when
    nothing of a split is left, or nothing to train on was listed.
    """
    bad: dict[str, FaultyAudioError] = {}
    dropped: dict[str, Reasons] = {}
    removed_characters: Counter[str] = Counter()
    splits = {}
    for split, listing in listings.items():
        reasons = dropped[split] = {reason: list(ids) for reason, ids in listing.left_out.items() if ids}
        lines = _with_text(_first_of_each_id(listing.lines, reasons), options, reasons, removed_characters)
        stretches = _with_stretches(_located(lines, listing.folder), options, reasons, bad)
        splits[split] = _limited(split, stretches, options, reasons)
    if bad and options.on_bad_audio == "fail":
        raise DataError(
            f"{len(bad)} sound files of corpus {name!r} cannot be used (on_bad_audio: skip, with "
            "ticketkit asr prepare --skip-bad, goes on without them): " + "; ".join(map(str, bad.values()))
        )
    for split, reasons in dropped.items():
        counts = {reason: len(ids) for reason, ids in reasons.items()}
        if not splits[split] and (listings[split].lines or counts):
            raise DataError(f"corpus {name!r} has nothing left for {split}; left out: {counts}")
        if not splits[split] and split == "train":
            raise DataError(f"corpus {name!r} lists no utterance to train on; look at its transcripts")
        if counts:
            _log.info("corpus %s, %s: left out %s", name, split, counts)
    return SpeechCorpus(
        name=name,
        sample_rate=options.sample_rate,
        splits=splits,
        skipped=tuple(bad),
        dropped=dropped,
        facts={**(facts or {}), **_text_facts(options, removed_characters), "digest_of": _digest_of(splits)},
    )


def rank(seed: int, name: str) -> bytes:
    """Return the place of a name in an order that depends on the seed alone, whatever other names there are."""
    return sha256(f"{seed}\0{name}".encode()).digest()


def _first_of_each_id(lines: Sequence[Line], reasons: Reasons) -> Iterator[Line]:
    seen: set[str] = set()
    for line in lines:
        if line.id in seen:
            reasons.setdefault("duplicate id", []).append(line.id)
        else:
            seen.add(line.id)
            yield line


def _with_text(
    lines: Iterator[Line], options: FileCorpusOptions, reasons: Reasons, removed_characters: Counter[str]
) -> Iterator[tuple[Line, str]]:
    """Yield the lines that say something, with their normalised text."""
    drops = options.text != AS_WRITTEN
    for line in lines:
        text = normalised(line.text, options.text)
        if drops:
            removed_characters.update(removed(line.text, options.text))
        if text:
            yield line, text
        else:
            reasons.setdefault("empty text", []).append(line.id)


def _located(lines: Iterator[tuple[Line, str]], folder: str) -> list[_Heard]:
    """Return the lines with the absolute paths of their files."""
    base = os.path.abspath(folder) + os.sep
    return [_Heard(line, text, line.path if os.path.isabs(line.path) else base + line.path) for line, text in lines]


def _with_stretches(
    lines: Sequence[_Heard], options: FileCorpusOptions, reasons: Reasons, bad: dict[str, FaultyAudioError]
) -> list[Utterance]:
    """Return the utterances whose files can be used; the others go to `reasons` by their fault, and to `bad`."""
    utterances = []
    for (line, text, path), samples in zip(lines, _lengths(lines, options), strict=True):
        if isinstance(samples, FaultyAudioError):
            reasons.setdefault(samples.fault.value, []).append(line.id)
            bad.setdefault(path, samples)
            continue
        audio = Stretch(path, line.start, samples, options.sample_rate, _channel(line, options), line.sha256)
        # Speakers come again and again: one string for each.
        utterances.append(Utterance(line.id, audio, text, sys.intern(line.speaker), line.lang))
    return utterances


def _limited(
    split: str, utterances: Sequence[Utterance], options: FileCorpusOptions, reasons: Reasons
) -> list[Utterance]:
    """Return the utterances within the limits, in their order."""
    kept = list(utterances)
    if split == "train":
        shortest, longest = options.min_seconds, options.max_seconds or float("inf")
        rate = options.sample_rate
        kept = _kept(kept, lambda one: one.audio.samples / rate >= shortest, f"under {shortest:g} s", reasons)
        kept = _kept(kept, lambda one: one.audio.samples / rate <= longest, f"over {longest:g} s", reasons)
    most = options.most(split)
    if most is not None and most < len(kept):
        chosen = {one.id for one in nsmallest(most, kept, key=lambda one: rank(options.seed, one.id))}
        kept = _kept(kept, lambda one: one.id in chosen, f"over {most} utterances", reasons)
    return kept


def _kept(
    utterances: Sequence[Utterance], keep: Callable[[Utterance], bool], reason: str, reasons: Reasons
) -> list[Utterance]:
    kept = [utterance for utterance in utterances if keep(utterance)]
    if len(kept) < len(utterances):
        reasons.setdefault(reason, []).extend(utterance.id for utterance in utterances if not keep(utterance))
    return kept


def _lengths(lines: Sequence[_Heard], options: FileCorpusOptions) -> Iterator[int | FaultyAudioError]:
    """Yield the samples of each line at the corpus' rate, or what is wrong with its file."""
    if all(heard.line.duration is not None for heard in lines):
        yield from (_length(heard, options) for heard in lines)
        return
    pieces = [lines[start : start + _HEADERS_AT_ONCE] for start in range(0, len(lines), _HEADERS_AT_ONCE)]
    with ThreadPoolExecutor(options.threads) as pool:
        for lengths in pool.map(lambda piece: [_length(heard, options) for heard in piece], pieces):
            yield from lengths


def _length(heard: _Heard, options: FileCorpusOptions) -> int | FaultyAudioError:
    line, _, path = heard
    try:
        if line.duration is None:
            return _length_to_end(line, path, options)
        if not os.path.isfile(path):
            raise FaultyAudioError(Fault.MISSING, f"{path} cannot be read as audio: there is no such file")
        return max(1, round(line.duration * options.sample_rate))
    except FaultyAudioError as error:
        return error


def _length_to_end(line: Line, path: str, options: FileCorpusOptions) -> int:
    """Return the samples from the line's start to the end of its file."""
    facts = sound_facts(Path(path))
    if _channel(line, options) is None and facts.channels != 1:
        raise FaultyAudioError(
            Fault.CHANNELS,
            f"{path} has {facts.channels} channels; choose one, or the mean, with the option channels",
        )
    rest = facts.samples - round(line.start * facts.sample_rate)
    if rest <= 0:
        raise FaultyAudioError(
            Fault.BEYOND,
            f"{path} ends after {facts.samples / facts.sample_rate:.3f} s; the utterance starts at {line.start} s",
        )
    return -(-rest * options.sample_rate // facts.sample_rate)


def _channel(line: Line, options: FileCorpusOptions) -> Channel:
    return options.channel() if line.channel is None else line.channel


def _text_facts(options: FileCorpusOptions, removed_characters: Counter[str]) -> dict[str, Any]:
    return {"text": {"rules": options.text.model_dump(), "removed": dict(sorted(removed_characters.items()))}}


def _digest_of(splits: Mapping[str, Sequence[Utterance]]) -> str:
    recorded = all(u.audio.file_digest for split in splits.values() for u in split if isinstance(u.audio, Stretch))
    return "lines and recorded digests of files" if recorded else "lines, sizes and time stamps of files"
