"""This host's kernel as one thing: closed first, then brought to a desired state, read anew when others touched it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Mapping
from contextlib import AsyncExitStack
from types import TracebackType
from typing import Self

from calico_libnetwork.dataplane import felix_firewall, sysctl
from calico_libnetwork.dataplane.conntrack import Conntrack
from calico_libnetwork.dataplane.docker_firewall import DockerFirewall
from calico_libnetwork.dataplane.kernel import Failure, Kernel
from calico_libnetwork.dataplane.links import LinkChanges, Links
from calico_libnetwork.dataplane.neighbours import Neighbours
from calico_libnetwork.dataplane.netlink import NETFILTER_PROTOCOL
from calico_libnetwork.dataplane.nft import Nft
from calico_libnetwork.dataplane.nft_monitor import ForeignChange, NftMonitor
from calico_libnetwork.dataplane.nftables import TableWriter, apply_together
from calico_libnetwork.dataplane.routes import Route, RouteKey, Routes
from calico_libnetwork.dataplane.rtnetlink import IPNetwork
from calico_libnetwork.dataplane.table import Table
from calico_libnetwork.dataplane.workloads import Workloads
from calico_libnetwork.errors import DataplaneError
from calico_libnetwork.model.names import INTERFACE_PREFIX, PEER_PREFIX

TABLE_NAME = "calico-libnetwork"
_COMING_AND_GOING = (INTERFACE_PREFIX, PEER_PREFIX)


class Host:
    """Use as a context.

    ``wake`` is called in the loop whenever ``apply`` may have something to do, ``on_addresses`` when an address of the
    host itself came or went.
    """

    def __init__(
        self, kernel: Kernel, *, accept_mark: int, wake: Callable[[], None], on_addresses: Callable[[], None]
    ) -> None:
        self.filter = Table("inet", TABLE_NAME)
        self.arp = Table("arp", TABLE_NAME)
        self._kernel = kernel
        self._wake = wake
        self._on_addresses = on_addresses
        self._nft = Nft()
        self._nft_monitor = NftMonitor(self._nft, self._on_nft)
        self._netfilter = Kernel(NETFILTER_PROTOCOL, name="conntrack")
        self._conntrack = Conntrack(self._netfilter)
        self._writers = [TableWriter(self._nft, table) for table in (self.filter, self.arp)]
        self._firewall = DockerFirewall(self._nft, accept_mark=accept_mark)
        self._firewall_stale = True
        self.links = Links(kernel, self._on_links, matters=lambda route: self._routes.matters(route))
        self._routes = Routes(kernel, self.links)
        self._neighbours = Neighbours(kernel, self.links)
        self.workloads = Workloads(
            kernel,
            links=self.links,
            routes=self._routes,
            neighbours=self._neighbours,
            conntrack=self._conntrack,
        )
        self._cluster_routes: dict[RouteKey, Route] = {}
        self._wanted_routes: Mapping[IPNetwork, Route] | None = None
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Self:
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(self._netfilter)
            await stack.enter_async_context(self._nft)
            await stack.enter_async_context(self._nft_monitor)
            await stack.enter_async_context(self.links)
            self._stack = stack.pop_all()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.workloads.drain()
        await self._stack.aclose()

    async def close(self) -> None:
        """Fail closed: what the tables hold now, the drops for unknown workloads, is in force when this returns."""
        for writer in self._writers:
            await writer.ensure_closed()
        await self._kernel.run(_enable_forwarding)

    def want_routes(self, routes: Mapping[IPNetwork, Route]) -> None:
        """The routes of the cluster; those of the workloads are ``workloads``' own."""
        if routes is self._wanted_routes:
            return
        self._wanted_routes = routes
        wanted = {route.key: route for route in routes.values()}
        for key in self._cluster_routes.keys() - wanted.keys():
            self._routes.unwant(key)
        for route in wanted.values():
            self._routes.want(route)
        self._cluster_routes = wanted

    def distrust(self) -> None:
        """The next ``apply`` reads everything anew before it decides what to write."""
        self._firewall_stale = True
        self.workloads.distrust()
        for writer in self._writers:
            writer.stale = True

    async def apply(self) -> list[Failure]:
        """Writes what differs. One failing subsystem does not stop the others; what failed stays to be done."""
        tables, workloads, firewall = await asyncio.gather(
            self._apply_tables(), self.workloads.apply(), self._apply_firewall()
        )
        return [*tables, *workloads, *firewall]

    async def forget_datagrams(self, ports: Collection[int]) -> list[Failure]:
        """What came to these ports of the host before they were a container's."""
        try:
            await self._conntrack.forget_datagrams(ports)
        except DataplaneError as error:
            return [Failure("", f"connections to ports that are published now cannot be forgotten: {error}")]
        return []

    async def obstacles(self, *, felix: bool) -> list[str]:
        """Firewalls of others that may drop what policy accepts, each with what opens them; ``felix`` works here."""
        others = await self._firewall.obstacles()
        if felix:
            return [*others, *await felix_firewall.unaccepted(self._nft, self._firewall)]
        return [*others, *await felix_firewall.leftovers(self._nft)]

    async def remove(self) -> None:
        """For uninstalling: our tables and our rule in Docker's firewall."""
        await self._firewall.remove()
        for writer in self._writers:
            await writer.delete()

    async def _apply_tables(self) -> list[Failure]:
        try:
            await apply_together(self._nft, self._writers)
        except DataplaneError as error:
            return [Failure("", str(error))]
        return []

    async def _apply_firewall(self) -> list[Failure]:
        if not self._firewall_stale:
            return []
        self._firewall_stale = False
        try:
            await self._firewall.ensure()
        except DataplaneError as error:
            self._firewall_stale = True
            return [Failure("", str(error))]
        return []

    def _on_links(self, changes: LinkChanges) -> None:
        """Interfaces of containers that start and end are news only once the datastore names them."""
        if changes.addresses:
            self._on_addresses()
        others = any(not name.startswith(_COMING_AND_GOING) for name in changes.interfaces)
        if self.workloads.links_changed(changes) or changes.addresses or others:
            self._wake()

    def _on_nft(self, change: ForeignChange) -> None:
        for writer in self._writers:
            writer.stale |= change.touches(writer.table.family, writer.table.name)
        self._firewall_stale |= change.touches("ip", "filter") or change.touches("ip6", "filter")
        self._wake()


def _enable_forwarding(_kernel: object) -> None:
    sysctl.enable_forwarding(ipv6=True)
