"""A folder of sounds that are not speech: found, sorted by type, types split between training and test, and read."""

import csv
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from hashlib import sha256
from pathlib import Path
from random import Random
from typing import Any

import torch
from torch import Tensor

from ticketkit import ConfigError, DataError
from ticketkit_asr.corpora.stretch import Stretch
from ticketkit_asr.errors import BadAudioError
from ticketkit_asr.sound.files import sound_facts
from ticketkit_asr.sound.options import SoundsOptions

SUFFIXES = (".wav", ".flac", ".ogg", ".oga", ".opus", ".mp3")
"""Files that are sounds, in upper case too; those whose name begins with a dot are none."""

_MOST_SECONDS_HELD = 30
"""Longer files are read stretch by stretch, shorter ones whole and kept for the next time."""


@dataclass(frozen=True)
class Sound:
    """One file, as its header tells."""

    path: Path
    name: str
    """Its path below root, with forward slashes."""
    type: str
    sample_rate: int
    channels: int
    samples: int
    """Of one channel, at `sample_rate`."""
    size: int
    """In bytes."""


@dataclass(frozen=True, eq=False)
class SoundLibrary:
    """The sounds of one folder that one split may hear, by type, both in alphabetical order."""

    by_type: Mapping[str, tuple[Sound, ...]]
    skipped: tuple[str, ...]

    def draw(self, random: Random) -> Sound:
        """Return a sound: every type equally often, every sound of a type equally often."""
        return random.choice(self.by_type[random.choice(list(self.by_type))])

    def facts(self) -> dict[str, Any]:
        """Return JSON-able facts, the same wherever the folder lies; names, lengths and sizes stand for the content."""
        content = sha256()
        for sounds in self.by_type.values():
            for sound in sounds:
                head = (sound.name, sound.type, sound.sample_rate, sound.channels, sound.samples, sound.size)
                content.update(repr(head).encode())
        return {
            "types": {type_: len(sounds) for type_, sounds in self.by_type.items()},
            "skipped": list(self.skipped),
            "digest": content.hexdigest(),
        }


def open_sounds(options: SoundsOptions, *, what: str, split: str) -> SoundLibrary:
    """Return the sounds that `train`, `dev` or `test` may hear; dev hears what train does, test only other types.

    Raises `DataError` when there is no sound, a sound is of no type, or cannot be read (unless skipped); `ConfigError`
    for unknown types and when a split is left without any.
    """
    sounds, skipped = find_sounds(options, what=what)
    chosen = types_of(split, sorted({sound.type for sound in sounds}), options, what=what)
    by_type = {type_: tuple(sound for sound in sounds if sound.type == type_) for type_ in chosen}
    return SoundLibrary(by_type=by_type, skipped=skipped)


def find_sounds(options: SoundsOptions, *, what: str) -> tuple[list[Sound], tuple[str, ...]]:
    """Return the readable sounds below `options.folder`, ordered by name, and the names of the others.

    Raises `DataError` naming what is wrong: no folder, no sound, sounds without a type, sounds that cannot be read.
    """
    root = options.folder
    if not root.is_dir():
        raise DataError(f"{what}: the folder {root.absolute()} is missing; set root to a folder of sounds")
    paths = {
        path.relative_to(root).as_posix(): path
        for path in root.rglob("*")
        if path.suffix.lower() in SUFFIXES and not path.name.startswith(".") and path.is_file()
    }
    if not paths:
        raise DataError(f"{what}: no sound below {root.absolute()}; files that end in {', '.join(SUFFIXES)} are read")
    type_of = _type_rule(options, what)
    types = {name: type_of(name) or "" for name in sorted(paths)}
    if untyped := [name for name, type_ in types.items() if not type_]:
        rule = options.type_table or options.type_rule
        raise DataError(f"{what}: {len(untyped)} of {len(paths)} sounds have no type by {rule}: {_some(untyped)}")
    sounds, faults = [], {}
    for name, type_ in types.items():
        try:
            sounds.append(_sound(paths[name], name, type_))
        except BadAudioError as error:
            faults[name] = str(error)
    if faults and (options.on_bad_audio == "fail" or not sounds):
        raise DataError(
            f"{what}: {len(faults)} of {len(paths)} sounds cannot be used (on_bad_audio: skip goes on without them): "
            + "; ".join(faults.values())
        )
    return sounds, tuple(faults)


def types_of(split: str, types: list[str], options: SoundsOptions, *, what: str) -> list[str]:
    """Return the types that a split hears, out of all `types` there are; train and test share none.

    Raises `ConfigError` for types that are not there, and when none is left for the split.
    """
    if split not in ("train", "dev", "test"):
        raise ConfigError(f"{what}: split is train, dev or test; got {split!r}")
    if unknown := {*(options.types or ()), *(options.test_types or ())} - set(types):
        raise ConfigError(f"{what}: no sound is of type {', '.join(sorted(unknown))}; there are {_some(types)}")
    used = sorted(set(options.types or types))
    count = min(max(1, round(options.test_share * len(used))), len(used) - 1) if options.test_share else 0
    held_out = options.test_types or Random(f"{what}/{options.split_seed}/types").sample(used, count)
    chosen = [type_ for type_ in used if (type_ in held_out) == (split == "test")]
    if not chosen:
        raise ConfigError(
            f"{what}: no type is left for {split}; types {_some(used)}, held out for the test "
            f"{_some(sorted(held_out)) if held_out else 'none'}; give types and test_types so that both have some"
        )
    return chosen


def read_whole(sound: Sound, *, sample_rate: int, channel: int | None = None) -> Tensor:
    """Return the samples of a file (samples,) at `sample_rate` Hz: of one channel, or the mean of all.

    Raises `BadAudioError` when they cannot be read or are not finite. The last files read are kept: leave the samples
    as they are.
    """
    return _held(sound, sample_rate, channel)


def read_stretch(sound: Sound, samples: int, random: Random, *, sample_rate: int) -> Tensor:
    """Return samples of a file at `sample_rate` Hz, all channels mixed: the whole, or of a long one a random stretch.

    A stretch has `samples` samples. What is read depends on the file and on `random` alone.
    """
    seconds = sound.samples / sound.sample_rate
    needed = samples / sample_rate
    if seconds <= max(needed, _MOST_SECONDS_HELD):
        return read_whole(sound, sample_rate=sample_rate)
    start = random.uniform(0, seconds - needed)
    return torch.from_numpy(Stretch(str(sound.path), start, samples, sample_rate, "mix").read())


@lru_cache(maxsize=128)
def _held(sound: Sound, sample_rate: int, channel: int | None) -> Tensor:
    samples = max(sound.samples * sample_rate // sound.sample_rate, 1)
    whole = Stretch(str(sound.path), 0.0, samples, sample_rate, "mix" if channel is None else channel)
    return torch.from_numpy(whole.read())


def _sound(path: Path, name: str, type_: str) -> Sound:
    """Return what the header of a file tells; raises `BadAudioError` when it is damaged or promises nothing."""
    facts = sound_facts(path)
    return Sound(path, name, type_, facts.sample_rate, facts.channels, facts.samples, path.stat().st_size)


def _type_rule(options: SoundsOptions, what: str) -> Callable[[str], str | None]:
    """Return the function from a name below root to its type."""
    if options.type_table is not None:
        table = _type_table(options.folder / options.type_table, what)
        return lambda name: table.get(name.rpartition("/")[2])
    if options.type_rule == "file":
        return lambda name: name
    if options.type_rule == "folder":
        return lambda name: name.rpartition("/")[0] or options.folder.absolute().name
    pattern = re.compile(options.type_rule)
    return lambda name: found[1] if (found := pattern.search(name)) else None


def _type_table(path: Path, what: str) -> dict[str, str]:
    """Return the type of each file name in a table; raises `DataError` when it cannot be read or lacks a column."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{what}: the table {path} cannot be read: {error}") from error
    if path.suffix.lower() == ".csv":
        rows = csv.DictReader(text.splitlines())
    else:
        rows = csv.DictReader(text.splitlines(), delimiter="\t", quoting=csv.QUOTE_NONE)
    columns = rows.fieldnames or ()
    file = next((column for column in ("file", "filename") if column in columns), None)
    type_ = next((column for column in ("type", "class", "category") if column in columns), None)
    if file is None or type_ is None:
        raise DataError(
            f"{what}: the table {path} needs a column file or filename and a column type, class or category; "
            f"it has {', '.join(columns) or 'none'}"
        )
    return {row[file]: row[type_] or "" for row in rows}


def _some(names: list[str]) -> str:
    """Return the first names, and how many more there are."""
    return ", ".join(names[:10]) + (f" and {len(names) - 10} more" if len(names) > 10 else "")
