"""Pools and nodes as sets of networks: who is masqueraded towards whom, and who may send tunnelled packets here."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import chain

from calico_libnetwork.dataplane.rules import names, skeleton
from calico_libnetwork.dataplane.table import Table
from calico_libnetwork.model.kinds import ResourceKey
from calico_libnetwork.model.resources import IPPool, Node
from calico_libnetwork.policy.entity import Network, covering, parse_network
from calico_libnetwork.policy.findings import Finding


@dataclass(frozen=True, slots=True)
class PoolRange:
    """``vxlan``: some node of the cluster may send this one tunnelled packets."""

    network: Network
    masqueraded: bool
    vxlan: bool


def read_pool(key: ResourceKey, resource: IPPool, findings: list[Finding]) -> PoolRange | None:
    """A disabled pool counts: it stops giving addresses, those given stay. One for load balancers alone does not."""
    spec = resource.spec
    if spec.allowed_uses and set(spec.allowed_uses) == {"LoadBalancer"}:
        return None
    try:
        network = parse_network(spec.cidr)
    except ValueError:
        findings.append(Finding(key, "error", "pool", "spec.cidr", f"{spec.cidr!r} is no CIDR; the pool is left out"))
        return None
    return PoolRange(network, spec.nat_outgoing, spec.vxlan_mode not in ("", "Never"))


def node_networks(key: ResourceKey, resource: Node, findings: list[Finding]) -> tuple[Network, ...]:
    """The node's own addresses."""
    bgp = resource.spec.bgp
    texts = {
        "spec.bgp.ipv4Address": bgp.ipv4_address if bgp else "",
        "spec.bgp.ipv6Address": bgp.ipv6_address if bgp else "",
    } | {
        f"spec.addresses[{position}].address": address.address
        for position, address in enumerate(resource.spec.addresses or ())
    }
    networks = []
    for field, text in texts.items():
        if text:
            try:
                networks.append(parse_network(text.partition("/")[0]))
            except ValueError:
                findings.append(Finding(key, "error", "node", field, f"{text!r} is no address; it is left out"))
    return tuple(dict.fromkeys(networks))


class NetworkSets:
    """The fixed interval sets; small, and so made anew whenever a pool, a node or an option changed."""

    def __init__(self, table: Table) -> None:
        self._table = table
        self._present: set[tuple[str, str]] = set()

    def want(
        self, pools: Iterable[PoolRange], nodes: Iterable[tuple[Network, ...]], tunnel_sources: tuple[Network, ...]
    ) -> None:
        pools, addresses = list(pools), list(chain.from_iterable(nodes))
        wanted: set[tuple[str, str]] = set()
        for set_names, networks in (
            ((skeleton.POOLS4, skeleton.POOLS6), [pool.network for pool in pools]),
            ((skeleton.MASQUERADED4, skeleton.MASQUERADED6), [pool.network for pool in pools if pool.masqueraded]),
            ((skeleton.NODES4, skeleton.NODES6), addresses),
            ((skeleton.TUNNEL_SOURCES4, skeleton.TUNNEL_SOURCES6), [*addresses, *tunnel_sources]),
        ):
            for name, version in zip(set_names, (4, 6), strict=True):
                wanted |= {(name, names.network_text(network)) for network in covering(networks, version)}
        for element in self._present - wanted:
            self._table.elements.unwant(element)
        for element in wanted - self._present:
            self._table.elements.want(element, "")
        self._present = wanted
