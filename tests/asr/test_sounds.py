from pathlib import Path
from random import Random

import numpy as np
import pytest
import soundfile
import torch
from hypothesis import given
from hypothesis import strategies as st

from ticketkit import ConfigError, DataError
from ticketkit_asr.errors import BadAudioError
from ticketkit_asr.sound.audio import resample
from ticketkit_asr.sound.folder import find_sounds, open_sounds, read_stretch, read_whole, types_of
from ticketkit_asr.sound.options import SoundsOptions

RATE = 8_000


def ramp(samples: int) -> np.ndarray:
    return np.linspace(-0.5, 0.5, samples, dtype=np.float32)


def write(path: Path, wave: np.ndarray, rate: int = RATE, **how: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, wave, rate, **how)


def test_a_folder_that_is_not_here_is_looked_for_below_ticketkit_data(folder, monkeypatch, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    monkeypatch.chdir(elsewhere)
    monkeypatch.setenv("TICKETKIT_DATA", str(folder))
    assert SoundsOptions(root="rain").folder == folder / "rain"
    assert [sound.name for sound in find_sounds(SoundsOptions(root="rain"), what="noise")[0]] == ["r1.WAV", "r2.flac"]
    (elsewhere / "rain").mkdir()
    assert SoundsOptions(root="rain").folder == Path("rain")
    assert SoundsOptions(root="snow").folder == Path("snow")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Types rain (2 files), street (1) and street/tram (1), and files that are no sounds."""
    write(tmp_path / "rain" / "r2.flac", ramp(800))
    write(tmp_path / "rain" / "r1.WAV", ramp(400))
    write(tmp_path / "street" / "s1.ogg", ramp(4000), 16_000)
    write(tmp_path / "street" / "tram" / "t1.mp3", np.stack([ramp(48_000)] * 2, axis=1), 48_000)
    write(tmp_path / "street" / ".hidden.wav", ramp(5))
    (tmp_path / "CREDITS.tsv").write_text(
        "class\tfile\nWater\tr1.WAV\nWater\tr2.flac\nRoad\ts1.ogg\nRoad\tt1.mp3\n", encoding="utf-8"
    )
    return tmp_path


def found(root: Path, **options: object) -> dict[str, str]:
    sounds, _ = find_sounds(SoundsOptions.model_validate({"root": root, **options}), what="noise")
    return {sound.name: sound.type for sound in sounds}


def test_sounds_are_found_in_all_folders_in_order_with_the_folder_as_type(folder):
    assert list(found(folder).items()) == [
        ("rain/r1.WAV", "rain"),
        ("rain/r2.flac", "rain"),
        ("street/s1.ogg", "street"),
        ("street/tram/t1.mp3", "street/tram"),
    ]
    assert found(folder / "rain") == {"r1.WAV": "rain", "r2.flac": "rain"}


def test_the_type_can_be_the_file_part_of_its_name_or_a_table_entry(folder):
    assert set(found(folder, type_rule="file").values()) == set(found(folder))
    assert list(found(folder, type_rule=r"([a-z])\d\.\w+$").values()) == ["r", "r", "s", "t"]
    assert list(found(folder, type_table="CREDITS.tsv").values()) == ["Water", "Water", "Road", "Road"]
    (folder / "meta.csv").write_text('filename,category\nr1.WAV,"a, b"\nr2.flac,c\ns1.ogg,c\nt1.mp3,c\n')
    assert list(found(folder, type_table="meta.csv").values()) == ["a, b", "c", "c", "c"]


def test_sounds_without_a_type_are_named(folder):
    with pytest.raises(DataError, match=r"noise: 2 of 4 sounds have no type by rain/\(r\): street/s1.ogg, street/tram"):
        found(folder, type_rule="rain/(r)")
    (folder / "CREDITS.tsv").write_text("class\tfile\nWater\tr1.WAV\n")
    with pytest.raises(DataError, match=r"3 of 4 sounds have no type by CREDITS.tsv"):
        found(folder, type_table="CREDITS.tsv")


def test_a_table_that_cannot_say_types_is_named(folder):
    (folder / "other.tsv").write_text("a\tb\n")
    with pytest.raises(DataError, match=r"other.tsv needs a column file or filename.*it has a, b"):
        found(folder, type_table="other.tsv")
    with pytest.raises(DataError, match=r"missing.tsv cannot be read"):
        found(folder, type_table="missing.tsv")


def test_a_folder_without_sounds_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"noise: no sound below .*files that end in \.wav"):
        found(tmp_path)
    with pytest.raises(DataError, match=r"nowhere is missing; set root"):
        found(tmp_path / "nowhere")


def test_files_that_cannot_be_read_are_all_named_or_left_out(folder):
    (folder / "rain" / "bad.wav").write_bytes(b"no sound")
    write(folder / "rain" / "empty.wav", ramp(0))
    with pytest.raises(DataError, match=r"2 of 6 sounds cannot be used.*skip.*bad\.wav.*empty\.wav holds no samples"):
        found(folder)
    library = open_sounds(SoundsOptions(root=folder, on_bad_audio="skip", test_share=0), what="noise", split="train")
    assert library.facts()["skipped"] == ["rain/bad.wav", "rain/empty.wav"]
    assert library.facts()["types"] == {"rain": 2, "street": 1, "street/tram": 1}


def test_types_are_heard_in_training_or_in_the_test(folder):
    options = SoundsOptions(root=folder, test_types=("street", "street/tram"))
    assert list(open_sounds(options, what="noise", split="train").by_type) == ["rain"]
    assert list(open_sounds(options, what="noise", split="dev").by_type) == ["rain"]
    assert list(open_sounds(options, what="noise", split="test").by_type) == ["street", "street/tram"]


@given(
    types=st.lists(st.text("abc", min_size=1), min_size=2, unique=True).map(sorted),
    share=st.floats(0.01, 0.99),
    seed=st.integers(0, 5),
)
def test_every_type_is_for_training_or_for_the_test_and_both_have_some(types, share, seed):
    options = SoundsOptions(root=Path(), test_share=share, split_seed=seed)
    train, dev, test = (types_of(split, types, options, what="noise") for split in ("train", "dev", "test"))
    assert train
    assert test
    assert dev == train
    assert sorted(train + test) == types
    assert abs(len(test) - share * len(types)) <= 1


def test_another_seed_holds_out_other_types():
    types = [str(i) for i in range(20)]
    drawn = [types_of("test", types, SoundsOptions(root=Path(), split_seed=seed), what="noise") for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2]


@pytest.mark.parametrize(
    ("options", "split", "message"),
    [
        ({"types": ["rain"]}, "test", "no type is left for test; types rain, held out for the test none"),
        ({"test_share": 0}, "test", "no type is left for test"),
        ({"types": ["rain", "street"], "test_types": ["rain", "street"]}, "train", "no type is left for train"),
        ({"types": ["rian"]}, "train", "no sound is of type rian; there are rain, street, street/tram"),
        ({"test_types": ["rian"]}, "train", "no sound is of type rian"),
        ({}, "testing", "split is train, dev or test; got 'testing'"),
    ],
)
def test_a_split_without_types_and_unknown_types_are_refused(folder, options, split, message):
    with pytest.raises(ConfigError, match=message):
        open_sounds(SoundsOptions.model_validate({"root": folder, **options}), what="noise", split=split)


def test_types_are_drawn_equally_often_however_many_sounds_they_have(folder):
    library = open_sounds(SoundsOptions(root=folder, test_share=0), what="noise", split="train")
    random = Random(0)
    drawn = [library.draw(random).type for _ in range(3000)]
    for type_ in library.by_type:
        assert abs(drawn.count(type_) - 1000) < 100


def test_facts_follow_the_content_and_not_the_place(folder, tmp_path_factory):
    def digest(root: Path) -> str:
        return open_sounds(SoundsOptions(root=root), what="noise", split="train").facts()["digest"]

    moved = tmp_path_factory.mktemp("moved") / "sounds"
    before = digest(folder)
    folder.rename(moved)
    assert digest(moved) == before
    write(moved / "rain" / "r1.WAV", ramp(500))
    write(moved / "street" / "s1.ogg", ramp(4001), 16_000)
    assert digest(moved) != before


def only(root: Path, name: str):
    sounds, _ = find_sounds(SoundsOptions(root=root), what="noise")
    return next(sound for sound in sounds if sound.name == name)


def test_channels_are_mixed_and_rates_converted(tmp_path):
    left, right = ramp(44_100), -0.5 * ramp(44_100)
    write(tmp_path / "a.wav", np.stack([left, right], axis=1), 44_100, subtype="FLOAT")
    sound = only(tmp_path, "a.wav")
    mixed = resample(torch.from_numpy((left + right) / 2), source=44_100, target=RATE)
    torch.testing.assert_close(read_whole(sound, sample_rate=RATE), mixed)
    assert torch.equal(read_whole(sound, sample_rate=44_100, channel=1), torch.from_numpy(right))


def test_a_long_file_is_read_in_stretches_of_the_samples_asked_for(tmp_path):
    wave = np.arange(33 * 4000, dtype=np.float32) / 2**20
    write(tmp_path / "long.wav", wave, 4000, subtype="FLOAT")
    sound = only(tmp_path, "long.wav")
    starts = set()
    for seed in range(20):
        stretch = read_stretch(sound, 700, Random(seed), sample_rate=4000)
        start = round(stretch[0].item() * 2**20)
        assert torch.equal(stretch, torch.from_numpy(wave[start : start + 700]))
        starts.add(start)
    assert len(starts) == 20
    for rate in (3000, 8000, 11_025):
        assert len(read_stretch(sound, 700, Random(0), sample_rate=rate)) == 700
    assert len(read_stretch(sound, 34 * 4000, Random(0), sample_rate=4000)) == len(wave)


def test_what_fails_after_its_header_is_named(tmp_path):
    write(tmp_path / "nan.wav", np.array([0.1, np.nan], np.float32), subtype="FLOAT")
    with pytest.raises(BadAudioError, match=r"nan.wav holds 1 samples that are NaN or infinite"):
        read_whole(only(tmp_path, "nan.wav"), sample_rate=RATE)
    write(tmp_path / "gone.wav", ramp(10))
    sound = only(tmp_path, "gone.wav")
    sound.path.unlink()
    with pytest.raises(BadAudioError, match=r"gone.wav cannot be read as audio"):
        read_whole(sound, sample_rate=RATE)


def test_real_noises_of_every_format_are_found_and_read(real_data):
    sounds, skipped = find_sounds(SoundsOptions(root=real_data / "noise"), what="noise")
    assert len(sounds) == 52
    assert not skipped
    esc10 = [sound for sound in sounds if sound.type.startswith("esc10/")]
    assert (len(esc10), len({sound.type for sound in esc10})) == (40, 10)
    by_table = SoundsOptions(root=real_data / "noise" / "esc10", type_table="CREDITS.tsv")
    assert len({sound.type for sound in find_sounds(by_table, what="noise")[0]}) == 10
    for sound in sounds[::9]:
        seconds = sound.samples / sound.sample_rate
        whole = read_whole(sound, sample_rate=16_000)
        assert len(whole) == pytest.approx(seconds * 16_000, abs=1)
        assert whole.abs().max() > 1e-3
