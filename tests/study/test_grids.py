"""The five studies as grids: which runs there are, what they need, at which levels they are compared."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.study.toy_study import SECTIONS, SETTINGS
from ticketkit.errors import ConfigError
from ticketkit.study.config import KINDS, Kind, StudyConfig, parse_study
from ticketkit.study.grids import jobs
from ticketkit.study.jobs import OWN, Arm, Job, MaskOrigin, Resize, WeightsOrigin
from ticketkit.study.overlay import at, merged

LADDER = {"rate": 0.2, "rounds": 12}


def study(*kinds: Kind, **layer: Any) -> StudyConfig:
    own = {kind: SECTIONS[kind] for kind in kinds}
    return parse_study(merged(SETTINGS, {"base": {"prune": LADDER}}, own, layer))


def found(*kinds: Kind, **layer: Any) -> dict[str, Job]:
    config = study(*kinds, **layer)
    return {job.id: job for job in jobs(config, config.kinds)}


def names(count: int, letter: str) -> dict[str, dict[str, Any]]:
    return {f"{letter}{index}": {"corpus": {"examples": 32 + index}} for index in range(count)}


@st.composite
def studies(draw: st.DrawFn) -> StudyConfig:
    """Return studies of any size over the toy's entries."""
    kinds = draw(st.sets(st.sampled_from(KINDS), min_size=1))
    levels = draw(st.sets(st.integers(1, 12), min_size=1, max_size=3))
    sources, targets = draw(st.integers(1, 2)), draw(st.integers(1, 2))
    layer: dict[str, Any] = {kind: {"levels": sorted(levels)} for kind in kinds - {"existence"}}
    seeds = draw(st.lists(st.integers(0, 9), min_size=1, max_size=3, unique=True))
    if "transfer" in kinds:
        layer["transfer"] |= {"sources": names(sources, "s"), "targets": names(targets, draw(st.sampled_from("st")))}
    return study(*kinds, **layer, seeds=seeds)


@given(studies())
def test_every_run_is_there_once_and_comes_after_those_that_it_needs(config: StudyConfig) -> None:
    done: set[str] = set()
    for job in jobs(config, config.kinds):
        assert job.id not in done
        assert job.needs <= done
        done.add(job.id)


@given(studies())
def test_every_arm_has_one_run_for_each_seed_and_level(config: StudyConfig) -> None:
    known: set[tuple[Arm, int, int | None]] = set()
    for job in jobs(config, config.kinds):
        for level in [None] if job.levels is None else job.levels.values():
            assert (job.arm, job.seed, level) not in known
            known.add((job.arm, job.seed, level))
    assert {(arm, level): seed for arm, seed, level in known if seed not in config.seeds} == {}
    for arm, level in {(arm, level) for arm, _, level in known}:
        assert {seed for one, seed, at_level in known if (one, at_level) == (arm, level)} == set(config.seeds)


@given(studies())
def test_a_run_takes_from_its_own_seed_and_from_a_level_that_is_there(config: StudyConfig) -> None:
    found = {job.id: job for job in jobs(config, config.kinds)}
    for job in found.values():
        for origin in (job.mask, job.weights, job.resize):
            if origin is not None:
                other = found[origin.run]
                assert other.seed == job.seed
                assert other.levels is None
                assert origin.level <= other.settings["prune"]["rounds"]


@given(studies())
def test_all_studies_together_are_the_union_of_each(config: StudyConfig) -> None:
    together = {job.id for job in jobs(config, config.kinds)}
    assert together == {job.id for kind in config.kinds for job in jobs(config, (kind,))}


@pytest.mark.parametrize("seeds", [1, 3])
@pytest.mark.parametrize("levels", [1, 2])
def test_counts_of_runs(seeds: int, levels: int) -> None:
    facts: dict[str, Any] = {"seeds": list(range(seeds))}
    chosen = list(range(2, 2 + levels))

    def count(kind: Kind, **section: Any) -> int:
        own = section if kind == "existence" else {"levels": chosen, **section}
        return len(found(kind, **{kind: own}, **facts))

    assert count("existence") == seeds
    # ladder, unrewound ladder; at each level one-shot, random globally, in layers, random ticket, small, small for long
    assert count("controls") == seeds * (2 + 6 * levels)
    # two ladders, a dense network from the source; at each level both starts and the shuffled mask
    assert count("transfer") == seeds * (2 + 1 + 3 * levels)
    assert count("transfer", starts=["initial"]) == seeds * (2 + 2 * levels)
    assert count("transfer", targets={"few": {"corpus": {"name": "majority", "examples": 48}}}) == seeds * (
        2 + 1 + 3 * levels
    ), "a corpus that is source and target takes nothing from itself"
    assert count("structure") == seeds * (1 + 2)
    # two ladders and at each level the clean ticket; twice the regularised and, at each level, the small network
    assert count("noise") == seeds * (2 + levels + 2 * (1 + levels))


def test_ladders_that_several_studies_need_are_run_once() -> None:
    alone = {kind: set(found(kind)) for kind in KINDS}
    shared = {"mlp-imp-s0", "mlp-imp-s1"}
    for kind in ("existence", "controls", "structure", "noise"):
        assert shared <= alone[kind]
    assert set(found(*KINDS)) == set.union(*alone.values())


def test_arms_of_the_controls_differ_from_the_ladder_in_what_they_are_about() -> None:
    controls = found("controls", seeds=[0])
    ladder = controls["mlp-imp-s0"]
    assert controls["mlp-standard-s0"].settings == merged(ladder.settings, {"prune": {"rewind": "none", "rounds": 2}})
    once = merged(ladder.settings, {"prune": {"schedule": "one_shot", "rounds": 2}})
    assert controls["mlp-one_shot-k2-s0"].settings == once
    assert controls["mlp-random_global-k2-s0"].settings == merged(once, {"prune": {"criterion": "random"}})
    layers, ticket = controls["mlp-random_layers-k2-s0"], controls["mlp-random_ticket-k2-s0"]
    assert (layers.mask, layers.weights) == (MaskOrigin("mlp-imp-s0", 2, "parameter"), None)
    assert (ticket.mask, ticket.weights) == (MaskOrigin("mlp-imp-s0", 2), WeightsOrigin("mlp-imp-s0", 2, "fresh"))
    small = controls["mlp-small_dense-k2-s0"]
    assert (small.mask, small.resize) == (None, Resize("mlp-imp-s0", 2, "backbone.hidden"))


@pytest.mark.parametrize("level", [1, 2, 5])
def test_the_long_rival_is_trained_as_long_as_the_whole_search(level: int) -> None:
    small = {"size": "backbone.hidden", "epochs": "trainer.epochs", "anneal": "trainer.decay"}
    layer = {"base": {"trainer": {"decay": 1.21}}, "controls": {"levels": [level], "small": {"mlp": small}}}
    job = found("controls", seeds=[0], **layer)[f"mlp-small_dense_long-k{level}-s0"]
    search = (level + 1) * 2  # epochs of the ladder's rounds up to the level
    assert at("trainer.epochs", job.settings) == search
    assert at("trainer.decay", job.settings) ** search == pytest.approx(1.21**2)


@pytest.mark.parametrize(
    ("path", "said"), [("trainer.none", "do not give a value"), ("trainer.name", "no number"), ("corpus.x", "value")]
)
def test_a_small_network_whose_epochs_are_no_number_is_refused(path: str, said: str) -> None:
    small = {"mlp": {"size": "backbone.hidden", "epochs": path}}
    with pytest.raises(ConfigError, match=said):
        found("controls", controls={"levels": [1], "small": small})


def test_what_moves_is_trained_on_the_target_with_mask_and_weights_of_the_source() -> None:
    moved = found("transfer", seeds=[0], transfer={"levels": [2, 4]})
    source = "mlp@few-imp-s0"
    for level in (2, 4):
        for start in ("initial", "trained"):
            job = moved[f"mlp@many-{start}_from_few-k{level}-s0"]
            assert (job.mask, job.weights) == (MaskOrigin(source, level), WeightsOrigin(source, level, start))
            assert job.settings["corpus"] == moved["mlp@many-imp-s0"].settings["corpus"]
        shuffled = moved[f"mlp@many-shuffled_from_few-k{level}-s0"]
        assert shuffled.mask == MaskOrigin(source, level, "parameter")
        assert shuffled.weights == WeightsOrigin(source, level, "initial")
    dense = moved["mlp@many-dense_from_few-k0-s0"]
    assert (dense.mask, dense.weights) == (None, WeightsOrigin(source, 0, "trained"))
    assert moved[source].settings["prune"]["rounds"] == 4


@pytest.mark.parametrize(("density", "level"), [(0.5, 3), (0.25, 6), (0.8, 1), (0.95, 1), (0.1, 10)])
def test_a_granularity_of_fixed_density_is_compared_at_the_nearest_pruned_level(density: float, level: int) -> None:
    layer = {"granularity": "row", "rounds": 1, "rate": None, "density": density}
    job = found("structure", structure={"granularities": {"fixed": layer}})["mlp-fixed-s0"]
    assert job.levels == {0: 0, 1: level}


def test_granularities_go_as_far_as_the_last_level_and_change_nothing_else() -> None:
    ladders = found("structure", seeds=[0], structure={"levels": [2, 5]})
    expected = merged(ladders["mlp-imp-s0"].settings, {"prune": {"granularity": "row", "rounds": 5}})
    assert ladders["mlp-row-s0"].settings == expected


def test_every_network_of_the_noise_study_is_tested_under_every_condition() -> None:
    for job in found("noise").values():
        assert list(job.tests) == [OWN, "hard"]
        if job.levels is None:
            assert job.tests["hard"].rounds == {0, 2}
            assert job.tests[OWN].rounds is None
        else:
            assert {test.rounds for test in job.tests.values()} == {None}


def test_the_clean_ticket_is_the_ladders_and_its_training_the_conditions() -> None:
    noise = found("noise", seeds=[0])
    job = noise["mlp+loud-clean_ticket-k2-s0"]
    assert job.mask == MaskOrigin("mlp-imp-s0", 2)
    assert job.settings["trainer"] == noise["mlp+loud-imp-s0"].settings["trainer"] == {"name": "sgd", "epochs": 3}
    assert "mlp+none-clean_ticket-k2-s0" not in noise


@pytest.mark.parametrize(
    ("kinds", "layer", "said"),
    [
        (("noise",), {"noise": {"train": {"none": {}}}}, "'none' is training without any"),
        (("transfer",), {"transfer": {"targets": {"few": {"seed": 1}}}}, "few is one thing as a source"),
        (("structure",), {"structure": {"granularities": {"imp": {"granularity": "row"}}}}, "'mlp-imp-s0'"),
        (
            ("controls", "structure"),
            {"structure": {"granularities": {"one_shot": {"granularity": "row"}}}},
            "would both be mlp one_shot",
        ),
        (("noise", "existence"), {"noise": {"test": {OWN: {"trainer": {"epochs": 9}}}}}, "different tests by 'test'"),
        (("controls",), {"controls": {"levels": [13]}}, "beyond the ladder"),
        (("structure",), {"structure": {"levels": [13]}}, "beyond the ladder"),
        (("noise",), {"noise": {"levels": [13]}}, "beyond the ladder"),
    ],
)
def test_what_would_be_two_things_or_nothing_is_refused(
    kinds: tuple[Kind, ...], layer: dict[str, Any], said: str
) -> None:
    with pytest.raises(ConfigError, match=said):
        found(*kinds, **layer)


def test_a_study_that_is_not_declared_is_refused() -> None:
    with pytest.raises(ConfigError, match="declares no study 'noise'"):
        jobs(study("existence"), ("noise",))
