"""The speech plugin of ticketkit: the only hook implementations, and nothing heavy until an entry is called."""

from collections.abc import Callable
from typing import TYPE_CHECKING

from ticketkit import hookimpl

if TYPE_CHECKING:
    from ticketkit_asr.backbones.bundle import CtcBundle
    from ticketkit_asr.backbones.options import CnnLstmOptions
    from ticketkit_asr.corpora.corpus import SpeechCorpus
    from ticketkit_asr.trainer import CtcTrainer
    from ticketkit_asr.trainer_options import CtcOptions

Register = Callable[..., None]


@hookimpl
def ticketkit_register_backbones(register: Register) -> None:
    """Register the recognisers."""
    from ticketkit_asr.backbones.options import CnnLstmOptions

    register("cnn_lstm", cnn_lstm, options=CnnLstmOptions)


@hookimpl
def ticketkit_register_corpora(register: Register) -> None:
    """Register the corpora."""
    from ticketkit_asr.corpora.fsdd import FsddOptions, open_fsdd
    from ticketkit_asr.corpora.spoken_digits import SpokenDigitsOptions, open_spoken_digits

    register("fsdd", open_fsdd, options=FsddOptions)
    register("spoken_digits", open_spoken_digits, options=SpokenDigitsOptions)


@hookimpl
def ticketkit_register_trainers(register: Register) -> None:
    """Register the trainers."""
    from ticketkit_asr.trainer_options import CtcOptions

    register("ctc", ctc, options=CtcOptions)


def cnn_lstm(*, options: "CnnLstmOptions") -> "CtcBundle":
    """The paper's CNN-LSTM for CTC, at the paper's size or smaller."""
    from ticketkit_asr.backbones.cnn_lstm import build_cnn_lstm

    return build_cnn_lstm(options=options)


def ctc(bundle: "CtcBundle", corpus: "SpeechCorpus", *, seed: int, options: "CtcOptions") -> "CtcTrainer":
    """CTC training with AdamW, epochs chosen on dev."""
    from ticketkit_asr.trainer import CtcTrainer

    return CtcTrainer(bundle, corpus, seed=seed, options=options)
