"""etcd v3: the datastore of many hosts, shared with calicoctl and calico/node.

Every call is one transaction of etcd's, so one round trip. A write whose end is unknown is run again on another
member only where its compares make that harmless, and what it did is recognised. A watch that is lost, cancelled by
the server, silent for too long or of another cluster raises: its reader lists anew.

Imported only where etcd is configured, since grpc costs memory and threads.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence

from calico_libnetwork.datastore import etcd_messages as messages
from calico_libnetwork.datastore import etcd_pb2 as pb
from calico_libnetwork.datastore.etcd_connection import Connection, EtcdSettings, Timing
from calico_libnetwork.datastore.protocol import TRANSACTION_LIMIT, Batch, KeyValue, Listing, Outcome, Transaction
from calico_libnetwork.errors import Compacted, DatastoreError, DatastoreUnavailable

__all__ = ["EtcdDatastore", "EtcdSettings", "Timing"]

_DEFAULT_TIMING = Timing()


class EtcdDatastore:
    """Made in a running event loop. Raises ``ConfigError`` if a certificate file cannot be read."""

    def __init__(self, settings: EtcdSettings, *, timing: Timing = _DEFAULT_TIMING) -> None:
        self._connection = Connection(settings, timing)
        self._timing = timing

    @property
    def description(self) -> str:
        return self._connection.description

    async def get(self, keys: Sequence[str]) -> Listing:
        ordered = sorted(set(keys))
        first = await self._read(messages.ranges_of_keys(ordered[:TRANSACTION_LIMIT]))
        items: list[KeyValue] = list(first.items)
        for start in range(TRANSACTION_LIMIT, len(ordered), TRANSACTION_LIMIT):
            part = ordered[start : start + TRANSACTION_LIMIT]
            items += (await self._read(messages.ranges_of_keys(part, first.revision))).items
        return Listing(first.revision, tuple(items))

    async def list(self, prefixes: Sequence[str]) -> Listing:
        return await self._read(messages.ranges_of_prefixes(sorted(prefixes)))

    async def commit(self, transaction: Transaction) -> Outcome:
        request = messages.transaction_request(transaction)
        guarded = messages.is_guarded(transaction)
        response, perhaps_done = await self._connection.request(lambda member: member.txn, request, repeatable=guarded)
        outcome = messages.outcome(transaction, response)
        return messages.settled(transaction, outcome) if perhaps_done else outcome

    async def watch(self, prefixes: Sequence[str], start_revision: int) -> AsyncGenerator[Batch, None]:
        async with self._connection.watch() as stream:
            for prefix in prefixes:
                await stream.send(messages.watch_request(prefix, start_revision))
            pending = len(prefixes)
            while True:
                response = await stream.receive(self._timing.deadline if pending else 2 * self._timing.progress)
                self._connection.observe(response.header)
                if response.canceled:
                    raise self._cancelled(response)
                pending -= response.created
                yield Batch(response.header.revision, messages.events(response))

    async def compact(self, revision: int) -> None:
        request = pb.CompactionRequest(revision=revision)
        try:
            await self._connection.request(lambda member: member.compact, request)
        except Compacted:
            return  # forgotten already

    def renew(self) -> None:
        """To be called when an address of this host is gone: connections from it would be silent until given up."""
        self._connection.renew()

    async def close(self) -> None:
        await self._connection.close()

    async def _read(self, request: pb.TxnRequest) -> Listing:
        response, _ = await self._connection.request(lambda member: member.txn, request)
        return messages.listing(response)

    def _cancelled(self, response: pb.WatchResponse) -> DatastoreError:
        """The server keeps the stream open after this message and says nothing more."""
        if response.compact_revision:
            oldest = response.compact_revision
            return Compacted(f"{self.description} has forgotten what was before revision {oldest}", oldest)
        return DatastoreUnavailable(
            f"{self.description} cancelled the watch: {response.cancel_reason or 'no reason given'}"
        )
