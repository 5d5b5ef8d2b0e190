"""What the router wants of this host, made so: its uplinks seen, its tunnels up, BIRD told.

The routes themselves are handed back, for they belong into the same table as the workloads' own.
"""

from __future__ import annotations

import asyncio
from ipaddress import IPv4Address
from pathlib import Path

from calico_libnetwork.dataplane.addresses import holding
from calico_libnetwork.dataplane.kernel import Failure, Kernel
from calico_libnetwork.dataplane.links import Links
from calico_libnetwork.routing import ipip, secrets
from calico_libnetwork.routing.bird import Bird
from calico_libnetwork.routing.cluster import FAMILIES, Family
from calico_libnetwork.routing.remote_routes import IPIP_OVERHEAD, Uplink
from calico_libnetwork.routing.router import Router, Routing
from calico_libnetwork.routing.vxlan import Vxlan


class HostRouting:
    """``prepare`` makes the devices that routes lead through; ``conclude``, after them, ends what they replace."""

    def __init__(
        self, router: Router, kernel: Kernel, *, links: Links, bird: Bird, secrets_directory: Path = secrets.DIRECTORY
    ) -> None:
        self._router = router
        self._kernel = kernel
        self._links = links
        self._bird = bird
        self._secrets_directory = secrets_directory
        self._vxlan = Vxlan(kernel, links)
        self._ipip_asked = False
        self._ipip_applied: ipip.IpipDevice | None = None
        self._secrets_asked: frozenset[tuple[str, str]] = frozenset()

    def distrust(self) -> None:
        """The next ``prepare`` reads the devices and the passwords anew."""
        self._vxlan.stale = True
        self._ipip_applied = None
        self._secrets_asked = frozenset()

    async def prepare(self) -> tuple[Routing, list[Failure]]:
        self._router.set_uplinks(self._uplinks())
        await self._read_secrets()
        if self._router.has_ipip_pools and not self._ipip_asked:
            self._ipip_asked = True
            self._router.set_ipip_supported(await self._kernel.run(ipip.supported))
        routing = self._router.desired()
        failures = await self._vxlan.apply(routing.vxlan) + await self._apply_ipip(routing)
        return routing, failures

    async def conclude(self, routing: Routing) -> None:
        await self._vxlan.sweep(routing.vxlan)
        self._bird.want(routing.bird, port=routing.bgp_port)

    def _uplinks(self) -> dict[Family, Uplink]:
        """Where the addresses are that our Node names."""
        found: dict[Family, Uplink] = {}
        for family in FAMILIES:
            interface = self._router.own.interfaces.get(family)
            if interface is not None:
                place = holding(self._links.by_name.values(), self._links.addresses, interface)
                if place is not None:
                    found[family] = Uplink(place.interface, place.mtu)
        return found

    async def _read_secrets(self) -> None:
        wanted = self._router.secrets_wanted()
        if wanted != self._secrets_asked:
            self._router.set_passwords(await asyncio.to_thread(secrets.read, wanted, self._secrets_directory))
            self._secrets_asked = wanted

    async def _apply_ipip(self, routing: Routing) -> list[Failure]:
        uplink = self._router.uplinks.get(4)
        if "ipip4" not in routing.tunnels_wanted or uplink is None:
            return []
        address = self._router.own.ipip_address
        device = ipip.IpipDevice(address if isinstance(address, IPv4Address) else None, uplink.mtu - IPIP_OVERHEAD)
        if device == self._ipip_applied:
            return []
        failures = await self._kernel.run(ipip.ensure, device)
        self._ipip_applied = None if failures else device
        return failures
