"""Pieces of words as labels: byte-pair encoding, learnt from the texts of a corpus by sentencepiece."""

import io
import logging
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from hashlib import sha256
from pathlib import Path
from typing import Any

from ticketkit import DataError
from ticketkit_asr.extras import require
from ticketkit_asr.storage import replacing
from ticketkit_asr.text.alphabet import normalise

_log = logging.getLogger(__name__)

_SPACE = "▁"
"""What sentencepiece writes for the beginning of a word."""


@dataclass(frozen=True)
class Pieces:
    """The pieces of a sentencepiece model as labels: 1, 2, … in its order; label 0 is the blank.

    The model's own "unknown" piece stands in place 1 and is never written nor expected.
    """

    model: bytes = field(repr=False)

    @property
    def blank(self) -> int:
        """The label that stands for no text."""
        return 0

    @property
    def size(self) -> int:
        """The number of labels, blank included."""
        return 1 + int(_processor(self.model).get_piece_size())

    @property
    def digest(self) -> str:
        """SHA-256 of the model."""
        return sha256(self.model).hexdigest()

    def encode(self, text: str) -> list[int]:
        """Return the labels of the normalised text, leaving out what `unknown` counts."""
        processor = _processor(self.model)
        return [1 + piece for piece in processor.encode(normalise(text)) if piece != processor.unk_id()]

    def decode(self, labels: Iterable[int]) -> str:
        """Return the text of `labels`, none of which may be the blank."""
        processor = _processor(self.model)
        pieces = [label - 1 for label in labels if label - 1 != processor.unk_id()]
        return " ".join("".join(map(processor.id_to_piece, pieces)).replace(_SPACE, " ").split())

    def unknown(self, texts: Sequence[str]) -> dict[str, int]:
        """Return the characters of the normalised texts that no piece writes, sorted, and how often each occurs."""
        processor = _processor(self.model)
        written = {
            c for i in range(processor.get_piece_size()) if i != processor.unk_id() for c in _piece(processor, i)
        }
        counts = Counter(c for text in texts for c in normalise(text) if c not in written)
        return dict(sorted(counts.items()))


def learn_pieces(texts: Iterable[str], *, size: int) -> Pieces:
    """Return `size` pieces learnt from texts (Sennrich et al. 2016), the "unknown" one included.

    The same texts give the same pieces, in whatever order they come. Raises `DataError` when the texts are too few for
    so many pieces.
    """
    sentencepiece = require("sentencepiece", extra="asr")
    lines = sorted(filter(None, map(normalise, texts)))
    written = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(lines),
            model_writer=written,
            model_type="bpe",
            vocab_size=size,
            character_coverage=1.0,
            normalization_rule_name="identity",
            bos_id=-1,
            eos_id=-1,
            unk_id=0,
            num_threads=1,
            minloglevel=2,
        )
    except RuntimeError as error:
        words = sum(len(line.split()) for line in lines)
        raise DataError(f"{size} pieces cannot be learnt from {len(lines)} texts of {words} words: {error}") from error
    return Pieces(written.getvalue())


def save_pieces(pieces: Pieces, path: Path) -> None:
    """Write the pieces as a sentencepiece model, whole or not at all."""
    with replacing(path) as file:
        file.write(pieces.model)


def load_pieces(path: Path) -> Pieces:
    """Return the pieces in a sentencepiece model file; raises `DataError` when it is missing or none."""
    try:
        pieces = Pieces(path.read_bytes())
        size = pieces.size
    except (OSError, RuntimeError) as error:
        raise DataError(
            f"{path} is no sentencepiece model ({error}); learn one with: ticketkit asr bpe CORPUS --to {path}"
        ) from error
    _log.debug("%s holds %d labels", path, size)
    return pieces


def _piece(processor: Any, index: int) -> str:
    return str(processor.id_to_piece(index)).replace(_SPACE, " ")


@lru_cache(maxsize=8)
def _processor(model: bytes) -> Any:
    sentencepiece = require("sentencepiece", extra="asr")
    return sentencepiece.SentencePieceProcessor(model_proto=model)
