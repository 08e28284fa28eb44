"""Whisper with all that belongs to it: network, features, labels, loss and decoding."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from ticketkit import DataError
from ticketkit_whisper.library import transformers
from ticketkit_whisper.options import WhisperOptions, WhisperSizes
from ticketkit_whisper.sound import SAMPLE_RATE
from ticketkit_whisper.text import END, PAD, START, Characters

_POSITIONS_A_SECOND = 50  # a frame every 10 ms, halved by the encoder's second convolution
_IGNORED = -100
_WRITTEN = "ticketkit_characters"  # ours in config.json: two alphabets of one size are told apart


@dataclass(frozen=True, eq=False)
class WhisperBundle:
    """A `WhisperForConditionalGeneration`, what turns sound into its input, and its output into text."""

    module: nn.Module
    extractor: Any
    characters: Characters
    samples: int
    """How much sound the encoder hears, in samples at `sample_rate`."""
    longest: int
    """The most labels that the decoder writes, the end included."""
    sample_rate: int = SAMPLE_RATE

    def features(self, waveform: Tensor) -> Tensor:
        """Return the log-mel spectrogram (mels, frames) of a waveform (samples,), padded with silence to `samples`.

        Raises `DataError` for a waveform that is longer.
        """
        if len(waveform) > self.samples:
            raise DataError(
                f"{len(waveform) / self.sample_rate:.2f} s of sound came; this Whisper hears "
                f"{self.samples / self.sample_rate:g} s; leave the utterance out, or choose a network that hears more"
            )
        found = self.extractor(
            waveform.numpy(),
            sampling_rate=self.sample_rate,
            padding="max_length",
            max_length=self.samples,
            return_tensors="pt",
        )
        features: Tensor = found["input_features"][0]
        return features

    def losses(self, module: nn.Module, features: Tensor, targets: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Return the cross-entropy of each utterance, in nats summed over its labels, and the number of those.

        `features` is (batch, mels, frames); targets are labels without start and end. Both results are (batch,).
        """
        counts = torch.tensor([len(target) + 1 for target in targets], device=features.device)
        inputs = torch.full((len(targets), int(counts.max())), PAD)
        expected = torch.full_like(inputs, _IGNORED)
        for row, target in enumerate(targets):
            inputs[row, : len(target) + 1] = torch.cat([torch.tensor([START]), target])
            expected[row, : len(target) + 1] = torch.cat([target, torch.tensor([END])])
        output = module(
            input_features=features, decoder_input_ids=inputs.to(features.device), use_cache=False, return_dict=True
        )
        nats = cross_entropy(
            output.logits.transpose(1, 2), expected.to(features.device), ignore_index=_IGNORED, reduction="none"
        )
        return nats.sum(1), counts

    def transcribe(self, features: Tensor) -> list[str]:
        """Return the text of each utterance of (batch, mels, frames): the likeliest label each time, until the end."""
        module: Any = self.module
        with torch.no_grad():
            heard = module.get_encoder()(features)
            label = torch.full((len(features), 1), START, device=features.device)
            written, past, ended = [], None, torch.zeros(len(features), dtype=torch.bool, device=features.device)
            for _ in range(self.longest):
                output = module(
                    encoder_outputs=heard,
                    decoder_input_ids=label,
                    past_key_values=past,
                    use_cache=True,
                    return_dict=True,
                )
                label, past = output.logits[:, -1:].argmax(-1), output.past_key_values
                written.append(label)
                ended |= label[:, 0] == END
                if ended.all():
                    break
        return [self.characters.decode(labels) for labels in torch.cat(written, 1).tolist()]


def build_whisper(*, options: WhisperOptions) -> WhisperBundle:
    """Return a Whisper with its features and labels; random weights come from torch's global generator.

    Raises `DataError` when transformers is missing, or `path` holds no Whisper or one with other labels.
    """
    library, characters = transformers(), Characters(options.characters)
    if options.path is None:
        config = library.WhisperConfig(**_settings(options.config or WhisperSizes(), characters))
        module = library.WhisperForConditionalGeneration._from_config(config, attn_implementation="eager")
    else:
        module = _from_folder(options, characters, library)
    config = module.config
    seconds = config.max_source_positions / _POSITIONS_A_SECOND
    samples = round(seconds * SAMPLE_RATE)
    extractor = library.WhisperFeatureExtractor(feature_size=config.num_mel_bins, chunk_length=-int(-seconds // 1))
    return WhisperBundle(module, extractor, characters, samples, config.max_target_positions)


def _settings(sizes: WhisperSizes, characters: Characters) -> dict[str, Any]:
    """Return the settings of a `WhisperConfig`."""
    return {
        **_labels(characters),
        "d_model": sizes.width,
        "encoder_layers": sizes.encoder_layers,
        "decoder_layers": sizes.decoder_layers,
        "encoder_attention_heads": sizes.heads,
        "decoder_attention_heads": sizes.heads,
        "encoder_ffn_dim": sizes.feedforward,
        "decoder_ffn_dim": sizes.feedforward,
        "num_mel_bins": sizes.mels,
        "max_source_positions": sizes.seconds * _POSITIONS_A_SECOND,
        "max_target_positions": sizes.labels,
        "dropout": sizes.dropout,
    }


def _labels(characters: Characters) -> dict[str, Any]:
    """Return those settings of a `WhisperConfig` that say what its labels are."""
    return {
        _WRITTEN: characters.written,
        "vocab_size": characters.size,
        "pad_token_id": PAD,
        "bos_token_id": START,
        "decoder_start_token_id": START,
        "eos_token_id": END,
        "suppress_tokens": None,
        "begin_suppress_tokens": None,
    }


def _from_folder(options: WhisperOptions, characters: Characters, library: Any) -> Any:
    """Return the network in a folder, in float32; without a pickle, without a download."""
    path = options.path
    try:
        stored = json.loads((path / "config.json").read_text(encoding="utf-8"))  # type: ignore[operator]
        kind, vocabulary = stored.get("model_type"), stored.get("vocab_size")
    except (OSError, ValueError, AttributeError) as error:
        raise DataError(
            f"backbone 'whisper': path {path} holds no readable config.json ({error}); "
            "give a folder that save_pretrained wrote"
        ) from error
    if kind != "whisper":
        raise DataError(f"backbone 'whisper': path {path} holds a network of the kind {kind!r}; 'whisper' is needed")
    relabelled = vocabulary != characters.size or stored.get(_WRITTEN, characters.written) != characters.written
    if relabelled and not options.new_labels:
        raise DataError(
            f"backbone 'whisper': the network in {path} has {vocabulary} labels (characters {stored.get(_WRITTEN)!r}), "
            f"the option characters gives {characters.size} ({characters.written!r}); give the characters it was "
            "trained on, or set new_labels: true to learn a new table"
        )
    try:
        module = library.WhisperForConditionalGeneration.from_pretrained(
            str(path),
            local_files_only=True,
            use_safetensors=True,
            dtype=torch.float32,
            attn_implementation="eager",
            ignore_mismatched_sizes=relabelled,
            **(_labels(characters) if relabelled else {}),
        ).train()
    except (OSError, ValueError, RuntimeError) as error:
        raise DataError(f"backbone 'whisper': the network in {path} cannot be loaded: {error}") from error
    if relabelled:
        with torch.no_grad():
            module.get_input_embeddings().weight.normal_(0.0, module.config.init_std)
    return module
