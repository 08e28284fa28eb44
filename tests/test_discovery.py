import sys
from pathlib import Path

import pytest

from ticketkit import PluginError, discovery


def install(site: Path, entry: str, module: str, source: str = "", *, distribution: str | None = None) -> None:
    distribution = distribution or entry
    (site / f"{module}.py").write_text(source)
    info = site / f"{distribution}-2.0.dist-info"
    info.mkdir(exist_ok=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 2.0\n")
    (info / "entry_points.txt").write_text(f"[ticketkit]\n{entry} = {module}\n")


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.syspath_prepend(tmp_path)
    for variable in (discovery.ALLOW, discovery.BLOCK):
        monkeypatch.delenv(variable, raising=False)
    return tmp_path


def found() -> dict[str, discovery.FoundPlugin]:
    return {one.facts.name: one for one in discovery.found_plugins()}


def test_plugins_come_in_the_order_of_their_names_with_their_facts(site: Path) -> None:
    for name in ("zz", "aa"):
        install(site, name, f"disc_{name}", distribution=f"{name}-dist")
    names = [one.facts.name for one in discovery.found_plugins()]
    assert names == sorted(names)
    assert {"aa", "zz"} <= set(names)
    assert str(found()["aa"].facts) == "plugin 'aa' (distribution aa-dist 2.0)"
    assert found()["aa"].plugin is sys.modules["disc_aa"]


@pytest.mark.parametrize("entry", ["builtin", "python", "two words", "ünlich", "a,b"])
def test_a_name_that_lists_or_tickets_could_not_tell_apart_is_refused(entry: str, site: Path) -> None:
    install(site, entry, "disc_named", distribution="named")
    assert found()[entry].plugin is None
    fault = found()[entry].fault
    assert "(distribution named 2.0) needs another name for its entry point" in fault
    assert ("builtin and python are taken" in fault) == (entry in discovery.RESERVED)


def test_what_fails_to_import_names_distribution_version_and_place(site: Path) -> None:
    install(site, "bad", "disc_bad", "import not_there_at_all", distribution="bad-dist")
    assert found()["bad"].fault == (
        "plugin 'bad' (distribution bad-dist 2.0) cannot be imported from 'disc_bad': "
        "ModuleNotFoundError: No module named 'not_there_at_all'"
    )


def test_a_path_that_is_listed_twice_is_no_second_plugin(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(site, "once", "disc_once")
    monkeypatch.syspath_prepend(str(site) + "/.")
    assert found()["once"].fault == ""


def test_the_environment_leaves_plugins_out_and_its_slips_are_named(
    site: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(site, "mine", "disc_mine")
    install(site, "other", "disc_other")
    monkeypatch.setenv(discovery.ALLOW, "mine, oter,")
    monkeypatch.setenv(discovery.BLOCK, "")
    assert list(found()) == ["mine"]
    assert discovery.left_out()["other"] == "TICKETKIT_LOAD_PLUGINS does not name 'other'"
    assert discovery.misnamed() == [
        "TICKETKIT_LOAD_PLUGINS names 'oter', which is not installed; did you mean 'other'?"
    ]
    monkeypatch.delenv(discovery.ALLOW)
    monkeypatch.setenv(discovery.BLOCK, "mine")
    assert "mine" not in found()
    assert discovery.left_out() == {"mine": "TICKETKIT_BLOCK_PLUGINS blocks 'mine'"}


def test_what_is_left_out_is_not_even_imported(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(site, "loud", "disc_loud", "raise SystemExit('imported')")
    monkeypatch.setenv(discovery.BLOCK, "loud")
    assert "loud" not in found()


def test_a_plugin_in_a_file_hides_no_module_of_its_name(tmp_path: Path) -> None:
    path = tmp_path / "json.py"
    path.write_text("MINE = True\n")
    import json

    plugin = discovery.file_plugin(path)
    assert (plugin.facts.name, plugin.plugin.MINE) == ("json", True)  # type: ignore[union-attr]
    assert sys.modules["json"] is json
    del sys.modules["ticketkit_plugin_file_json"]


def test_a_file_that_fails_leaves_the_one_before_it(tmp_path: Path) -> None:
    path = tmp_path / "turning.py"
    path.write_text("")
    first = discovery.file_plugin(path).plugin
    path.write_text("1 / 0")
    with pytest.raises(PluginError, match="ZeroDivisionError"):
        discovery.file_plugin(path)
    assert sys.modules.pop("ticketkit_plugin_file_turning") is first
