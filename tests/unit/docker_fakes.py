"""Stand-ins at the Docker side's seams: the kernel, the agent, the daemon. The datastore under them is real."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from ipaddress import IPv6Address
from pathlib import Path
from typing import Any

from calico_libnetwork.dataplane.veth import Veth, VethSpec
from calico_libnetwork.datastore.cache import Cache
from calico_libnetwork.datastore.memory import MemoryDatastore
from calico_libnetwork.datastore.protocol import Outcome, Put, Transaction
from calico_libnetwork.docker.assembly import build_drivers
from calico_libnetwork.docker.plugin import Drivers
from calico_libnetwork.docker.settings import DockerSettings
from calico_libnetwork.errors import DataplaneError
from calico_libnetwork.ipam import Ipam
from calico_libnetwork.model import documents
from calico_libnetwork.model.kinds import ResourceKey

NODE = "host-1"
CREATED = "2026-11-24T00:00:00Z"


class FakeVeths:
    """Interfaces of the host by name; ``moved`` are those whose other end is in a container."""

    def __init__(self) -> None:
        self.present: dict[str, VethSpec] = {}
        self.created = 0
        self.fail = False

    async def create(self, spec: VethSpec) -> Veth:
        if self.fail:
            raise DataplaneError(f"interface {spec.host_name} cannot be created: no")
        self.created += 1
        self.present[spec.host_name] = spec
        return Veth(self.created, IPv6Address("fe80::ecee:eeff:feee:eeee") if spec.ipv6 else None)

    async def schedule_delete(self, host_name: str) -> None:
        self.present.pop(host_name, None)


@dataclass
class FakeStatus:
    programmed: bool = True
    asked: list[ResourceKey] = field(default_factory=list)

    async def wait(self, key: ResourceKey, timeout: float) -> bool:  # noqa: ASYNC109 - the seam's own
        self.asked.append(key)
        return self.programmed


@dataclass
class FakeNames:
    """``names`` is what Docker knows; None stands for a daemon that does not answer."""

    names: dict[str, str] | None = field(default_factory=dict)

    async def network_name(self, network_id: str) -> str | None:
        return None if self.names is None else self.names.get(network_id)

    async def network_exists(self, network_id: str) -> bool | None:
        return None if self.names is None else network_id in self.names


class CountingDatastore(MemoryDatastore):
    """Counts transactions, the round trips that an etcd would see."""

    def __init__(self) -> None:
        super().__init__()
        self.transactions: list[Transaction] = []

    async def commit(self, transaction: Transaction) -> Outcome:
        self.transactions.append(transaction)
        return await super().commit(transaction)


@dataclass
class Host:
    """One node's plugin without its sockets; ``restart`` forgets all that is only in memory."""

    settings: DockerSettings
    datastore: CountingDatastore
    cache: Cache
    ipam: Ipam
    veths: FakeVeths
    status: FakeStatus
    names: FakeNames
    drivers: Drivers

    async def value(self, path: str) -> Any:
        found = (await self.datastore.get([path])).items
        return json.loads(found[0].value) if found else None

    async def resource(self, kind: str, name: str, namespace: str = "") -> Any:
        return await self.value(ResourceKey(kind, name, namespace).path)

    async def keys(self, prefix: str) -> list[str]:
        return [item.key for item in (await self.datastore.list([prefix])).items]

    async def endpoints(self) -> list[Any]:
        prefix = "/calico/resources/v3/projectcalico.org/workloadendpoints/"
        return [json.loads(item.value) for item in (await self.datastore.list([prefix])).items]

    def transactions(self) -> int:
        """Since the last time it was asked."""
        count = len(self.datastore.transactions)
        self.datastore.transactions.clear()
        return count


def pool(name: str, cidr: str, **spec: Any) -> Put:
    document = documents.new_document(
        "IPPool",
        name,
        {"cidr": cidr, "ipipMode": "Never", "vxlanMode": "Never", "nodeSelector": "all()", **spec},
        uid=f"uid-{name}",
        created=CREATED,
    )
    return Put(ResourceKey("IPPool", name).path, documents.encode(document))


def node(name: str) -> Put:
    document = documents.new_document("Node", name, {}, uid=f"uid-{name}", created=CREATED)
    return Put(ResourceKey("Node", name).path, documents.encode(document))


DEFAULT_POOLS = (pool("pool4", "10.65.0.0/16"), pool("pool6", "fd80:24e2:f998:72d6::/64"))


@asynccontextmanager
async def running_host(
    directory: Path,
    *,
    datastore: CountingDatastore | None = None,
    resources: tuple[Put, ...] = DEFAULT_POOLS,
    names: FakeNames | None = None,
    veths: FakeVeths | None = None,
    **settings: Any,
) -> AsyncIterator[Host]:
    if datastore is None:
        datastore = CountingDatastore()
        await datastore.commit(Transaction([], [*resources, node(NODE)]))
    values: dict[str, Any] = {"node": NODE, "plugin_directory": directory / "plugins", "run_directory": directory}
    chosen = DockerSettings(**values | settings)
    cache = Cache(datastore, ["/calico/", "/calico-libnetwork/"])
    running = asyncio.create_task(cache.run())
    try:
        await cache.synced()
        names = names or FakeNames()
        veths = veths or FakeVeths()
        status = FakeStatus()
        ipam = Ipam(cache, node=chosen.node)
        drivers = build_drivers(
            chosen,
            cache=cache,
            ipam=ipam,
            veths=veths,
            status=status,
            names=names,
            interface_exists=veths.present.__contains__,
        )
        datastore.transactions.clear()
        yield Host(chosen, datastore, cache, ipam, veths, status, names, drivers)
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
