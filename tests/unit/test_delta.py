"""What is left to do, against a comparison of everything with everything."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from calico_libnetwork.dataplane.delta import Delta

KEYS, VALUES = st.integers(0, 5), st.sampled_from("abc")
CONTENT = st.dictionaries(KEYS, VALUES)
AWAITED = "pq"
SINGLE_STEPS = st.one_of(
    st.tuples(st.just("want"), KEYS, VALUES),
    st.tuples(st.just("unwant"), KEYS),
    st.tuples(st.just("observe"), KEYS, VALUES),
    st.tuples(st.just("observe_gone"), KEYS),
)
DEFERRALS = st.one_of(
    st.tuples(st.just("defer"), KEYS, st.sampled_from(AWAITED)), st.tuples(st.just("resume"), st.sampled_from(AWAITED))
)
STEPS = st.one_of(
    SINGLE_STEPS,
    st.tuples(st.sampled_from(["want_exactly", "observe_each", "observe_exactly"]), CONTENT),
)


@given(st.lists(STEPS, max_size=30))
def test_changes_and_removals_are_the_difference_after_any_steps(steps: list[tuple[object, ...]]) -> None:
    delta: Delta[int, str] = Delta()
    for name, *arguments in steps:
        getattr(delta, str(name))(*arguments)
    desired, actual = delta.desired, delta.actual
    assert delta.changes() == {key: value for key, value in desired.items() if actual.get(key) != value}
    assert set(delta.removals()) == actual.keys() - desired.keys()
    assert delta.in_sync == (desired == actual)


@given(st.lists(st.one_of(SINGLE_STEPS, DEFERRALS), max_size=30))
def test_what_is_deferred_comes_back_when_it_is_touched_or_resumed(steps: list[tuple[Any, ...]]) -> None:
    delta: Delta[int, str] = Delta()
    deferred: dict[int, str] = {}
    for name, *arguments in steps:
        if name == "resume":
            deferred = {key: awaited for key, awaited in deferred.items() if awaited != arguments[0]}
        elif name == "defer":
            if arguments[0] not in delta.changes():
                continue
            deferred[arguments[0]] = arguments[1]
        else:
            deferred.pop(arguments[0], None)
        getattr(delta, name)(*arguments)
    differing = {key: value for key, value in delta.desired.items() if delta.actual.get(key) != value}
    assert delta.changes() == {key: value for key, value in differing.items() if key not in deferred}
    for awaited in AWAITED:
        delta.resume(awaited)
    assert delta.changes() == differing


def test_changes_come_in_the_order_in_which_they_were_wanted() -> None:
    delta: Delta[int, str] = Delta()
    keys = [5, 3, 9, 1, 7]
    for key in keys:
        delta.want(key, "a")
    assert list(delta.changes()) == keys
