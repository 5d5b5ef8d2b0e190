"""Which of this host's addresses the other hosts use for it, by one of calico/node's methods.

``first-found``, ``interface=EXPRESSION,…``, ``skip-interface=EXPRESSION,…`` (regular expressions that may match
anywhere in a name), ``cidr=CIDR,…`` and ``can-reach=ADDRESS or name``, the address the kernel would speak from.
"""

from __future__ import annotations

import asyncio
import ipaddress
import re
import socket
from collections.abc import Callable, Collection, Mapping
from typing import Literal

from calico_libnetwork.dataplane.addresses import IPAddress, IPInterface, chosen, first_found, holding, is_uplink
from calico_libnetwork.dataplane.rtnetlink import AddressInfo, LinkInfo

Version = Literal[4, 6]
FIRST_FOUND = "first-found"
_ANY_PORT = 53  # of UDP, to which nothing is sent
_SEPARATOR = re.compile(r"\s*,\s*")


async def detect(
    methods: Mapping[Version, str], links: Callable[[], tuple[Collection[LinkInfo], Collection[AddressInfo]]]
) -> dict[Version, IPInterface]:
    """By family, of those that have one. ``links`` are asked for after everything that takes time."""
    reached = {
        version: await asyncio.to_thread(source_towards, method.removeprefix("can-reach="), version)
        for version, method in methods.items()
        if method.startswith("can-reach=")
    }
    interfaces, addresses = links()
    found = {
        version: _find(method, interfaces, addresses, version=version, reached=reached.get(version))
        for version, method in methods.items()
    }
    return {version: address for version, address in found.items() if address is not None}


def _find(
    method: str,
    links: Collection[LinkInfo],
    addresses: Collection[AddressInfo],
    *,
    version: Version,
    reached: IPAddress | None,
) -> IPInterface | None:
    kind, _, text = method.partition("=")
    values = _SEPARATOR.split(text)
    match kind:
        case "can-reach":
            found = holding(links, addresses, ipaddress.ip_interface(reached)) if reached is not None else None
        case "cidr":
            networks = [ipaddress.ip_network(value, strict=False) for value in values]
            inside = [info for info in addresses if any(info.address in network for network in networks)]
            found = chosen(links, inside, version)
        case "interface":
            found = chosen([link for link in links if _matches(values, link.name)], addresses, version)
        case "skip-interface":
            kept = [link for link in links if is_uplink(link) and not _matches(values, link.name)]
            found = chosen(kept, addresses, version)
        case _:
            found = first_found(links, addresses, version)
    return found.address if found is not None else None


def _matches(expressions: Collection[str], name: str) -> bool:
    return any(re.search(expression, name) for expression in expressions)


def source_towards(destination: str, version: Version) -> IPAddress | None:
    """The kernel's choice of address for packets to it; None if it has no way, or the name no address."""
    family = socket.AF_INET if version == 4 else socket.AF_INET6
    try:
        found = socket.getaddrinfo(destination, _ANY_PORT, family, socket.SOCK_DGRAM)
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect(found[0][4])
            return ipaddress.ip_address(probe.getsockname()[0])
    except (OSError, ValueError):
        return None
