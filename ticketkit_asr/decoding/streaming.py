"""Networks that write while they listen: feature frames in, one after another, output frames out as they are heard.

What comes out is what the network computes of the whole utterance, as many frames late as it looks ahead. Layers are
called as they are, so that an export is streamed by its own.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from copy import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import hardtanh

from ticketkit_asr.backbones.cnn_lstm import CnnLstm, SummedBiLstm
from ticketkit_asr.backbones.rnnt import EncoderLayer, Rnnt


class Stage(ABC):
    """Takes frames (batch, ...) one at a time and returns those that it can tell of them."""

    @abstractmethod
    def push(self, frame: Tensor) -> list[Tensor]:
        """Return the frames that are known now: mostly one, or none."""

    def end(self) -> list[Tensor]:
        """Return the frames that were still to come when the utterance ended."""
        return []


class Stream:
    """Stages one behind another."""

    def __init__(self, stages: list[Stage]) -> None:
        self._stages = stages

    @torch.no_grad()
    def push(self, frame: Tensor) -> list[Tensor]:
        """Return output frames (batch, ...) that are known after a frame (batch, bins)."""
        return self._through([frame], self._stages)

    @torch.no_grad()
    def end(self) -> list[Tensor]:
        """Return the output frames that were still to come; nothing may be pushed any more."""
        frames: list[Tensor] = []
        for place, stage in enumerate(self._stages):
            frames += self._through(stage.end(), self._stages[place + 1 :])
        return frames

    @staticmethod
    def _through(frames: list[Tensor], stages: list[Stage]) -> list[Tensor]:
        for stage in stages:
            frames = [made for frame in frames for made in stage.push(frame)]
        return frames


def stream_of(module: Any) -> Stream | str:
    """Return a stream through a network in evaluation mode that begins an utterance, or why there is none."""
    if isinstance(module, CnnLstm):
        if any(isinstance(lstm, SummedBiLstm) for lstm in module.lstms):
            return "its LSTMs read both ways, from the utterance's end too"
        ahead = [] if module.lookahead is None else [_Lookahead(module.lookahead)]
        return Stream([*map(_Convolved, module.convs), _Recurrent(module), *ahead, _Scored(module)])
    if isinstance(module, Rnnt):
        if any(isinstance(layer.lstm, SummedBiLstm) for layer in module.encoder):
            return "its encoder reads both ways, from the utterance's end too"
        return Stream([*map(_Stacked, module.encoder), _Joined(module)])
    return "its attention hears all of an utterance at once"


def stride_of(module: CnnLstm | Rnnt) -> int:
    """Return how many feature frames a network makes one output frame of."""
    if isinstance(module, CnnLstm):
        strides = [block.conv.stride[1] for block in module.convs]  # type: ignore[index]
    else:
        strides = [layer.stack for layer in module.encoder]
    product = 1
    for stride in strides:
        product *= int(stride)
    return product


class _Windows(Stage):
    """Frames with as many before and behind them as a kernel spans, zeros beyond both ends."""

    def __init__(self, before: int, behind: int, stride: int) -> None:
        self._kept: list[Tensor] = []
        self._before, self._size, self._stride = before, before + 1 + behind, stride
        self._behind, self._pushed = behind, 0

    def push(self, frame: Tensor) -> list[Tensor]:
        """Return what is computed of the window that the frame completes, if one begins there."""
        if not self._kept:
            self._kept = [torch.zeros_like(frame)] * self._before
        self._kept = [*self._kept, frame][-self._size :]
        self._pushed += 1
        centre = self._pushed - 1 - self._behind
        if centre < 0 or centre % self._stride:
            return []
        return [self.computed(torch.stack(self._kept, -1))]

    def end(self) -> list[Tensor]:
        """Return what is computed of the windows that reach beyond the last frame."""
        silent = torch.zeros_like(self._kept[-1]) if self._kept else None
        return [made for _ in range(self._behind) if silent is not None for made in self.push(silent)]

    @abstractmethod
    def computed(self, window: Tensor) -> Tensor:
        """Return one frame of a window (batch, ..., size)."""


def _stepping(lstm: Any) -> Callable[[Tensor, Any], tuple[Tensor, Any]]:
    """Return what takes an LSTM layer of one direction from (batch, width) and a state to (batch, units) and the next.

    torch's own goes through its cell: nn.LSTM lays its weights out anew at every call, ten times a step's time.
    """
    if type(lstm) is not nn.LSTM:

        def step(x: Tensor, state: Any) -> tuple[Tensor, Any]:
            y, state = lstm(x[None], state)
            return y[0], state

        return step
    cell = nn.LSTMCell(lstm.input_size, lstm.hidden_size, bias=lstm.bias, device="meta")
    for name, _ in list(cell.named_parameters()):
        setattr(cell, name, getattr(lstm, f"{name}_l0"))

    def cell_step(x: Tensor, state: Any) -> tuple[Tensor, Any]:
        state = cell(x, state)
        return state[0], state

    return cell_step


class _Convolved(_Windows):
    """Frames (batch, bins) or (batch, channels, bins) through a block's convolution, norm and Hardtanh."""

    def __init__(self, block: Any) -> None:
        kernel, stride = int(block.conv.kernel_size[1]), int(block.conv.stride[1])
        super().__init__(kernel // 2, kernel // 2, stride)
        self._norm, self._conv = block.norm, copy(block.conv)
        self._conv.padding = (block.conv.padding[0], 0)
        self._conv.stride = (block.conv.stride[0], 1)

    def computed(self, window: Tensor) -> Tensor:
        """Return (batch, channels, bins)."""
        maps = self._conv(window if window.dim() == 4 else window[:, None])[..., 0]
        return hardtanh(self._norm(maps), 0.0, 20.0)


class _Recurrent(Stage):
    """Frames (batch, channels, bins) through the LSTMs and the norms between them."""

    def __init__(self, module: CnnLstm) -> None:
        self._layers = list(zip([None, *module.norms], map(_stepping, module.lstms), strict=True))
        self._states: list[Any] = [None] * len(self._layers)

    def push(self, frame: Tensor) -> list[Tensor]:
        """Return (batch, hidden)."""
        x = frame.flatten(1)
        for place, (norm, lstm) in enumerate(self._layers):
            x = x if norm is None else norm(x)
            x, self._states[place] = lstm(x, self._states[place])
        return [x]


class _Lookahead(_Windows):
    """Frames (batch, channels) through the lookahead convolution."""

    def __init__(self, lookahead: Any) -> None:
        super().__init__(0, int(lookahead.conv.kernel_size[0]) - 1, 1)
        self._conv = lookahead.conv

    def computed(self, window: Tensor) -> Tensor:
        """Return (batch, channels)."""
        return hardtanh(self._conv(window)[..., 0], 0.0, 20.0)


class _Scored(Stage):
    """Frames (batch, hidden) to scores of labels."""

    def __init__(self, module: CnnLstm) -> None:
        self._norm, self._output = module.output_norm, module.output

    def push(self, frame: Tensor) -> list[Tensor]:
        """Return (batch, labels)."""
        return [self._output(self._norm(frame))]


class _Stacked(Stage):
    """Frames (batch, width) joined, through an LSTM layer and its norm."""

    def __init__(self, layer: Any) -> None:
        self._layer: EncoderLayer = layer
        self._lstm = _stepping(layer.lstm)
        self._waiting: list[Tensor] = []
        self._state: Any = None

    def push(self, frame: Tensor) -> list[Tensor]:
        """Return (batch, hidden) for each whole stack."""
        self._waiting.append(frame)
        if len(self._waiting) < self._layer.stack:
            return []
        joined, self._waiting = torch.cat(self._waiting, -1), []
        x, self._state = self._lstm(joined, self._state)
        return [self._layer.norm(x)]

    def end(self) -> list[Tensor]:
        """Return the state of the last stack, filled up with zeros."""
        if not self._waiting:
            return []
        silent = torch.zeros_like(self._waiting[0])
        return [made for _ in range(self._layer.stack - len(self._waiting)) for made in self.push(silent)]


class _Joined(Stage):
    """Encoder states (batch, hidden) to scores of what follows where nothing has been written yet."""

    def __init__(self, module: Rnnt) -> None:
        self._module = module
        self._predicted: Tensor | None = None

    def push(self, frame: Tensor) -> list[Tensor]:
        """Return (batch, labels)."""
        if self._predicted is None:
            start = torch.full((len(frame), 1), self._module.blank, device=frame.device)
            self._predicted = self._module.predict(start)[0][:, 0]
        return [self._module.join(frame, self._predicted)]
