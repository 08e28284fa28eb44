"""From text as people write it to text as a recogniser learns it, by rules that a corpus states."""

import re
import unicodedata
from collections import Counter
from functools import lru_cache
from typing import Literal

from ticketkit import Options

_APOSTROPHES = str.maketrans(dict.fromkeys("\u2019\u02bc\u02b9\u2032\u00b4`\uff07\u2018", "'"))
"""Marks that people write for an apostrophe."""

_NAMED = frozenset("&%@#\u00a7\u2030")
"""Punctuation, as Unicode has it, that is read aloud."""

_JOINERS = frozenset("\u200c\u200d")
"""Invisible, but part of the spelling of words in some scripts."""

_EDGE_APOSTROPHE = re.compile(r"(?<!\w)'|'(?!\w)")

_DROPPABLE = re.compile(r"[^\w\s]|[_\d]")
"""All that some rule may drop, and symbols."""


class TextRules(Options):
    """What becomes of case, punctuation, digits and apostrophes; a space takes the place of what is dropped.

    Symbols that are read aloud ($, %, &, +, ...) are never dropped: they are words that nobody wrote down, so they are
    left for the report to count among the characters that the alphabet lacks.
    """

    unicode: Literal["NFKC", "NFC", "as_is"] = "NFKC"
    """One spelling for what looks alike; NFKC also takes ligatures and full-width letters apart."""
    case: Literal["upper", "lower", "as_is"] = "upper"
    """The case of all letters."""
    punctuation: Literal["drop", "keep"] = "drop"
    """Drop or keep what Unicode calls punctuation or format, but for apostrophes and symbols that are read aloud."""
    digits: Literal["keep", "drop"] = "keep"
    """Kept digits are counted as out of alphabet where the alphabet lacks them."""
    apostrophes: Literal["inner", "keep", "drop"] = "inner"
    """Keep those between two letters (the others are mostly quotation marks), all, or none."""


AS_WRITTEN = TextRules(unicode="as_is", case="as_is", punctuation="keep", apostrophes="keep")
"""Change nothing but white space."""


def normalised(text: str, rules: TextRules) -> str:
    """Return the text by the rules, with single spaces between its words; doing so twice changes nothing more.

    >>> normalised("“Don’t!” - it’s 5 o’clock…", TextRules())
    "DON'T IT'S 5 O'CLOCK"
    """
    return " ".join(_kept(_spelt(text, rules), rules).split())


def removed(text: str, rules: TextRules) -> Counter[str]:
    """Return the characters other than spaces that `normalised` drops from a text, and how often each occurs."""
    spelt = _spelt(text, rules)
    return Counter(_DROPPABLE.findall(spelt)) - Counter(_DROPPABLE.findall(_kept(spelt, rules)))


def _spelt(text: str, rules: TextRules) -> str:
    """Return the text in the Unicode form and case that the rules ask for, apostrophes all alike."""
    if rules.unicode != "as_is":
        text = unicodedata.normalize(rules.unicode, text)
    if rules.case != "as_is":
        text = text.upper() if rules.case == "upper" else text.lower()
        if rules.unicode != "as_is":  # the other case may come in two characters that have a form in one
            text = unicodedata.normalize(rules.unicode, text)
    return text if rules.punctuation == "keep" else text.translate(_APOSTROPHES)


def _kept(spelt: str, rules: TextRules) -> str:
    """Return the text without the characters that the rules drop."""
    if (rules.punctuation, rules.digits, rules.apostrophes) == ("keep", "keep", "keep"):
        return spelt
    text = spelt.translate(_replacements(rules))
    if rules.apostrophes == "keep":
        return text
    return text.replace("'", " ") if rules.apostrophes == "drop" else _EDGE_APOSTROPHE.sub(" ", text)


class _Replacements(dict[int, str | None]):
    """What becomes of each character, apostrophes apart: found when it first occurs, as `str.translate` asks for it."""

    def __init__(self, rules: TextRules) -> None:
        super().__init__()
        self._rules = rules

    def __missing__(self, point: int) -> str | None:
        self[point] = replacement = self._replacement(chr(point))
        return replacement

    def _replacement(self, character: str) -> str | None:
        category = unicodedata.category(character)
        if category == "Nd" and self._rules.digits == "drop":
            return " "
        if self._rules.punctuation == "keep" or character == "'" or character in _NAMED | _JOINERS:
            return character
        if category == "Cf":  # invisible, within words
            return None
        return " " if category[0] == "P" or category == "Cc" else character


@lru_cache(maxsize=16)
def _replacements(rules: TextRules) -> _Replacements:
    return _Replacements(rules)
