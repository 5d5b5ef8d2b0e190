"""Which selectors match which labels, kept up to date as either come and go.

Endpoints with equal labels are one entry here, so ten thousand containers of one network cost what one costs. A
selector that needs a label is tried only on labels that have it, and labels only against such selectors.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import chain

from calico_libnetwork.model.selector import Requirements, Selector

_ANY = None


class LabelSet:
    """Distinct labels; equal labels in one index are the same object. ``matching`` is kept by the index."""

    __slots__ = ("labels", "matching")

    def __init__(self, labels: Mapping[str, str]) -> None:
        self.labels = labels
        self.matching: set[Selector] = set()


class LabelIndex:
    """Label sets and selectors are counted: each is known while somebody holds it."""

    def __init__(self) -> None:
        self._label_sets: dict[frozenset[tuple[str, str]], tuple[LabelSet, int]] = {}
        self._by_label: dict[str, dict[str, set[LabelSet]]] = {}
        self._selectors: dict[Selector, set[LabelSet]] = {}
        self._selectors_by_need: dict[tuple[str, str | None], set[Selector]] = {}
        self._needless: set[Selector] = set()

    def matching(self, selector: Selector) -> set[LabelSet]:
        """The label sets that a known selector matches."""
        return self._selectors[selector]

    def hold_labels(self, labels: Mapping[str, str]) -> LabelSet:
        identity = frozenset(labels.items())
        known = self._label_sets.get(identity)
        if known is not None:
            self._label_sets[identity] = (known[0], known[1] + 1)
            return known[0]
        label_set = LabelSet(labels)
        self._label_sets[identity] = (label_set, 1)
        for label, value in labels.items():
            self._by_label.setdefault(label, {}).setdefault(value, set()).add(label_set)
        for selector in self._candidate_selectors(labels):
            if selector.matches(labels):
                self._selectors[selector].add(label_set)
                label_set.matching.add(selector)
        return label_set

    def drop_labels(self, label_set: LabelSet) -> None:
        identity = frozenset(label_set.labels.items())
        _, count = self._label_sets[identity]
        if count > 1:
            self._label_sets[identity] = (label_set, count - 1)
            return
        del self._label_sets[identity]
        for label, value in label_set.labels.items():
            values = self._by_label[label]
            values[value].discard(label_set)
            if not values[value]:
                del values[value]
            if not values:
                del self._by_label[label]
        for selector in label_set.matching:
            self._selectors[selector].discard(label_set)

    def add_selector(self, selector: Selector) -> set[LabelSet]:
        """Makes a new selector known and answers what it matches."""
        matching = {labels for labels in self._candidate_labels(selector) if selector.matches(labels.labels)}
        self._selectors[selector] = matching
        for label_set in matching:
            label_set.matching.add(selector)
        for need in _needs(selector.requirements):
            self._selectors_by_need.setdefault(need, set()).add(selector)
        if not selector.requirements:
            self._needless.add(selector)
        return matching

    def remove_selector(self, selector: Selector) -> None:
        for label_set in self._selectors.pop(selector):
            label_set.matching.discard(selector)
        for need in _needs(selector.requirements):
            self._selectors_by_need[need].discard(selector)
            if not self._selectors_by_need[need]:
                del self._selectors_by_need[need]
        self._needless.discard(selector)

    def _candidate_selectors(self, labels: Mapping[str, str]) -> Iterable[Selector]:
        yield from self._needless
        for label, value in labels.items():
            yield from self._selectors_by_need.get((label, value), ())
            yield from self._selectors_by_need.get((label, _ANY), ())

    def _candidate_labels(self, selector: Selector) -> Iterable[LabelSet]:
        if not selector.requirements:
            return [label_set for label_set, _ in self._label_sets.values()]
        found: list[LabelSet] = []
        for label, value in _needs(selector.requirements):
            values = self._by_label.get(label, {})
            found += values.get(value, ()) if value is not None else chain.from_iterable(values.values())
        return found


def _needs(requirements: Requirements) -> list[tuple[str, str | None]]:
    """One of the labels a match needs, with the values that do: the one that narrows most."""
    if not requirements:
        return []
    label, values = min(requirements.items(), key=lambda item: (item[1] is None, len(item[1] or ()), item[0]))
    return [(label, _ANY)] if values is None else [(label, value) for value in sorted(values)]
