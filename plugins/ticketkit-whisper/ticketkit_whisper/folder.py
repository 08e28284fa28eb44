"""A pruned Whisper as a folder that transformers loads, with a model card that says where it comes from."""

from pathlib import Path
from typing import Any

from ticketkit import ConfigError, Ticket, TicketFacts
from ticketkit_whisper.bundle import WhisperBundle
from ticketkit_whisper.library import transformers
from ticketkit_whisper.text import END

CARD = """\
---
library_name: transformers
pipeline_tag: automatic-speech-recognition
tags: [whisper, pruned, lottery-ticket, ticketkit]
---
# A pruned Whisper

A Whisper of {encoder} encoder and {decoder} decoder layers, {width} wide, that keeps {kept:,} of {total:,} weights in
scope ({density:.1%}). Pruned weights are zero in `model.safetensors`; `mask.safetensors` says which they are:

```sh
ticketkit verify mask.safetensors --model model.safetensors
```

It hears up to {seconds:g} s of sound at {rate:,} Hz and writes characters, of which label {first} is the first:

```python
import numpy as np
from transformers import WhisperFeatureExtractor, WhisperForConditionalGeneration

folder = "."
model = WhisperForConditionalGeneration.from_pretrained(folder, local_files_only=True)
extractor = WhisperFeatureExtractor.from_pretrained(folder, local_files_only=True)
sound = np.zeros({rate}, dtype=np.float32)  # yours
features = extractor(sound, sampling_rate={rate}, max_length={samples}, return_tensors="pt").input_features
labels = model.generate(features)[0].tolist()
labels = labels[: labels.index({end})] if {end} in labels else labels
print("".join(model.config.ticketkit_characters[label - {first}] for label in labels if label >= {first}))
```

## Where it comes from

| | |
| --- | --- |
{provenance}
"""


def write_folder(bundle: Any, ticket: Ticket, directory: Path) -> None:
    """Write network, features, mask and model card of a trained Whisper into a directory.

    `WhisperForConditionalGeneration.from_pretrained(directory)` gives the network, whose `generate` writes the labels
    that `bundle.transcribe` reads. Raises `ConfigError` for the bundle of another backbone.
    """
    if not isinstance(bundle, WhisperBundle):
        raise ConfigError(
            f"exporter 'hf_folder' writes what the backbone 'whisper' builds, and this run has a "
            f"{type(bundle.module).__name__} of another; the exporter 'weights' takes any"
        )
    module: Any = bundle.module
    module.save_pretrained(directory)
    generation = transformers().GenerationConfig.from_model_config(module.config)
    generation.max_length = bundle.longest
    generation.save_pretrained(directory)
    bundle.extractor.save_pretrained(directory)
    Ticket(ticket.mask, facts=ticket.facts).save(directory / "mask.safetensors", compact=True)
    (directory / "README.md").write_text(model_card(bundle, ticket), encoding="utf-8")


def model_card(bundle: WhisperBundle, ticket: Ticket) -> str:
    """Return the model card, in Markdown: what the network is, how it is used, and where it comes from."""
    config: Any = bundle.module.config
    return CARD.format(
        encoder=config.encoder_layers,
        decoder=config.decoder_layers,
        width=config.d_model,
        kept=ticket.mask.kept,
        total=ticket.mask.total,
        density=ticket.mask.density,
        seconds=bundle.samples / bundle.sample_rate,
        rate=bundle.sample_rate,
        samples=bundle.samples,
        first=END + 1,
        end=END,
        provenance="\n".join(f"| {name} | {value} |" for name, value in provenance(ticket).items()),
    )


def provenance(ticket: Ticket) -> dict[str, str]:
    """Return what is known of a ticket's origin, by name, as a reader sees it."""
    facts = ticket.facts
    known = {
        "round": facts.round,
        "seed": facts.seed,
        "rewind": facts.rewind,
        **{part: _entry(facts, part) for part in ("criterion", "granularity", "schedule", "allocation")},
        **{f"{name} on dev": f"{value:.4g}" for name, value in facts.metrics.items()},
        "mask digest": ticket.mask.digest,
        "ticket digest": ticket.digest,
    }
    return {name: str(value) for name, value in known.items() if value is not None}


def _entry(facts: TicketFacts, part: str) -> str | None:
    """Return `plugin:name version` and the options that are not the default, if the ticket says what was chosen."""
    chosen = getattr(facts, part)
    if chosen is None:
        return None
    options = ", ".join(f"{name}={value!r}" for name, value in chosen.options.items())
    return f"`{chosen.entry}` {chosen.version}" + (f" ({options})" if options else "")
