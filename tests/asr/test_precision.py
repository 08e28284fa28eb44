"""Autocast, also where oneDNN has no LSTM for it, as on CPUs without bfloat16 instructions."""

import os
import subprocess
import sys

import pytest
import torch

from ticketkit_asr.training.precision import computing_in

TRAIN = """
import torch
from torch.backends import mkldnn
from ticketkit_asr.training.precision import computing_in
torch.manual_seed(0)
lstm, x = torch.nn.LSTM(6, 5), torch.randn(7, 3, 6)
expected = lstm(x)[0]
drawn = torch.get_rng_state()
with computing_in("bfloat16", "cpu"):
    y = lstm(x)[0]
y.float().sum().backward()
assert not torch.equal(y.float(), expected)
assert torch.equal(torch.get_rng_state(), drawn)
torch.testing.assert_close(y.float(), expected, atol=0.02, rtol=0.02)
assert all(parameter.grad.isfinite().all() for parameter in lstm.parameters())
try:
    with computing_in("bfloat16", "cpu"):
        raise KeyError
except KeyError:
    assert torch._C._get_mkldnn_enabled()
print("trained")
"""


@pytest.mark.parametrize("instructions", ["AVX2", "ALL"])
def test_an_lstm_trains_in_bfloat16_on_a_cpu_with_and_without_instructions_for_it(instructions: str) -> None:
    environment = os.environ | {"ONEDNN_MAX_CPU_ISA": instructions}
    done = subprocess.run([sys.executable, "-c", TRAIN], env=environment, capture_output=True, text=True, check=False)
    assert done.stdout == "trained\n", done.stderr
    assert "Warning" not in done.stderr


def test_float32_is_left_to_whatever_is_around() -> None:
    with torch.autocast("cpu", torch.bfloat16), computing_in("float32", "cpu"):
        assert torch.is_autocast_enabled("cpu")
