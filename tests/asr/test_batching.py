from hypothesis import given
from hypothesis import strategies as st

from ticketkit_asr.training.batching import evaluation_batches, steps, training_batches

lengths = st.lists(st.integers(1, 2000), max_size=200)
sizes = st.integers(1, 40)


@given(lengths, sizes, st.integers(0, 5), st.integers(1, 5))
def test_training_batches_hold_every_utterance_once_and_none_is_too_large(lengths, size, seed, epoch):
    batches = training_batches(lengths, batch_size=size, seed=seed, epoch=epoch)
    assert sorted(i for batch in batches for i in batch) == list(range(len(lengths)))
    assert all(1 <= len(batch) <= size for batch in batches)


@given(lengths, sizes)
def test_evaluation_batches_go_from_short_to_long(lengths, size):
    flat = [i for batch in evaluation_batches(lengths, batch_size=size) for i in batch]
    assert flat == sorted(range(len(lengths)), key=lambda i: lengths[i])


@given(lengths, sizes, st.integers(1, 3000))
def test_padded_batches_are_bounded_but_for_an_utterance_alone(lengths, size, most):
    for batches in (
        training_batches(lengths, batch_size=size, seed=0, epoch=1, most_frames=most),
        evaluation_batches(lengths, batch_size=size, most_frames=most),
    ):
        assert sorted(i for batch in batches for i in batch) == list(range(len(lengths)))
        for batch in batches:
            assert len(batch) == 1 or len(batch) * max(lengths[i] for i in batch) <= most


@given(st.lists(st.just([0]), max_size=20), st.integers(1, 6))
def test_steps_hold_every_batch_once_in_order(batches, accumulate):
    numbered = [[i] for i in range(len(batches))]
    grouped = steps(numbered, accumulate=accumulate)
    assert [batch for step in grouped for batch in step] == numbered
    assert all(len(step) == accumulate for step in grouped[:-1])


def test_batches_depend_on_seed_and_epoch_alone():
    lengths = [(37 * i) % 101 for i in range(100)]
    first = training_batches(lengths, batch_size=8, seed=1, epoch=1)
    assert first == training_batches(lengths, batch_size=8, seed=1, epoch=1)
    assert first != training_batches(lengths, batch_size=8, seed=1, epoch=2)
    assert first != training_batches(lengths, batch_size=8, seed=2, epoch=1)


def test_the_order_is_the_same_in_every_release_and_on_every_machine():
    assert training_batches([5, 3, 9, 1], batch_size=2, seed=0, epoch=1) == [[3, 1], [0, 2]]


def test_bucketing_wastes_less_padding_than_chance():
    lengths = [(7919 * i) % 997 + 1 for i in range(600)]
    batches = training_batches(lengths, batch_size=16, seed=0, epoch=1)
    padded = sum(len(batch) * max(lengths[i] for i in batch) for batch in batches)
    assert padded < 1.25 * sum(lengths)
