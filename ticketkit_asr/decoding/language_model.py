"""Beam search for CTC with an n-gram language model: flashlight-text with KenLM, through torchaudio's decoder."""

import re
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from itertools import product
from pathlib import Path
from typing import Any

from torch import Tensor

from ticketkit import ConfigError, DataError
from ticketkit_asr.backbones.bundle import SpeechBundle
from ticketkit_asr.corpora.corpus import SpeechCorpus
from ticketkit_asr.decoding.evaluation import evaluate_split
from ticketkit_asr.decoding.scoring import summarise
from ticketkit_asr.extras import require
from ticketkit_asr.objectives.ctc import Ctc
from ticketkit_asr.objectives.objective import Emission
from ticketkit_asr.text.alphabet import Characters, normalise
from ticketkit_asr.torchaudio_shim import torchaudio

BLANK, SPACE = "<blank>", "|"
"""What the decoder calls the blank and the space between words."""


@dataclass(frozen=True)
class LmWeights:
    """How much the language model counts, and how much a word is worth: score = acoustic + lm · LM + word · words."""

    lm: float = 1.0
    word: float = 0.0


@dataclass(frozen=True)
class LmDecoder:
    """A decoder for bundles that learn by CTC and write characters; words come from the language model.

    `path` is an n-gram model as ARPA text, or as a KenLM binary, for which `words` names a file with one word a line.
    """

    path: Path
    weights: LmWeights = LmWeights()
    beam: int = 100
    words: Path | None = None

    def __call__(self, bundle: SpeechBundle, features: Tensor, lengths: Tensor) -> list[list[Emission]]:
        """Return the best text of each utterance; raises `ConfigError` for a bundle that it cannot read."""
        if not isinstance(bundle.objective, Ctc) or not isinstance(bundle.alphabet, Characters):
            raise ConfigError("a language model of words joins CTC over characters alone; decode without --lm")
        scores, lengths = bundle.module(features, lengths)
        emissions = scores.float().log_softmax(-1).cpu().contiguous()
        found = _searching(self, bundle.alphabet)(emissions, lengths.cpu().int())
        return [_emissions(hypotheses[0], bundle.alphabet) if hypotheses else [] for hypotheses in found]

    def reweighted(self, weights: LmWeights) -> "LmDecoder":
        """Return the same decoder with other weights."""
        return replace(self, weights=weights)

    @cached_property
    def vocabulary(self) -> tuple[str, ...]:
        """The words that can be written, in upper case; raises `DataError` when they cannot be found."""
        return tuple(words_of(self.words or self.path))


def tune(
    decoder: LmDecoder,
    bundle: SpeechBundle,
    corpus: SpeechCorpus,
    *,
    lm: Sequence[float] = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0),
    word: Sequence[float] = (-1.0, 0.0, 1.0, 2.0),
) -> list[tuple[LmWeights, float]]:
    """Return every pair of weights with its WER on dev, the best first; test is never read.

    Of equal ones the smaller weights come first.
    """
    found = []
    for weights in (LmWeights(*pair) for pair in product(lm, word)):
        scored = evaluate_split(bundle, corpus, "dev", decode=decoder.reweighted(weights))
        found.append((weights, summarise(scored, resamples=0).wer))
    return sorted(found, key=lambda pair: (pair[1], abs(pair[0].lm), abs(pair[0].word)))


@lru_cache(maxsize=2)
def _searching(decoder: LmDecoder, alphabet: Characters) -> Any:
    """Return torchaudio's decoder over the words that the alphabet can write."""
    require("flashlight.lib.text", extra="lm")
    torchaudio()
    from torchaudio.models.decoder import ctc_decoder

    spelled = {word for word in decoder.vocabulary if all(c in alphabet.characters for c in word)}
    if not spelled:
        raise DataError(f"none of the {len(decoder.vocabulary)} words of {decoder.path} can be written")
    with tempfile.NamedTemporaryFile("w", suffix=".lexicon") as lexicon:
        lexicon.writelines(f"{word} {' '.join(word)} {SPACE}\n" for word in sorted(spelled))
        lexicon.flush()
        try:
            return ctc_decoder(
                lexicon=lexicon.name,
                tokens=tokens(alphabet),
                lm=str(decoder.path),
                beam_size=decoder.beam,
                lm_weight=decoder.weights.lm,
                word_score=decoder.weights.word,
                blank_token=BLANK,
                sil_token=SPACE,
                unk_word="<unk>",
            )
        except RuntimeError as error:
            raise DataError(f"{decoder.path} is no n-gram model that KenLM can read: {_said(error)}") from error


def _said(error: RuntimeError) -> str:
    """Return in one line what KenLM found; it puts the place in its source first."""
    return " ".join(str(error).rpartition("Exception")[2].lstrip(".").split())


def words_of(path: Path) -> Iterator[str]:
    """Yield the words of an ARPA file's unigrams, or of a list with one word a line; markers such as <s> are left out.

    Raises `DataError` when the file cannot be read as text or holds none.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        if not path.exists():
            raise DataError(f"{path} cannot be read: there is no such file") from error
        raise DataError(
            f"{path} cannot be read as text ({error}); for a binary model give its words, one a line (--words)"
        ) from error
    is_arpa = any(line.strip() == "\\1-grams:" for line in lines)
    found = list(_unigrams(lines) if is_arpa else (line.strip() for line in lines))
    words = [normalise(word) for word in found if word and not re.fullmatch(r"<[^<>]+>", word)]
    if not words:
        raise DataError(f"{path} holds no words")
    yield from words


def tokens(alphabet: Characters) -> list[str]:
    """Return the decoder's name of each label, the blank first."""
    return [BLANK, *(SPACE if c == " " else c for c in alphabet.characters)]


def _unigrams(lines: Iterable[str]) -> Iterator[str]:
    inside = False
    for line in lines:
        if line.startswith("\\"):
            inside = line.strip() == "\\1-grams:"
        elif inside and len(fields := line.split()) >= 2:
            yield fields[1]


def _emissions(hypothesis: Any, alphabet: Characters) -> list[Emission]:
    """Return the labels of a hypothesis, without the spaces that the decoder puts at both ends."""
    space = 1 + alphabet.characters.index(" ") if " " in alphabet.characters else None
    pairs = list(zip(hypothesis.timesteps.tolist(), hypothesis.tokens.tolist(), strict=True))
    while pairs and pairs[0][1] == space:
        pairs = pairs[1:]
    while pairs and pairs[-1][1] == space:
        pairs = pairs[:-1]
    return [Emission(frame, label) for frame, label in pairs]
