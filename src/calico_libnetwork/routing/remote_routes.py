"""What belongs to other nodes, and the route to it: blocks by affinity, and borrowed addresses. Pure.

An address is borrowed when its node has no affinity to the block it lies in; it then has a route of its own. The
work done for a change is that of the destinations it concerns: a block and the known addresses inside it.
"""

from __future__ import annotations

import ipaddress
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from calico_libnetwork.dataplane.routes import Route, block_route
from calico_libnetwork.routing.cluster import Family, Finding, IPAddress, IPNetwork, Member, RoutedPool
from calico_libnetwork.routing.mode import Mode
from calico_libnetwork.routing.vtep import Vtep

IPIP_INTERFACE = "tunl0"
IPIP_OVERHEAD = 20


@dataclass(frozen=True, slots=True)
class Uplink:
    """The interface that holds this node's address for other hosts."""

    interface: str
    mtu: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Surroundings:
    """Everything but the destination that decides on a route."""

    own: Member
    others: Mapping[str, Member]
    pools: tuple[RoutedPool, ...]
    mode: Mode
    uplinks: Mapping[Family, Uplink]
    vteps: Mapping[Family, Vtep]
    ipip_supported: bool


class Destinations:
    """Which node each block and each borrowed address belongs to.

    ``changed`` collects the destinations whose owner may be another since it was last taken.
    """

    def __init__(self, node: str) -> None:
        self._node = node
        self._blocks: dict[IPNetwork, set[str]] = {}
        self._lengths: Counter[tuple[int, int]] = Counter()
        self._addresses: dict[IPAddress, dict[str, str]] = {}
        self.changed: set[IPNetwork] = set()

    def add_block(self, network: IPNetwork, node: str) -> None:
        owners = self._blocks.setdefault(network, set())
        if node not in owners:
            owners.add(node)
            self._lengths[network.version, network.prefixlen] += 1
            self._touch(network)

    def remove_block(self, network: IPNetwork, node: str) -> None:
        owners = self._blocks.get(network, set())
        if node in owners:
            owners.remove(node)
            self._lengths[network.version, network.prefixlen] -= 1
            if not owners:
                del self._blocks[network]
            self._touch(network)

    def add_address(self, address: IPAddress, node: str, source: str) -> None:
        """``source`` is what claims the address for the node; two may, while one replaces the other."""
        self._addresses.setdefault(address, {})[source] = node
        self.changed.add(_host(address))

    def remove_address(self, address: IPAddress, source: str) -> None:
        claims = self._addresses.get(address, {})
        if claims.pop(source, None) is not None:
            if not claims:
                del self._addresses[address]
            self.changed.add(_host(address))

    def local_blocks(self) -> tuple[IPNetwork, ...]:
        return tuple(network for network, owners in self._blocks.items() if self._node in owners)

    def all(self) -> set[IPNetwork]:
        return {*self._blocks, *map(_host, self._addresses)}

    def owner(self, destination: IPNetwork) -> str | None:
        """The node that packets for ``destination`` go to; None where a route of its own has no place.

        Of several that claim the same, this node if it is one of them, else the first by name.
        """
        if destination.prefixlen == destination.max_prefixlen:
            claims = self._addresses.get(destination.network_address, {})
            nodes = set(claims.values())
            if nodes:
                owner = self._first(nodes)
                if destination not in self._blocks:
                    return None if self._covered(destination.network_address, owner) else owner
                return owner
        owners = self._blocks.get(destination)
        return self._first(owners) if owners else None

    def _covered(self, address: IPAddress, node: str) -> bool:
        block = self._block_around(address)
        return block is not None and self._first(self._blocks[block]) == node

    def _block_around(self, address: IPAddress) -> IPNetwork | None:
        for (version, length), count in sorted(self._lengths.items(), reverse=True):
            if count and version == address.version:
                network = ipaddress.ip_network((address, length), strict=False)
                if network in self._blocks:
                    return network
        return None

    def _first(self, nodes: set[str]) -> str:
        return self._node if self._node in nodes else min(nodes)

    def _touch(self, network: IPNetwork) -> None:
        self.changed.add(network)
        if network.num_addresses <= len(self._addresses):
            self.changed.update(_host(address) for address in network if address in self._addresses)
        else:
            self.changed.update(_host(address) for address in self._addresses if address in network)


def route_to(destination: IPNetwork, owner: str, around: Surroundings) -> tuple[Route | None, Finding | None]:
    """The route this node needs, if any, or why there is none."""
    is_host = destination.prefixlen == destination.max_prefixlen
    if owner == around.own.name:
        # a workload's own /32 is the dataplane's; a blackhole beside it would race it
        return (None if is_host else block_route(destination)), None
    pool = next((pool for pool in around.pools if _inside(destination, pool.network)), None)
    if pool is None or not pool.workloads:
        return None, None
    other = around.others.get(owner)
    if other is None:
        text = "holds IPAM blocks or addresses and has no Node resource; delete the node to release them"
        return None, Finding("warning", f"Node({owner})", text)
    if other.address(destination.version) is None:
        text = f"has no IPv{destination.version} address in spec.bgp; its workloads cannot be reached from here"
        return None, Finding("error", f"Node({owner})", text)
    return _route_by_pool(destination, other, pool, around)


def _route_by_pool(
    destination: IPNetwork, other: Member, pool: RoutedPool, around: Surroundings
) -> tuple[Route | None, Finding | None]:
    family = pool.family
    on_link = around.own.on_link(other, family)
    if pool.vxlan == "Always" or (pool.vxlan == "CrossSubnet" and not on_link):
        return _by_vxlan(destination, other, around)
    if pool.ipip == "Always" or (pool.ipip == "CrossSubnet" and not on_link):
        return _by_ipip(destination, other, pool, around)
    if not pool.encapsulated:
        if around.mode == "none" or (around.mode == "bird" and other.routes not in ("direct", "none")):
            return None, None
        if not on_link:
            text = (
                f"is not in this node's IPv{family} subnet, and no BGP session leads to it;"
                " use BIRD, or a pool with vxlanMode CrossSubnet"
            )
            return None, Finding("error", f"Node({other.name})", text)
    return _on_link(destination, other, around)


def _on_link(destination: IPNetwork, other: Member, around: Surroundings) -> tuple[Route | None, Finding | None]:
    family: Family = destination.version
    uplink = around.uplinks.get(family)
    if uplink is None:
        text = f"its IPv{family} address {around.own.address(family)} is on no interface of this host"
        return None, Finding("error", f"Node({around.own.name})", text)
    return Route(destination=destination, interface=uplink.interface, gateway=other.address(family)), None


def _by_vxlan(destination: IPNetwork, other: Member, around: Surroundings) -> tuple[Route | None, Finding | None]:
    family: Family = destination.version
    vtep, gateway = around.vteps.get(family), other.vxlan_addresses.get(family)
    if vtep is None:
        return _unreachable(destination), None  # for the moment: the tunnel address is being assigned
    if gateway is None:
        text = f"has no IPv{family} VXLAN tunnel address yet; its workloads in VXLAN pools cannot be reached"
        return _unreachable(destination), Finding("warning", f"Node({other.name})", text)
    if destination == _host(gateway):
        return Route(destination=destination, interface=vtep.name), None
    return Route(destination=destination, interface=vtep.name, gateway=gateway, mtu=vtep.mtu), None


def _by_ipip(
    destination: IPNetwork, other: Member, pool: RoutedPool, around: Surroundings
) -> tuple[Route | None, Finding | None]:
    if not around.ipip_supported:
        text = (
            f"ipipMode {pool.ipip} needs IPIP, which this kernel does not have; packets to it are refused here:"
            " set ipipMode Never and vxlanMode CrossSubnet"
        )
        return _unreachable(destination), Finding("error", f"IPPool({pool.name})", text)
    return Route(destination=destination, interface=IPIP_INTERFACE, gateway=other.address(4)), None


def _unreachable(destination: IPNetwork) -> Route:
    """Refused at once rather than sent unencapsulated by the default route."""
    return Route(destination=destination, kind="unreachable")


def routes(
    destinations: Iterable[IPNetwork], known: Destinations, around: Surroundings
) -> Iterator[tuple[IPNetwork, Route | None, Finding | None]]:
    for destination in destinations:
        owner = known.owner(destination)
        yield (destination, None, None) if owner is None else (destination, *route_to(destination, owner, around))


def _host(address: IPAddress) -> IPNetwork:
    return ipaddress.ip_network(address)


def _inside(network: IPNetwork, outer: IPNetwork) -> bool:
    return network.version == outer.version and network.subnet_of(outer)  # type: ignore[arg-type] # same version
