import unicodedata

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from pydantic import ValidationError

from ticketkit_asr.text.rules import AS_WRITTEN, TextRules, normalised, removed

rules = st.builds(
    TextRules,
    unicode=st.sampled_from(["NFKC", "NFC", "as_is"]),
    case=st.sampled_from(["upper", "lower", "as_is"]),
    punctuation=st.sampled_from(["drop", "keep"]),
    digits=st.sampled_from(["keep", "drop"]),
    apostrophes=st.sampled_from(["inner", "keep", "drop"]),
)


@given(st.text(), rules)
@example("\u0149ot", TextRules())  # its upper case holds an apostrophe
@example("½ … ﬁn ß", TextRules())
def test_doing_it_twice_changes_nothing_more(text, rules):
    once = normalised(text, rules)
    assert normalised(once, rules) == once
    assert once == " ".join(once.split())


@given(st.text())
def test_as_written_changes_white_space_alone(text):
    assert normalised(text, AS_WRITTEN).split() == text.split()
    assert not removed(text, AS_WRITTEN)


@given(st.text(), rules)
def test_every_character_is_kept_or_counted_as_removed(text, rules):
    spelt = text
    for _ in range(2):
        spelt = spelt if rules.unicode == "as_is" else unicodedata.normalize(rules.unicode, spelt)
        spelt = {"upper": spelt.upper, "lower": spelt.lower, "as_is": lambda s=spelt: s}[rules.case]()
    kept = [c for c in normalised(text, rules) if not c.isspace()]
    assert len(kept) + sum(removed(text, rules).values()) == len([c for c in spelt if not c.isspace()])


@given(st.text())
def test_letters_and_symbols_survive_every_default(text):
    kept = normalised(text, TextRules(case="as_is", unicode="as_is"))

    def letters(text):
        return [c for c in text if unicodedata.category(c)[0] in "LMN"]

    assert letters(kept) == letters(text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("“Don’t!” — it’s 5 o’clock…", "DON'T IT'S 5 O'CLOCK"),
        ("‘tis the boys’ 'quoted word'", "TIS THE BOYS QUOTED WORD"),
        ("well-known, e.g. U.S.", "WELL KNOWN E G U S"),
        ("co\u00adoperate\ufeff", "COOPERATE"),
        ("100% of $5 & more @ #1", "100% OF $5 & MORE @ #1"),
        ("ＣＡＦＥ\u0301", "CAFÉ"),
        ("真っ昼間。キャンプー!", "真っ昼間 キャンプー"),
        ("tab\tand\u3000wide", "TAB AND WIDE"),
    ],
)
def test_the_defaults_drop_punctuation_and_keep_what_is_read_aloud(text, expected):
    assert normalised(text, TextRules()) == expected


def test_each_option_decides_alone():
    text = "'Tis 4 o’clock, Ann"
    assert normalised(text, TextRules(apostrophes="keep")) == "'TIS 4 O'CLOCK ANN"
    assert normalised(text, TextRules(apostrophes="drop")) == "TIS 4 O CLOCK ANN"
    assert normalised(text, TextRules(digits="drop")) == "TIS O'CLOCK ANN"
    assert normalised(text, TextRules(case="lower")) == "tis 4 o'clock ann"
    assert normalised(text, TextRules(punctuation="keep", apostrophes="keep")) == "'TIS 4 O’CLOCK, ANN"


def test_what_is_dropped_is_counted():
    assert removed("“Don’t, 'you', no. 5.”", TextRules(digits="drop")) == {
        "“": 1,
        ",": 2,
        "'": 2,
        ".": 2,
        "5": 1,
        "”": 1,
    }


def test_unknown_rules_are_refused():
    with pytest.raises(ValidationError):
        TextRules(punctation="drop")
