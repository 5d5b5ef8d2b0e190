"""The route to what belongs to another node: by its pool's encapsulation, its node's subnet, and the mode. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from calico_libnetwork.dataplane.routes import Route, block_route
from calico_libnetwork.routing.cluster import Family, Finding, IPNetwork, Member, RoutedPool
from calico_libnetwork.routing.destinations import Destinations, host_network
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
    others: Mapping[str, Member] = field(default_factory=dict)
    pools: tuple[RoutedPool, ...] = ()
    mode: Mode = "direct"
    uplinks: Mapping[Family, Uplink] = field(default_factory=dict)
    vteps: Mapping[Family, Vtep] = field(default_factory=dict)
    ipip_supported: bool = False


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
    if destination == host_network(gateway):
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
        if owner is None:
            yield destination, _to_gateway(destination, known.claimant(destination), around), None
        else:
            yield destination, *route_to(destination, owner, around)


def _to_gateway(destination: IPNetwork, owner: str | None, around: Surroundings) -> Route | None:
    """IPv6 refuses a gateway that another device leads to, as the route of its block may until it is replaced."""
    other = around.others.get(owner or "")
    if destination.version == 4 or other is None:
        return None
    gateway = other.vxlan_addresses.get(6)
    if gateway is None or host_network(gateway) != destination:
        return None
    route, _ = route_to(destination, other.name, around)
    return route if route is not None and route.kind == "unicast" and route.gateway is None else None


def _inside(network: IPNetwork, outer: IPNetwork) -> bool:
    return network.version == outer.version and network.subnet_of(outer)  # type: ignore[arg-type] # same version
