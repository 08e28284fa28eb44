"""Configs: read from YAML or a recipe, overridden by dotted settings, checked whole before anything runs."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from ticketkit.config import RunConfig, parse_config, read_settings
from ticketkit.errors import ConfigError
from ticketkit.hookspecs import hookimpl
from ticketkit.plugins import LoadedPlugin, Plugins


class Options(BaseModel, extra="forbid"):
    size: int = 1


class Roles:
    """A plugin with one entry for each role of an experiment."""

    @hookimpl
    def ticketkit_register_corpora(self, register: Callable[..., None]) -> None:
        register("words", lambda options: None, options=Options)

    @hookimpl
    def ticketkit_register_backbones(self, register: Callable[..., None]) -> None:
        register("net", lambda options: None, options=Options)

    @hookimpl
    def ticketkit_register_trainers(self, register: Callable[..., None]) -> None:
        register("loop", lambda bundle, corpus, seed: None)


@pytest.fixture(scope="module")
def plugins() -> Plugins:
    plugins = Plugins()
    plugins.add(Roles(), LoadedPlugin("roles", "roles", "roles-dist", "1.0"))
    return plugins


def settings(**changes: Any) -> dict[str, Any]:
    return {
        "corpus": "words",
        "backbone": {"name": "net", "size": 2},
        "trainer": "loop",
        "prune": {"rounds": 2},
    } | changes


def test_defaults_are_the_papers(plugins: Plugins) -> None:
    config = parse_config(settings(), plugins)
    assert (config.prune.criterion, config.prune.allocation, config.prune.schedule) == (
        "magnitude",
        "global",
        "geometric",
    )
    assert (config.prune.rewind, config.metric, config.mode, config.tolerance) == ("init", "wer", "min", 0.0)


def test_a_config_round_trips_through_json(plugins: Plugins) -> None:
    config = parse_config(settings(seed=5, tolerance=0.01), plugins)
    again = RunConfig.model_validate(config.model_dump(mode="json"), context=plugins)
    assert again == config


def test_a_chosen_entry_gets_its_validated_options(plugins: Plugins) -> None:
    choice = parse_config(settings(), plugins).chosen(plugins, "backbone")
    origin = choice.provenance
    assert (origin.entry, origin.version, origin.options) == ("roles:net", "1.0", {"size": 2})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"corpus": "wrds"}, "corpus: unknown corpus 'wrds'; did you mean 'words'?"),
        ({"backbone": {"name": "net", "size": "big"}}, "size: Input should be a valid integer"),
        ({"backbone": {"size": 1}}, "backbone needs a name"),
        ({"trainer": {"name": "loop", "lr": 1}}, "trainer 'loop' takes no options"),
        ({"prune": {"rounds": 2, "rate": 1.0}}, "strictly between 0 and 1"),
        ({"prune": {}}, "say how far to prune"),
        ({"prune": {"rounds": 2, "rewind": "yesterday"}}, "rewind"),
        ({"tolerance": -1}, "tolerance"),
        ({"colour": "red"}, "colour: Extra inputs are not permitted"),
    ],
)
def test_every_fault_is_named_with_its_path(changes: Mapping[str, Any], message: str, plugins: Plugins) -> None:
    with pytest.raises(ConfigError, match="the config has 1 fault") as caught:
        parse_config(settings(**changes), plugins)
    assert message in str(caught.value)


def test_overrides_reach_any_depth_and_give_a_bare_name_options(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("corpus: words\nprune: {rounds: 2}\n")
    read = read_settings(str(path), ["corpus.size=4", "prune.rate=0.5", "prune.scope.include=[a.*]", "seed=9"], {})
    assert read == {
        "corpus": {"name": "words", "size": 4},
        "prune": {"rounds": 2, "rate": 0.5, "scope": {"include": ["a.*"]}},
        "seed": 9,
    }


def test_a_recipe_is_read_by_name(tmp_path: Path) -> None:
    recipe = tmp_path / "digits.yaml"
    recipe.write_text("seed: 1\n")
    assert read_settings("digits", [], {"digits": recipe}) == {"seed": 1}


@pytest.mark.parametrize(
    ("text", "overrides", "message"),
    [
        ("a: [", [], "is not valid YAML"),
        ("- 1", [], "must hold a mapping of settings, not list"),
        ("a: 1", ["a"], "a setting is written a.b=value, not 'a'"),
        ("a: 1", [".=2"], "a setting is written a.b=value"),
        ("a: 1", ["a.b=2"], "'a' holds 1, which has no settings inside"),
        ("a: 1", ["b=["], "'[' is not valid YAML"),
    ],
)
def test_bad_files_and_overrides_are_refused(text: str, overrides: list[str], message: str, tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        read_settings(str(path), overrides, {})
    assert message in str(caught.value)
