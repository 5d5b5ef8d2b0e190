"""Desired, actual and the difference: one type for every kernel subsystem. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Generic, TypeVar

K = TypeVar("K")
V = TypeVar("V")

_NOTHING = object()


class Delta(Generic[K, V]):
    """Two maps and the keys in which they differ, kept up to date as either changes.

    Setting a value costs O(1); finding out what is left to do costs O(differences), so an idle resync of ten
    thousand routes applies nothing and one changed endpoint costs the same among ten as among ten thousand. What
    cannot be done yet is put aside until what it waits for is there.
    """

    def __init__(self) -> None:
        self._desired: dict[K, V] = {}
        self._actual: dict[K, V] = {}
        self._pending: dict[K, None] = {}  # in order, for ten thousand in no order cost ten times as much to look up
        self._deferred: dict[K, str] = {}  # differing too, each with what it waits for
        self._waiting: dict[str, dict[K, None]] = {}

    @property
    def desired(self) -> Mapping[K, V]:
        return self._desired

    @property
    def actual(self) -> Mapping[K, V]:
        return self._actual

    @property
    def in_sync(self) -> bool:
        return not self._pending

    def want(self, key: K, value: V) -> None:
        self._desired[key] = value
        self._note(key, same=self._actual.get(key, _NOTHING) == value)

    def unwant(self, key: K) -> None:
        self._desired.pop(key, None)
        self._note(key, same=key not in self._actual)

    def want_exactly(self, desired: Mapping[K, V]) -> None:
        for key in self._desired.keys() - desired.keys():
            self.unwant(key)
        for key, value in desired.items():
            self.want(key, value)

    def observe(self, key: K, value: V) -> None:
        """The kernel now holds ``value`` under ``key``: it was read, or a write succeeded."""
        self._actual[key] = value
        self._note(key, same=self._desired.get(key, _NOTHING) == value)

    def observe_gone(self, key: K) -> None:
        self._actual.pop(key, None)
        self._note(key, same=key not in self._desired)

    def observe_each(self, values: Mapping[K, V]) -> None:
        """``observe`` for many at once."""
        self._actual.update(values)
        if self._deferred:
            for key in values:
                self._recall(key)
        desired, pending = self._desired, self._pending
        for key, value in values.items():
            if desired.get(key, _NOTHING) == value:
                pending.pop(key, None)
            else:
                pending[key] = None

    def observe_exactly(self, actual: Mapping[K, V]) -> None:
        """A full reading replaces whatever was believed before."""
        for key in self._actual.keys() - actual.keys():
            self.observe_gone(key)
        self.observe_each(actual)

    def changes(self) -> dict[K, V]:
        """What must be written: missing or different in the kernel."""
        return {key: self._desired[key] for key in self._pending if key in self._desired}

    def removals(self) -> Iterable[K]:
        """What must go: in the kernel and not wanted."""
        return [key for key in self._pending if key not in self._desired]

    def defer(self, key: K, until: str) -> None:
        """Not among ``changes`` any more, until it is wanted or observed anew or ``resume`` names what it waits for."""
        del self._pending[key]
        self._deferred[key] = until
        self._waiting.setdefault(until, {})[key] = None

    def resume(self, awaited: str) -> None:
        for key in self._waiting.pop(awaited, ()):
            del self._deferred[key]
            self._pending[key] = None

    def _recall(self, key: K) -> None:
        awaited = self._deferred.pop(key, None)
        if awaited is not None:
            waiting = self._waiting[awaited]
            del waiting[key]
            if not waiting:
                del self._waiting[awaited]

    def _note(self, key: K, *, same: bool) -> None:
        self._recall(key)
        if same:
            self._pending.pop(key, None)
        else:
            self._pending[key] = None
