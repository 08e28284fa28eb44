import math

import pytest

from ticketkit import ConfigError, RoundRecord
from ticketkit.analysis import best_record, collapsed, extreme_record, winning_records


def record(index: int, kept: int, **metrics: float) -> RoundRecord:
    return RoundRecord(
        index=index, kept=kept, total=100, model_total=120, densities={"w": kept / 100}, metrics=metrics, seconds=0.0,
        mask_digest="",
    )  # fmt: skip


RUN = [record(0, 100, wer=10.0), record(1, 80, wer=9.0), record(2, 64, wer=9.0), record(3, 51, wer=10.0),
       record(4, 41, wer=10.4)]  # fmt: skip


def test_best_is_the_lowest_and_of_equals_the_sparsest() -> None:
    assert best_record(RUN, "wer").index == 2


def test_best_never_names_the_dense_round() -> None:
    assert best_record(RUN[:1], "wer") is None
    assert best_record([record(0, 100, wer=1.0), record(1, 80, wer=2.0)], "wer").index == 1


def test_extreme_is_the_sparsest_that_is_as_good_as_dense() -> None:
    assert extreme_record(RUN, "wer").index == 3


def test_tolerance_lets_worse_rounds_win() -> None:
    assert extreme_record(RUN, "wer", tolerance=0.5).index == 4
    assert [r.index for r in winning_records(RUN, "wer", tolerance=0.39)] == [1, 2, 3]


def test_no_winner_is_none() -> None:
    assert extreme_record([record(0, 100, wer=1.0), record(1, 80, wer=2.0)], "wer") is None


def test_mode_max_turns_the_order_around() -> None:
    run = [record(0, 100, acc=0.5), record(1, 80, acc=0.7), record(2, 64, acc=0.5), record(3, 51, acc=0.45)]
    assert best_record(run, "acc", "max").index == 1
    assert extreme_record(run, "acc", "max").index == 2
    assert extreme_record(run, "acc", "max", tolerance=0.06).index == 3


@pytest.mark.parametrize("mode", ["min", "max"])
def test_nan_is_the_worst_metric(mode: str) -> None:
    run = [record(0, 100, m=1.0), record(1, 80, m=1.0), record(2, 64, m=math.nan)]
    assert best_record(run, "m", mode).index == 1
    assert extreme_record(run, "m", mode).index == 1


def test_rounds_without_the_metric_do_not_count() -> None:
    run = [record(0, 100, wer=5.0), record(1, 80, cer=1.0), record(2, 64, wer=6.0)]
    assert best_record(run, "wer").index == 2
    assert extreme_record(run, "wer") is None


def test_a_metric_the_dense_round_lacks_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"has not logged 'cer'; it has logged \['wer'\]"):
        extreme_record(RUN, "cer")
    with pytest.raises(ConfigError, match="has not logged 'wer'"):
        extreme_record([], "wer")


def test_a_mode_must_be_min_or_max() -> None:
    with pytest.raises(ConfigError, match="mode must be 'min'"):
        best_record(RUN, "wer", "lowest")


def test_collapsed_names_layers_below_the_threshold_emptiest_first() -> None:
    assert list(collapsed({"a": 0.009, "b": 0.0, "c": 0.01, "d": 1.0})) == ["b", "a"]
    assert list(collapsed({"a": 0.009, "b": 0.0}, threshold=0.0)) == ["b"]
    assert collapsed({}) == {}


def test_densities_of_a_record_say_of_what() -> None:
    one = record(1, 80)
    assert one.density == 0.8
    assert one.model_density == 100 / 120
    assert one.emptiest == ("w", 0.8)


# Dead units
