"""Resources in, desired routing state out. Pure, and a function of the current resources whatever their order.

Cheap where change is frequent: a block or an endpoint costs the destinations it concerns. Nodes, pools and BGP
resources change rarely and cost a recomputation.
"""

from __future__ import annotations

import ipaddress
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar, cast

from calico_libnetwork.dataplane.routes import Route
from calico_libnetwork.errors import InvalidResource, Unreadable
from calico_libnetwork.model.ipam_keys import parse_affinity_key
from calico_libnetwork.model.ipam_records import affinity_state
from calico_libnetwork.model.kinds import ResourceKey
from calico_libnetwork.model.resources import (
    AnyResource,
    BGPConfiguration,
    BGPFilter,
    BGPPeer,
    IPPool,
    Node,
    WorkloadEndpoint,
)
from calico_libnetwork.routing.bgp_settings import (
    BGP_PORT,
    NODE_PREFIX,
    BgpSettings,
    SecretReference,
    bgp_settings,
    secret_reference,
)
from calico_libnetwork.routing.bird_config import BirdInput, render
from calico_libnetwork.routing.cluster import (
    FAMILIES,
    Family,
    Finding,
    IPAddress,
    IPNetwork,
    Member,
    RoutedPool,
    parse_member,
    parse_pool,
)
from calico_libnetwork.routing.destinations import Destinations
from calico_libnetwork.routing.mode import Decision, Setting, decide
from calico_libnetwork.routing.node import conflicts
from calico_libnetwork.routing.peers import Session, sessions
from calico_libnetwork.routing.remote_routes import (
    IPIP_OVERHEAD,
    Surroundings,
    Uplink,
    routes,
)
from calico_libnetwork.routing.vtep import OVERHEAD, Vtep, VxlanState, own_vtep, remote_vteps, vxlan_settings

K = TypeVar("K")
V = TypeVar("V")

KINDS = ("Node", "IPPool", "BGPConfiguration", "BGPPeer", "BGPFilter", "FelixConfiguration", "WorkloadEndpoint")
"""The kinds of resource that ``Router.update`` wants to hear of."""
_OWN_KINDS = ("BGPConfiguration", "BGPPeer", "BGPFilter")


@dataclass(frozen=True, slots=True)
class Routing:
    """What this host needs to reach the others.

    ``routes``: by destination, all but the workloads' own. ``bird``: its configuration, None for no BIRD;
    ``bgp_port``: where it listens.
    ``tunnels_wanted``: kinds of tunnel address this node must have (``vxlan4``, ``vxlan6``, ``ipip4``); the others are
    released. ``workload_mtu``: what fits through every encapsulation in use, 0 as long as the uplink is unknown.
    """

    routes: Mapping[IPNetwork, Route] = field(default_factory=dict)
    decision: Decision = field(default_factory=lambda: Decision("direct", "nothing is known yet"))
    bird: str | None = field(default=None, repr=False)
    bgp_port: int = BGP_PORT
    sessions: tuple[Session, ...] = ()
    vxlan: VxlanState = field(default_factory=VxlanState)
    tunnels_wanted: frozenset[str] = frozenset()
    workload_mtu: int = 0
    findings: tuple[Finding, ...] = ()


class Router:
    """``update`` and ``update_block`` take what the datastore says, in any order; None means deleted."""

    def __init__(
        self, *, node: str, setting: Setting = "auto", bird_installed: bool = True, ipip_supported: bool = False
    ) -> None:
        self._node = node
        self._setting = setting
        self._bird_installed = bird_installed
        self._ipip_supported = ipip_supported
        self._resources: dict[str, dict[ResourceKey, AnyResource]] = defaultdict(dict)  # by kind
        self._unreadable: dict[ResourceKey, Finding] = {}
        self._members: dict[str, Member] = {}
        self._pools: dict[str, RoutedPool] = {}
        self._object_findings: dict[ResourceKey, list[Finding]] = {}
        self._uplinks: Mapping[Family, Uplink] = {}
        self._passwords: Mapping[SecretReference, str] = {}
        self._destinations = Destinations(node)
        self._routes: dict[IPNetwork, Route] = {}
        self._route_findings: dict[IPNetwork, Finding] = {}
        self._findings: list[Finding] = []
        self._routing = Routing()
        self._around = Surroundings(own=Member(node))
        self._stale = True

    def update(self, key: ResourceKey, resource: AnyResource | Unreadable | None) -> None:
        """Of what becomes unreadable the last readable version stays; what policy uses as well is reported there."""
        if isinstance(resource, Unreadable):
            if key.kind in _OWN_KINDS:
                self._stale = True
                known = key in self._resources[key.kind]
                outcome = "its last readable version stays in force" if known else "it is left out"
                self._unreadable[key] = Finding("error", str(key), f"it cannot be read; {outcome}", "unreadable")
            return
        if self._unreadable.pop(key, None) is not None:
            self._stale = True
        if key.kind == "WorkloadEndpoint":
            self._update_endpoint(key, cast("WorkloadEndpoint | None", resource))
        elif key.kind == "Node":
            self._update_member(key, cast("Node | None", resource))
        elif key.kind == "IPPool":
            self._update_pool(key, cast("IPPool | None", resource))
        elif key.kind in KINDS and self._resources[key.kind].get(key) != resource:
            self._keep(key, resource)
            self._stale = True

    def update_block(self, key: str, value: bytes | None) -> None:
        """``key``: any datastore key; those of block affinities matter here."""
        parsed = parse_affinity_key(key)
        if parsed is None:
            return
        node, network = parsed
        try:
            held = value is not None and affinity_state(value) != "pending"
        except InvalidResource:
            held = False
        self._stale = self._stale or node == self._node  # BIRD's configuration names our blocks
        if held:
            self._destinations.add_block(network, node)
        else:
            self._destinations.remove_block(network, node)

    def set_uplinks(self, uplinks: Mapping[Family, Uplink]) -> None:
        """Where this node's addresses are, as found on the host."""
        if uplinks != self._uplinks:
            self._uplinks = dict(uplinks)
            self._stale = True

    @property
    def uplinks(self) -> Mapping[Family, Uplink]:
        return self._uplinks

    def set_ipip_supported(self, supported: bool) -> None:
        """Whether this kernel has IPIP; until said, it has not."""
        if supported != self._ipip_supported:
            self._ipip_supported = supported
            self._stale = True

    @property
    def has_ipip_pools(self) -> bool:
        return any(pool.ipip != "Never" for pool in self._pools.values())

    def set_passwords(self, passwords: Mapping[SecretReference, str]) -> None:
        """Those of ``secrets_wanted`` that are known."""
        if passwords != self._passwords:
            self._passwords = dict(passwords)
            self._stale = True

    def secrets_wanted(self) -> frozenset[SecretReference]:
        references = [secret_reference(peer.spec.password) for peer in self._of_kind("BGPPeer").values()]
        references += [
            secret_reference(configuration.spec.node_mesh_password)
            for configuration in self._of_kind("BGPConfiguration").values()
        ]
        return frozenset(reference for reference in references if reference is not None)

    def local_blocks(self) -> tuple[IPNetwork, ...]:
        """This node's blocks: a workload's address inside one needs no advertisement of its own."""
        return self._destinations.local_blocks()

    @property
    def own(self) -> Member:
        return self._members.get(self._node) or Member(self._node)

    @property
    def others(self) -> dict[str, Member]:
        return {name: member for name, member in self._members.items() if name != self._node}

    def desired(self) -> Routing:
        """``routes`` is the same object as before when no route has changed."""
        if self._stale:
            self._recompute()
        if self._stale or self._destinations.changed:
            self._update_routes()
        self._stale = False
        return self._routing

    def _recompute(self) -> None:
        """Everything but the routes."""
        findings = [*self._unreadable.values()]
        for found in self._object_findings.values():
            findings += found
        settings, more = bgp_settings(
            cast("dict[str, BGPConfiguration]", self._of_kind("BGPConfiguration")), self._node
        )
        found_sessions, session_findings = sessions(
            self.own, self.others, cast("dict[str, BGPPeer]", self._of_kind("BGPPeer")), settings, self._passwords
        )
        decision = self._decide(settings, found_sessions)
        findings += [*more, *decision.findings, *conflicts(self.own, self.others)]
        bird = None
        if decision.mode == "bird":
            bird, bird_findings = self._render(settings, found_sessions)
            findings += [*session_findings, *bird_findings]
        vxlan = self._vxlan()
        self._findings = findings
        self._routing = Routing(
            routes=self._routing.routes,
            decision=decision,
            bird=bird,
            bgp_port=settings.port_of(self._node) or BGP_PORT,
            sessions=found_sessions if decision.mode == "bird" else (),
            vxlan=vxlan,
            tunnels_wanted=self._tunnels_wanted(),
            workload_mtu=self._workload_mtu(vxlan.devices),
        )

    def _decide(self, settings: BgpSettings, found: tuple[Session, ...]) -> Decision:
        configured = self._of_kind("BGPPeer")
        concerned = settings.mesh or any(not session.name.startswith("Mesh_") for session in found)
        return decide(
            self._setting,
            bird_installed=self._bird_installed,
            own=self._members.get(self._node),
            others=self.others,
            pools=self._pools.values(),
            peers=configured if concerned else (),
            mesh=settings.mesh,
        )

    def _render(self, settings: BgpSettings, found: tuple[Session, ...]) -> tuple[str, list[Finding]]:
        return render(
            BirdInput(
                node=self._node,
                addresses={family: interface.ip for family, interface in self.own.interfaces.items()},
                settings=settings,
                sessions=found,
                pools=self._sorted_pools(),
                blocks=tuple(sorted(self.local_blocks(), key=str)),
                filters=cast("dict[str, BGPFilter]", self._of_kind("BGPFilter")),
                ipip_supported=self._ipip_supported,
            )
        )

    def _update_routes(self) -> None:
        known = self._destinations
        concerned = known.changed | self._concerned_by_surroundings() if self._stale else known.changed
        changed = False
        for destination, route, finding in routes(concerned, known, self._around):
            changed |= self._routes.get(destination) != route
            _set_or_drop(self._routes, destination, route)
            _set_or_drop(self._route_findings, destination, finding)
        known.changed = set()
        self._routing = replace(
            self._routing,
            routes=dict(self._routes) if changed else self._routing.routes,
            findings=tuple(sorted({*self._findings, *self._route_findings.values()})),
        )

    def _concerned_by_surroundings(self) -> set[IPNetwork]:
        """Every destination if something has changed that concerns them all, else those of the nodes that changed."""
        before = self._around
        self._around = after = Surroundings(
            own=self.own,
            others=self.others,
            pools=self._sorted_pools(),
            mode=self._routing.decision.mode,
            uplinks=self._uplinks,
            vteps=self._routing.vxlan.devices,
            ipip_supported=self._ipip_supported,
        )
        if replace(after, others={}) != replace(before, others={}):
            return self._destinations.all() | self._routes.keys()
        changed = _changed_keys(after.others, before.others)
        return {destination for name in changed for destination in self._destinations.of_node(name)}

    def _update_endpoint(self, key: ResourceKey, endpoint: WorkloadEndpoint | None) -> None:
        previous = cast("WorkloadEndpoint | None", self._resources[key.kind].get(key))
        before = set(_addresses(previous))
        after = set(_addresses(endpoint))
        moved = previous is not None and endpoint is not None and previous.spec.node != endpoint.spec.node
        for address in before if moved else before - after:
            self._destinations.remove_address(address, str(key))
        if endpoint is not None:
            for address in after if moved else after - before:
                self._destinations.add_address(address, endpoint.spec.node, str(key))
        self._keep(key, endpoint)

    def _update_member(self, key: ResourceKey, node: Node | None) -> None:
        member, self._object_findings[key] = parse_member(node) if node is not None else (None, [])
        before = self._members.get(key.name)
        if member == before:
            return
        self._stale = True
        source = str(key)
        for address in _tunnel_addresses(before) - _tunnel_addresses(member):
            self._destinations.remove_address(address, source)
        for address in _tunnel_addresses(member) - _tunnel_addresses(before):
            self._destinations.add_address(address, key.name, source)
        _set_or_drop(self._members, key.name, member)

    def _update_pool(self, key: ResourceKey, resource: IPPool | None) -> None:
        pool, self._object_findings[key] = parse_pool(resource) if resource is not None else (None, [])
        if pool != self._pools.get(key.name):
            _set_or_drop(self._pools, key.name, pool)
            self._stale = True

    def _keep(self, key: ResourceKey, resource: AnyResource | None) -> None:
        _set_or_drop(self._resources[key.kind], key, resource)

    def _of_kind(self, kind: str) -> dict[str, Any]:
        return {key.name: resource for key, resource in self._resources[kind].items()}

    def _sorted_pools(self) -> tuple[RoutedPool, ...]:
        return tuple(self._pools[name] for name in sorted(self._pools))

    def _vxlan(self) -> VxlanState:
        felix = self._of_kind("FelixConfiguration")
        fields: dict[str, Any] = {}
        for name in ("default", NODE_PREFIX + self._node):
            if name in felix:
                fields |= felix[name].spec
        settings = vxlan_settings(fields)
        devices: dict[Family, Vtep] = {}
        for family in FAMILIES:
            uplink = self._uplinks.get(family)
            if uplink is not None and self._uses_vxlan(family):
                vtep = own_vtep(self.own, family, settings, parent=uplink.interface, parent_mtu=uplink.mtu)
                _set_or_drop(devices, family, vtep)
        return VxlanState(devices, {family: remote_vteps(self.others, family) for family in devices})

    def _uses_vxlan(self, family: Family) -> bool:
        return any(pool.family == family and pool.vxlan != "Never" for pool in self._pools.values())

    def _uses_ipip(self) -> bool:
        return self._ipip_supported and self.has_ipip_pools

    def _tunnels_wanted(self) -> frozenset[str]:
        wanted = {f"vxlan{family}" for family in FAMILIES if family in self.own.interfaces and self._uses_vxlan(family)}
        if 4 in self.own.interfaces and self._uses_ipip():
            wanted.add("ipip4")
        return frozenset(wanted)

    def _workload_mtu(self, devices: Mapping[Family, Vtep]) -> int:
        sizes = [uplink.mtu for uplink in self._uplinks.values()]
        sizes += [vtep.mtu for vtep in devices.values()]
        sizes += [self._uplinks[family].mtu - OVERHEAD[family] for family in self._uplinks if self._uses_vxlan(family)]
        if 4 in self._uplinks and self._uses_ipip():
            sizes.append(self._uplinks[4].mtu - IPIP_OVERHEAD)
        return min(sizes, default=0)


def _set_or_drop(mapping: dict[K, V], key: K, value: V | None) -> None:
    if value is None:
        mapping.pop(key, None)
    else:
        mapping[key] = value


def _changed_keys(one: Mapping[str, Member], other: Mapping[str, Member]) -> Iterator[str]:
    for name in one.keys() | other.keys():
        if one.get(name) != other.get(name):
            yield name


def _addresses(endpoint: WorkloadEndpoint | None) -> Iterator[IPAddress]:
    for text in (endpoint.spec.ip_networks or ()) if endpoint is not None else ():
        try:
            yield ipaddress.ip_interface(text).ip
        except ValueError:
            continue


def _tunnel_addresses(member: Member | None) -> set[IPAddress]:
    if member is None:
        return set()
    ipip = {member.ipip_address} if member.ipip_address is not None else set()
    return {*member.vxlan_addresses.values(), *ipip}
