"""Which labels a recogniser writes, as its options say."""

from ticketkit_asr.backbones.options import LabelOptions
from ticketkit_asr.text.alphabet import ENGLISH, Alphabet, Characters
from ticketkit_asr.text.bpe import load_pieces


def alphabet_of(options: LabelOptions) -> Alphabet:
    """Return the labels: pieces of words, characters of your own, or the paper's; raises `DataError` for a bad file."""
    if options.bpe is not None:
        return load_pieces(options.bpe)
    return ENGLISH if options.characters is None else Characters(options.characters)
