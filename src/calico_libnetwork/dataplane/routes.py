"""Our routes in the main table, both families: desired, read, applied.

Ours are all of protocol 80 and all through a ``cali*`` interface, whatever their protocol, but for what the kernel
itself makes there (link-local, multicast); every other route is left alone. The numbers are Calico's, so that its own
agent adopts or removes our routes by itself: 3 for an address inside a block of this node, which needs no
advertisement, 80 for what is to be advertised.

A route through an interface that is missing or down waits without being an error; the interface's appearance is
reported by ``Links``, and the next ``apply`` adds it. Setting an interface down makes the kernel drop its routes
silently, hence ``links_changed``.
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from ipaddress import IPv4Network, IPv6Network
from typing import Literal

from calico_libnetwork.dataplane import rtnetlink, sysctl
from calico_libnetwork.dataplane.delta import Delta
from calico_libnetwork.dataplane.kernel import Failure, Kernel
from calico_libnetwork.dataplane.links import LinkChanges, Links
from calico_libnetwork.dataplane.netlink import Answer, Message, Socket
from calico_libnetwork.dataplane.rtnetlink import (
    PROTOCOL_BOOT,
    PROTOCOL_CALICO,
    PROTOCOL_KERNEL,
    IPAddress,
    IPNetwork,
    RouteInfo,
    RouteKind,
)
from calico_libnetwork.errors import KernelRefused
from calico_libnetwork.model.names import INTERFACE_PREFIX

WORKLOAD_METRIC = 1024
GATEWAYS_V4 = IPv4Network("169.254.1.0/24")
_GATEWAY_METRIC = 1 << 30
_GONE = (errno.ESRCH, errno.ENODEV, errno.ENOENT)
_INTERFACE_NOT_READY = (errno.ENETDOWN, errno.ENODEV)

_Kind = Literal["unicast", "blackhole", "unreachable"]
RouteKey = tuple[IPNetwork, int, str]  # destination, metric as the kernel stores it, interface


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """``interface`` is "" for the kinds that drop. ``gateway`` is taken to be on the interface's link."""

    destination: IPNetwork
    interface: str = ""
    gateway: IPAddress | None = None
    kind: _Kind = "unicast"
    protocol: int = PROTOCOL_CALICO
    metric: int = 0
    mtu: int = 0

    @property
    def key(self) -> RouteKey:
        return self.destination, rtnetlink.stored_metric(self.destination, self.metric), self.interface


def workload_route(destination: IPNetwork, interface: str, *, advertise: bool) -> Route:
    protocol = PROTOCOL_CALICO if advertise else PROTOCOL_BOOT
    return Route(destination=destination, interface=interface, protocol=protocol, metric=WORKLOAD_METRIC)


def block_route(block: IPNetwork) -> Route:
    """What keeps packets for unused addresses of this node's block from leaving by the default route."""
    return Route(destination=block, kind="blackhole")


class Routes:
    """``stale`` asks the next ``apply`` to read first."""

    def __init__(self, kernel: Kernel, links: Links) -> None:
        self._kernel = kernel
        self._links = links
        self._delta: Delta[RouteKey, Route] = Delta()
        self._gateway_covered = True
        self.stale = True

    @property
    def desired(self) -> Mapping[RouteKey, Route]:
        return self._delta.desired

    @property
    def actual(self) -> Mapping[RouteKey, Route]:
        return self._delta.actual

    def want(self, route: Route) -> None:
        self._delta.want(route.key, route)

    def unwant(self, key: RouteKey) -> None:
        self._delta.unwant(key)

    def programmed(self, key: RouteKey) -> bool:
        return key in self._delta.desired and self._delta.actual.get(key) == self._delta.desired[key]

    def links_changed(self, changes: LinkChanges) -> None:
        """To be called with what ``Links`` reports."""
        for interface in changes.interfaces:
            self._delta.resume(interface)
        if changes.lost_routes:
            self._forget_behind(changes.lost_routes)
        self.stale |= changes.routes

    def _forget_behind(self, interfaces: Collection[str]) -> None:
        """The kernel dropped the routes of these, without a word about the IPv4 ones."""
        for key in [key for key in self._delta.actual if key[2] in interfaces]:
            self._delta.observe_gone(key)

    def matters(self, info: RouteInfo) -> bool:
        """Whether somebody else's change of this route can concern us."""
        return info.table == rtnetlink.TABLE_MAIN and (self._is_ours(info) or self._is_foreign_cover(info))

    async def read(self) -> None:
        self.stale = False
        found = await self._kernel.run(_read)
        self._gateway_covered = any(self._is_foreign_cover(info) for info in found)
        ours = (self._route(info) for info in found if self._is_ours(info))
        self._delta.observe_exactly({route.key: route for route in ours})
        self._want_gateway()

    def leaving_workloads(self) -> list[RouteKey]:
        """The single addresses in the kernel behind a workload's interface that are not wanted there any more."""
        return [
            key for key in self._delta.removals() if key[2].startswith(INTERFACE_PREFIX) and key[0].num_addresses == 1
        ]

    async def withdraw(self, keys: Collection[RouteKey]) -> list[Failure]:
        """Deletes these of the unwanted routes, ahead of ``apply``."""
        if not keys:
            return []
        self._forget_behind({key[2] for key in keys if key[2] and key[2] not in self._links.by_name})
        routes = [self._delta.actual[key] for key in keys if key in self._delta.actual]
        answers = await self._kernel.run(Socket.exchange, [rtnetlink.delete_route(self._info(r)) for r in routes])
        failures = [self._removed(route, answer) for route, answer in zip(routes, answers, strict=True)]
        return [failure for failure in failures if failure is not None]

    async def apply(self) -> list[Failure]:
        """Writes what differs; one refused route does not stop the others."""
        if self.stale:
            await self.read()
        ready = self._ready()
        ready.sort(key=lambda route: route.gateway is not None)  # a gateway has to be reachable before it is one
        failures: list[Failure | None] = []
        if ready:
            requests = [rtnetlink.replace_route(self._info(route)) for route in ready]
            answers = await self._kernel.run(Socket.exchange, requests)
            failures = [self._written(route, answer) for route, answer in zip(ready, answers, strict=True)]
        self._forget_replaced({route.key for route in ready if self.programmed(route.key)})
        return [failure for failure in failures if failure is not None] + await self.withdraw(
            list(self._delta.removals())
        )

    def _forget_replaced(self, written: Collection[RouteKey]) -> None:
        """The kernel put these in the place of routes of the same destination and metric.

        Deleting the old one as well would hit the new: what drops packets has no interface to be told apart by.
        """
        places = {key[:2] for key in written}
        for key in [key for key in self._delta.removals() if key[:2] in places]:
            self._delta.observe_gone(key)

    def _ready(self) -> list[Route]:
        """The routes to be written, but for those whose interface is not there."""
        ready = []
        for key, route in self._delta.changes().items():
            if not route.interface or self._links.is_up(route.interface):
                ready.append(route)
            else:
                self._delta.defer(key, until=route.interface)
        return ready

    def _written(self, route: Route, answer: Answer) -> Failure | None:
        if answer.error is None:
            self._delta.observe(route.key, route)
        elif not (route.interface and answer.error.errno in _INTERFACE_NOT_READY):
            return Failure(route.interface, f"route to {route.destination} cannot be added: {answer.error}")
        return None

    def _removed(self, route: Route, answer: Answer) -> Failure | None:
        if answer.error is None or answer.error.errno in _GONE:
            self._delta.observe_gone(route.key)
            return None
        return Failure(route.interface, f"route to {route.destination} cannot be deleted: {answer.error}")

    def _want_gateway(self) -> None:
        """The kernel answers ARP for a gateway of containers by proxy only if a route to it leaves elsewhere."""
        route = Route(destination=GATEWAYS_V4, interface="lo", metric=_GATEWAY_METRIC)
        if self._gateway_covered:
            self.unwant(route.key)
        else:
            self.want(route)

    def _is_ours(self, info: RouteInfo) -> bool:
        if info.protocol == PROTOCOL_CALICO:
            return True
        name = self._links.names.get(info.index, "")
        return name.startswith(INTERFACE_PREFIX) and info.protocol != PROTOCOL_KERNEL and not _is_automatic(info)

    def _is_foreign_cover(self, info: RouteInfo) -> bool:
        return (
            info.kind == RouteKind.UNICAST
            and isinstance(info.destination, IPv4Network)
            and info.destination.supernet_of(GATEWAYS_V4)
            and info.protocol != PROTOCOL_CALICO
            and not self._links.names.get(info.index, "").startswith(INTERFACE_PREFIX)
        )

    def _route(self, info: RouteInfo) -> Route:
        kind = _KINDS.get(info.kind, "unicast")
        route = Route(
            destination=info.destination,
            interface=self._links.names.get(info.index, ""),
            gateway=info.gateway,
            kind=kind,
            protocol=info.protocol,
            metric=info.metric,
            mtu=info.mtu,
        )
        wanted = self._delta.desired.get(route.key)
        if wanted is not None and replace(wanted, metric=route.metric) == route:
            return wanted
        return route

    def _info(self, route: Route) -> RouteInfo:
        link = self._links.by_name.get(route.interface)
        return RouteInfo(
            destination=route.destination,
            index=0 if link is None else link.index,
            gateway=route.gateway,
            kind=_NUMBERS[route.kind],
            protocol=route.protocol,
            metric=route.metric,
            mtu=route.mtu,
            onlink=route.gateway is not None,
        )


_NUMBERS: dict[_Kind, RouteKind] = {
    "unicast": RouteKind.UNICAST,
    "blackhole": RouteKind.BLACKHOLE,
    "unreachable": RouteKind.UNREACHABLE,
}
_KINDS: dict[int, _Kind] = {number: kind for kind, number in _NUMBERS.items()}


def _is_automatic(info: RouteInfo) -> bool:
    """The kernel gives every interface with IPv6 a link-local and a multicast route."""
    destination = info.destination
    return isinstance(destination, IPv6Network) and (destination.is_link_local or destination.is_multicast)


def _read(kernel: Socket) -> list[RouteInfo]:
    families = (socket.AF_INET, socket.AF_INET6) if sysctl.ipv6_available() else (socket.AF_INET,)
    messages = [message for family in families for message in _dump(kernel, family)]
    return [info for info in map(rtnetlink.parse_route, messages) if info is not None]


def _dump(kernel: Socket, family: int) -> list[Message]:
    """A namespace in which no route was ever made has no main table yet."""
    try:
        return kernel.dump(*rtnetlink.list_routes(family))
    except KernelRefused as error:
        if error.errno == errno.ENOENT:
            return []
        raise
