"""torchaudio's compiled kernel of the RNN-T loss, where its extension loads."""

import torch
from torch import Tensor

from ticketkit import DataError
from ticketkit_asr.torchaudio_shim import torchaudio


def kernel_loads() -> bool:
    """Say whether torchaudio is there with a compiled part that fits this torch."""
    try:
        torchaudio()
    except (DataError, OSError, RuntimeError):
        return False
    from torchaudio._extension import _IS_TORCHAUDIO_EXT_AVAILABLE

    return bool(_IS_TORCHAUDIO_EXT_AVAILABLE)


def kernel_takes(logits: Tensor) -> bool:
    """Say whether the kernel is the better choice: finite float32 logits on a GPU.

    It refuses float64 and bfloat16, computes float16 in float16, returns NaN for logits of -inf, and on a CPU takes
    several times as long as ours.
    """
    return logits.is_cuda and logits.dtype == torch.float32 and bool(logits.isfinite().all()) and kernel_loads()


def torchaudio_rnnt_loss(
    logits: Tensor, targets: Tensor, logit_lengths: Tensor, target_lengths: Tensor, blank: int = 0
) -> Tensor:
    """Return what `rnnt_loss` does, of float32 logits, by torchaudio's kernel.

    The kernel refuses padding beyond the longest utterance and the longest target: it is cut off first.
    """
    frames, labels = int(logit_lengths.max()), int(target_lengths.max())
    loss: Tensor = torchaudio().functional.rnnt_loss(
        logits[:, :frames, : labels + 1].contiguous(),
        targets[:, :labels].int().contiguous(),
        logit_lengths.to(logits.device, torch.int32),
        target_lengths.to(logits.device, torch.int32),
        blank=blank,
        reduction="none",
    )
    return loss
