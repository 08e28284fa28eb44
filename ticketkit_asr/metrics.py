"""Error rates of recognised text."""

from collections.abc import Sequence

from ticketkit import DataError
from ticketkit_asr.extras import require
from ticketkit_asr.text import normalise


def error_rates(references: Sequence[str], hypotheses: Sequence[str]) -> dict[str, float]:
    """Return `wer` and `cer` of a split as fractions: the sum of edits over the sum of reference words or characters.

    Both texts are normalised (upper case, single spaces); characters that the recogniser cannot write stay in the
    reference and count as errors. Raises `DataError` when a reference holds no word: its rate would be undefined.
    """
    jiwer = require("jiwer", extra="asr")
    expected = [normalise(text) for text in references]
    empty = [index for index, text in enumerate(expected) if not text]
    if empty or not expected:
        raise DataError(f"word error rates need references with words; without any: {empty or 'the whole split'}")
    recognised = [normalise(text) for text in hypotheses]
    words = jiwer.process_words(expected, recognised)
    characters = jiwer.process_characters(expected, recognised)
    return {"wer": float(words.wer), "cer": float(characters.cer)}
