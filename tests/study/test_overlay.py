"""Settings over settings."""

from copy import deepcopy
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ticketkit.study.overlay import at, merged, valued

KEYS = st.sampled_from(["a", "b", "c"])
LEAVES = st.one_of(st.integers(0, 3), st.none(), st.lists(st.integers(0, 3), max_size=2))


def settings(leaves: st.SearchStrategy[Any] = LEAVES) -> st.SearchStrategy[dict[str, Any]]:
    """Return nested mappings without names."""
    return st.dictionaries(KEYS, st.recursive(leaves, lambda inner: st.dictionaries(KEYS, inner, max_size=3)))


@given(settings(), settings())
def test_a_layer_over_itself_and_an_empty_layer_change_nothing(below: dict[str, Any], above: dict[str, Any]) -> None:
    both = merged(below, above)
    assert merged(both, both) == both
    assert merged(both, {}) == merged({}, both) == both


@given(settings(), settings())
def test_every_leaf_of_the_upper_layer_stands_in_the_result(below: dict[str, Any], above: dict[str, Any]) -> None:
    def leaves(tree: dict[str, Any], path: tuple[str, ...] = ()) -> dict[str, Any]:
        found = {}
        for key, value in tree.items():
            if isinstance(value, dict):
                found |= leaves(value, (*path, key))
            else:
                found[".".join((*path, key))] = value
        return found

    result = merged(below, above)
    assert {path: at(path, result) for path in leaves(above)} == leaves(above)
    assert result.keys() == below.keys() | above.keys()


@given(settings(), settings())
def test_layers_are_read_only_and_the_result_shares_no_mapping_with_them(
    below: dict[str, Any], above: dict[str, Any]
) -> None:
    before = deepcopy((below, above))

    def empty(tree: dict[str, Any]) -> None:
        for value in tree.values():
            if isinstance(value, dict):
                empty(value)
        tree.clear()

    empty(merged(below, above))
    assert (below, above) == before


@given(settings(st.integers(0, 3)), settings(st.integers(0, 3)), settings(st.integers(0, 3)))
def test_three_layers_are_two_over_one(a: dict[str, Any], b: dict[str, Any], c: dict[str, Any]) -> None:
    assert merged(a, b, c) == merged(merged(a, b), c)


@pytest.mark.parametrize(
    ("below", "above", "result"),
    [
        ({"name": "p", "k": 1}, {"k": 2}, {"name": "p", "k": 2}),
        ({"name": "p", "k": 1}, {"name": "p", "j": 2}, {"name": "p", "k": 1, "j": 2}),
        ({"name": "p", "k": 1}, {"name": "q", "j": 2}, {"name": "q", "j": 2}),
        ({"name": "p", "k": 1}, "q", "q"),
        ("p", {"k": 1}, {"name": "p", "k": 1}),
        ("p", {"name": "q", "k": 1}, {"name": "q", "k": 1}),
        ({"name": "p", "deep": {"k": 1}}, {"name": "q", "deep": {"j": 2}}, {"name": "q", "deep": {"j": 2}}),
        ({"k": 1}, None, None),
        (None, {"k": 1}, {"k": 1}),
    ],
)
def test_options_go_with_the_name_that_they_belong_to(below: Any, above: Any, result: Any) -> None:
    assert merged({"role": below}, {"role": above}) == {"role": result}


@given(st.lists(KEYS, min_size=1, max_size=4), LEAVES)
def test_what_is_set_at_a_path_is_found_there(keys: list[str], value: Any) -> None:
    path = ".".join(keys)
    assert at(path, valued(path, value)) == value


def test_a_path_that_leads_nowhere_raises_key_error() -> None:
    with pytest.raises(KeyError):
        at("a.c", {"a": {"b": 1}})
