"""Invariants 1 to 4 of the design, a slow reference, and wrong selections that must be found out."""

import importlib
from collections.abc import Callable, Mapping

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, Phase, example, given, settings
from hypothesis import strategies as st

from ticketkit import BudgetError, ElementwiseScores, Mask, ScoreError, select
from ticketkit import select as select_function
from ticketkit.testing import DTYPES, masks, scores, selections, shape_maps, tied_scores

Scores = Mapping[str, torch.Tensor]
Select = Callable[[Scores, Mask, int], Mask]
Case = tuple[dict[str, torch.Tensor], Mask, int]

engine = importlib.import_module("ticketkit.selection")
reading = importlib.import_module("ticketkit.contenders")


def by_sorting(scored: Scores, mask: Mask, keep: int) -> Mask:
    """The definition: sort all kept weights by (highest score, position), keep the first."""
    alive = [
        (-score, position, index)
        for position, name in enumerate(mask)
        for index, (score, kept) in enumerate(
            zip(scored[name].double().flatten().tolist(), mask[name].flatten().tolist(), strict=True)
        )
        if kept
    ]
    names, chosen = list(mask), {name: torch.zeros(shape, dtype=torch.bool) for name, shape in mask.shapes.items()}
    for _, position, index in sorted(alive)[:keep]:
        chosen[names[position]].view(-1)[index] = True
    return Mask(chosen)


# The laws, as functions of the selection under test, so that wrong ones can be put to them.


def keeps_the_budget(choose: Select, case: Case) -> None:
    scored, mask, keep = case
    assert choose(scored, mask, keep).kept == keep


def is_nested(choose: Select, case: Case) -> None:
    scored, mask, keep = case
    assert choose(scored, mask, keep) <= mask


def is_a_chain(choose: Select, case: Case) -> None:
    scored, mask, keep = case
    halfway = choose(scored, mask, (keep + mask.kept) // 2)
    assert choose(scored, halfway, keep) == choose(scored, mask, keep)


def keeps_the_best(choose: Select, case: Case) -> None:
    scored, mask, keep = case
    chosen = choose(scored, mask, keep)
    kept = [scored[name].double()[chosen[name]] for name in mask]
    lost = [scored[name].double()[(mask - chosen)[name]] for name in mask]
    best_lost = max((float(t.max()) for t in lost if t.numel()), default=-np.inf)
    assert all(float(t.min()) >= best_lost for t in kept if t.numel())


def breaks_ties_by_position(choose: Select, case: Case) -> None:
    scored, mask, keep = case
    assert choose(scored, mask, keep) == by_sorting(scored, mask, keep)


def ignores_the_order_of_scores(choose: Select, case: Case) -> None:
    scored, mask, keep = case
    assert choose(dict(reversed(scored.items())), mask, keep) == choose(scored, mask, keep)


def ignores_the_width_of_the_dtype(choose: Select, case: Case) -> None:
    scored, mask, keep = case
    for wider in (torch.float32, torch.float64):
        widened = {name: t.to(torch.promote_types(t.dtype, wider)) for name, t in scored.items()}
        assert choose(widened, mask, keep) == choose(scored, mask, keep)


def looks_only_at_the_order(choose: Select, case: Case) -> None:
    scored, mask, keep = case
    values = torch.cat([t.double().flatten() for t in scored.values()])
    ranks = torch.unique(values, return_inverse=True)[1].split([t.numel() for t in scored.values()])
    ranked = {name: rank.float().reshape(scored[name].shape) for name, rank in zip(scored, ranks, strict=True)}
    assert choose(ranked, mask, keep) == choose(scored, mask, keep)


LAWS = [
    keeps_the_budget,
    is_nested,
    is_a_chain,
    keeps_the_best,
    breaks_ties_by_position,
    ignores_the_order_of_scores,
    ignores_the_width_of_the_dtype,
    looks_only_at_the_order,
]


@given(selections())
def test_select_meets_every_law(case: Case) -> None:
    for law in LAWS:
        law(select, case)


@given(case=selections(), chunk=st.sampled_from([8, 16, 64]), sample=st.integers(1, 40), undecided=st.integers(0, 10))
def test_select_meets_every_law_through_every_path(case: Case, chunk: int, sample: int, undecided: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reading, "CHUNK", chunk)
        patch.setattr(reading, "SAMPLE", sample)
        patch.setattr(engine, "UNDECIDED", undecided)
        for law in LAWS:
            law(select, case)


@given(selections())
def test_the_bracket_and_the_radix_search_find_one_threshold(case: Case) -> None:
    scored, mask, keep = case
    if not 0 < keep < mask.kept:
        return
    dtype = torch.float64 if next(iter(scored.values())).dtype is torch.float64 else torch.float32
    pool = reading.Contenders.of(scored, mask, tuple(mask), dtype)
    assert engine._radix_threshold(pool, keep) == engine._bracketed_threshold(pool, keep)


# Mutants


def above_a_threshold(scored: Scores, mask: Mask, keep: int) -> Mask:
    return _by_threshold(scored, mask, keep, torch.gt)


def from_a_threshold_on(scored: Scores, mask: Mask, keep: int) -> Mask:
    return _by_threshold(scored, mask, keep, torch.ge)


def without_the_prior_mask(scored: Scores, mask: Mask, keep: int) -> Mask:
    return by_sorting(scored, Mask.ones(mask.shapes), keep)


def ranked_in_half_precision(scored: Scores, mask: Mask, keep: int) -> Mask:
    return by_sorting({name: t.double().clamp(-3e38, 3e38).bfloat16() for name, t in scored.items()}, mask, keep)


def ties_in_dict_order(scored: Scores, mask: Mask, keep: int) -> Mask:
    return by_sorting(scored, Mask({name: mask[name] for name in scored}), keep)


def ties_by_name(scored: Scores, mask: Mask, keep: int) -> Mask:
    return by_sorting(scored, Mask({name: mask[name] for name in sorted(mask)}), keep)


def never_an_empty_parameter(scored: Scores, mask: Mask, keep: int) -> Mask:
    chosen = by_sorting(scored, mask, keep)
    first = {name: by_sorting(scored, Mask({name: mask[name]}), 1)[name] for name in mask}
    return chosen | Mask({name: chosen[name] if chosen[name].any() else first[name] for name in mask})


def zeros_have_a_sign(scored: Scores, mask: Mask, keep: int) -> Mask:
    nudged = {name: torch.where(t.signbit() & (t == 0), -5e-324, t.double()) for name, t in scored.items()}
    return by_sorting(nudged, mask, keep)


def one_too_many(scored: Scores, mask: Mask, keep: int) -> Mask:
    return by_sorting(scored, mask, min(keep + 1, mask.kept))


def _by_threshold(scored: Scores, mask: Mask, keep: int, compare: Callable[..., torch.Tensor]) -> Mask:
    alive = torch.cat([scored[name].double()[mask[name]] for name in mask])
    worst = alive.sort(descending=True).values[keep - 1] if keep else torch.tensor(np.inf)
    return Mask({name: compare(scored[name].double(), worst) & mask[name] for name in mask})


MUTANTS = [
    above_a_threshold,
    from_a_threshold_on,
    without_the_prior_mask,
    ranked_in_half_precision,
    ties_in_dict_order,
    ties_by_name,
    never_an_empty_parameter,
    zeros_have_a_sign,
    one_too_many,
]


@pytest.fixture(scope="module")
def cases() -> list[Case]:
    drawn: list[Case] = []

    @given(selections())
    @settings(max_examples=400, phases=[Phase.generate], suppress_health_check=list(HealthCheck), database=None)
    def draw(case: Case) -> None:
        drawn.append(case)

    draw()
    return drawn


def violated(choose: Select, cases: list[Case]) -> str | None:
    for law in LAWS:
        try:
            for case in cases:
                law(choose, case)
        except AssertionError:
            return law.__name__
    return None


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.__name__)
def test_a_wrong_selection_breaks_a_law(mutant: Select, cases: list[Case]) -> None:
    assert violated(mutant, cases)


def test_the_definition_breaks_no_law(cases: list[Case]) -> None:
    assert violated(by_sorting, cases) is None


# Budgets per parameter and floors


@given(st.data())
def test_counts_per_parameter_are_kept_within_each_parameter(data: st.DataObject) -> None:
    mask = data.draw(masks())
    scored = data.draw(tied_scores(mask))
    counts = {name: data.draw(st.integers(0, count)) for name, count in mask.counts.items()}
    chosen = select(scored, mask, counts)
    assert chosen.counts == counts
    for name in mask:
        assert torch.equal(chosen[name], by_sorting(scored, Mask({name: mask[name]}), counts[name])[name])


@given(st.data())
def test_floors_are_met_and_the_rest_is_ranked_jointly(data: st.DataObject) -> None:
    mask = data.draw(masks())
    scored = data.draw(st.one_of(tied_scores(mask), scores(mask)))
    floors = {name: data.draw(st.integers(0, count)) for name, count in mask.counts.items()}
    keep = data.draw(st.integers(sum(floors.values()), mask.kept))
    chosen = select(scored, mask, keep, floors=floors)
    assert chosen.kept == keep
    assert all(chosen.counts[name] >= floors[name] for name in mask)
    guaranteed = Mask({n: by_sorting(scored, Mask({n: mask[n]}), floors[n])[n] for n in mask})
    assert chosen == guaranteed | by_sorting(scored, mask - guaranteed, keep - guaranteed.kept)


@given(st.data())
def test_masks_under_floors_are_nested(data: st.DataObject) -> None:
    mask = data.draw(masks())
    scored = data.draw(tied_scores(mask))
    floors = {name: data.draw(st.integers(0, count)) for name, count in mask.counts.items()}
    more = data.draw(st.integers(sum(floors.values()), mask.kept))
    fewer = data.draw(st.integers(sum(floors.values()), more))
    assert select(scored, mask, fewer, floors=floors) <= select(scored, mask, more, floors=floors)


def test_an_unmentioned_parameter_has_no_floor() -> None:
    mask = Mask.ones({"a": (2,), "b": (2,)})
    scored = {"a": torch.tensor([1.0, 2.0]), "b": torch.tensor([3.0, 4.0])}
    assert select(scored, mask, 2, floors={"a": 1}).counts == {"a": 1, "b": 1}


# Large tensors


def large_case(dtype: torch.dtype) -> tuple[dict[str, torch.Tensor], Mask]:
    draw = torch.Generator().manual_seed(1)
    values = {"b": torch.randn(700, 800, generator=draw), "a": torch.randn(300_001, generator=draw) * 0.5}
    kept = {name: torch.rand(t.shape, generator=draw) < 0.6 for name, t in values.items()}
    return {name: t.to(dtype).abs() for name, t in values.items()}, Mask(kept)


def by_numpy(scored: Scores, mask: Mask, keep: int) -> Mask:
    alive = np.concatenate([mask[name].flatten().numpy() for name in mask])
    flat = np.concatenate([scored[name].double().flatten().numpy() for name in mask])
    order = np.argsort(np.where(alive, -flat, np.inf), kind="stable")[:keep]
    chosen = np.zeros(len(flat), np.bool_)
    chosen[order] = True
    parts = np.split(chosen, np.cumsum(list(mask.sizes.values()))[:-1])
    return Mask({n: torch.from_numpy(p).reshape(mask.shapes[n]) for n, p in zip(mask, parts, strict=True)})


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("density", [0.001, 0.2, 0.8, 0.999])
def test_large_selections_equal_a_stable_sort(dtype: torch.dtype, density: float) -> None:
    scored, mask = large_case(dtype)
    keep = int(mask.kept * density)
    assert select(scored, mask, keep) == by_numpy(scored, mask, keep)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_same_bits_for_any_threads_chunks_and_path(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    scored, mask = large_case(dtype)
    keep = mask.kept // 5
    expected = select(scored, mask, keep)
    before = torch.get_num_threads()
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            for chunk, sample, undecided in [(1 << 18, 1 << 17, 1 << 22), (4096, 64, 1 << 22), (1 << 16, 512, 0)]:
                monkeypatch.setattr(reading, "CHUNK", chunk)
                monkeypatch.setattr(reading, "SAMPLE", sample)
                monkeypatch.setattr(engine, "UNDECIDED", undecided)
                assert select(scored, mask, keep) == expected
    finally:
        torch.set_num_threads(before)


@given(selections())
def test_lazy_scores_select_what_their_tensors_would(case: Case) -> None:
    scored, mask, keep = case
    lazy = ElementwiseScores(lambda _, values: values.abs(), scored)
    assert select(lazy, mask, keep) == select({name: t.abs() for name, t in scored.items()}, mask, keep)


def test_non_contiguous_scores_are_read_in_logical_order() -> None:
    scored = torch.arange(12.0).reshape(3, 4).T
    assert select({"w": scored}, Mask.ones({"w": (4, 3)}), 5) == select(
        {"w": scored.contiguous()}, Mask.ones({"w": (4, 3)}), 5
    )


def test_scores_that_require_grad_are_only_read() -> None:
    scored = torch.tensor([1.0, 3.0, 2.0], requires_grad=True)
    assert select({"w": scored}, Mask.ones({"w": (3,)}), 1)["w"].tolist() == [False, True, False]


@given(st.data())
def test_scores_of_pruned_weights_are_ignored(data: st.DataObject) -> None:
    scored, mask, keep = data.draw(selections())
    bad = data.draw(st.sampled_from([np.nan, np.inf, -np.inf]))
    spoiled = {name: t.masked_fill(~mask[name], bad) for name, t in scored.items()}
    for undecided in (engine.UNDECIDED, 0):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(engine, "UNDECIDED", undecided)
            assert select(spoiled, mask, keep) == select(scored, mask, keep)


# Refusals


@given(st.data())
@example(data=None)
def test_a_score_that_is_not_finite_is_refused_by_name(data: st.DataObject | None) -> None:
    if data is None:  # the first and the last weight of the second parameter
        mask, keep, name, bad = Mask.ones({"a": (9,), "b": (9,)}), 4, "b", np.nan
        scored = {"a": torch.ones(9), "b": torch.ones(9)}
        indices = [0, 8]
    else:
        scored, mask, keep = data.draw(selections().filter(lambda case: case[1].kept > 0))
        name = data.draw(st.sampled_from([name for name, count in mask.counts.items() if count]))
        indices = [data.draw(st.sampled_from(mask[name].flatten().nonzero().flatten().tolist()))]
        bad = data.draw(st.sampled_from([np.nan, np.inf, -np.inf]))
    for index in indices:
        spoiled = {n: t.clone() for n, t in scored.items()}
        spoiled[name].view(-1)[index] = bad
        with pytest.raises(ScoreError, match=f"parameter '{name}' is (nan|-?inf)"):
            select(spoiled, mask, keep)


@given(selections(), st.integers(1, 3))
def test_a_budget_out_of_range_is_refused(case: Case, beyond: int) -> None:
    scored, mask, _ = case
    for keep in (mask.kept + beyond, -beyond):
        with pytest.raises(BudgetError, match=f"cannot keep {keep} weights"):
            select(scored, mask, keep)


@pytest.mark.parametrize("keep", [0.5, 1.0, True, "1", None, torch.tensor(1.5)])
def test_a_budget_is_a_whole_number(keep: object) -> None:
    with pytest.raises((BudgetError, TypeError)):
        select({"w": torch.ones(2)}, Mask.ones({"w": (2,)}), keep)


def test_numpy_integers_are_whole_numbers() -> None:
    assert select({"w": torch.ones(2)}, Mask.ones({"w": (2,)}), np.int64(1)).kept == 1


def test_counts_must_name_every_parameter() -> None:
    mask = Mask.ones({"a": (2,), "b": (2,)})
    scored = {"a": torch.ones(2), "b": torch.ones(2)}
    with pytest.raises(BudgetError, match=r"check \['b', 'c'\]"):
        select(scored, mask, {"a": 1, "c": 1})
    with pytest.raises(BudgetError, match="parameter 'a' has 2 left"):
        select(scored, mask, {"a": 3, "b": 1})
    with pytest.raises(BudgetError, match="counts per parameter already say it all"):
        select(scored, mask, {"a": 1, "b": 1}, floors={"a": 1})


def test_floors_must_fit_the_budget_and_what_is_left() -> None:
    mask = Mask.ones({"a": (2,), "b": (2,)})
    scored = {"a": torch.ones(2), "b": torch.ones(2)}
    with pytest.raises(BudgetError, match="floors ask for 3 weights, the budget is 2"):
        select(scored, mask, 2, floors={"a": 1, "b": 2})
    with pytest.raises(BudgetError, match="parameter 'a' has 2 left"):
        select(scored, mask, 4, floors={"a": 3})


def test_a_floor_for_an_unknown_parameter_is_refused() -> None:
    with pytest.raises(BudgetError, match="'c'"):
        select({"a": torch.ones(2)}, Mask.ones({"a": (2,)}), 1, floors={"c": 1})


@pytest.mark.parametrize(
    ("scored", "message"),
    [
        ({"w": torch.ones(2, dtype=torch.int64)}, "'w' must be floating-point, not torch.int64"),
        ({"w": [1.0, 2.0]}, "'w' must be a tensor, not list"),
        ({"v": torch.ones(2)}, r"(?s)w \(2,\): missing.*v \(2,\): unexpected"),
        ({"w": torch.ones(1, 2)}, r"w: expected shape \(2,\), found \(1, 2\)"),
    ],
)
def test_scores_must_fit_the_mask(scored: Scores, message: str) -> None:
    with pytest.raises(ScoreError, match=message):
        select(scored, Mask.ones({"w": (2,)}), 1)


@given(shape_maps())
def test_keeping_all_or_none_needs_no_ranking(shapes: dict[str, tuple[int, ...]]) -> None:
    mask = Mask.ones(shapes)
    scored = {name: torch.zeros(shape) for name, shape in shapes.items()}
    assert select(scored, mask, mask.total) == mask
    assert select(scored, mask, 0).kept == 0


def test_select_changes_neither_scores_nor_mask() -> None:
    scored, mask = large_case(torch.float32)
    copies, digest = {name: t.clone() for name, t in scored.items()}, mask.digest
    select_function(scored, mask, 1000)
    assert all(torch.equal(scored[name], copies[name]) for name in scored)
    assert Mask(dict(mask)).digest == digest
