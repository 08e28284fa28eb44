import subprocess
import sys

import pytest
from pydantic import ValidationError

from ticketkit_asr.sound.options import CorruptionOptions, NoiseOptions, RoomOptions, SpeedOptions


def test_options_need_no_torch():
    program = "import sys, ticketkit_asr.sound.options; print('torch' in sys.modules)"
    finished = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert finished.stdout.strip() == "False"


def test_an_empty_corruption_is_known_as_one():
    assert CorruptionOptions().is_empty
    for part in ({"noise": {"root": "n", "snr_db": [0]}}, {"babble": {"snr_db": [0]}}, {"room": {"root": "r"}}):
        assert not CorruptionOptions.model_validate(part).is_empty


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"snr_db": []}, "at least 1 item"),
        ({"snr_db": [float("nan")]}, "snr_db"),
        ({"snr_db": [0], "probability": 0}, "greater than 0"),
        ({"snr_db": [0], "type_rule": "(a)(b)"}, "has 2 groups; its one group is the type"),
        ({"snr_db": [0], "type_rule": "no group"}, "has 0 groups"),
        ({"snr_db": [0], "type_rule": "("}, "is folder, file or a regular expression"),
        ({"snr_db": [0], "type_rule": "file", "type_table": "t.tsv"}, "type_rule and type_table say the same thing"),
        ({"snr_db": [0], "test_types": ["a"], "test_share": 0.5}, "test_types and test_share say the same thing"),
        ({"snr_db": [0], "types": ["a"], "test_types": ["b"]}, "test_types that types leaves out: b"),
        ({"snr_db": [0], "colour": "pink"}, "Extra inputs"),
    ],
)
def test_noise_that_contradicts_itself_is_refused(wrong, message):
    with pytest.raises(ValidationError, match=message):
        NoiseOptions.model_validate({"root": "n", **wrong})


def test_every_room_is_a_type_of_its_own_unless_told_otherwise():
    assert RoomOptions(root="r").type_rule == "file"
    assert NoiseOptions(root="n", snr_db=(0,)).type_rule == "folder"


@pytest.mark.parametrize("factors", [(), (0.0,), (1.0, 0.9, 1.0)])
def test_speeds_are_positive_and_given_once(factors):
    with pytest.raises(ValidationError):
        SpeedOptions(factors=factors)
