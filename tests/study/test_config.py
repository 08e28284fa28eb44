"""A study's description, checked whole before anything runs."""

from typing import Any

import pytest

from tests.study.toy_study import SECTIONS, SETTINGS
from ticketkit.errors import ConfigError
from ticketkit.study.config import KINDS, StudyConfig, parse_study
from ticketkit.study.overlay import merged


def parsed(**layer: Any) -> StudyConfig:
    return parse_study(merged(SETTINGS, SECTIONS, layer))


def test_the_studies_are_those_that_are_declared_in_the_order_of_the_paper() -> None:
    assert parsed().kinds == KINDS
    assert parse_study({**SETTINGS, "noise": SECTIONS["noise"], "existence": {}}).kinds == ("existence", "noise")
    assert parse_study(SETTINGS).kinds == ()


def test_a_study_that_is_not_declared_is_refused_with_those_that_are() -> None:
    config = parse_study({**SETTINGS, "existence": {}, "structure": SECTIONS["structure"]})
    assert config.declared(("structure",)) == ("structure",)
    with pytest.raises(ConfigError, match="no study 'noise'; it declares existence, structure"):
        config.declared(("existence", "noise"))
    with pytest.raises(ConfigError, match="it declares none"):
        parse_study(SETTINGS).declared(("existence",))


def test_a_config_comes_back_from_what_it_is_written_as() -> None:
    config = parsed()
    assert parse_study(config.model_dump(mode="json")) == config


@pytest.mark.parametrize(
    ("layer", "said"),
    [
        ({"seeds": [1, 2, 1]}, "seeds are given once each"),
        ({"seeds": []}, "seeds"),
        ({"seeds": [-1]}, "seeds"),
        ({"base": {"seed": 3}}, "the seed of a run comes from seeds"),
        ({"existence": {"variants": ["mpl"]}}, "existence: there is no variant 'mpl'; did you mean 'mlp'"),
        ({"controls": {"variants": ["other"]}}, "controls: there is no variant 'other'"),
        ({"controls": {"small": {"other": {"size": "backbone.hidden"}}}}, "controls: there is no variant 'other'"),
        ({"transfer": {"variant": "other"}}, "transfer: there is no variant 'other'"),
        ({"structure": {"variant": "other"}}, "structure: there is no variant 'other'"),
        ({"noise": {"variant": "other"}}, "noise: there is no variant 'other'"),
        ({"scale": {"other": {"hours": 1, "stand_in": {}}}}, "scale: there is no variant 'other'"),
        ({"controls": {"levels": []}}, "controls.levels"),
        ({"controls": {"levels": [0]}}, "controls.levels"),
        ({"structure": {"granularities": {"a/b": {}}}}, "'a/b' names files"),
        ({"noise": {"train": {"a+b": {}}}}, "'a.b' names files"),
        ({"noise": {"test": {"..": {}}}}, "'..' names files"),
        ({"transfer": {"targets": {"a@b": {}}}}, "'a@b' names files"),
        ({"variants": {"a-b": {}}}, "'a-b' names files"),
        ({"margin": -0.1}, "margin"),
        ({"confidence": 0.5}, "confidence"),
        ({"resamples": 10}, "resamples"),
        ({"threads": 0}, "threads"),
        ({"exsitence": {}}, "exsitence"),
        ({"transfer": {"starts": ["random"]}}, "transfer.starts"),
    ],
)
def test_a_fault_is_refused_and_named(layer: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        parsed(**layer)


def test_all_faults_are_reported_together() -> None:
    with pytest.raises(ConfigError, match="has 2 faults") as raised:
        parsed(margin=-1, controls={"levels": [0]})
    assert "margin" in str(raised.value)
    assert "controls.levels" in str(raised.value)
