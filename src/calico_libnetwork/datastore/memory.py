"""A datastore in this process's memory: for tests and demos, and the reading half of ``sqlite``."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence

from calico_libnetwork.datastore.ledger import Ledger, plan
from calico_libnetwork.datastore.protocol import Batch, Listing, Outcome, Transaction
from calico_libnetwork.errors import DatastoreUnavailable


class MemoryDatastore:
    def __init__(self, ledger: Ledger | None = None) -> None:
        self._ledger = ledger or Ledger()
        self._changed = asyncio.Event()  # set once, at the next change, then replaced
        self._closed = False

    @property
    def description(self) -> str:
        return "memory"

    async def get(self, keys: Sequence[str]) -> Listing:
        self._require_open()
        return self._ledger.get(keys)

    async def list(self, prefixes: Sequence[str]) -> Listing:
        self._require_open()
        return self._ledger.list(prefixes)

    async def commit(self, transaction: Transaction) -> Outcome:
        self._require_open()
        made = plan(transaction, self._ledger.revision, self._ledger.read)
        if made.events:
            self._ledger.apply(made.events)
            self._wake_watches()
        return made.outcome

    async def watch(self, prefixes: Sequence[str], start_revision: int) -> AsyncGenerator[Batch, None]:
        position = start_revision
        while True:
            self._require_open()
            changed = self._changed
            if position <= self._ledger.revision:
                batch = self._ledger.since(position, prefixes)
                position = batch.revision + 1
                if batch.events:
                    yield batch
                    continue
            await changed.wait()

    async def compact(self, revision: int) -> None:
        self._require_open()
        self._ledger.compact(revision)

    async def close(self) -> None:
        self._closed = True
        self._wake_watches()

    def _wake_watches(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    def _require_open(self) -> None:
        if self._closed:
            raise DatastoreUnavailable(f"the datastore ({self.description}) is closed")
