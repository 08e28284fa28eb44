import json

from ticketkit_asr.corpora.report import Overlap, Report, SplitReport


def split(**changes):
    fields = {
        "utterances": 2,
        "seconds": 3600.0,
        "shortest": 1.0,
        "longest": 2.5,
        "speakers": 1,
        "words": 7,
        "characters": 30,
        "out_of_alphabet": {"|": 2, "5": 9},
        "silent": (),
        "dropped": {"over 15 s": tuple(f"u{n}" for n in range(12))},
        "faulty": {"cut short": {"bad": "a.wav is cut short"}},
    }
    return SplitReport(**{**fields, **changes})


def test_the_page_shows_sums_losses_characters_and_warnings():
    report = Report("c", 16_000, {"train": split()}, shared=(Overlap("speakers", ("train", "test"), ("ann", "bob")),))
    page = report.to_markdown()
    assert "| train | 1.00 | 2 | 1 | 7 | 1.00 to 2.50 |" in page
    assert "| train | over 15 s | 12 | u0, u1, u2, u3, u4, u5, u6, u7, u8, u9 and 2 more |" in page
    assert "- train bad: a.wav is cut short" in page
    assert page.index("| train | `5` | 9 |") < page.index("| train | `\\|` | 2 |")
    assert "- train/test share 2 speakers: ann, bob" in page


def test_a_faultless_corpus_says_so():
    page = Report("c", 16_000, {"train": split(dropped={}, faulty={}, out_of_alphabet={})}).to_markdown()
    assert "Nothing." in page
    assert page.count("None.") == 2


def test_the_json_has_every_id_and_equal_reports_equal_texts():
    facts = json.loads(Report("c", 16_000, {"train": split(silent=("hush",))}).to_json())
    assert len(facts["splits"]["train"]["dropped"]["over 15 s"]) == 12
    assert facts["splits"]["train"]["faulty"] == {"cut short": {"bad": "a.wav is cut short"}}
    assert facts["warnings"] == ["train: 1 utterances are digital silence: hush"]
    assert Report("c", 16_000, {"train": split()}).to_json() == Report("c", 16_000, {"train": split()}).to_json()
