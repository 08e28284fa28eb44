"""Synthetic speech by espeak-ng, from the wheel `espeakng-loader`: no system package, the same bits each time."""

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path

import numpy as np

from ticketkit import DataError
from ticketkit_asr.corpora import espeak_worker
from ticketkit_asr.extras import require
from ticketkit_asr.sound.audio import Pcm, split_pcm

SAMPLE_RATE = 22_050
"""The rate of espeak-ng's samples, in Hz."""


@dataclass(frozen=True)
class Prompt:
    """What to say, and how: `voice` as espeak-ng names it (`en-us+f3`), words a minute, and a pitch from 0 to 99."""

    voice: str
    text: str
    speed: int
    pitch: int


def speaker_facts() -> dict[str, str]:
    """Return what equal prompts sound alike under: the wheel's version and a digest of the worker that drives it.

    Raises `DataError` when espeak-ng is not installed.
    """
    require("espeakng_loader", extra="synth")
    worker = sha256(Path(espeak_worker.__file__).read_bytes())
    return {"espeakng-loader": version("espeakng-loader"), "worker": worker.hexdigest()}


def synthesise(prompts: Sequence[Prompt]) -> list[Pcm]:
    """Return the samples of each prompt at `SAMPLE_RATE`, spoken in order by one fresh process.

    Equal lists of prompts give equal samples. Raises `DataError` when espeak-ng is missing, fails, or stays silent.
    """
    loader = require("espeakng_loader", extra="synth")
    request = {
        "library": loader.get_library_path(),
        "data": loader.get_data_path(),
        "prompts": [asdict(prompt) for prompt in prompts],
    }
    worker = [sys.executable, "-I", str(Path(espeak_worker.__file__))]
    done = subprocess.run(worker, input=json.dumps(request).encode(), capture_output=True, check=False)
    if done.returncode:
        raise DataError(f"espeak-ng ended with status {done.returncode}: {done.stderr.decode(errors='replace')}")
    spoken = _parse(done.stdout)
    if silent := [prompt for prompt, pcm in zip(prompts, spoken, strict=True) if not pcm.any()]:
        raise DataError(f"espeak-ng said nothing for {len(silent)} of {len(prompts)} prompts, the first: {silent[0]}")
    return spoken


def _parse(answer: bytes) -> list[Pcm]:
    """Return the samples of each prompt from the worker's answer; raises `DataError` with the error it reports."""
    line, _, content = answer.partition(b"\n")
    head = json.loads(line)
    if "error" in head:
        raise DataError(head["error"])
    if head["sample_rate"] != SAMPLE_RATE:
        raise DataError(f"espeak-ng speaks at {head['sample_rate']} Hz; {SAMPLE_RATE} Hz was expected")
    return split_pcm(np.frombuffer(content, dtype=np.int16), head["lengths"])
