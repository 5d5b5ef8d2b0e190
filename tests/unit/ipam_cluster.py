"""A cluster for IPAM tests: one memory datastore, pools and nodes, and any number of hosts with their own caches."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from typing import Any

from calico_libnetwork.datastore.cache import Cache
from calico_libnetwork.datastore.memory import MemoryDatastore
from calico_libnetwork.datastore.protocol import Datastore, Put, Transaction
from calico_libnetwork.ipam import PREFIXES, Ipam
from calico_libnetwork.model import block as blocks
from calico_libnetwork.model import documents
from calico_libnetwork.model.ipam_keys import Address, Network, block_key
from calico_libnetwork.model.kinds import ResourceKey

NOW = 1_795_480_141_763_700_699
SECOND = 1_000_000_000


class Clock:
    def __init__(self) -> None:
        self.now = NOW

    def __call__(self) -> int:
        return self.now

    def advance(self, seconds: float) -> None:
        self.now += round(seconds * SECOND)


class Cluster:
    def __init__(self, store: Datastore, clock: Clock) -> None:
        self.store = store
        self.clock = clock
        self._tasks: list[asyncio.Task[None]] = []
        self._caches: list[Cache] = []

    async def put(self, values: Mapping[str, bytes]) -> None:
        """Writes past every host, and lets their caches hear of it."""
        for key, value in values.items():
            await self.store.commit(Transaction((), (Put(key, value),)))
        await self.heard()

    async def heard(self) -> None:
        """Waits until every cache is as recent as the store."""
        revision = (await self.store.get(())).revision
        for cache in self._caches:
            while cache.revision < revision:
                heard = asyncio.Event()
                forget = cache.subscribe(lambda _, heard=heard: heard.set())  # type: ignore[misc]
                await heard.wait()
                forget()

    async def resource(self, kind: str, name: str, spec: dict[str, Any], **metadata: Any) -> None:
        document = documents.new_document(kind, name, spec, uid="u", created="2026-11-24T00:00:00Z")
        document["metadata"] |= metadata
        await self.put({ResourceKey(kind, name).path: documents.encode(document)})

    async def pool(self, cidr: str, name: str = "pool", **spec: Any) -> None:
        await self.resource("IPPool", name, {"cidr": cidr, **spec})

    async def node(self, name: str, **labels: str) -> None:
        await self.resource("Node", name, {}, labels=labels)

    async def config(self, **fields: Any) -> None:
        await self.put({"/calico/ipam/v2/config": json.dumps(fields).encode()})

    async def host(self, name: str, *, store: Datastore | None = None) -> Host:
        cache = Cache(store or self.store, PREFIXES)
        self._tasks.append(asyncio.create_task(cache.run()))
        await cache.synced()
        self._caches.append(cache)
        return Host(name, cache, Ipam(cache, node=name, clock=self.clock))

    async def values(self, prefix: str = "/calico/ipam/v2/") -> dict[str, str]:
        return {item.key: item.value.decode() for item in (await self.store.list([prefix])).items}

    async def block(self, network: Network) -> blocks.Block:
        return blocks.decode((await self.values())[block_key(network)].encode())

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


class Host:
    """A node's IPAM with short calls: the handle is the caller's, the attributes are the node alone."""

    def __init__(self, name: str, cache: Cache, ipam: Ipam) -> None:
        self.name = name
        self.cache = cache
        self.ipam = ipam

    async def auto(self, handle: str = "h", version: int = 4, pools: tuple[Network, ...] = ()) -> Address:
        assert version in (4, 6)
        return await self.ipam.auto_assign(
            4 if version == 4 else 6, handle=handle, attributes={"node": self.name}, pools=pools
        )

    async def assign(self, address: Address, handle: str = "h") -> None:
        await self.ipam.assign(address, handle=handle, attributes={"node": self.name})


@asynccontextmanager
async def a_cluster(store: Datastore | None = None) -> AsyncGenerator[Cluster, None]:
    cluster = Cluster(store or MemoryDatastore(), Clock())
    try:
        yield cluster
    finally:
        await cluster.close()
