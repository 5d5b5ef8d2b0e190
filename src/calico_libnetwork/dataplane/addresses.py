"""This host's addresses: which may be one that the other hosts use for it. Pure."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Interface, IPv6Address, IPv6Interface
from typing import Literal

from calico_libnetwork.dataplane.rtnetlink import AddressInfo, LinkInfo

IPAddress = IPv4Address | IPv6Address
IPInterface = IPv4Interface | IPv6Interface

_NOT_AN_UPLINK = re.compile(
    r"(docker|br-|cbr|lxcbr|lxdbr|virbr|cni|dummy|veth|cali|tunl|flannel|kube-ipvs|nodelocaldns|vxlan|podman|wg|lo$).*"
)
_SCOPE_UNIVERSE = 0


@dataclass(frozen=True, slots=True)
class Found:
    """``interface``: the name of the device, ``mtu`` its MTU, ``address`` with the length of its subnet."""

    interface: str
    mtu: int
    address: IPInterface


def of_uplinks(links: Iterable[LinkInfo], addresses: Iterable[AddressInfo]) -> set[IPAddress]:
    """Every address this host may speak from to others; tunnels' and containers' come and go with them."""
    uplinks = {link.index for link in links if is_uplink(link)}
    return {info.address for info in addresses if info.index in uplinks and _is_for_others(info, info.address.version)}


def first_found(links: Collection[LinkInfo], addresses: Iterable[AddressInfo], version: Literal[4, 6]) -> Found | None:
    """As calico/node's method of that name."""
    return chosen([link for link in links if is_uplink(link)], addresses, version)


def is_uplink(link: LinkInfo) -> bool:
    return not _NOT_AN_UPLINK.match(link.name)


def chosen(links: Collection[LinkInfo], addresses: Iterable[AddressInfo], version: Literal[4, 6]) -> Found | None:
    """The first usable address of the first of the interfaces that is up, in the order of the kernel's indices."""
    usable = {link.index: link for link in links if link.up}
    candidates = sorted(
        (info for info in addresses if info.index in usable and _is_for_others(info, version)),
        key=lambda info: (info.index, int(info.address)),
    )
    return _found(candidates[0], usable[candidates[0].index]) if candidates else None


def holding(links: Collection[LinkInfo], addresses: Iterable[AddressInfo], wanted: IPInterface) -> Found | None:
    """The interface that has ``wanted``'s address, with the length it has there; None if no interface has it."""
    by_index = {link.index: link for link in links}
    for info in addresses:
        if info.address == wanted.ip and info.index in by_index:
            return _found(info, by_index[info.index])
    return None


def _is_for_others(info: AddressInfo, version: Literal[4, 6]) -> bool:
    address = info.address
    return (
        address.version == version
        and info.scope == _SCOPE_UNIVERSE
        and not (address.is_loopback or address.is_link_local or address.is_multicast or address.is_unspecified)
    )


def _found(info: AddressInfo, link: LinkInfo) -> Found:
    return Found(link.name, link.mtu, ipaddress.ip_interface((info.address, info.prefix_length)))
