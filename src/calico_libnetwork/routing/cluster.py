"""The cluster as routing sees it: nodes with their addresses, pools with their encapsulation, and findings. Pure.

Stored data is read defensively: a field that cannot be understood costs one finding, never the whole node.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Interface, IPv4Network, IPv6Address, IPv6Interface, IPv6Network
from typing import Literal

from calico_libnetwork.model.resources import IPPool, Node

IPAddress = IPv4Address | IPv6Address
IPInterface = IPv4Interface | IPv6Interface
IPNetwork = IPv4Network | IPv6Network

Family = Literal[4, 6]
FAMILIES: tuple[Family, ...] = (4, 6)

ROUTES_ANNOTATION = "calico-libnetwork/routes"
MAXIMUM_AS_NUMBER = 4294967295


@dataclass(frozen=True, slots=True, order=True)
class Finding:
    """``subject`` names the object, ``text`` says what does not work and what to do.

    ``error``: traffic or routes that the user asked for are missing; ``warning``: a part is left out. ``feature`` is a
    word to count by.
    """

    severity: Literal["error", "warning"]
    subject: str
    text: str
    feature: str = "routing"


@dataclass(frozen=True, slots=True)
class Member:
    """A node. ``interfaces``: its address for other hosts with the subnet, per family.

    ``routes`` is what our own agent there says of itself (``direct``, ``bird``, ``none``), "" for a calico/node.
    """

    name: str
    interfaces: Mapping[Family, IPInterface] = field(default_factory=dict)
    as_number: int | None = None
    cluster_id: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    vxlan_addresses: Mapping[Family, IPAddress] = field(default_factory=dict)
    vxlan_macs: Mapping[Family, str] = field(default_factory=dict)
    ipip_address: IPv4Address | None = None
    routes: str = ""

    def address(self, family: Family) -> IPAddress | None:
        interface = self.interfaces.get(family)
        return None if interface is None else interface.ip

    def on_link(self, other: Member, family: Family) -> bool:
        """Whether ``other``'s address lies in this node's subnet."""
        ours, theirs = self.interfaces.get(family), other.interfaces.get(family)
        return ours is not None and theirs is not None and theirs.ip in ours.network


@dataclass(frozen=True, slots=True)
class RoutedPool:
    name: str
    network: IPNetwork
    ipip: str = "Never"
    vxlan: str = "Never"
    disable_export: bool = False
    workloads: bool = True

    @property
    def family(self) -> Family:
        return self.network.version

    @property
    def encapsulated(self) -> bool:
        return self.ipip != "Never" or self.vxlan != "Never"


def parse_member(node: Node) -> tuple[Member, list[Finding]]:
    findings: list[Finding] = []
    spec, bgp = node.spec, node.spec.bgp

    def complain(text: str) -> None:
        findings.append(Finding("error", f"Node({node.name})", text))

    interfaces: dict[Family, IPInterface] = {}
    if bgp is not None:
        for family, text in ((FAMILIES[0], bgp.ipv4_address), (FAMILIES[1], bgp.ipv6_address)):
            interface = _interface(text, family)
            if interface is not None:
                interfaces[family] = interface
            elif text:
                complain(f"spec.bgp.ipv{family}Address {text!r} is no IPv{family} address; correct the Node")
    as_number = parse_as_number(bgp.as_number) if bgp is not None else None
    if bgp is not None and bgp.as_number is not None and as_number is None:
        complain(f"spec.bgp.asNumber {bgp.as_number!r} is no AS number; the cluster's is used")
    ipip = _address(bgp.ipv4_ipip_tunnel_addr, 4) if bgp is not None else None
    vxlan = {4: _address(spec.ipv4_vxlan_tunnel_addr, 4), 6: _address(spec.ipv6_vxlan_tunnel_addr, 6)}
    macs = {4: spec.vxlan_tunnel_mac_addr, 6: spec.vxlan_tunnel_mac_addr_v6}
    cluster_id = bgp.route_reflector_cluster_id if bgp is not None else ""
    if cluster_id and _address(cluster_id, 4) is None:
        complain(f"spec.bgp.routeReflectorClusterID {cluster_id!r} is no IPv4 address; the node is no reflector")
        cluster_id = ""
    member = Member(
        name=node.name,
        interfaces=interfaces,
        as_number=as_number,
        cluster_id=cluster_id,
        labels=node.labels,
        vxlan_addresses={family: found for family in FAMILIES if (found := vxlan[family]) is not None},
        vxlan_macs={family: macs[family].lower() for family in FAMILIES if macs[family]},
        ipip_address=ipip if isinstance(ipip, IPv4Address) else None,
        routes=node.annotations.get(ROUTES_ANNOTATION, ""),
    )
    return member, findings


def parse_pool(pool: IPPool) -> tuple[RoutedPool | None, list[Finding]]:
    spec = pool.spec
    try:
        network = ipaddress.ip_network(spec.cidr, strict=False)
    except ValueError:
        return None, [
            Finding("error", f"IPPool({pool.name})", f"cidr {spec.cidr!r} is no CIDR; the pool is not routed")
        ]
    return (
        RoutedPool(
            name=pool.name,
            network=network,
            ipip=spec.ipip_mode or "Never",
            vxlan=spec.vxlan_mode or "Never",
            disable_export=spec.disable_bgp_export,
            workloads=spec.allowed_uses is None or tuple(spec.allowed_uses) != ("LoadBalancer",),
        ),
        [],
    )


def parse_as_number(value: int | str | None) -> int | None:
    """From a number, ``"64512"`` or the dotted form ``"1.10"``; None for 0 and what is no AS number."""
    if value is None:
        return None
    high, dot, low = str(value).partition(".")
    try:
        number = (int(high) << 16) + int(low) if dot else int(high)
    except ValueError:
        return None
    return number if 0 < number <= MAXIMUM_AS_NUMBER else None


def _interface(text: str, family: Family) -> IPInterface | None:
    try:
        interface = ipaddress.ip_interface(text)
    except ValueError:
        return None
    return interface if interface.version == family else None


def _address(text: str, family: Family) -> IPAddress | None:
    interface = _interface(text, family)
    return None if interface is None else interface.ip
