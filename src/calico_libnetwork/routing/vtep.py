"""Desired VXLAN state: this node's tunnel endpoint and everybody else's. Pure.

Names and numbers are Calico's, so that a calico/node on the other end, or later on this host, sees what it expects.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from calico_libnetwork.routing.cluster import Family, IPAddress, Member

DEVICES: Mapping[Family, str] = {4: "vxlan.calico", 6: "vxlan-v6.calico"}
OVERHEAD: Mapping[Family, int] = {4: 50, 6: 70}
DEFAULT_VNI, DEFAULT_PORT = 4096, 4789


@dataclass(frozen=True, slots=True)
class VxlanSettings:
    """An MTU of 0 is the uplink's less the encapsulation."""

    vni: int = DEFAULT_VNI
    port: int = DEFAULT_PORT
    mtu: Mapping[Family, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Vtep:
    """This node's device. ``local``: the node's address, ``parent``: the interface that holds it."""

    name: str
    family: Family
    vni: int
    port: int
    mac: str
    local: IPAddress
    parent: str
    address: IPAddress
    mtu: int


@dataclass(frozen=True, slots=True)
class RemoteVtep:
    """``address``: in the tunnel; ``underlay``: the node's own."""

    node: str
    mac: str
    address: IPAddress
    underlay: IPAddress


@dataclass(frozen=True, slots=True)
class VxlanState:
    """What is wanted, by family; empty where no pool is encapsulated so."""

    devices: Mapping[Family, Vtep] = field(default_factory=dict)
    remotes: Mapping[Family, tuple[RemoteVtep, ...]] = field(default_factory=dict)


def vxlan_settings(felix: Mapping[str, Any]) -> VxlanSettings:
    """From FelixConfiguration's fields; what is no usable number is as if it were absent."""

    def number(name: str, default: int, limit: int) -> int:
        value = felix.get(name)
        return value if isinstance(value, int) and 0 < value <= limit else default

    return VxlanSettings(
        vni=number("vxlanVNI", DEFAULT_VNI, (1 << 24) - 1),
        port=number("vxlanPort", DEFAULT_PORT, 0xFFFF),
        mtu={4: number("vxlanMTU", 0, 0xFFFF), 6: number("vxlanMTUV6", 0, 0xFFFF)},
    )


def mac_of(member: Member, family: Family) -> str:
    """The recorded MAC, else the one Calico derives from the node's name."""
    recorded = member.vxlan_macs.get(family)
    if recorded:
        return recorded
    seed = member.name if family == 4 else f"{member.name}-v6"
    return (b"\x66" + hashlib.sha1(seed.encode(), usedforsecurity=False).digest()[:5]).hex(":")


def own_vtep(own: Member, family: Family, settings: VxlanSettings, *, parent: str, parent_mtu: int) -> Vtep | None:
    """None as long as the node has no address or no tunnel address of the family."""
    local, address = own.address(family), own.vxlan_addresses.get(family)
    if local is None or address is None:
        return None
    return Vtep(
        name=DEVICES[family],
        family=family,
        vni=settings.vni,
        port=settings.port,
        mac=mac_of(own, family),
        local=local,
        parent=parent,
        address=address,
        mtu=settings.mtu.get(family) or parent_mtu - OVERHEAD[family],
    )


def remote_vteps(others: Mapping[str, Member], family: Family) -> tuple[RemoteVtep, ...]:
    found = []
    for name in sorted(others):
        underlay, address = others[name].address(family), others[name].vxlan_addresses.get(family)
        if underlay is not None and address is not None:
            found.append(RemoteVtep(name, mac_of(others[name], family), address, underlay))
    return tuple(found)
