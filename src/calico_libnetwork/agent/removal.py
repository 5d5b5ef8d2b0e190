"""Takes back everything that the agent has put into this host's kernel, for uninstalling.

For a host without containers on Calico networks and without the agent running. Where Felix works here, routes and
tunnels are its own now, and only what is ours by name goes. Forwarding stays on, since others may have come to need it.
"""

from __future__ import annotations

import asyncio
import shutil
from collections import Counter
from contextlib import AsyncExitStack
from pathlib import Path

from calico_libnetwork.agent.host import TABLE_NAME
from calico_libnetwork.dataplane.docker_firewall import DockerFirewall
from calico_libnetwork.dataplane.kernel import Kernel
from calico_libnetwork.dataplane.links import Links
from calico_libnetwork.dataplane.nft import Nft
from calico_libnetwork.dataplane.nftables import TableWriter
from calico_libnetwork.dataplane.routes import Routes
from calico_libnetwork.dataplane.table import Table
from calico_libnetwork.dataplane.veth import VethPairs
from calico_libnetwork.errors import DataplaneError
from calico_libnetwork.policy.settings import RulesSettings
from calico_libnetwork.routing import ipip
from calico_libnetwork.routing.bird import Bird
from calico_libnetwork.routing.remote_routes import IPIP_INTERFACE
from calico_libnetwork.routing.vtep import DEVICES, VxlanState
from calico_libnetwork.routing.vxlan import Vxlan


async def remove_all(bird_directory: Path, *, felix: bool) -> list[str]:
    """One line for each thing that was there. Raises ``DataplaneError`` for what cannot be removed."""
    async with AsyncExitStack() as stack:
        kernel = await stack.enter_async_context(Kernel())
        nft = await stack.enter_async_context(Nft())
        veths = await stack.enter_async_context(VethPairs(kernel))
        links = Links(kernel, lambda _: None, matters=lambda _: False)
        await stack.enter_async_context(links)
        told = [] if felix else [*await _routes(kernel, links, bird_directory)]
        await veths.sweep()
        await veths.drain()
        await DockerFirewall(nft, accept_mark=RulesSettings().accept_mark).remove()
        told += await _tables(nft)
    return told


async def _routes(kernel: Kernel, links: Links, bird_directory: Path) -> list[str]:
    told = []
    if await asyncio.to_thread(bird_directory.exists):
        if (bird_directory / "bird.conf").exists():  # there since a BIRD was started
            told.append("BIRD's files and routes")
        async with Bird(bird_directory, kernel) as bird:
            await bird.configure(None)
        await asyncio.to_thread(shutil.rmtree, bird_directory)
    routes = Routes(kernel, links)
    await routes.read()
    found = [*routes.actual]
    failures = await routes.withdraw(found)
    if failures:
        raise DataplaneError("; ".join(failure.reason for failure in failures))
    told += [f"routes {_place(interface)}: {count}" for interface, count in Counter(key[2] for key in found).items()]
    devices = [name for name in DEVICES.values() if name in links.by_name]
    await Vxlan(kernel, links).sweep(VxlanState())
    if any(interface == IPIP_INTERFACE for _, _, interface in found):
        await kernel.run(ipip.release)
    return told + [f"interface {name}" for name in devices]


def _place(interface: str) -> str:
    return f"through {interface}" if interface else "that drop what has no other"


async def _tables(nft: Nft) -> list[str]:
    """Last: they are what keeps closed."""
    told = []
    for family in ("inet", "arp"):
        if await nft.list("table", family, TABLE_NAME) is not None:
            await TableWriter(nft, Table(family, TABLE_NAME)).delete()
            also = ", and its rule in Docker's firewall" if family == "inet" else ""
            told.append(f"nftables table {family} {TABLE_NAME}{also}")
    return told
