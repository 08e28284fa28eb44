"""The hook implementations, and nothing heavy until an entry is called."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from ticketkit import hookimpl
from ticketkit_whisper.options import Seq2SeqOptions, WhisperOptions

if TYPE_CHECKING:
    from ticketkit import Ticket
    from ticketkit_whisper.bundle import WhisperBundle
    from ticketkit_whisper.examples import SpeechCorpus
    from ticketkit_whisper.trainer import Seq2SeqTrainer

Register = Callable[..., None]


@hookimpl
def ticketkit_register_backbones(register: Register) -> None:
    """Register the recogniser."""
    register("whisper", whisper, options=WhisperOptions)


@hookimpl
def ticketkit_register_trainers(register: Register) -> None:
    """Register the trainer."""
    register("whisper_seq2seq", whisper_seq2seq, options=Seq2SeqOptions)


@hookimpl
def ticketkit_register_exporters(register: Register) -> None:
    """Register the form in which a pruned recogniser is shipped."""
    register("hf_folder", hf_folder)


def whisper(*, options: WhisperOptions) -> "WhisperBundle":
    """Whisper (Radford et al. 2022) of Hugging Face transformers, small and random or from a local folder."""
    from ticketkit_whisper.bundle import build_whisper

    return build_whisper(options=options)


def whisper_seq2seq(
    bundle: "WhisperBundle", corpus: "SpeechCorpus", *, seed: int, options: Seq2SeqOptions
) -> "Seq2SeqTrainer":
    """Cross-entropy on characters with AdamW, epochs chosen on dev."""
    from ticketkit_whisper.trainer import Seq2SeqTrainer

    return Seq2SeqTrainer(bundle, corpus, seed=seed, options=options)


def hf_folder(bundle: "WhisperBundle", ticket: "Ticket", directory: Path) -> None:
    """A folder that `WhisperForConditionalGeneration.from_pretrained` loads, with a model card; pruned weights zero."""
    from ticketkit_whisper.folder import write_folder

    write_folder(bundle, ticket, directory)
