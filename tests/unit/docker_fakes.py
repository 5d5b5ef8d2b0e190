"""Stand-ins at the Docker side's seams: the kernel, the agent, the daemon. The datastore under them is real."""

from __future__ import annotations

import asyncio
import errno
import json
from collections.abc import AsyncIterator, Collection, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from ipaddress import IPv6Address
from pathlib import Path
from typing import Any

from calico_libnetwork.dataplane.veth import Veth, VethSpec
from calico_libnetwork.datastore.cache import Cache
from calico_libnetwork.datastore.memory import MemoryDatastore
from calico_libnetwork.datastore.protocol import Outcome, Put, Transaction
from calico_libnetwork.docker.assembly import Assembly, assemble
from calico_libnetwork.docker.containers import Container, ContainerTable
from calico_libnetwork.docker.plugin import Drivers
from calico_libnetwork.docker.published_ports import HostPort
from calico_libnetwork.docker.settings import DockerSettings
from calico_libnetwork.errors import DataplaneError, DatastoreUnavailable, DockerUnavailable, NotFound
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
        self.gateways: dict[str, IPv6Address] = {}
        self.gate = asyncio.Event()  # closed, it holds deletions up
        self.gate.set()

    async def create(self, spec: VethSpec) -> Veth:
        if self.fail:
            raise DataplaneError(f"interface {spec.host_name} cannot be created: no")
        self.created += 1
        self.present[spec.host_name] = spec
        return Veth(self.created, IPv6Address("fe80::ecee:eeff:feee:eeee") if spec.ipv6 else None)

    async def add_gateway(self, host_name: str, address: IPv6Address) -> None:
        self.gateways[host_name] = address

    async def schedule_delete(self, host_name: str) -> None:
        await self.gate.wait()
        if self.fail:
            raise DataplaneError(f"interface {host_name} cannot be taken out of use: no")
        self.present.pop(host_name, None)


@dataclass
class FakeStatus:
    programmed: bool = True
    needs_carrier: bool = False
    publishes_ports: bool = True
    asked: list[ResourceKey] = field(default_factory=list)

    async def wait(self, key: ResourceKey, timeout: float) -> bool:  # noqa: ASYNC109 - the seam's own
        self.asked.append(key)
        return self.programmed


@dataclass(frozen=True)
class _HeldPort:
    port: HostPort
    held: list[HostPort]

    def close(self) -> None:
        self.held.remove(self.port)


class FakePorts:
    """The host's ports; ``busy`` are those that other programs have, ``held`` those that containers have.

    ``elsewhere`` are addresses that the host does not have.
    """

    def __init__(self) -> None:
        self.busy: set[int] = set()
        self.elsewhere: set[str] = set()
        self.held: list[HostPort] = []
        self._next_free = 32768

    def hold(self, port: HostPort, _versions: Collection[int]) -> tuple[_HeldPort, int]:
        number = port.host_port
        while number == 0:
            self._next_free += 1
            number = self._next_free if self._next_free not in self.busy else 0
        if str(port.host_address) in self.elsewhere:
            raise OSError(errno.EADDRNOTAVAIL, "Cannot assign requested address")
        got = replace(port, host_port=number)
        if number in self.busy or any(map(got.overlaps, self.held)):
            raise OSError(errno.EADDRINUSE, "Address already in use")
        self.held.append(got)
        return _HeldPort(got, self.held), number


@dataclass
class FakeDaemon:
    """``names`` are the networks Docker has, by id; None stands for a daemon that does not answer."""

    names: dict[str, str] | None = field(default_factory=dict)
    members: dict[str, dict[str, Any]] = field(default_factory=dict)
    containers: dict[str, Container] = field(default_factory=dict)
    questions: list[str] = field(default_factory=list)
    properties: dict[str, Any] = field(default_factory=dict)
    """What else ``GET /networks/ID`` says."""
    starts: asyncio.Event | None = None
    """Set when it has started; None: it does not any more."""

    def add(self, container: Container) -> None:
        self.containers[container.name] = container

    async def network(self, network_id: str) -> Mapping[str, Any]:
        self.questions.append(f"network {network_id[:12]}")
        if self.names is None:
            raise DockerUnavailable("the Docker API does not answer now")
        if network_id not in self.names:
            raise NotFound(f"network {network_id} not found")
        return {"Id": network_id, "Name": self.names[network_id], "Containers": self.members, **self.properties}

    async def own_networks(self, known: Collection[str]) -> list[Mapping[str, Any]]:
        return [await self.network(network_id) for network_id in self.names or {"": ""}]

    async def container_named(self, name: str) -> Container | None:
        self.questions.append(f"container {name}")
        if self.names is None:
            raise DockerUnavailable("the Docker API does not answer now")
        return self.containers.get(name)

    async def started(self) -> None:
        if self.starts is not None:
            await self.starts.wait()


class CountingDatastore(MemoryDatastore):
    """Counts transactions, the round trips that an etcd would see; ``down``, it answers to none."""

    def __init__(self) -> None:
        super().__init__()
        self.transactions: list[Transaction] = []
        self.down = False

    async def commit(self, transaction: Transaction) -> Outcome:
        if self.down:
            raise DatastoreUnavailable(f"{self.description} does not answer")
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
    ports: FakePorts
    daemon: FakeDaemon
    table: ContainerTable
    assembly: Assembly

    @property
    def drivers(self) -> Drivers:
        return self.assembly.drivers

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

    async def caught_up(self) -> None:
        """Sees what other hosts have written, without waiting for the watch."""
        stored = (await self.datastore.list([""])).items
        await self.cache.refresh([*{item.key for item in (*stored, *self.cache.under(""))}])

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
    daemon: FakeDaemon | None = None,
    veths: FakeVeths | None = None,
    ports: FakePorts | None = None,
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
        daemon = daemon or FakeDaemon()
        table = ContainerTable()
        veths = veths or FakeVeths()
        ports = ports or FakePorts()
        status = FakeStatus()
        ipam = Ipam(cache, node=chosen.node)
        assembly = assemble(
            chosen,
            cache=cache,
            ipam=ipam,
            veths=veths,
            status=status,
            daemon=daemon,
            table=table,
            interfaces=lambda: veths.present,
            interface_exists=veths.present.__contains__,
            hold=ports.hold,
        )
        datastore.transactions.clear()
        try:
            yield Host(chosen, datastore, cache, ipam, veths, status, ports, daemon, table, assembly)
        finally:
            await assembly.close()
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
