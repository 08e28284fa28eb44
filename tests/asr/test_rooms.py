from pathlib import Path
from random import Random

import numpy as np
import pytest
import soundfile
import torch
from hypothesis import given
from hypothesis import strategies as st

from ticketkit import DataError
from ticketkit_asr.sound.folder import open_sounds
from ticketkit_asr.sound.noise import power
from ticketkit_asr.sound.options import RoomOptions
from ticketkit_asr.sound.rooms import Rooms, convolved, reverberated

RATE = 8_000


def white(samples: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(samples, generator=torch.Generator().manual_seed(seed))


@given(samples=st.integers(1, 400), length=st.integers(1, 300), delay=st.integers(0, 299), gain=st.floats(0.1, 9))
def test_a_room_that_only_delays_and_weakens_changes_nothing(samples, length, delay, gain):
    response = torch.zeros(max(length, delay + 1))
    response[delay] = gain
    speech = white(samples)
    torch.testing.assert_close(reverberated(speech, response), speech, atol=1e-5, rtol=1e-5)


@given(samples=st.integers(1, 400), length=st.integers(1, 300), seed=st.integers(0, 20))
def test_length_and_power_stay(samples, length, seed):
    speech = white(samples, seed)
    heard = reverberated(speech, white(length, seed + 30))
    assert len(heard) == samples
    assert power(heard) == pytest.approx(power(speech), rel=1e-5)


def test_an_echo_comes_after_what_it_echoes_and_what_outlasts_the_speech_is_cut():
    response = torch.zeros(100)
    response[20], response[70] = 1.0, 0.5
    speech = torch.zeros(120)
    speech[10] = speech[100] = 1.0
    heard = reverberated(speech, response)
    expected = torch.zeros(120)
    expected[10], expected[60], expected[100] = 1.0, 0.5, 1.0
    torch.testing.assert_close(heard, expected * (2 / 2.25) ** 0.5, atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    ("samples", "length"),
    [(1, 1), (500, 80), (80, 500), (8193, 2), (20_001, 80), (8192, 8192), (9000, 2500), (40_000, 3000)],
)
def test_a_convolution_is_the_one_that_numpy_computes(samples, length):
    speech, response = white(samples), white(length, 1)
    expected = torch.from_numpy(np.convolve(speech.double().numpy(), response.double().numpy())).float()
    computed = convolved(speech, response)
    scale = expected.abs().max().item()
    torch.testing.assert_close(computed[: len(expected)], expected, atol=1e-6 * scale, rtol=0)
    assert (computed[len(expected) :].abs() <= 1e-6 * scale).all()


def test_a_room_is_a_convolution_from_the_direct_path_on():
    speech, response = white(500), white(80, 1)
    response[11] = 9.0
    direct = np.convolve(speech.double().numpy(), response.double().numpy())[11:511]
    expected = torch.from_numpy(direct * np.sqrt(power(speech) / np.mean(direct**2))).float()
    torch.testing.assert_close(reverberated(speech, response), expected, atol=1e-5, rtol=1e-4)


def test_a_direct_path_of_opposite_sign_is_found():
    response = torch.zeros(40)
    response[[5, 30]] = torch.tensor([-1.0, 0.01])
    torch.testing.assert_close(reverberated(white(200), response), -white(200), atol=0.1, rtol=0)


def test_silence_stays_silence():
    assert torch.equal(reverberated(torch.zeros(50), white(20)), torch.zeros(50))


def rooms(root: Path, split: str = "train", **options: object) -> Rooms:
    chosen = RoomOptions.model_validate({"root": root, "test_share": 0, **options})
    return Rooms(chosen, open_sounds(chosen, what="room", split=split), RATE)


def delays(*channels: int) -> np.ndarray:
    """A response whose channels hear an echo after so many samples, as strong as the sound."""
    response = np.zeros((200, len(channels)), np.float32)
    response[0] = 1.0
    for number, delay in enumerate(channels):
        response[delay, number] = 0.9
    return response


def echo(heard: torch.Tensor) -> int:
    """Return after how many samples an impulse is heard again."""
    return int(heard[1:].argmax()) + 1


def test_a_channel_is_chosen_or_drawn(tmp_path):
    soundfile.write(tmp_path / "a.wav", delays(50, 90, 130), RATE, subtype="FLOAT")
    impulse = torch.zeros(200)
    impulse[0] = 1.0
    assert {echo(rooms(tmp_path, channel=1).heard(impulse, Random(seed))) for seed in range(9)} == {90}
    assert {echo(rooms(tmp_path).heard(impulse, Random(seed))) for seed in range(20)} == {50, 90, 130}


def test_a_channel_that_a_response_lacks_is_refused(tmp_path):
    soundfile.write(tmp_path / "a.wav", delays(50, 90), RATE, subtype="FLOAT")
    soundfile.write(tmp_path / "b.wav", delays(50), RATE, subtype="FLOAT")
    with pytest.raises(DataError, match=r"room: no channel 1 \(counted from 0\) in b\.wav"):
        rooms(tmp_path, channel=1)


def test_a_silent_response_is_refused(tmp_path):
    soundfile.write(tmp_path / "a.wav", np.zeros((50, 2), np.float32), RATE, subtype="FLOAT")
    with pytest.raises(DataError, match=r"room: channel 1 of .*a\.wav is silent"):
        rooms(tmp_path, channel=1).heard(white(100), Random(0))


def test_rooms_of_the_test_are_not_heard_in_training(tmp_path):
    for number in range(4):
        soundfile.write(tmp_path / f"{number}.wav", delays(50), RATE, subtype="FLOAT")
    train, test = (set(rooms(tmp_path, split, test_share=0.5).library.by_type) for split in ("train", "test"))
    assert (len(train), len(test), train & test) == (2, 2, set())


def test_real_responses_leave_the_timing_of_speech(real_data):
    """A click is heard loudest when it happens, whatever the room."""
    drawn = rooms(real_data / "rir")
    assert len(drawn.library.by_type) == 9
    click = torch.zeros(RATE)
    click[4000] = 1.0
    speech = white(2 * RATE)
    for seed in range(24):
        assert drawn.heard(click, Random(seed)).abs().argmax() == 4000
        assert power(drawn.heard(speech, Random(seed))) == pytest.approx(power(speech), rel=1e-5)
