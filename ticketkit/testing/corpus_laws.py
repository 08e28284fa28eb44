"""The laws of corpora."""

import json
from collections.abc import Collection, Mapping
from typing import Any

from ticketkit.errors import ConfigError, TicketkitError
from ticketkit.plugins import Plugins
from ticketkit.rng import RngState, seeded
from ticketkit.testing.moment import alike
from ticketkit.testing.subject import Named, Subject, listed, without_a_trace

SPLITS = ("train", "dev", "test")
NO_SPLIT = "a_split_that_no_corpus_has"


@without_a_trace
def check_corpus(corpus: Named, *, plugins: Plugins | None = None, splits: Collection[str] = SPLITS) -> None:
    """Raise `ConformanceError` if a corpus breaks a law: the same each time it is opened, splits apart, facts in JSON.

    `corpus` is what a config takes: a registered name, a mapping with it and options, or a callable that needs no
    arguments. It is opened twice. What has `split(name)`, as the corpora of ticketkit_asr have, is also asked for its
    `splits` and for one that there is not.

    >>> from ticketkit.testing import check_corpus
    >>> class Empty:
    ...     def describe(self):
    ...         return {"name": "empty", "utterances": 0}
    >>> check_corpus(Empty)
    """
    subject = Subject.of("corpus", corpus, plugins)
    opened = _opened(subject, 1)
    facts = _describes_itself_in_json(subject, opened)
    again = _opened(subject, 2)
    _is_the_same_when_opened_again(subject, facts, _facts(subject, opened), _facts(subject, again))
    if callable(getattr(opened, "split", None)):
        found = {name: _utterances(subject, opened, name) for name in splits}
        _has_something_in_every_split(subject, found)
        _has_every_utterance_once(subject, found)
        _has_the_same_utterances_again(subject, found, opened, again)
        _refuses_a_split_that_there_is_not(subject, opened)


def _opened(subject: Subject, seed: int) -> Any:
    """Return the opened corpus, whatever the global random generators, which it leaves alone."""
    law, where = "open, with no other arguments than its options", f"global generators seeded with {seed}"
    with seeded(seed):
        before = RngState.capture()
        opened = subject.insist(law, where, subject.choice.call)
        if not alike(before, RngState.capture()):
            law = "leave the global random generators alone; what it draws comes from a generator of its own"
            raise subject.broken(law, where, "they moved while it was opened")
    if not callable(getattr(opened, "describe", None)):
        raise subject.broken("return a corpus, which has describe()", where, f"a {type(opened).__name__}")
    return opened


def _facts(subject: Subject, opened: Any) -> Any:
    return subject.insist("describe itself", "describe()", opened.describe)


def _describes_itself_in_json(subject: Subject, opened: Any) -> Mapping[str, Any]:
    law = "describe itself in JSON: a mapping of strings to text, finite numbers, booleans, None, lists and dicts"
    facts = _facts(subject, opened)
    if not isinstance(facts, Mapping):
        raise subject.broken(law, "describe()", f"a {type(facts).__name__}")
    for name, value in facts.items():
        try:
            read = json.loads(json.dumps({name: value}, allow_nan=False))
        except (TypeError, ValueError) as error:
            raise subject.broken(law, f"describe()[{name!r}]", f"{value!r}, which JSON cannot say: {error}") from error
        if not alike(read, {name: value}):
            raise subject.broken(law, f"describe()[{name!r}]", f"{value!r}, which comes back as {read!r}")
    return facts


def _is_the_same_when_opened_again(subject: Subject, facts: Any, later: Any, again: Any) -> None:
    for what, other in (("describe() called again", later), ("the corpus opened again", again)):
        if other != facts:
            differing = [key for key in {**facts, **other} if facts.get(key) != other.get(key)]
            key = differing[0] if differing else "its order"
            law = "say the same of itself each time: a report is to name the data that a run was trained on"
            raise subject.broken(law, what, f"{key!r}: {facts.get(key)!r}, then {other.get(key)!r}")


def _utterances(subject: Subject, opened: Any, name: str) -> list[Any]:
    law = "give its splits train, dev and test; say splits= if it has others"
    return list(subject.insist(law, f"split({name!r})", opened.split, name))


def _has_something_in_every_split(subject: Subject, found: Mapping[str, list[Any]]) -> None:
    if empty := [name for name, utterances in found.items() if not utterances]:
        law = "have something in every split, or raise DataError when it is opened"
        raise subject.broken(law, f"split({empty[0]!r})", "nothing")


def _has_every_utterance_once(subject: Subject, found: Mapping[str, list[Any]]) -> None:
    """Ids are unique over all splits, where utterances have one: what was trained on is not tested on."""
    seen: dict[Any, str] = {}
    for name, utterances in found.items():
        for key in _ids(utterances):
            if key in seen:
                law = "have every id once: in no split twice, and in no two splits"
                raise subject.broken(law, f"split({name!r})", f"id {key!r}, which is in {seen[key]!r} already")
            seen[key] = name


def _has_the_same_utterances_again(subject: Subject, found: Mapping[str, list[Any]], opened: Any, again: Any) -> None:
    for name, utterances in found.items():
        for what, corpus in (("asked again", opened), ("opened again", again)):
            other = _utterances(subject, corpus, name)
            if len(other) != len(utterances) or _ids(other) != _ids(utterances):
                law = "have the same utterances in the same order each time"
                where = f"split({name!r}), {what}"
                raise subject.broken(law, where, f"{_shown(utterances)}, then {_shown(other)}")


def _refuses_a_split_that_there_is_not(subject: Subject, opened: Any) -> None:
    law, where = "raise ConfigError for a split that there is not", f"split({NO_SPLIT!r})"
    try:
        found = subject.attempt(where, opened.split, NO_SPLIT)
    except ConfigError:
        return
    except TicketkitError as error:
        raise subject.broken(law, where, f"{type(error).__name__}: {error}") from error
    raise subject.broken(law, where, f"{found!r}")


def _ids(utterances: list[Any]) -> list[Any]:
    return [utterance.id for utterance in utterances if hasattr(utterance, "id")]


def _shown(utterances: list[Any]) -> str:
    return f"{len(utterances)} utterances ({listed([repr(key) for key in _ids(utterances)], 3) or 'without ids'})"
