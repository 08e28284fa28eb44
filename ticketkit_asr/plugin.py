"""The speech plugin of ticketkit: the only hook implementations, and nothing heavy until an entry is called."""

from collections.abc import Callable
from typing import TYPE_CHECKING

from ticketkit import hookimpl

if TYPE_CHECKING:
    import typer

    from ticketkit_asr.backbones.bundle import SpeechBundle
    from ticketkit_asr.backbones.options import CnnLstmOptions
    from ticketkit_asr.backbones.rnnt_options import RnntOptions
    from ticketkit_asr.backbones.transformer_options import ConformerOptions, TransformerOptions
    from ticketkit_asr.corpora.corpus import SpeechCorpus
    from ticketkit_asr.training.options import TrainerOptions
    from ticketkit_asr.training.trainer import SpeechTrainer

Register = Callable[..., None]


@hookimpl
def ticketkit_register_backbones(register: Register) -> None:
    """Register the recognisers."""
    from ticketkit_asr.backbones.options import CnnLstmOptions
    from ticketkit_asr.backbones.rnnt_options import RnntOptions
    from ticketkit_asr.backbones.transformer_options import ConformerOptions, TransformerOptions

    register("cnn_lstm", cnn_lstm, options=CnnLstmOptions)
    register("rnnt", rnnt, options=RnntOptions)
    register("conformer", conformer, options=ConformerOptions)
    register("transformer", transformer, options=TransformerOptions)


@hookimpl
def ticketkit_register_corpora(register: Register) -> None:
    """Register the corpora."""
    from ticketkit_asr.corpora.an4 import An4Options, open_an4
    from ticketkit_asr.corpora.common_voice import CommonVoiceOptions, open_common_voice
    from ticketkit_asr.corpora.fsdd import FsddOptions, open_fsdd
    from ticketkit_asr.corpora.librispeech import LibriSpeechOptions, open_librispeech
    from ticketkit_asr.corpora.manifest_corpus import ManifestOptions, open_manifest
    from ticketkit_asr.corpora.spoken_digits import SpokenDigitsOptions, open_spoken_digits
    from ticketkit_asr.corpora.tedlium import TedLiumOptions, open_tedlium

    register("an4", open_an4, options=An4Options)
    register("common_voice", open_common_voice, options=CommonVoiceOptions)
    register("fsdd", open_fsdd, options=FsddOptions)
    register("librispeech", open_librispeech, options=LibriSpeechOptions)
    register("manifest", open_manifest, options=ManifestOptions)
    register("spoken_digits", open_spoken_digits, options=SpokenDigitsOptions)
    register("tedlium", open_tedlium, options=TedLiumOptions)


@hookimpl
def ticketkit_register_trainers(register: Register) -> None:
    """Register the trainer."""
    from ticketkit_asr.training.options import TrainerOptions

    register("asr", asr, options=TrainerOptions)


@hookimpl
def ticketkit_register_commands(cli: "typer.Typer") -> None:
    """Add `ticketkit asr`."""
    from ticketkit_asr.commands import app

    cli.add_typer(app, name="asr")


def cnn_lstm(*, options: "CnnLstmOptions") -> "SpeechBundle":
    """The paper's CNN-LSTM for CTC, at the paper's size or smaller."""
    from ticketkit_asr.backbones.cnn_lstm import build_cnn_lstm

    return build_cnn_lstm(options=options)


def rnnt(*, options: "RnntOptions") -> "SpeechBundle":
    """An RNN transducer: LSTM encoder with time reduction, LSTM predictor, joiner."""
    from ticketkit_asr.backbones.rnnt import build_rnnt

    return build_rnnt(options=options)


def conformer(*, options: "ConformerOptions") -> "SpeechBundle":
    """A Conformer for CTC with relative positions, shortened on its way (Efficient Conformer)."""
    from ticketkit_asr.backbones.conformer import build_conformer

    return build_conformer(options=options)


def transformer(*, options: "TransformerOptions") -> "SpeechBundle":
    """A plain Transformer encoder for CTC."""
    from ticketkit_asr.backbones.transformer import build_transformer

    return build_transformer(options=options)


def asr(bundle: "SpeechBundle", corpus: "SpeechCorpus", *, seed: int, options: "TrainerOptions") -> "SpeechTrainer":
    """Training of any recogniser, epochs chosen on dev; goes on in the middle of a round."""
    from ticketkit_asr.training.trainer import SpeechTrainer

    return SpeechTrainer(bundle, corpus, seed=seed, options=options)
