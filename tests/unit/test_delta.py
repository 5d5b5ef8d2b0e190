"""What is left to do, against a comparison of everything with everything."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from calico_libnetwork.dataplane.delta import Delta

KEYS, VALUES = st.integers(0, 5), st.sampled_from("abc")
CONTENT = st.dictionaries(KEYS, VALUES)
STEPS = st.one_of(
    st.tuples(st.just("want"), KEYS, VALUES),
    st.tuples(st.just("unwant"), KEYS),
    st.tuples(st.just("observe"), KEYS, VALUES),
    st.tuples(st.just("observe_gone"), KEYS),
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


def test_changes_come_in_the_order_in_which_they_were_wanted() -> None:
    delta: Delta[int, str] = Delta()
    keys = [5, 3, 9, 1, 7]
    for key in keys:
        delta.want(key, "a")
    assert list(delta.changes()) == keys
