"""The label index against a naive one that tries everything on everything."""

from __future__ import annotations

from random import Random

import pytest

from calico_libnetwork.model.selector import Selector, parse
from calico_libnetwork.policy.labels import LabelIndex, LabelSet

_SELECTORS = [
    "all()", "has(a)", "!has(a)", "a == 'x'", "a != 'x'", "a in {'x', 'y'}", "a not in {'x'}", "a in {}",
    "a == 'x' && b == 'y'", "a == 'x' || b == 'y'", "a == 'x' || a == 'z'", "b starts with 'x'", "has(a) && !has(b)",
    "a contains '' && a != 'z'", "!(a == 'x' || has(b))",
]  # fmt: skip


def _labels(random: Random) -> dict[str, str]:
    return {label: random.choice("xyz") for label in "abc" if random.random() < 0.5}


@pytest.mark.parametrize("seed", range(40))
def test_the_index_knows_what_trying_everything_finds(seed: int) -> None:
    random = Random(seed)
    index = LabelIndex()
    held: list[LabelSet] = []
    known: set[Selector] = set()
    for _ in range(120):
        choice = random.random()
        if choice < 0.4:
            held.append(index.hold_labels(_labels(random)))
        elif choice < 0.6 and held:
            index.drop_labels(held.pop(random.randrange(len(held))))
        elif choice < 0.85:
            selector = parse(random.choice(_SELECTORS))
            if selector not in known:
                known.add(selector)
                matching = index.add_selector(selector)
                assert matching == {labels for labels in held if selector.matches(labels.labels)}
        elif known:
            selector = random.choice(sorted(known, key=repr))
            known.discard(selector)
            index.remove_selector(selector)
        for labels in held:
            assert labels.matching == {selector for selector in known if selector.matches(labels.labels)}
        for selector in known:
            assert index.matching(selector) == {labels for labels in held if selector.matches(labels.labels)}


def test_equal_labels_are_one_object_while_held() -> None:
    index = LabelIndex()
    first, second = index.hold_labels({"a": "x"}), index.hold_labels({"a": "x"})
    assert first is second
    index.drop_labels(first)
    assert index.add_selector(parse("has(a)")) == {second}
    index.drop_labels(second)
    assert index.matching(parse("has(a)")) == set()


def test_an_index_without_content_keeps_nothing() -> None:
    index = LabelIndex()
    selector = parse("a in {'x', 'y'}")
    index.add_selector(selector)
    index.drop_labels(index.hold_labels({"a": "x", "b": "y"}))
    index.remove_selector(selector)
    assert not any(vars(index).values())
