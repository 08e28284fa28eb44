"""Reports: the table says what each number counts, the plot is a real image, nothing unmeasured is claimed."""

from pathlib import Path

import pytest

from ticketkit.errors import ConfigError, StorageError
from ticketkit.report import caption, conclusion, markdown, plot, write_report
from ticketkit.results import ResultRow, Results


def row(index: int, density: float, dev: float, test: float, *, winning: bool = False) -> ResultRow:
    return ResultRow(
        round=index,
        kept=int(1000 * density),
        scope_density=density,
        model_density=(1000 * density + 100) / 1100,
        emptiest="conv.weight",
        emptiest_density=density / 2,
        dev={"wer": dev},
        test={"wer": test},
        winning=winning,
        seconds=12.3,
    )


def results(*rows: ResultRow, best: int | None = 1, extreme: int | None = 1, metric: str = "wer") -> Results:
    config = {"corpus": {"name": "fsdd"}, "backbone": "cnn_lstm", "prune": {"criterion": "magnitude"}, "seed": 0}
    return Results(metric, "min", 0.0, True, rows, best, extreme, 1000, 1100, config, {}, {})


FINISHED = results(row(0, 1.0, 0.05, 0.06), row(1, 0.5, 0.04, 0.07, winning=True), row(2, 0.25, 0.2, 0.3))


def test_markdown_shows_scope_and_model_shares_and_both_splits() -> None:
    lines = markdown(FINISHED).splitlines()
    assert lines[2].split(" | ")[1:6] == ["scope left", "model left", "emptiest parameter", "dev wer %", "test wer %"]
    assert lines[5] == "| 1 | 50.0% | 54.5% | conv.weight 25.0% | 4.00 | 7.00 | winning, best, extreme | 12 s |"
    assert lines[6] == "| 2 | 25.0% | 31.8% | conv.weight 12.5% | 20.00 | 30.00 | no | 12 s |"


def test_the_caption_counts_the_seeds() -> None:
    assert caption(FINISHED).endswith("1,000 weights in scope of 1,100, seed 0 (one seed)")


def test_the_conclusion_admits_when_no_ticket_wins() -> None:
    text = conclusion(results(row(0, 1.0, 0.05, 0.06), row(1, 0.5, 0.1, 0.1), extreme=None))
    assert "No ticket matches it on dev" in text
    assert "Extreme" not in text


def test_a_run_with_only_the_dense_round_has_a_report() -> None:
    assert "Dense: test wer 6.00 %." in conclusion(results(row(0, 1.0, 0.05, 0.06), best=None, extreme=None))


def test_reports_are_markdown_png_and_svg(tmp_path: Path) -> None:
    written = write_report(FINISHED, tmp_path)
    assert [path.name for path in written] == ["report.md", "report.png", "report.svg"]
    assert (tmp_path / "report.png").read_bytes().startswith(b"\x89PNG")
    assert "<svg" in (tmp_path / "report.svg").read_text()


def test_runs_of_different_metrics_share_no_plot(tmp_path: Path) -> None:
    other = results(row(0, 1.0, 0.05, 0.06), metric="cer")
    with pytest.raises(ConfigError, match="different metrics"):
        plot([FINISHED, other], tmp_path / "plot")


def test_results_round_trip_through_their_file(tmp_path: Path) -> None:
    (tmp_path / "results.json").write_text(FINISHED.to_json())
    assert Results.read(tmp_path) == FINISHED


def test_damaged_results_are_refused(tmp_path: Path) -> None:
    (tmp_path / "results.json").write_text(FINISHED.to_json()[:-40])
    with pytest.raises(StorageError, match="damaged"):
        Results.read(tmp_path)
