"""What a bench measures and what it says of it; no test here looks at how long anything took."""

import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ticketkit import ConfigError, DataError, Plugins
from ticketkit.bench import Bench, Measured, Spread, _examples, _own_peak, _steps, bench
from ticketkit.bench_report import lines_of, table_of

CONFIG: Any = SimpleNamespace(metric="wer", percent=True)


class Bundle:
    """A network with examples of its own, of a corpus, and steps."""

    def __init__(self, step: Callable[[], object] | None = None) -> None:
        self.module = nn.Linear(2, 2)
        self._step = step

    def example(self, seconds: float, batch: int) -> tuple[Tensor, ...]:
        return (torch.zeros(batch, round(seconds), 2),)

    def corpus_example(self, corpus: Any, batch: int) -> tuple[tuple[Tensor, ...], float]:
        return (torch.ones(batch, 3, 2),), 1.5 * batch

    def stepping(self) -> tuple[Callable[[], object], float] | str:
        return "it reads backwards" if self._step is None else (self._step, 0.02)


def trained(bundle: Any, error: Exception | None = None) -> Any:
    """Return what bench needs of a trained ticket whose corpus is at hand, or is not."""

    def corpus(plugins: Plugins) -> Any:
        if error is not None:
            raise error
        return SimpleNamespace(describe=lambda: {"name": "birds"})

    return SimpleNamespace(bundle=bundle, run={"backbone": "toy"}, corpus=corpus)


def test_examples_are_those_of_the_corpus_where_it_is_at_hand() -> None:
    examples, seconds, what = _examples(trained(Bundle()), Plugins(), [2, 4], None)
    assert {batch: inputs[0].shape for batch, inputs in examples.items()} == {2: (2, 3, 2), 4: (4, 3, 2)}
    assert all(inputs[0].all() for inputs in examples.values())
    assert seconds == {2: 3.0, 4: 6.0}
    assert what == "the test split of birds: examples of 1.50 s at batch 2"


@pytest.mark.parametrize(
    ("ticket", "seconds", "what"),
    [
        (trained(Bundle()), 7.0, "made-up examples, 7 s each"),
        (
            trained(Bundle(), DataError("no birds here")),
            None,
            "5 s each; the corpus of the run is not at hand: no birds",
        ),
        (trained(SimpleNamespace(example=Bundle().example)), None, "'toy' has no corpus_example(corpus, batch)"),
    ],
    ids=["asked for", "no corpus", "no method"],
)
def test_examples_are_made_up_elsewhere_and_it_is_said_why(ticket, seconds, what) -> None:
    examples, lengths, said = _examples(ticket, Plugins(), [2], seconds)
    assert examples[2][0].shape == (2, round(seconds or 5), 2)
    assert lengths == {2: 2 * (seconds or 5.0)}
    assert what in said


def test_a_backbone_without_examples_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"'toy' has no example\(seconds, batch\)"):
        bench(trained(SimpleNamespace(module=nn.Linear(1, 1))), Plugins())


def test_steps_are_taken_by_every_form_or_it_is_said_why_not() -> None:
    taken: list[str] = []
    forms: Any = {
        name: SimpleNamespace(bundle=Bundle(lambda name=name: taken.append(name)))  # type: ignore[misc]
        for name in ("dense", "auto")
    }
    steps, seconds, why = _steps(forms, 3, lambda line: None)
    assert (steps.keys(), seconds, why) == (forms.keys(), 0.02, "")
    assert taken == ["dense", "auto"] * 51  # one of each does not count
    for bundle, reason in ((Bundle(), "it reads backwards"), (SimpleNamespace(), "no stepping()")):
        none: Any = {"dense": SimpleNamespace(bundle=bundle)}
        assert _steps(none, 3, lambda line: None)[:2] == ({}, None)
        assert reason in _steps(none, 3, lambda line: None)[2]


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="elsewhere getrusage says it")
def test_the_peak_of_a_process_is_its_own_and_not_that_of_the_one_that_started_it() -> None:
    ballast = torch.ones(256 << 18)
    mine = _own_peak()
    assert mine > ballast.nbytes
    program = "from pathlib import Path; print([l for l in Path('/proc/self/status').open() if 'VmHWM' in l][0])"
    child = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert int(child.split()[1]) * 1024 < ballast.nbytes


def form(
    name: str, middle: float, *, step: float | None = None, wer: float | None = None, half: float = 0.01
) -> Measured:
    """Return a form whose quartiles lie that share of the median around it."""

    def spread(value: float) -> Spread:
        return Spread(value, value * (1 - half), value * (1 + half))

    metrics = {} if wer is None else {"wer": wer}
    return Measured(
        name,
        {1: spread(middle), 8: spread(4 * middle)},
        None if step is None else spread(step),
        0.5,
        64 << 20,
        round(1000 * middle),
        "3 dense",
        metrics,
    )


def found(*forms: Measured, **more: Any) -> Bench:
    lasts = None if forms[0].step is None else 0.02
    return replace(Bench(list(forms), {}, "noise", {1: 2.0, 8: 16.0}, lasts, ""), **more)


def verdict(*forms: Measured) -> str:
    (line,) = [line for line in lines_of(found(*forms), CONFIG) if "and batches of 1: " in line]
    return line.partition("and batches of 1: ")[2]


def test_the_verdict_is_dense_unless_another_is_clearly_faster() -> None:
    assert verdict(form("dense", 1.0), form("auto", 0.97)) == "keep it dense, nothing is clearly faster"
    assert verdict(form("dense", 1.0), form("auto", 2.0)) == "keep it dense, nothing is clearly faster"
    assert (
        verdict(form("dense", 1.0), form("auto", 0.5), form("sparse", 0.4)) == "use sparse, 2.50 times as fast as dense"
    )
    overlapping = verdict(form("dense", 1.0, half=0.3), form("auto", 0.8, half=0.3))
    assert overlapping.startswith("auto was 1.25 times as fast as dense, but their quartiles overlap")


def test_a_form_that_errs_more_is_advised_with_what_that_costs() -> None:
    dense, worse = form("dense", 1.0, wer=0.01), form("dense int8", 0.5, wer=0.012)
    assert verdict(dense, worse) == "use dense int8, 2.00 times as fast as dense, if test wer +0.20 % is no matter"
    lines = lines_of(found(dense, worse, form("sparse", 2.0, wer=0.01)), CONFIG)
    assert (
        "dense int8: 2.00 times as fast at batch 1, 2.00 times as fast at batch 8; its files are 2.0 times smaller "
        in (lines[1])
    )
    assert lines[1].endswith("than dense ones; test wer +0.20 %")
    assert lines[2].endswith("2.0 times larger than dense ones; as good on test")
    assert not any("--evaluate" in line for line in lines)


def test_steps_have_a_verdict_of_their_own_and_no_steps_a_reason() -> None:
    lines = lines_of(found(form("dense", 1.0, step=0.001), form("sparse", 2.0, step=0.0005)), CONFIG)
    assert any(line.endswith("and a stream: use sparse, 2.00 times as fast as dense") for line in lines)
    none = lines_of(found(form("dense", 1.0), no_step="it reads backwards", left_out={"compact": "no zeros"}), CONFIG)
    assert "no streaming step: it reads backwards" in none
    assert "with --evaluate: the wer of each form on the test split" in none
    assert none[-1] == "compact: left out: no zeros"


def test_the_table_has_what_was_measured_and_nothing_else() -> None:
    plain = table_of(found(form("dense", 0.1)), CONFIG)
    assert [column.header for column in plain.columns] == [
        "form", "ms, batch 1", "ms, batch 8", "real-time factor", "load ms", "peak MiB", "bytes", "layers",
    ]  # fmt: skip
    whole = table_of(found(form("dense", 0.1, step=0.0004, wer=0.0123)), CONFIG)
    row = {column.header: next(iter(column.cells)) for column in whole.columns}
    assert row["ms, batch 1"] == "100.0 (99.0-101.0)"
    assert row["real-time factor"] == "0.0500"
    assert row["ms, step"] == "0.40 (0.40-0.40)"
    assert row["real-time factor, step"] == "0.0200"
    assert (row["load ms"], row["peak MiB"], row["test wer %"]) == ("500", "64", "1.23 %")
