from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.numpy import load_file

from ticketkit_asr.features.extraction import FeatureStatistics
from ticketkit_asr.features.file import FeatureFile, FeatureForm, read_features, write_features
from ticketkit_asr.storage import DAMAGED

BINS = 3
STATISTICS = FeatureStatistics(mean=(0.1, -2.0, 1e-30), deviation=(1.0, 2.5, 1 / 3))


def form(utterances: int, precision: str = "float32", recipe: str = "r") -> FeatureForm:
    return FeatureForm(recipe=recipe, utterances=utterances, bins=BINS, precision=precision)


def features(*lengths: int) -> list[torch.Tensor]:
    random = torch.Generator().manual_seed(0)
    return [torch.randn(length, BINS, generator=random) for length in lengths]


def written(path: Path, *lengths: int, precision: str = "float32", statistics=STATISTICS) -> FeatureForm:
    of = form(len(lengths), precision)
    with path.open("xb") as file:
        write_features(file, iter(features(*lengths)), of, statistics)
    return of


def cut(file: FeatureFile) -> list[torch.Tensor]:
    return [file.features[a:b] for a, b in zip(file.offsets, file.offsets[1:], strict=False)]


@given(lengths=st.lists(st.integers(0, 9), max_size=6), statistics=st.sampled_from([None, STATISTICS]))
def test_what_is_written_is_read(tmp_path_factory, lengths, statistics):
    path = tmp_path_factory.mktemp("file") / "a"
    read = read_features(path, written(path, *lengths, statistics=statistics))
    assert read.statistics == statistics
    assert len(read.offsets) == len(lengths) + 1
    assert all(map(torch.equal, cut(read), features(*lengths)))


def test_half_precision_takes_half_the_room(tmp_path):
    half = written(tmp_path / "half", 500, 500, precision="float16")
    written(tmp_path / "full", 500, 500)
    sizes = [(tmp_path / name).stat().st_size for name in ("half", "full")]
    assert sizes[1] - sizes[0] == 1000 * BINS * 2
    read = read_features(tmp_path / "half", half)
    assert read.features.dtype == torch.float16
    assert torch.equal(read.features, torch.cat(features(500, 500)).half())


def test_equal_features_give_equal_bytes(tmp_path):
    for name in "ab":
        written(tmp_path / name, 4, 2)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_any_reader_of_safetensors_reads_it(tmp_path):
    written(tmp_path / "a", 4, 2)
    tensors = load_file(tmp_path / "a")
    assert tensors["frames"].tolist() == [4, 2]
    assert np.array_equal(tensors["features"], torch.cat(features(4, 2)).numpy())
    with safe_open(tmp_path / "a", framework="numpy") as file:
        assert list(file.metadata()) == ["ticketkit_asr"]


@pytest.mark.parametrize(
    "other", [form(1), form(3), form(2, "float16"), form(2, recipe="s"), FeatureForm("r", 2, 1, "float32")]
)
def test_a_file_of_another_form_is_refused(tmp_path, other):
    written(tmp_path / "a", 4, 2)
    with pytest.raises(ValueError, match=r"another recipe|not those that were written"):
        read_features(tmp_path / "a", other)


def test_no_change_of_a_byte_ever_changes_what_is_read(tmp_path):
    path = tmp_path / "a"
    of = written(path, 2, 3)
    content, intact = path.read_bytes(), read_features(path, of)
    random = np.random.default_rng(0)
    refused = 0
    for place in range(len(content)):
        damaged = bytearray(content)
        damaged[place] ^= int(random.integers(1, 256))
        path.write_bytes(damaged)
        try:
            read = read_features(path, of)
        except DAMAGED:
            refused += 1
            continue
        assert torch.equal(read.features, intact.features)
        assert (read.offsets, read.statistics) == (intact.offsets, intact.statistics)
    assert refused > 0.9 * len(content)


def test_lengths_that_changed_places_are_refused(tmp_path):
    of = written(tmp_path / "a", 2, 3)
    content = (tmp_path / "a").read_bytes()
    before, after = (np.array(lengths, "<i8").tobytes() for lengths in ((2, 3), (3, 2)))
    assert content.count(before) == 1
    (tmp_path / "a").write_bytes(content.replace(before, after))
    with pytest.raises(ValueError, match="not those that were written"):
        read_features(tmp_path / "a", of)


def test_a_file_cut_anywhere_or_made_longer_is_refused(tmp_path):
    path = tmp_path / "a"
    of = written(path, 2, 3)
    content = path.read_bytes()
    for changed in (*(content[:length] for length in range(len(content))), content + b"\0"):
        path.write_bytes(changed)
        with pytest.raises(DAMAGED):
            read_features(path, of)


def test_metadata_that_is_no_object_is_refused(tmp_path):
    path = tmp_path / "a"
    of = written(path, 2)
    content = path.read_bytes()
    start, end = content.index(b'"{'), content.index(b'}"}') + 2
    path.write_bytes(content[:start] + b'"[]"'.ljust(end - start) + content[end:])
    with pytest.raises(ValueError, match="another recipe"):
        read_features(path, of)


@pytest.mark.parametrize("announced", [1, 3])
def test_more_or_fewer_utterances_than_announced_are_refused(tmp_path, announced):
    with (
        (tmp_path / "a").open("xb") as file,
        pytest.raises(ValueError, match=f"{announced} utterances were announced, 2"),
    ):
        write_features(file, features(4, 2), form(announced), None)


def test_writing_into_what_was_read_leaves_the_file(tmp_path):
    of = written(tmp_path / "a", 4, 2)
    read_features(tmp_path / "a", of).features.zero_()
    assert torch.equal(read_features(tmp_path / "a", of).features, torch.cat(features(4, 2)))


def anonymous() -> int:
    """Return the bytes of memory that this process has written itself (Linux)."""
    _, resident, of_files, *_ = map(int, Path("/proc/self/statm").read_text().split())
    return 4096 * (resident - of_files)


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="memory is read from Linux's /proc")
def test_reading_copies_nothing(tmp_path):
    frames = (64 << 20) // (4 * BINS)
    of = form(1)
    with (tmp_path / "a").open("xb") as file:
        write_features(file, [torch.zeros(frames, BINS)], of, None)
    before = anonymous()
    read = read_features(tmp_path / "a", of)
    assert anonymous() - before < 16 << 20
    assert read.features[frames // 2 :].sum() == 0
    assert anonymous() - before < 16 << 20
