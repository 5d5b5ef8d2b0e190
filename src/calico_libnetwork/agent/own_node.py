"""This host's Node resource and its tunnel addresses, kept as the host and the pools in use want them.

What calico/node's start-up and its tunnel address allocator do, level-triggered: the Node follows an address that this
agent found by itself, and a tunnel address exists exactly as long as a pool needs the tunnel.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from ipaddress import ip_interface, ip_network
from typing import Protocol, cast

import structlog

from calico_libnetwork.dataplane import autodetection
from calico_libnetwork.dataplane.addresses import IPInterface
from calico_libnetwork.dataplane.links import Links
from calico_libnetwork.datastore.resources import Resources
from calico_libnetwork.errors import CalicoError
from calico_libnetwork.model.ipam_keys import Address, Network, Version
from calico_libnetwork.model.kinds import ResourceKey
from calico_libnetwork.model.resources import IPPool
from calico_libnetwork.routing.cluster import Family
from calico_libnetwork.routing.node import NodeWishes, desired_node
from calico_libnetwork.routing.router import Routing

RETRY_SECONDS = 10.0

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class _Tunnel:
    """``field`` of the Node; ``handle``'s stem and ``kind`` as Calico's own allocator names them."""

    field: str
    version: Version
    handle: str
    kind: str
    mode: str


_TUNNELS: Mapping[str, _Tunnel] = {
    "vxlan4": _Tunnel("ipv4VXLANTunnelAddr", 4, "vxlan-tunnel-addr", "vxlanTunnelAddress", "vxlan_mode"),
    "vxlan6": _Tunnel("ipv6VXLANTunnelAddr", 6, "vxlan-v6-tunnel-addr", "vxlanV6TunnelAddress", "vxlan_mode"),
    "ipip4": _Tunnel("ipv4IPIPTunnelAddr", 4, "ipip-tunnel-addr", "ipipTunnelAddress", "ipip_mode"),
}


class Assignment(Protocol):
    @property
    def address(self) -> Address: ...

    @property
    def handle(self) -> str | None: ...


class Ipam(Protocol):
    def assignments(self, node: str | None = None) -> Sequence[Assignment]: ...

    async def auto_assign(
        self, version: Version, *, handle: str, attributes: Mapping[str, str], pools: Sequence[Network] = ()
    ) -> Address: ...

    async def release_handle(self, handle: str) -> list[Address]: ...


class OwnNode:
    """``settings``: ``IP`` and ``IP6`` as configured; ``methods``: how an address is found where they name none.

    ``want`` what routing needs, ``run`` keeps it so. ``is_ours``: False while a calico/node on this host has the Node.
    """

    def __init__(
        self,
        resources: Resources,
        ipam: Ipam,
        *,
        node: str,
        links: Links,
        settings: Mapping[Family, str],
        methods: Mapping[Family, str],
        is_ours: Callable[[], bool],
    ) -> None:
        self._resources = resources
        self._ipam = ipam
        self._node = node
        self._links = links
        self._settings = settings
        self._methods = methods
        self._is_ours = is_ours
        self._routing: Routing | None = None
        self._wake = asyncio.Event()

    def want(self, routing: Routing) -> None:
        known = self._routing
        self._routing = routing
        if known is None or _of_node(known) != _of_node(routing):
            self._wake.set()

    def addresses_changed(self) -> None:
        """The host's own have: the Node follows them."""
        self._wake.set()

    async def run(self) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            if self._routing is None or not self._is_ours():
                continue
            try:
                await self._settle(self._routing)
            except CalicoError as error:
                _log.warning("the Node resource is not up to date", node=self._node, reason=str(error))
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(RETRY_SECONDS):
                        await self._wake.wait()
                self._wake.set()

    async def _settle(self, routing: Routing) -> None:
        tunnels = await self._tunnel_addresses(routing.tunnels_wanted)
        detected = await detect(self._links, self._methods)
        wishes = replace(
            wishes_of_host(self._node, self._links, self._settings, detected),
            routes=routing.decision.mode,
            tunnels=tunnels,
        )
        await self._resources.update(
            ResourceKey("Node", self._node),
            lambda stored: None if (wanted := desired_node(stored, wishes)) == stored else wanted,
        )

    async def _tunnel_addresses(self, wanted: frozenset[str]) -> dict[str, str | None]:
        """By field of the Node; None where there must be none."""
        held = {each.handle: each.address for each in self._ipam.assignments(self._node)}
        addresses: dict[str, str | None] = {}
        for name, tunnel in _TUNNELS.items():
            handle = f"{tunnel.handle}-{self._node}"
            address = held.get(handle)
            if name in wanted and address is None:
                attributes = {"node": self._node, "type": tunnel.kind}
                address = await self._ipam.auto_assign(
                    tunnel.version, handle=handle, attributes=attributes, pools=self._pools(tunnel)
                )
            elif name not in wanted and address is not None:
                await self._ipam.release_handle(handle)
                address = None
            addresses[tunnel.field] = None if address is None else str(address)
        return addresses

    def _pools(self, tunnel: _Tunnel) -> list[Network]:
        """Those that use the tunnel and may give it an address."""
        stored = (cast("IPPool", pool) for pool in self._resources.list("IPPool"))
        pools = [ip_network(pool.spec.cidr) for pool in stored if _serves(pool, tunnel)]
        return [pool for pool in pools if pool.version == tunnel.version]


def _of_node(routing: Routing) -> tuple[str, frozenset[str]]:
    """What of it the Node shows."""
    return routing.decision.mode, routing.tunnels_wanted


def _serves(pool: IPPool, tunnel: _Tunnel) -> bool:
    used = getattr(pool.spec, tunnel.mode) != "Never" and not pool.spec.disabled
    return used and "Tunnel" in (pool.spec.allowed_uses or ("Tunnel",))


async def detect(links: Links, methods: Mapping[Family, str]) -> dict[Family, IPInterface]:
    return await autodetection.detect(methods, lambda: ([*links.by_name.values()], [*links.addresses]))


def wishes_of_host(
    node: str, links: Links, settings: Mapping[Family, str], detected: Mapping[Family, IPInterface]
) -> NodeWishes:
    """What the host's interfaces and the settings say of the Node's addresses."""
    return NodeWishes(
        name=node,
        settings=settings,
        detected=detected,
        held=tuple(ip_interface((info.address, info.prefix_length)) for info in links.addresses),
    )
