"""etcd's semantics in memory and without I/O: keys with their revisions, and the recent changes for watches.

Both embedded stores stand on it: ``memory`` applies a plan as soon as it is made, ``sqlite`` when it is on disk.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence

import msgspec

from calico_libnetwork.datastore.ordered import OrderedItems
from calico_libnetwork.datastore.protocol import (
    Batch,
    Compare,
    Delete,
    Event,
    KeyValue,
    Listing,
    Operation,
    Outcome,
    Transaction,
)
from calico_libnetwork.errors import Compacted, DatastoreError

FIRST_REVISION = 1
"""Of an empty store, as in etcd: the first write makes revision 2."""
HISTORY = 2000
"""Revisions kept for watches; one that falls further behind is told that they are gone, and lists anew."""


class Plan(msgspec.Struct, frozen=True):
    """What a transaction comes to: its answer, and the changes it makes (none where a compare failed)."""

    outcome: Outcome
    events: tuple[Event, ...]


def plan(transaction: Transaction, revision: int, read: Callable[[str], KeyValue | None]) -> Plan:
    """Decides a transaction against the state that ``read`` shows, which is as of ``revision``."""
    for compare in transaction.compares:
        if not _holds(compare, read(compare.key)):
            current = {compare.key: read(compare.key) for compare in transaction.compares}
            return Plan(Outcome(False, revision, current), ())
    events = []
    written: dict[str, KeyValue | None] = {}
    for operation in transaction.operations:
        event = _event(operation, read(operation.key), revision + 1)
        written[operation.key] = None if event is None else event.current
        if event is not None:
            events.append(event)
    return Plan(Outcome(True, revision + 1 if events else revision, written), tuple(events))


def _holds(compare: Compare, item: KeyValue | None) -> bool:
    match compare.target:
        case "value":
            return item is not None and item.value == compare.operand
        case "mod":
            actual = item.mod_revision if item else 0
        case "create":
            actual = item.create_revision if item else 0
        case "version":
            actual = item.version if item else 0
    return actual == compare.operand


def _event(operation: Operation, item: KeyValue | None, revision: int) -> Event | None:
    """None for the deletion of an absent key, which makes no revision."""
    if isinstance(operation, Delete):
        return Event(operation.key, None, revision) if item else None
    if item is None:
        return Event(operation.key, KeyValue(operation.key, operation.value, revision, revision, 1), revision)
    current = KeyValue(operation.key, operation.value, item.create_revision, revision, item.version + 1)
    return Event(operation.key, current, revision)


class Ledger:
    def __init__(
        self, items: Iterable[KeyValue] = (), *, revision: int = FIRST_REVISION, history: int = HISTORY
    ) -> None:
        self._items = OrderedItems(items)
        self.read = self._items.get
        self._limit = history
        self._history: deque[tuple[Event, ...]] = deque()  # one entry a revision, the last is that of self.revision
        self.revision = revision

    @property
    def compacted(self) -> int:
        """The oldest revision a watch may start at."""
        return self.revision + 1 - len(self._history)

    def get(self, keys: Sequence[str]) -> Listing:
        found = (self._items.get(key) for key in sorted(set(keys)))
        return Listing(self.revision, tuple(item for item in found if item is not None))

    def list(self, prefixes: Sequence[str]) -> Listing:
        return Listing(self.revision, tuple(item for prefix in sorted(prefixes) for item in self._items.under(prefix)))

    def apply(self, events: tuple[Event, ...]) -> None:
        """Takes the events of the next revision."""
        for event in events:
            if event.current is None:
                self._items.remove(event.key)
            else:
                self._items.put(event.current)
        self.revision += 1
        self._history.append(events)
        if len(self._history) > self._limit:
            self._history.popleft()

    def since(self, start_revision: int, prefixes: Sequence[str]) -> Batch:
        """The changes from ``start_revision`` up to now. Raises ``Compacted``."""
        oldest = self.compacted
        if start_revision < oldest:
            raise Compacted(f"revision {start_revision} is forgotten; the oldest kept is {oldest}", oldest)
        wanted = tuple(prefixes)
        # the last ones, as a rule: a deque is indexed from its nearer end, while islice walks from the first
        recent = (self._history[position] for position in range(start_revision - oldest, len(self._history)))
        events = tuple(event for events in recent for event in events if event.key.startswith(wanted))
        return Batch(self.revision, events)

    def compact(self, revision: int) -> None:
        if revision > self.revision:
            raise DatastoreError(f"revision {revision} is not reached yet; the latest is {self.revision}")
        for _ in range(revision - self.compacted):
            self._history.popleft()
