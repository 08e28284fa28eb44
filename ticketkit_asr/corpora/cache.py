"""Recordings that took time to make, kept on disk: one file for everything that one recipe makes, whole or absent."""

import json
import os
from collections.abc import Callable, Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import safe_open
from safetensors.numpy import save

from ticketkit_asr.sound.audio import Pcm, split_pcm
from ticketkit_asr.storage import loaded, replacing


def default_cache_dir() -> Path:
    """Return `ticketkit` in the user's cache folder: $XDG_CACHE_HOME, or else ~/.cache."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "ticketkit"


def cached_recordings(path: Path, recipe: Mapping[str, Any], make: Callable[[], Sequence[Pcm]]) -> list[Pcm]:
    """Return the recordings in the file `path` if `recipe` made them; otherwise make them, and write the file.

    `recipe` is JSON-able and holds all that the recordings depend on. A file that is damaged, or of another recipe, is
    logged and replaced.
    """
    key = digest(recipe)
    found = loaded(path, lambda path: _load(path, key))
    if found is not None:
        return found
    recordings = list(make())
    with replacing(path) as file:
        file.write(_dump(recordings, key))
    return recordings


def digest(recipe: Mapping[str, Any]) -> str:
    """Return the SHA-256 of a recipe, whatever the order of its keys."""
    return sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest()


def _dump(recordings: Sequence[Pcm], key: str) -> bytes:
    samples = np.concatenate(recordings)
    lengths = np.array([len(recording) for recording in recordings], dtype=np.int64)
    # One metadata key: safetensors writes several in random order.
    facts = json.dumps({"recipe": key, "samples": sha256(samples.tobytes()).hexdigest()}, sort_keys=True)
    return save({"samples": samples, "lengths": lengths}, metadata={"ticketkit_asr": facts})


def _load(path: Path, key: str) -> list[Pcm]:
    """Return the recordings in a file; raises `ValueError` when they are of another recipe or damaged."""
    with safe_open(path, framework="numpy") as file:
        facts = json.loads((file.metadata() or {}).get("ticketkit_asr", "{}"))
        if facts.get("recipe") != key:
            raise ValueError("it was made by another recipe")
        samples, lengths = file.get_tensor("samples"), file.get_tensor("lengths")
    if sha256(samples.tobytes()).hexdigest() != facts.get("samples") or lengths.sum() != len(samples):
        raise ValueError("its samples are not those that were written")
    return split_pcm(samples, lengths.tolist())
