"""Connected digits spoken by espeak-ng: a corpus without a download, whose test voices nobody trained on."""

from collections.abc import Sequence
from dataclasses import asdict
from itertools import cycle, islice
from pathlib import Path
from random import Random
from typing import Annotated

from pydantic import Field, PositiveInt, model_validator

from ticketkit_asr.corpora.cache import cached_recordings, default_cache_dir, digest
from ticketkit_asr.corpora.corpus import SPLITS, InMemory, SpeechCorpus, Utterance
from ticketkit_asr.corpora.digits import WORDS, ConnectedDigitsOptions
from ticketkit_asr.corpora.espeak import SAMPLE_RATE, Prompt, speaker_facts, synthesise
from ticketkit_asr.sound.audio import Pcm, from_pcm

_Pitch = Annotated[int, Field(ge=0, le=99)]

ACCENTS = (
    "en",
    "en-029",
    "en-gb-scotland",
    "en-gb-x-gbclan",
    "en-gb-x-gbcwmd",
    "en-gb-x-rp",
    "en-us",
    "en-us-nyc",
)
"""espeak-ng's English accents."""

_NAMES = """
    Alex Alicia Andy Annie Denis Diogo Gene Gene2 Henrique Jacky Lee Marco Mario Michael Mike Nguyen Reed Storm adam
    announcer aunty belinda boris caleb david ed edward f1 f2 f3 f4 f5 gustave ian iven iven2 iven3 iven4 john
    kaukovalta klatt klatt2 klatt3 klatt4 linda m1 m2 m3 m4 m5 m6 m7 m8 marcelo max miguel mike2 norbert pablo paul
    quincy rob robert sandro shelby steph travis victor zac
"""
VARIANTS = tuple(_NAMES.split())
"""espeak-ng's voice variants, chosen by hand.

Left out are robots, whispers and caricatures by their names; variants that speak a fifth faster than they are told (by
length); those that match another one sample by sample (r > 0.9); and the RicishayMax family, poorly recognised on dev.
"""


class SpokenDigitsOptions(ConnectedDigitsOptions):
    """How many voices are held out, how they speak, and where the sound is kept."""

    dev_voices: PositiveInt = 10
    """Voice variants heard in dev alone."""
    test_voices: PositiveInt = 15
    """Voice variants heard in test alone; the rest of the `VARIANTS` train."""
    speed: tuple[PositiveInt, PositiveInt] = (110, 160)
    """The slowest and the fastest speech, in words a minute."""
    pitch: tuple[_Pitch, _Pitch] = (30, 70)
    """The lowest and the highest pitch, on espeak-ng's scale from 0 to 99."""
    cache_dir: Path | None = None
    """Where the sound is kept for the next run; by default the user's cache folder."""

    @model_validator(mode="after")
    def _check(self) -> "SpokenDigitsOptions":
        for name, (low, high) in {"speed": self.speed, "pitch": self.pitch}.items():
            if low > high:
                raise ValueError(f"{name} has the lower number first; got {low}, {high}")
        if self.dev_voices + self.test_voices >= len(VARIANTS):
            raise ValueError(
                f"dev_voices {self.dev_voices} and test_voices {self.test_voices} leave none of the {len(VARIANTS)} "
                "voices to train on"
            )
        return self


def open_spoken_digits(*, options: SpokenDigitsOptions) -> SpeechCorpus:
    """Connected digits spoken by espeak-ng, without a download; test voices are heard nowhere else.

    Spoken at the first call, read from the cache from then on.
    Raises `DataError` when espeak-ng is needed and not installed.
    """
    plan = {split: prompts(split, options) for split in SPLITS}
    spoken = iter(_recordings([prompt for split in plan.values() for prompt in split], options.cache_dir))
    splits = {split: [_utterance(split, i, p, next(spoken)) for i, p in enumerate(plan[split])] for split in SPLITS}
    return SpeechCorpus(name="spoken_digits", sample_rate=SAMPLE_RATE, splits=splits)


def voices(split: str, options: SpokenDigitsOptions) -> list[str]:
    """Return the voice variants of a split; no two splits share one."""
    shuffled = Random(f"spoken_digits/{options.seed}/voices").sample(VARIANTS, len(VARIANTS))
    held_out = options.test_voices + options.dev_voices
    return {
        "test": shuffled[: options.test_voices],
        "dev": shuffled[options.test_voices : held_out],
        "train": shuffled[held_out:],
    }[split]


def prompts(split: str, options: SpokenDigitsOptions) -> list[Prompt]:
    """Return what is said in a split, and how: variants in turn, all else drawn by the corpus' own seed."""
    random = Random(f"spoken_digits/{options.seed}/{split}")
    variants = islice(cycle(voices(split, options)), options.utterances(split))
    return [_prompt(variant, random, options) for variant in variants]


def _prompt(variant: str, random: Random, options: SpokenDigitsOptions) -> Prompt:
    words = random.choices(WORDS, k=random.randint(*options.digits))
    return Prompt(
        voice=f"{random.choice(ACCENTS)}+{variant}",
        text=" ".join(words).lower(),
        speed=random.randint(*options.speed),
        pitch=random.randint(*options.pitch),
    )


def _recordings(prompts: Sequence[Prompt], cache_dir: Path | None) -> list[Pcm]:
    """Return the sound of each prompt, from the cache where it is there."""
    recipe = {**speaker_facts(), "prompts": [asdict(prompt) for prompt in prompts]}
    path = (cache_dir or default_cache_dir()) / f"spoken_digits-{digest(recipe)[:16]}.safetensors"
    return cached_recordings(path, recipe, lambda: synthesise(prompts))


def _utterance(split: str, index: int, prompt: Prompt, pcm: Pcm) -> Utterance:
    audio = InMemory(from_pcm(pcm))
    return Utterance(id=f"{split}-{index:05d}", audio=audio, text=prompt.text.upper(), speaker=prompt.voice)
