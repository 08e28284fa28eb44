from hypothesis import given
from hypothesis import strategies as st

from ticketkit_asr.corpora.held_out import by_speaker
from ticketkit_asr.corpora.manifest import Line

counts = st.dictionaries(st.text(max_size=5), st.integers(1, 20), min_size=1, max_size=12)
shares = st.integers(0, 90).map(lambda percent: percent / 100)


def lines_of(counts):
    return [Line(f"{who}/{n}", "a", "x", who or "?") for who, count in counts.items() for n in range(count)]


@given(counts, shares, shares, st.integers(0, 3))
def test_every_line_is_in_one_split_and_no_speaker_in_two(counts, dev, test, seed):
    lines = lines_of(counts)
    splits = by_speaker(lines, {"dev": dev, "test": test}, seed=seed)
    assert sorted(line.id for split in splits.values() for line in split) == sorted(line.id for line in lines)
    speakers = [{line.speaker for line in split} for split in splits.values()]
    assert sum(map(len, speakers)) == len(set.union(*speakers))
    assert all(split == [line for line in lines if line in split] for split in splits.values())


@given(counts, shares, shares)
def test_a_split_has_its_share_and_less_without_its_last_speaker(counts, dev, test):
    lines = lines_of(counts)
    splits = by_speaker(lines, {"dev": dev, "test": test}, seed=0)
    for split, share in {"dev": dev, "test": test}.items():
        had = len(splits[split])
        assert had >= share * len(lines) or not splits["train"]
        assert had - max(counts.values()) < share * len(lines) or not had


def test_the_seed_decides_and_other_speakers_change_no_order():
    lines = lines_of({f"s{number}": 1 for number in range(100)})
    first, again, other = (by_speaker(lines, {"dev": 0.2}, seed=seed)["dev"] for seed in (0, 0, 1))
    assert first == again
    assert first != other
    assert {line.speaker for line in by_speaker(lines[:50], {"dev": 0.2}, seed=0)["dev"]} & {
        line.speaker for line in first
    }
