"""Speaks with espeak-ng, in a process of its own: run by `espeak.py` as a script, with the standard library alone.

espeak-ng carries state from one sentence to the next, so equal sound needs a fresh process and a fixed order.
Reads one JSON object from standard input: `{"library", "data", "prompts": [{"voice", "text", "speed", "pitch"}]}`.
Writes one line of JSON, `{"sample_rate", "lengths"}` or `{"error"}`, then all samples, 16 bits each in native order.
"""

import ctypes
import json
import sys
from typing import Any

_SYNCHRONOUS = 2  # espeak_AUDIO_OUTPUT: hand the samples to the callback before espeak_Synth returns
_CHARS_UTF8 = 1
_RATE, _PITCH = 1, 3  # espeak_PARAMETER
_Callback = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)


def speak(request: dict[str, Any]) -> tuple[int, list[bytes]]:
    """Return the sample rate in Hz and the samples of each prompt; raises `RuntimeError` naming what espeak refuses."""
    library = ctypes.CDLL(request["library"])
    sample_rate = library.espeak_Initialize(_SYNCHRONOUS, 0, request["data"].encode(), 0)
    if sample_rate <= 0:
        raise RuntimeError(f"espeak-ng cannot start with its data in {request['data']}")
    library.espeak_ng_SetRandSeed(ctypes.c_long(0))  # breathy voices draw noise; unset, the clock seeds it
    samples = bytearray()

    def receive(wave: Any, count: int, _events: Any) -> int:
        if wave and count:
            samples.extend(ctypes.string_at(wave, count * ctypes.sizeof(ctypes.c_short)))
        return 0

    callback = _Callback(receive)
    library.espeak_SetSynthCallback(callback)
    spoken = []
    for prompt in request["prompts"]:
        samples.clear()
        _speak_one(library, **prompt)
        spoken.append(bytes(samples))
    return sample_rate, spoken


def _speak_one(library: ctypes.CDLL, *, voice: str, text: str, speed: int, pitch: int) -> None:
    if library.espeak_SetVoiceByName(voice.encode()):
        raise RuntimeError(f"espeak-ng has no voice {voice!r}")
    library.espeak_SetParameter(_RATE, speed, 0)
    library.espeak_SetParameter(_PITCH, pitch, 0)
    content = text.encode()
    if library.espeak_Synth(content, len(content) + 1, 0, _CHARS_UTF8, 0, _CHARS_UTF8, None, None):
        raise RuntimeError(f"espeak-ng cannot speak {text!r} with voice {voice!r}")


def main() -> None:
    """Answer the request on standard input."""
    out = sys.stdout.buffer
    try:
        sample_rate, spoken = speak(json.load(sys.stdin))
    except RuntimeError as error:
        out.write(json.dumps({"error": str(error)}).encode() + b"\n")
        return
    head = {"sample_rate": sample_rate, "lengths": [len(samples) // 2 for samples in spoken]}
    out.write(json.dumps(head).encode() + b"\n" + b"".join(spoken))


if __name__ == "__main__":
    main()
