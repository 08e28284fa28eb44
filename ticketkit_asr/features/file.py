"""One safetensors file for the features of many utterances: written as they come, read without a copy.

Tensors: `frames` (utterances,) int64, the length of each utterance, and `features` (all frames, bins), one utterance
after the other. The one metadata key `ticketkit_asr` holds JSON: `recipe`, what the features were made from;
`statistics` of the corpus, where they are normalised by it; `content`, the SHA-256 of features, lengths and statistics.
"""

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor

from ticketkit_asr.features.extraction import FeatureStatistics

Precision = Literal["float32", "float16"]
"""How features are stored: bit for bit, or in half the room with three decimal digits."""

_DTYPES = {"float32": ("F32", torch.float32), "float16": ("F16", torch.float16)}
_MOST_FRAMES = 10**15
"""The header has room for this many frames, since it comes first and the number is known last."""


@dataclass(frozen=True)
class FeatureForm:
    """What is known of a feature file before it is made."""

    recipe: str
    """A digest of all that the features depend on."""
    utterances: int
    bins: int
    precision: Precision


@dataclass(frozen=True, eq=False)
class FeatureFile:
    """What a feature file holds; the features are pages of the file, read when they are looked at."""

    features: Tensor
    """(all frames, bins), float32 or float16; writing into it never reaches the file."""
    offsets: tuple[int, ...]
    """Where each utterance begins, and where the last one ends."""
    statistics: FeatureStatistics | None


def write_features(
    file: BinaryIO, features: Iterable[Tensor], form: FeatureForm, statistics: FeatureStatistics | None
) -> None:
    """Write the features (frames, bins) of each utterance to an empty file, holding one at a time.

    Equal arguments give equal bytes. Raises `ValueError` when there are more or fewer utterances than the form says.
    """
    facts = {"recipe": form.recipe, "statistics": statistics and asdict(statistics)}
    room = len(_header(form, _MOST_FRAMES, {**facts, "content": sha256().hexdigest()}))
    room += -room % 8  # safetensors aligns its tensors so
    file.seek(8 + room + 8 * form.utterances)
    content, frames = sha256(), []
    for of_utterance in features:
        stored = of_utterance.to(_DTYPES[form.precision][1]).contiguous().numpy()
        content.update(stored.data)
        file.write(stored.data)
        frames.append(len(stored))
    if len(frames) != form.utterances:
        raise ValueError(f"{form.utterances} utterances were announced, {len(frames)} came")
    lengths = np.array(frames, dtype="<i8").tobytes()
    facts["content"] = _sealed(content, lengths, facts["statistics"])
    file.seek(0)
    file.write(room.to_bytes(8, "little") + _header(form, sum(frames), facts).ljust(room) + lengths)


def read_features(path: Path, form: FeatureForm) -> FeatureFile:
    """Return what the file holds, after reading it through once to see that it is what was written.

    Raises `ValueError`, `OSError` or `SafetensorError` when it is damaged or made from another recipe.
    """
    with safe_open(path, framework="pt") as file:
        facts = json.loads((file.metadata() or {}).get("ticketkit_asr", "{}"))
        if not isinstance(facts, dict) or facts.get("recipe") != form.recipe:
            raise ValueError("it was made from another recipe")
        frames, features = file.get_tensor("frames"), file.get_tensor("features")
    whole = frames.dtype == torch.int64 and frames.shape == (form.utterances,)
    whole = whole and features.dtype == _DTYPES[form.precision][1] and features.shape == (int(frames.sum()), form.bins)
    statistics = facts.get("statistics")
    content = facts.get("content")
    if not whole or _sealed(sha256(features.numpy().data), frames.numpy().tobytes(), statistics) != content:
        raise ValueError("its features are not those that were written")
    return FeatureFile(
        features=features,
        offsets=(0, *frames.cumsum(0).tolist()),
        statistics=statistics and FeatureStatistics(tuple(statistics["mean"]), tuple(statistics["deviation"])),
    )


def _sealed(content: Any, lengths: bytes, statistics: Any) -> str:
    """Return the digest of features (already in `content`), lengths and statistics."""
    content.update(lengths)
    content.update(json.dumps(statistics).encode())
    return str(content.hexdigest())


def _header(form: FeatureForm, frames: int, facts: dict[str, Any]) -> bytes:
    name, dtype = _DTYPES[form.precision]
    begin = 8 * form.utterances
    end = begin + frames * form.bins * dtype.itemsize
    tensors = {
        "__metadata__": {"ticketkit_asr": json.dumps(facts)},
        "frames": {"dtype": "I64", "shape": [form.utterances], "data_offsets": [0, begin]},
        "features": {"dtype": name, "shape": [frames, form.bins], "data_offsets": [begin, end]},
    }
    return json.dumps(tensors).encode()
