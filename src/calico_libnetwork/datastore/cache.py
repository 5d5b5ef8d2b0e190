"""List, then watch: the one place through which plugin, IPAM and agent read and write the datastore.

Reads are served from memory. What this process writes, or learns from a refused write, is in memory before
``commit`` returns, and listeners are told at once; the watch's echo is then no news. For every key only a newer
revision replaces what is known, and the absence of a key has a revision as well, so a late event neither undoes a
newer write nor brings back what was deleted.

Whenever the watch ends (lost stream, compaction, another cluster), everything is listed anew and the difference is
applied. A listing whose revision lies before what had been seen when it was asked for comes from a restored or
different store: then no revision known so far means anything, and the listing replaces everything.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from contextlib import aclosing
from time import monotonic

import structlog

from calico_libnetwork.datastore.ordered import OrderedItems
from calico_libnetwork.datastore.protocol import Datastore, Event, KeyValue, Listing, Outcome, Transaction
from calico_libnetwork.datastore.unreadable import UnreadableValues
from calico_libnetwork.errors import Compacted, DatastoreError, DatastoreUnavailable

Listener = Callable[[Sequence[Event]], None]

PAUSE = 1.0
"""Seconds between two attempts to reach the datastore."""
PATIENCE = 5.0
"""Seconds a write waits for the first listing."""
_ABSENCES = 4096  # remembered; an echo is milliseconds away, so the oldest are long settled

_log = structlog.get_logger()


class Cache:
    """``run`` keeps it current and has to run for as long as it is used."""

    def __init__(
        self, datastore: Datastore, prefixes: Sequence[str], *, pause: float = PAUSE, patience: float = PATIENCE
    ) -> None:
        self._datastore = datastore
        self._prefixes = tuple(prefixes)
        self._pause = pause
        self._patience = patience
        self._items = OrderedItems()
        self._absent: dict[str, int] = {}  # key -> revision at which it was known not to exist; oldest first
        self._seen = 0  # the highest revision heard of
        self._listeners: list[Listener] = []
        self.unreadable = UnreadableValues()
        self.in_sync = asyncio.Event()
        self.outage: str | None = "it has not been asked yet"
        self._outage_since: float | None = None

    @property
    def description(self) -> str:
        return self._datastore.description

    @property
    def connected(self) -> bool:
        return self.outage is None

    @property
    def revision(self) -> int:
        """The highest revision heard of; for health and logs."""
        return self._seen

    def get(self, key: str) -> KeyValue | None:
        return self._items.get(key)

    def under(self, prefix: str) -> Sequence[KeyValue]:
        """In key order; a list of its own, which later changes do not touch."""
        return self._items.under(prefix)

    def subscribe(self, listener: Listener) -> Callable[[], None]:
        """``listener`` is called in the loop for every applied change; nothing is replayed. Returns the undoing."""
        self._listeners.append(listener)
        return lambda: self._listeners.remove(listener)

    async def synced(self) -> None:
        """Waits for the first listing. Raises ``DatastoreUnavailable`` if it does not come within the patience."""
        if self.in_sync.is_set():
            return
        try:
            async with asyncio.timeout(self._patience):
                await self.in_sync.wait()
        except TimeoutError:
            raise DatastoreUnavailable(
                f"the datastore {self.description} has not been reached yet ({self.outage}); try again when it answers"
            ) from None

    async def commit(self, transaction: Transaction) -> Outcome:
        """Raises ``DatastoreUnavailable``; whether the transaction happened is then for the watch to tell."""
        await self.synced()
        outcome = await self._datastore.commit(transaction)
        self._fold(outcome.current, outcome.revision)
        return outcome

    async def refresh(self, keys: Sequence[str]) -> None:
        """Reads ``keys`` anew, for a caller that cannot wait for the watch."""
        await self.synced()
        listing = await self._datastore.get(keys)
        current: dict[str, KeyValue | None] = dict.fromkeys(keys)
        current.update((item.key, item) for item in listing.items)
        self._fold(current, listing.revision)

    async def run(self) -> None:
        """Lists and watches, forever; an outage is logged when it begins and when it ends."""
        while True:
            try:
                await self._list_and_watch()
            except Compacted as error:
                _log.info("datastore history is gone, listing anew", datastore=self.description, reason=str(error))
            except DatastoreError as error:
                self._note_outage(str(error))
                await asyncio.sleep(self._pause)

    async def _list_and_watch(self) -> None:
        floor = self._seen
        listing = await self._datastore.list(self._prefixes)
        events = self._adopt(listing, floor)
        self._note_contact()
        self.in_sync.set()
        self._tell(events)
        async with aclosing(self._datastore.watch(self._prefixes, listing.revision + 1)) as batches:
            async for batch in batches:
                self._seen = max(self._seen, batch.revision)
                self._tell([event for event in batch.events if self._hear(event)])

    def _adopt(self, listing: Listing, floor: int) -> list[Event]:
        """Makes memory equal to ``listing``, but for what was written or read after it. Returns the changes."""
        if listing.revision < floor:
            _log.warning(
                "the datastore's revision went back: it was restored or replaced",
                datastore=self.description, before=floor, now=listing.revision,
            )  # fmt: skip
            return self._replace(listing)
        current: dict[str, KeyValue | None] = {item.key: None for item in self._items.under("")}
        current.update((item.key, item) for item in listing.items)
        events = self._learn_all(current, listing.revision)
        self._absent = {key: revision for key, revision in self._absent.items() if revision > listing.revision}
        self._seen = max(self._seen, listing.revision)
        return events

    def _replace(self, listing: Listing) -> list[Event]:
        before, self._items = self._items, OrderedItems(listing.items)
        self._absent.clear()
        self._seen = listing.revision
        gone = [item.key for item in before.under("") if self._items.get(item.key) is None]
        changed = [item for item in listing.items if before.get(item.key) != item]
        return [
            *(Event(key, None, listing.revision) for key in gone),
            *(Event(item.key, item, item.mod_revision) for item in changed),
        ]

    def _fold(self, current: Mapping[str, KeyValue | None], revision: int) -> None:
        self._seen = max(self._seen, revision)
        watched = {key: item for key, item in current.items() if key.startswith(self._prefixes)}
        self._tell(self._learn_all(watched, revision))

    def _learn_all(self, current: Mapping[str, KeyValue | None], as_of: int) -> list[Event]:
        return [
            Event(key, item, item.mod_revision if item else as_of)
            for key, item in current.items()
            if self._learn(key, item, as_of)
        ]

    def _hear(self, event: Event) -> bool:
        """Whether it is news; the echo of what this process wrote is not, and most of what it hears."""
        if event.current is not None and event.current is self._items.get(event.key):
            return False
        return self._learn(event.key, event.current, event.revision)

    def _learn(self, key: str, item: KeyValue | None, as_of: int) -> bool:
        """Takes the state of ``key`` as of a revision unless a newer one is known. Returns whether it was news."""
        known = self._items.get(key)
        if as_of < (known.mod_revision if known else self._absent.get(key, 0)):
            return False
        if item is None:
            self._absent.pop(key, None)
            self._absent[key] = as_of
            if len(self._absent) > _ABSENCES:
                del self._absent[next(iter(self._absent))]
            self._items.remove(key)
        elif item != known:
            self._absent.pop(key, None)
            self._items.put(item)
        return item != known

    def _tell(self, events: Sequence[Event]) -> None:
        if not events:
            return
        self.unreadable.forget(event.key for event in events)
        for listener in tuple(self._listeners):
            try:
                listener(events)
            except Exception as error:  # noqa: BLE001  a listener's fault must not fail a write that has happened
                asyncio.get_running_loop().call_exception_handler(
                    {"message": "a listener of the datastore cache failed", "exception": error}
                )

    def _note_outage(self, reason: str) -> None:
        if self._outage_since is None:
            _log.warning("datastore unavailable", datastore=self.description, reason=reason)
            self._outage_since = monotonic()
        self.outage = reason

    def _note_contact(self) -> None:
        if self._outage_since is not None:
            seconds = round(monotonic() - self._outage_since, 1)
            _log.info("datastore is back", datastore=self.description, seconds=seconds)
        self.outage = self._outage_since = None
