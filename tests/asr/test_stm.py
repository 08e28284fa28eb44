import pytest

from ticketkit import DataError
from ticketkit_asr.corpora.stm import Segment, read_stm


def test_each_line_is_a_segment_and_comments_are_none(tmp_path):
    (tmp_path / "a.stm").write_text(
        ';; LABEL "o" "Overall"\n'
        "Talk_2010 1 Talk_2010 16.1 23.59 <o,f0,male> hello <unk> there\n"
        "\n"
        "Talk_2010  A  S3  24  25.5  no label here \r\n"
        "Talk_2010 1 S3 25.5 26 <o,,unknown>\n"
    )
    assert read_stm(tmp_path / "a.stm") == [
        Segment("Talk_2010", "Talk_2010", 16.1, 23.59, "hello <unk> there"),
        Segment("Talk_2010", "S3", 24, 25.5, "no label here"),
        Segment("Talk_2010", "S3", 25.5, 26, ""),
    ]


def test_odd_lines_are_all_named(tmp_path):
    (tmp_path / "a.stm").write_text("a 1 s 0 1 <o> x\na 1 s zero 1 x\na 1 s 0\na 1 s -1 1 x\n")
    with pytest.raises(DataError, match=r"a\.stm should hold lines .*odd are lines 2, 3, 4$"):
        read_stm(tmp_path / "a.stm")
