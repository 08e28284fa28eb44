"""Layers that compute with 8-bit integers: torch's dynamic quantisation of what is still one of torch's layers."""

import warnings
from typing import Any

import torch
from torch import nn

from ticketkit.names import named_modules
from ticketkit.runtime.choosing import read_by_their_owner

QUANTISED = (nn.Linear, nn.LSTM, nn.GRU)


def quantised_(module: nn.Module) -> nn.Module:
    """Let linear and recurrent layers of a module compute with weights of 8 bits and inputs quantised as they come.

    In place, in evaluation mode, on the CPU. Stand-ins over sparse and compacted matrices are left as they are, and so
    are layers whose weights torch reads past them, in the fused path of its Transformer encoder.
    """
    read = read_by_their_owner(module)
    chosen = {path for path, layer in named_modules(module) if type(layer) in QUANTISED and path not in read}
    if not chosen:
        return module
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch moves this to another package, and says so at every layer
        quantise: Any = torch.ao.quantization.quantize_dynamic
        found: nn.Module = quantise(module, chosen, dtype=torch.qint8, inplace=True)
    return found
