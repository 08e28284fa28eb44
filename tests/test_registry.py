import pytest
from pydantic import BaseModel, ConfigDict, Field

from ticketkit import ConfigError, PluginError
from ticketkit.registry import Entry, Registry, suggestion


class Options(BaseModel):
    model_config = ConfigDict(extra="forbid")

    strength: float = Field(1.0, ge=0)
    mode: str = "soft"


def score(inputs: object, *, options: Options) -> tuple[object, Options]:
    """Return what came.

    More text.
    """
    return inputs, options


def entry(name: str = "mine", plugin: str = "p", options: type[BaseModel] | None = Options) -> Entry:
    return Entry("criterion", name, score, options, plugin, "1.2", f"{plugin}-dist")


def test_options_are_validated_bound_and_recorded_without_defaults() -> None:
    choice = entry().configured({"strength": 2})
    assert choice.call("x") == ("x", Options(strength=2.0))
    assert choice.provenance.model_dump() == {
        "entry": "p:mine",
        "version": "1.2",
        "distribution": "p-dist",
        "options": {"strength": 2.0},
    }


def test_all_wrong_options_are_reported_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        entry().configured({"strength": -1, "mode": 3, "unknown": 4})
    message = str(caught.value)
    assert message.startswith("criterion 'mine':")
    for expected in ("strength: ", "(came: -1)", "mode: ", "(came: 3)", "unknown: "):
        assert expected in message


def test_an_entry_without_options_takes_none() -> None:
    with pytest.raises(ConfigError, match=r"takes no options, but \['strength'\] were given"):
        entry(options=None).configured({"strength": 1})


def test_an_unknown_name_gets_the_nearest() -> None:
    registry = Registry("criterion")
    registry.add(entry("magnitude"))
    registry.add(entry("random"))
    with pytest.raises(ConfigError, match=r"unknown criterion 'magnitud'; did you mean 'magnitude'\?"):
        registry.get("magnitud")
    with pytest.raises(ConfigError, match="there are: magnitude, random"):
        registry.get("xyzzy")


def test_two_plugins_with_one_name_are_an_error_naming_both_and_so_is_asking_for_it() -> None:
    registry = Registry("criterion")
    registry.add(entry("mine", "first"))
    both = (
        r"'mine' is registered by plugin 'first' \(first-dist 1\.2\) and again by plugin 'second' \(second-dist 1\.2\)"
    )
    with pytest.raises(PluginError, match=both):
        registry.add(entry("mine", "second"))
    with pytest.raises(PluginError, match=both):
        registry.get("mine")


def test_a_removed_plugin_leaves_no_entry() -> None:
    registry = Registry("criterion")
    registry.add(entry("a", "first"))
    registry.add(entry("b", "second"))
    registry.remove_plugin("first")
    assert [e.name for e in registry] == ["b"]


def test_entries_come_in_alphabetical_order() -> None:
    registry = Registry("criterion")
    for name in "bca":
        registry.add(entry(name))
    assert [e.name for e in registry] == ["a", "b", "c"]


def test_the_summary_is_the_first_line() -> None:
    assert entry().summary == "Return what came."
    assert Entry("criterion", "x", lambda: None, None, "p", "1").summary == "(no description)"


def test_suggestions_of_nothing() -> None:
    assert suggestion("x", []) == "; there are: none"
