"""This host's interfaces as the kernel announces them, and a hint whenever routes or neighbours were changed by others.

Subscribed before listed, so nothing is missed; a lost notification (ENOBUFS) costs one new listing. Our own changes of
routes and neighbours are told apart by the netlink port they were made from, and kept back by the kernel.
"""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

from calico_libnetwork.dataplane import rtnetlink
from calico_libnetwork.dataplane.kernel import Kernel
from calico_libnetwork.dataplane.netlink import ROUTE_PROTOCOL, Message, Socket, Subscription
from calico_libnetwork.dataplane.rtnetlink import AddressInfo, LinkInfo
from calico_libnetwork.errors import KernelRefused
from calico_libnetwork.model.names import INTERFACE_PREFIX

_GROUPS = (
    rtnetlink.GROUP_LINK,
    rtnetlink.GROUP_NEIGHBOUR,
    rtnetlink.GROUP_IPV4_ADDRESS,
    rtnetlink.GROUP_IPV4_ROUTE,
    rtnetlink.GROUP_IPV6_ADDRESS,
    rtnetlink.GROUP_IPV6_ROUTE,
    rtnetlink.GROUP_IPV4_SETTINGS,
    rtnetlink.GROUP_IPV6_SETTINGS,
)
_AF_BRIDGE = 7


@dataclass(slots=True)
class LinkChanges:
    """What happened since the last report.

    ``lost_routes``: interfaces whose routes and neighbours the kernel has dropped, for they went down, went away or
    are another device now. ``settings``: interfaces whose forwarding, proxying or ``rp_filter`` was changed; of other
    settings the kernel tells nothing. ``addresses``: of interfaces that are no workloads'. ``routes`` and
    ``neighbours``: somebody else changed one; read them again.
    """

    interfaces: set[str] = field(default_factory=set)
    lost_routes: set[str] = field(default_factory=set)
    settings: set[str] = field(default_factory=set)
    addresses: bool = False
    routes: bool = False
    neighbours: bool = False

    def __bool__(self) -> bool:
        return bool(self.interfaces or self.settings or self.addresses or self.routes or self.neighbours)


class Links:
    """Name to link. ``on_change`` runs in the event loop after each burst of notifications that changed something.

    ``matters`` decides which routes of other programs are worth a hint; without it, every one is.
    """

    def __init__(
        self,
        kernel: Kernel,
        on_change: Callable[[LinkChanges], None],
        *,
        matters: Callable[[rtnetlink.RouteInfo], bool] = lambda _route: True,
        receive_bytes: int = 8 << 20,
    ) -> None:
        self._kernel = kernel
        self._on_change = on_change
        self._matters = matters
        self._receive_bytes = receive_bytes
        self._by_name: dict[str, LinkInfo] = {}
        self._names: dict[int, str] = {}
        self._addresses: set[AddressInfo] = set()
        self._subscription: Subscription | None = None
        self._listing: asyncio.Task[None] | None = None
        self._held: list[Message] | None = None

    @property
    def by_name(self) -> Mapping[str, LinkInfo]:
        return self._by_name

    @property
    def names(self) -> Mapping[int, str]:
        """Index to name."""
        return self._names

    @property
    def addresses(self) -> Collection[AddressInfo]:
        """Of interfaces that are no workloads'."""
        return self._addresses

    async def __aenter__(self) -> Self:
        self._subscription = Subscription(ROUTE_PROTOCOL, _GROUPS, receive_bytes=self._receive_bytes)
        self._subscription.ignore(range(rtnetlink.RTM_NEWROUTE, rtnetlink.RTM_DELNEIGH + 1), self._kernel.port)
        await self._list(LinkChanges())
        asyncio.get_running_loop().add_reader(self._subscription.fileno(), self.poll)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._subscription is not None:
            asyncio.get_running_loop().remove_reader(self._subscription.fileno())
            self._subscription.close()
            self._subscription = None
        if self._listing is not None:
            self._listing.cancel()

    def is_up(self, name: str) -> bool:
        link = self._by_name.get(name)
        return link is not None and link.up

    def poll(self) -> None:
        """Takes in what the kernel has announced up to now."""
        if self._subscription is None:
            return
        messages, lost = self._subscription.read()
        changes = LinkChanges()
        if self._held is None:
            self._take_all(messages, changes)
        else:
            self._held += messages
        if lost:
            self._relist()
        if changes:
            self._on_change(changes)

    async def relist(self) -> None:
        """Everything anew; the agent's regular resync calls it."""
        changes = LinkChanges(routes=True, neighbours=True)
        await self._list(changes)
        self._on_change(changes)

    def _relist(self) -> None:
        if self._listing is None or self._listing.done():
            self._listing = asyncio.create_task(self.relist(), name="list links again")

    async def _list(self, changes: LinkChanges) -> None:
        """What is announced meanwhile may be newer than the listing, and is taken in after it."""
        self._held = []
        try:
            links, self._addresses = await self._kernel.run(_list_links)
        finally:
            held, self._held = self._held, None
        for name in self._by_name.keys() - {link.name for link in links}:
            self._forget(name, changes)
        for link in links:
            self._see(link, changes)
        self._take_all(held, changes)

    def _take_all(self, messages: list[Message], changes: LinkChanges) -> None:
        neighbours: set[int] = set()
        for message in messages:
            self._take(message, changes, neighbours)
        # an interface that went down has lost all of its neighbours, which is no news beside that
        changes.neighbours |= any(self.is_up(self._names.get(index, "")) for index in neighbours)

    def _take(self, message: Message, changes: LinkChanges, neighbours: set[int]) -> None:
        """``neighbours`` collects the interfaces of those that changed."""
        kind = message.kind
        if kind in (rtnetlink.RTM_NEWLINK, rtnetlink.RTM_DELLINK):
            if message.body[0] == _AF_BRIDGE:
                return
            link = rtnetlink.parse_link(message)
            if kind == rtnetlink.RTM_NEWLINK:
                self._see(link, changes)
            elif self._names.get(link.index) == link.name:
                self._forget(link.name, changes)
        elif kind in (rtnetlink.RTM_NEWADDR, rtnetlink.RTM_DELADDR):
            self._take_address(message, changes)
        elif kind in (rtnetlink.RTM_NEWROUTE, rtnetlink.RTM_DELROUTE):
            if not changes.routes:
                route = rtnetlink.parse_route(message)
                changes.routes = route is not None and self._matters(route)
        elif kind == rtnetlink.RTM_NEWNETCONF:
            index, odd = rtnetlink.parse_changed_settings(message)
            if odd and index in self._names:
                changes.settings.add(self._names[index])
        elif kind in (rtnetlink.RTM_NEWNEIGH, rtnetlink.RTM_DELNEIGH):
            neighbour = rtnetlink.parse_neighbour(message)
            # permanent entries and deletions; the kernel's own comings and goings are too many to look at
            if neighbour is not None and (neighbour.permanent or kind == rtnetlink.RTM_DELNEIGH):
                neighbours.add(neighbour.index)

    def _take_address(self, message: Message, changes: LinkChanges) -> None:
        address = rtnetlink.parse_address(message)
        if address is None:
            return
        # with a device's last one, its routes go unannounced
        changes.routes |= message.kind == rtnetlink.RTM_DELADDR and address.address.version == 4
        if _is_workload(self._names.get(address.index, "")):
            return
        changes.addresses = True
        if message.kind == rtnetlink.RTM_NEWADDR:
            self._addresses.add(address)
        else:
            self._addresses.discard(address)

    def _see(self, link: LinkInfo, changes: LinkChanges) -> None:
        renamed_from = self._names.get(link.index)
        if renamed_from is not None and renamed_from != link.name:
            self._forget(renamed_from, changes)
        known = self._by_name.get(link.name)
        if known == link:
            return
        if known is not None and known.index != link.index:
            self._forget(link.name, changes)
        elif known is not None and known.up and not link.up:
            changes.lost_routes.add(link.name)
        self._by_name[link.name] = link
        self._names[link.index] = link.name
        changes.interfaces.add(link.name)

    def _forget(self, name: str, changes: LinkChanges) -> None:
        link = self._by_name.pop(name, None)
        if link is not None:
            self._names.pop(link.index, None)
            changes.interfaces.add(name)
            changes.lost_routes.add(name)


def _is_workload(name: str) -> bool:
    return name.startswith(INTERFACE_PREFIX)


def _list_links(kernel: Socket) -> tuple[list[LinkInfo], set[AddressInfo]]:
    listed = map(rtnetlink.parse_link, kernel.dump(*rtnetlink.LIST_LINKS))
    links = [*{link.index: link for link in listed}.values()]
    return links, {address for link in links if not _is_workload(link.name) for address in _addresses(kernel, link)}


def _addresses(kernel: Socket, link: LinkInfo) -> Iterator[AddressInfo]:
    """Link by link: a listing of all would begin again whenever the kernel has made a workload's IPv6 address."""
    try:
        messages = kernel.dump(*rtnetlink.list_addresses(link.index))
    except KernelRefused as error:
        if error.errno != errno.ENODEV:
            raise
        return
    yield from filter(None, map(rtnetlink.parse_address, messages))
