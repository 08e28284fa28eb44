from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ticketkit_asr.objectives.ctc import Ctc, greedy, needed_frames
from ticketkit_asr.objectives.ctc_beam import prefix_beam

paths = st.lists(st.integers(0, 3), max_size=12)


def spelled(path):
    return [emission.label for emission in greedy(path, blank=0)]


@given(paths)
def test_greedy_drops_repeats_then_blanks(path):
    kept = [label for before, label in zip([None, *path], path, strict=False) if label != before]
    assert spelled(path) == [label for label in kept if label]


@given(paths)
def test_labels_stand_at_the_frames_where_they_begin(path):
    for emission in greedy(path, blank=0):
        assert path[emission.frame] == emission.label
        assert emission.frame == 0 or path[emission.frame - 1] != emission.label


@given(st.lists(st.integers(1, 3), max_size=8))
def test_needed_frames_is_the_shortest_path_that_spells_a_target(target):
    frames = needed_frames(target)
    path, before = [], None
    for label in target:
        path += [0] * (label == before) + [label]
        before = label
    assert len(path) == frames
    assert spelled(path) == target
    assert Ctc(0).fits(target, frames)
    assert not Ctc(0).fits(target, frames - 1)


def probabilities(seed, frames, labels):
    scores = torch.randn(frames, labels, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return scores.log_softmax(-1).numpy()


@given(st.integers(0, 10_000), st.integers(1, 5), st.integers(2, 4))
def test_a_wide_beam_finds_the_most_probable_text(seed, frames, labels):
    log_probs = probabilities(seed, frames, labels)
    texts = {}
    for path in product(range(labels), repeat=frames):
        text = tuple(spelled(path))
        texts[text] = texts.get(text, 0.0) + float(np.exp(log_probs[range(frames), path].sum()))
    found = tuple(label for _, label in prefix_beam(log_probs, blank=0, width=labels**frames))
    assert texts[found] == pytest.approx(max(texts.values()))


@given(st.integers(0, 10_000))
def test_a_narrow_beam_reads_certain_scores_like_greedy(seed):
    path = np.random.default_rng(seed).integers(0, 4, 10)
    log_probs = np.full((10, 4), -20.0)
    log_probs[range(10), path] = -1e-8
    assert prefix_beam(log_probs, blank=0, width=2) == [(e.frame, e.label) for e in greedy(path.tolist(), blank=0)]


def test_the_beam_finds_what_the_best_path_misses():
    log_probs = np.log(np.array([[0.6, 0.4], [0.6, 0.4]]))  # the path of blanks: 0.36; all paths of one label: 0.64
    assert greedy(log_probs.argmax(1).tolist(), blank=0) == []
    assert [label for _, label in prefix_beam(log_probs, blank=0, width=4)] == [1]
