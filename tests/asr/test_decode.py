from itertools import product

import pytest

from ticketkit_asr.decode import greedy


@pytest.mark.parametrize(
    ("path", "spelt"),
    [
        ([], []),
        ([0, 0], []),
        ([1, 1, 1], [1]),
        ([1, 0, 1], [1, 1]),
        ([0, 1, 1, 0, 0, 1, 2, 2, 0], [1, 1, 2]),
    ],
)
def test_greedy_collapses_runs_before_it_drops_blanks(path, spelt):
    assert greedy(path, blank=0) == spelt


def test_greedy_inverts_every_path_that_separates_its_labels_by_blanks():
    for labels in product([1, 2, 3], repeat=4):
        path = [frame for label in labels for frame in (label, label, 0)]
        assert greedy(path, blank=0) == list(labels)
