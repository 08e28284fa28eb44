"""From clean speech to speech in a room, among talkers, in noise: the one function a trainer calls, and its sources.

What happens to an utterance is drawn from the seed, the epoch and the utterance's id: the same in whatever order, batch
or process the utterances come. Each part draws on its own, so that adding one leaves what the others draw as it was.
"""

from dataclasses import dataclass
from random import Random
from typing import Any

from torch import Tensor

from ticketkit import DataError
from ticketkit_asr.corpora.corpus import SpeechCorpus
from ticketkit_asr.sound.babble import Talkers, talkers_of
from ticketkit_asr.sound.folder import open_sounds
from ticketkit_asr.sound.noise import Noises
from ticketkit_asr.sound.options import CorruptionOptions
from ticketkit_asr.sound.rooms import Rooms


@dataclass(frozen=True, eq=False)
class Corruption:
    """What is done to the speech of one split, with the sounds it is done with, found and checked."""

    options: CorruptionOptions
    split: str
    sample_rate: int
    """The rate of the speech, in Hz."""
    room: Rooms | None
    babble: Talkers | None
    noise: Noises | None

    @property
    def passed_over(self) -> dict[str, int]:
        """How often sounds and utterances gave nothing to hear and others were drawn, in this process, by name."""
        return {
            name: count
            for part in (self.babble, self.noise)
            if part is not None
            for name, count in sorted(part.passed_over.counts.items())
        }

    def facts(self) -> dict[str, Any]:
        """Return JSON-able facts that decide what is heard, but for the corpus: options, split, sounds with digest.

        The folders themselves are left out: the same sounds elsewhere give the same facts.
        """
        options = self.options.model_dump(mode="json")
        for part in ("noise", "room"):
            if options[part] is not None:
                del options[part]["root"]
        return {
            "options": options,
            "split": self.split,
            "sample_rate": self.sample_rate,
            "noise": None if self.noise is None else self.noise.library.facts(),
            "room": None if self.room is None else self.room.library.facts(),
        }


def open_corruption(
    options: CorruptionOptions | None, corpus: SpeechCorpus, *, split: str, sample_rate: int
) -> Corruption | None:
    """Return what is done to the utterances of a split, at `sample_rate` Hz; None when the options ask for nothing.

    Noises and rooms of the test are never heard in training: `dev` hears what `train` does. Babble is the split's own.
    Raises `DataError` or `ConfigError` when sounds, types or speakers are missing.
    """
    if options is None or options.is_empty:
        return None
    room = babble = noise = None
    if options.room is not None:
        room = Rooms(options.room, open_sounds(options.room, what="room", split=split), sample_rate)
    if options.babble is not None:
        utterances = corpus.split(split)
        babble = talkers_of(utterances, options.babble, recorded_at=corpus.sample_rate, sample_rate=sample_rate)
    if options.noise is not None:
        noise = Noises(options.noise, open_sounds(options.noise, what="noise", split=split), sample_rate)
    return Corruption(options, split, sample_rate, room=room, babble=babble, noise=noise)


def corrupted(
    waveform: Tensor, corruption: Corruption | None, *, utterance_id: str, seed: int, epoch: int | None = None
) -> Tensor:
    """Return the waveform (samples,) as the corruption has it: in a room, then with babble and noise added.

    Each ratio is that of the speech in its room to the one sound added. Without an epoch the utterance is corrupted the
    same way every time, as a test set should be. The waveform itself is returned when nothing is done to it, and a new
    one otherwise, which may exceed 1. Raises `DataError` naming the utterance when it is silent or a sound fails.
    """
    if corruption is None:
        return waveform

    def drawing(part: str, probability: float) -> Random | None:
        """Return what draws for one part, or None when that leaves the utterance alone."""
        random = Random(f"{part}/{seed}/{'fixed' if epoch is None else epoch}/{utterance_id}")
        return random if random.random() < probability else None

    room, babble, noise = corruption.room, corruption.babble, corruption.noise
    try:
        speech = waveform
        if room is not None and (random := drawing("room", room.options.probability)):
            speech = room.heard(speech, random)
        mixed = speech
        if babble is not None and (random := drawing("babble", babble.options.probability)):
            mixed = mixed + babble.drawn_for(speech, random, utterance_id=utterance_id)
        if noise is not None and (random := drawing("noise", noise.options.probability)):
            mixed = mixed + noise.drawn_for(speech, random)
    except DataError as error:
        raise DataError(f"utterance {utterance_id!r}: {error}") from error
    return mixed
