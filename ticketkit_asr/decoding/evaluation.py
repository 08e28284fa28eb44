"""What a recogniser writes for a split of a corpus, and how wrong that is."""

from torch import Tensor

from ticketkit import DataError
from ticketkit_asr.backbones.bundle import SpeechBundle
from ticketkit_asr.corpora.corpus import SpeechCorpus, Utterance
from ticketkit_asr.decoding.decoder import GREEDY, Decoder
from ticketkit_asr.decoding.scoring import Scored, score
from ticketkit_asr.features.hearing import Hearing, collate
from ticketkit_asr.training.batching import evaluation_batches

BATCH = 16


def evaluate_split(bundle: SpeechBundle, corpus: SpeechCorpus, split: str, *, decode: Decoder = GREEDY) -> list[Scored]:
    """Return every utterance of a split with what was recognised, in their order.

    Sound is read and decoded batch by batch, so memory does not grow with the split. Raises `DataError` naming an
    utterance that cannot be read.
    """
    utterances = corpus.split(split)
    hearing = Hearing(bundle.extractor, corpus.sample_rate, seed=0)
    recognised = [""] * len(utterances)
    device = next(bundle.module.parameters()).device
    with bundle.evaluating():
        for indices in evaluation_batches([u.audio.samples for u in utterances], batch_size=BATCH):
            features, lengths = collate([_features(hearing, utterances[i]) for i in indices])
            written = decode(bundle, features.to(device), lengths.to(device))
            for index, emissions in zip(indices, written, strict=True):
                recognised[index] = bundle.text(emissions)
    return score([u.id for u in utterances], [u.text for u in utterances], recognised)


def _features(hearing: Hearing, utterance: Utterance) -> Tensor:
    try:
        return hearing.features(utterance, None)
    except DataError as error:
        raise DataError(f"utterance {utterance.id!r} cannot be evaluated: {error}") from error
