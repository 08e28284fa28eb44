"""A stream writes what the network writes of the whole utterance, frame for frame."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import ticketkit_asr.plugin
from ticketkit import Plugins
from ticketkit.plugins import PluginFacts
from ticketkit.runtime.preparing import prepared
from ticketkit_asr.decoding.streaming import Stream, stream_of, stride_of

PLUGINS = Plugins()
PLUGINS.add(ticketkit_asr.plugin, PluginFacts("asr", "ticketkit_asr", "ticketkit", "0"))
CONVS = [{"channels": 3, "kernel": (3, 5), "stride": (2, 2)}, {"channels": 2, "kernel": (5, 3), "stride": (1, 1)}]
CNN: dict[str, Any] = {"name": "cnn_lstm", "features": {"mels": 8}, "convs": CONVS, "hidden": 7, "layers": 2}
RNNT: dict[str, Any] = {"name": "rnnt", "features": {"mels": 8}, "stack": (2, 3), "hidden": 6, "embedding": 4}
RNNT |= {"predictor": 5, "joint": 5}
STREAMED = {
    "cnn_lstm": {**CNN, "bidirectional": False},
    "cnn_lstm that looks ahead": {**CNN, "bidirectional": False, "lookahead": 3},
    "rnnt": {**RNNT, "bidirectional": False},
}


def bundle_of(backbone: dict[str, Any], seed: int = 0) -> Any:
    """Return a bundle with norms of its own, in evaluation mode."""
    torch.manual_seed(seed)
    bundle = PLUGINS.choose("backbone", backbone).call()
    for name, tensor in bundle.module.state_dict().items():
        if "norm" in name and tensor.is_floating_point():
            tensor.uniform_(0.5, 1.5)
    bundle.module.eval()
    return bundle


@pytest.mark.parametrize("name", STREAMED)
@settings(max_examples=12)
@given(frames=st.integers(1, 25), batch=st.integers(1, 2), sparse=st.booleans(), seed=st.integers(0, 99))
def test_a_stream_puts_out_what_the_whole_pass_does(name, frames, batch, sparse, seed) -> None:
    bundle = bundle_of(STREAMED[name], seed)
    module = bundle.module
    features = torch.randn(batch, frames, 8)
    lengths = torch.full((batch,), frames)
    if sparse:
        for parameter in module.parameters():
            if parameter.dim() > 1 and len(parameter) != 29:
                parameter.data.mul_(torch.rand(parameter.shape) < 0.5)
        module = prepared(module, "sparse")[0]
    with torch.no_grad():
        if "rnnt" in name:
            expected = module(features, lengths, torch.zeros(batch, 0, dtype=torch.int64), torch.zeros(batch).long())
            whole = expected[0][:, :, 0]
        else:
            whole = module(features, lengths)[0]
    stream = stream_of(module)
    assert isinstance(stream, Stream)
    came = [made for frame in features.unbind(1) for made in stream.push(frame)]
    came += stream.end()
    assert torch.stack(came, 1).shape == whole.shape
    assert (torch.stack(came, 1) - whole).abs().max() < 1e-5 * max(1.0, float(whole.abs().max()))


def test_output_frames_come_as_often_as_the_strides_say_and_no_later_than_they_must() -> None:
    for name, backbone in STREAMED.items():
        module = bundle_of(backbone).module
        stream: Any = stream_of(module)
        known = [len(stream.push(torch.randn(1, 8))) for _ in range(48)]
        assert stride_of(module) == (6 if name == "rnnt" else 2)
        assert sum(known[24:]) == 24 // stride_of(module)
        assert known.index(1) + 1 == {"cnn_lstm": 5, "cnn_lstm that looks ahead": 11, "rnnt": 6}[name]


FRONT = {"features": {"kind": "log_mel", "mels": 8}, "subsampling": CONVS[:1], "heads": 2, "expansion": 2}


@pytest.mark.parametrize(
    ("backbone", "reason"),
    [
        ({**CNN, "bidirectional": True}, "LSTMs read both ways"),
        ({**RNNT, "bidirectional": True}, "encoder reads both ways"),
        ({"name": "transformer", **FRONT, "blocks": 1, "dim": 8}, "attention hears all"),
    ],
    ids=["cnn_lstm", "rnnt", "transformer"],
)
def test_a_network_that_needs_the_whole_utterance_has_no_stream_and_says_why(backbone, reason) -> None:
    bundle = bundle_of(backbone)
    assert reason in str(stream_of(bundle.module))
    assert reason in bundle.stepping()


def test_a_step_of_a_bundle_is_an_output_frame_as_long_as_its_hops() -> None:
    take, seconds = bundle_of(STREAMED["cnn_lstm"]).stepping()
    assert seconds == pytest.approx(0.02)
    assert take() is take() is None
