"""Splits that share no speaker, where a corpus has none of its own."""

from collections import Counter
from collections.abc import Mapping, Sequence

from ticketkit_asr.corpora.assembly import rank
from ticketkit_asr.corpora.manifest import Line


def by_speaker(lines: Sequence[Line], shares: Mapping[str, float], *, seed: int) -> dict[str, list[Line]]:
    """Return the lines of `train` and of each split in `shares`, in their order; no speaker is in two of them.

    Speakers are taken in an order that depends on the seed and their names alone. Each split of `shares` in turn takes
    speakers until it has at least its share of the lines (none for a share of 0); train has those that are left.
    """
    counts = Counter(line.speaker for line in lines)
    speakers = iter(sorted(counts, key=lambda speaker: rank(seed, speaker)))
    split_of = {}
    for split, share in shares.items():
        taken = 0
        while taken < share * len(lines) and (speaker := next(speakers, None)) is not None:
            split_of[speaker] = split
            taken += counts[speaker]
    splits: dict[str, list[Line]] = {split: [] for split in ("train", *shares)}
    for line in lines:
        splits[split_of.get(line.speaker, "train")].append(line)
    return splits
