"""What the kernel must hold for this node's endpoints: routes, neighbours, interface settings, forgotten connections.

A pure function of the endpoints and of this node's blocks, kept up to date as either changes: of two endpoints that
name one interface, or one address, the one with the lower key has it, and the other takes over when that one goes.
An address that leaves an interface loses its route first, then its connections are forgotten, and only then does it
get a new route, so that nothing established reaches the new owner. Forgetting takes the kernel up to some 15 ms, so it
runs beside everything else and is waited for only when such an address has a new owner already.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Network
from typing import TypeVar

from calico_libnetwork.dataplane import rtnetlink, sysctl
from calico_libnetwork.dataplane.conntrack import Conntrack
from calico_libnetwork.dataplane.kernel import Failure, Kernel
from calico_libnetwork.dataplane.link_settings import parse_settings
from calico_libnetwork.dataplane.links import LinkChanges, Links
from calico_libnetwork.dataplane.neighbours import NeighbourKey, Neighbours
from calico_libnetwork.dataplane.netlink import Request, Socket
from calico_libnetwork.dataplane.routes import Route, Routes, block_route, workload_route
from calico_libnetwork.dataplane.rtnetlink import IPAddress, IPNetwork
from calico_libnetwork.errors import DataplaneError

K = TypeVar("K")

_INTERFACES_PER_TURN = 50
_NOBODYS = IPv4Address("169.254.1.255")
"""Link-local like the gateways, and none of them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalEndpoint:
    """``key`` orders endpoints that claim the same. ``mac`` is "" while unknown.

    With ``siblings`` the container has further interfaces, whose addresses may come in through this one.
    """

    key: str
    interface: str
    addresses: tuple[IPAddress, ...]
    mac: str = ""
    may_spoof: bool = False
    siblings: bool = False


@dataclass(frozen=True, slots=True)
class _Settings:
    """What the kernel's settings of an interface depend on."""

    ipv6: bool = False
    may_spoof: bool = False
    siblings: bool = False


class Workloads:
    def __init__(
        self, kernel: Kernel, *, links: Links, routes: Routes, neighbours: Neighbours, conntrack: Conntrack
    ) -> None:
        self._kernel = kernel
        self._links = links
        self._routes = routes
        self._neighbours = neighbours
        self._conntrack = conntrack
        self._endpoints: dict[str, LocalEndpoint] = {}
        self._by_interface: dict[str, set[str]] = defaultdict(set)
        self._by_address: dict[IPAddress, set[str]] = defaultdict(set)
        self._owners: dict[IPAddress, LocalEndpoint] = {}
        self._blocks: frozenset[IPNetwork] = frozenset()
        self._to_forget: set[IPAddress] = set()
        self._being_forgotten: set[IPAddress] = set()
        self._forgetting: asyncio.Task[None] | None = None
        self._forget_failures: list[Failure] = []
        self._to_configure: set[str] = set()  # interfaces; one that is not there is named again when it appears
        self._unfinished: set[str] = set()  # keys, likewise

    def update(self, endpoint: LocalEndpoint) -> None:
        affected = self._withdraw(endpoint.key)
        self._endpoints[endpoint.key] = endpoint
        self._by_interface[endpoint.interface].add(endpoint.key)
        for address in endpoint.addresses:
            self._by_address[address].add(endpoint.key)
        self._to_configure.add(endpoint.interface)
        self._unfinished.add(endpoint.key)
        self._settle(affected | self._addresses_behind(endpoint.interface))

    def remove(self, key: str) -> None:
        """An unknown key is none of this node's endpoints."""
        self._settle(self._withdraw(key))

    def set_blocks(self, blocks: Collection[IPNetwork]) -> None:
        """The blocks this node owns: a workload's address outside of them must be advertised by itself.

        A block of a single address gets no blackhole, which would win over the workload's own route.
        """
        new = frozenset(blocks)
        for block in self._blocks - new:
            self._routes.unwant(block_route(block).key)
        for block in new:
            if block.num_addresses > 1:
                self._routes.want(block_route(block))
        self._blocks = new
        self._settle(set(self._owners))

    def take_finished(self) -> list[LocalEndpoint]:
        """Those of which the kernel has every route and neighbour by now, each once after it was updated."""
        there = [self._endpoints[key] for key in self._unfinished if self._links.is_up(self._endpoints[key].interface)]
        finished = [one for one in there if all(self._has(one, address) for address in one.addresses)]
        self._unfinished = {one.key for one in there} - {one.key for one in finished}
        return finished

    def links_changed(self, changes: LinkChanges) -> bool:
        """To be called with what ``Links`` reports. Whether the next ``apply`` may have something to do."""
        self._routes.links_changed(changes)
        self._neighbours.links_changed(changes)
        ours = (changes.interfaces | changes.settings) & self._by_interface.keys()
        self._to_configure |= ours
        self._unfinished |= {key for interface in ours for key in self._by_interface[interface]}
        return bool(ours) or changes.routes or changes.neighbours

    def distrust(self) -> None:
        """The next ``apply`` reads everything anew, the settings of interfaces included."""
        self._routes.stale = self._neighbours.stale = True
        self._to_configure |= self._by_interface.keys()

    async def apply(self) -> list[Failure]:
        self._links.poll()
        if self._routes.stale:
            await self._routes.read()
        failures = await self._forget_leaving()
        for written in await asyncio.gather(self._routes.apply(), self._neighbours.apply(), self._configure()):
            failures += written
        return failures

    async def drain(self) -> None:
        """Waits until the connections of every address that left are forgotten."""
        while self._forgetting is not None:
            await asyncio.shield(self._forgetting)

    def _withdraw(self, key: str) -> set[IPAddress]:
        """The addresses whose owner may be another now."""
        endpoint = self._endpoints.get(key)
        if endpoint is None:
            return set()
        affected = self._addresses_behind(endpoint.interface)
        del self._endpoints[key]
        self._unfinished.discard(key)
        _discard(self._by_interface, endpoint.interface, key)
        for address in endpoint.addresses:
            _discard(self._by_address, address, key)
        return affected

    def _addresses_behind(self, interface: str) -> set[IPAddress]:
        return {address for key in self._by_interface.get(interface, ()) for address in self._endpoints[key].addresses}

    def _settle(self, addresses: Iterable[IPAddress]) -> None:
        for address in addresses:
            before, after = self._owners.get(address), self._owner(address)
            if before is not None:
                self._disown(address, before, after)
            if after is not None:
                self._own(address, after)

    def _owner(self, address: IPAddress) -> LocalEndpoint | None:
        claims = (self._endpoints[key] for key in sorted(self._by_address.get(address, ())))
        return next((claim for claim in claims if claim.key == min(self._by_interface[claim.interface])), None)

    def _own(self, address: IPAddress, endpoint: LocalEndpoint) -> None:
        self._owners[address] = endpoint
        self._unfinished.add(endpoint.key)
        self._routes.want(self._route(address, endpoint.interface))
        if endpoint.mac:
            self._neighbours.want(NeighbourKey(endpoint.interface, address), endpoint.mac)

    def _disown(self, address: IPAddress, before: LocalEndpoint, after: LocalEndpoint | None) -> None:
        if after is None:
            del self._owners[address]
        if after is None or after.interface != before.interface:
            self._routes.unwant(self._route(address, before.interface).key)
            self._to_forget.add(address)
        if after is None or after.interface != before.interface or not after.mac:
            self._neighbours.unwant(NeighbourKey(before.interface, address))

    def _route(self, address: IPAddress, interface: str) -> Route:
        covered = any(block.version == address.version and address in block for block in self._blocks)
        return workload_route(single(address), interface, advertise=not covered)

    def _has(self, endpoint: LocalEndpoint, address: IPAddress) -> bool:
        if self._owners.get(address) is not endpoint:
            return False
        if not self._routes.programmed(self._route(address, endpoint.interface).key):
            return False
        return not endpoint.mac or self._neighbours.programmed(NeighbourKey(endpoint.interface, address))

    async def _forget_leaving(self) -> list[Failure]:
        leaving = self._routes.leaving_workloads()
        failures = await self._routes.withdraw(leaving)
        self._to_forget.update(destination.network_address for destination, _metric, _interface in leaving)
        if self._to_forget and self._forgetting is None:
            self._forgetting = asyncio.create_task(self._forget(), name="forget connections")
        if self._forgetting is not None and not self._owners.keys().isdisjoint(self._to_forget | self._being_forgotten):
            await asyncio.shield(self._forgetting)
        failures += self._forget_failures
        self._forget_failures = []
        return failures

    async def _forget(self) -> None:
        """Batch after batch until none is left; one that fails is tried again with the next apply."""
        try:
            while self._to_forget:
                self._being_forgotten, self._to_forget = self._to_forget, set()
                await self._conntrack.forget(self._being_forgotten)
        except DataplaneError as error:
            self._to_forget |= self._being_forgotten
            reason = f"connections of addresses that left cannot be forgotten: {error}"
            self._forget_failures.append(Failure("", reason))
        finally:
            self._being_forgotten = set()
            self._forgetting = None

    async def _configure(self) -> list[Failure]:
        """Settings as they must be on interfaces that came up, whoever made them."""
        ready = [name for name in self._to_configure if self._links.is_up(name)]
        self._to_configure.clear()
        failures: list[Failure] = []
        for start in range(0, len(ready), _INTERFACES_PER_TURN):
            turn = {name: self._settings(name) for name in ready[start : start + _INTERFACES_PER_TURN]}
            failures += await self._kernel.run(_ensure_settings, turn)
        self._links.poll()
        failures = [failure for failure in failures if failure.interface in self._links.by_name]
        self._to_configure.update(failure.interface for failure in failures)
        return failures

    def _settings(self, interface: str) -> _Settings:
        keys = self._by_interface.get(interface)
        if not keys:
            return _Settings()
        endpoint = self._endpoints[min(keys)]
        ipv6 = any(address.version == 6 for address in endpoint.addresses)
        return _Settings(ipv6, endpoint.may_spoof, endpoint.siblings)


def single(address: IPAddress) -> IPNetwork:
    """The address as a network of its own."""
    return IPv4Network(address) if isinstance(address, IPv4Address) else IPv6Network(address)


def _own_address(index: int) -> Request:
    """Where the host filters by reverse path, the kernel takes packets from afar only on what has an address."""
    return rtnetlink.add_address(index, _NOBODYS, 32, scope=rtnetlink.SCOPE_HOST)


def _discard(index: dict[K, set[str]], key: K, member: str) -> None:
    index[key].discard(member)
    if not index[key]:
        del index[key]


def _ensure_settings(kernel: Socket, interfaces: dict[str, _Settings]) -> list[Failure]:
    """One question for all of them: netlink reports an interface's settings with its link."""
    failures = []
    answers = kernel.exchange([rtnetlink.get_link(interface) for interface in interfaces])
    for (interface, of), answer in zip(interfaces.items(), answers, strict=True):
        try:
            settings = sysctl.workload_settings(interface, ipv6=of.ipv6, may_spoof=of.may_spoof, siblings=of.siblings)
            link = answer.one()
            sysctl.ensure_all(settings, parse_settings(link))
            if settings[f"ipv4/conf/{interface}/rp_filter"] == "2" and of.siblings:
                kernel.do(_own_address(rtnetlink.parse_link(link).index))
        except DataplaneError as error:
            failures.append(Failure(interface, str(error)))
    return failures
