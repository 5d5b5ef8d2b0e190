"""Resources in, the desired content of the nftables tables out: pure, incremental, level-triggered.

``update`` only takes note; ``render`` works through what changed since the last one, in the order of dependence:
options, tiers, profiles, policies, owners of addresses, local endpoints, chains, sets. Its result is a function of
the resources alone, with one exception: of a resource that becomes unreadable the last readable version stays in
force.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from calico_libnetwork.dataplane.rules import endpoints, skeleton
from calico_libnetwork.dataplane.rules.bindings import Bindings
from calico_libnetwork.dataplane.rules.chains import Chains, RuleChain
from calico_libnetwork.dataplane.rules.endpoints import LocalEndpoint
from calico_libnetwork.dataplane.rules.members import Members, Owner
from calico_libnetwork.dataplane.rules.policies import Policies
from calico_libnetwork.dataplane.rules.pools import NetworkSets, PoolRange, node_networks, read_pool
from calico_libnetwork.dataplane.table import Table
from calico_libnetwork.errors import Unreadable
from calico_libnetwork.model import resources
from calico_libnetwork.model.kinds import ResourceKey
from calico_libnetwork.model.resources import DEFAULT_ALLOW_PROFILE, AnyResource
from calico_libnetwork.policy import identities
from calico_libnetwork.policy.entity import Network
from calico_libnetwork.policy.findings import Finding
from calico_libnetwork.policy.identities import Identities
from calico_libnetwork.policy.resolver import (
    POLICY_KINDS,
    CompiledProfile,
    compile_policy,
    compile_profile,
    place_tier,
)
from calico_libnetwork.policy.rule import DIRECTIONS
from calico_libnetwork.policy.settings import RulesSettings, initial_options, read_options
from calico_libnetwork.policy.unreadable import consequence, stand_in

Update = AnyResource | Unreadable | None

_OWNER_KINDS = ("WorkloadEndpoint", "HostEndpoint", "GlobalNetworkSet", "NetworkSet")
_STAGED_KINDS = ("StagedGlobalNetworkPolicy", "StagedNetworkPolicy", "StagedKubernetesNetworkPolicy")
_KINDS = ("FelixConfiguration", "IPPool", "Node", "Tier", "Profile", *POLICY_KINDS, *_OWNER_KINDS, *_STAGED_KINDS)
_UNREADABLE = {
    "Profile": "its endpoints are denied everything at its place",
    "Tier": "it sorts last and denies at its end",
}


class Ruleset:
    """``render`` must be given the same tables each time; they are this object's to fill."""

    def __init__(self, *, node: str, settings: RulesSettings) -> None:
        self._node = node
        self._settings = settings
        self._changed: dict[str, dict[ResourceKey, AnyResource | None]] = {kind: {} for kind in _KINDS}
        self._unreadable: dict[ResourceKey, Unreadable] = {}
        self._content: _Content | None = None

    def update(self, key: ResourceKey, resource: Update) -> None:
        """None: it is gone; ``Unreadable``: it is there and cannot be read, so the version before stays."""
        changed = self._changed.get(key.kind)
        if changed is None:
            return
        if isinstance(resource, Unreadable):
            self._unreadable[key] = resource
        else:
            changed[key] = resource
            self._unreadable.pop(key, None)

    def render(self, table: Table, arp: Table) -> frozenset[str]:
        """Brings the desired side of the tables up to date; the interfaces whose endpoint changed, came or went."""
        if self._content is None:
            self._content = _Content(self._node, self._settings, table, arp)
        changed, self._changed = self._changed, {kind: {} for kind in _KINDS}
        unreadable, self._unreadable = self._unreadable, {}
        return self._content.apply(changed, unreadable)

    @property
    def findings(self) -> tuple[Finding, ...]:
        return self._content.all_findings() if self._content else ()

    @property
    def local_endpoints(self) -> Mapping[str, LocalEndpoint]:
        """By interface, those that have theirs: not waiting for another, not ignored."""
        return self._content.bindings.endpoints if self._content else {}

    def has_siblings(self, interface: str) -> bool:
        """Whether the container of that interface has another one."""
        return self._content is not None and self._content.bindings.siblings.have(interface)

    def take_datagram_ports(self) -> frozenset[int]:
        """Ports of the host that lead elsewhere since the last time this was asked, as far as they take datagrams."""
        return self._content.bindings.published.take_datagram_ports() if self._content is not None else frozenset()


class _Content:
    """Everything known, and the tables it is written to."""

    def __init__(self, node: str, settings: RulesSettings, table: Table, arp: Table) -> None:
        self._node = node
        self._settings = settings
        self._table = table
        self._arp = arp
        self._configurations: dict[ResourceKey, Mapping[str, Any]] = {}
        self._pools: dict[ResourceKey, PoolRange] = {}
        self._nodes: dict[ResourceKey, tuple[Network, ...]] = {}
        self._networks = NetworkSets(table)
        self._policies = Policies()
        self._identities = Identities(self._policies.profiles)
        self._members = Members(table)
        self._chains = Chains(table, self._members, self._policies.source, initial_options(settings))
        self.bindings = Bindings(table, arp, self._policies, self._chains)
        self._owners: dict[ResourceKey, Owner] = {}
        self._local: dict[ResourceKey, LocalEndpoint] = {}
        self._findings: dict[ResourceKey, list[Finding]] = {}
        self._option_findings: list[Finding] = []
        self._stale_chains: set[RuleChain] = set()
        self._stale_owners: set[ResourceKey] = set()
        self._want_fixed_part()

    def all_findings(self) -> tuple[Finding, ...]:
        own = [finding for findings in self._findings.values() for finding in findings]
        bound = (*self.bindings.findings.values(), *self.bindings.published.findings())
        return tuple(sorted((*own, *self._option_findings, *bound)))

    def apply(
        self,
        changed: Mapping[str, Mapping[ResourceKey, AnyResource | None]],
        unreadable: Mapping[ResourceKey, Unreadable],
    ) -> frozenset[str]:
        for kind, updates in changed.items():
            for key, update in updates.items():
                self._apply(kind, key, update)
            if kind == "FelixConfiguration" and updates:
                self._apply_options()
        for key, error in unreadable.items():
            self._apply_unreadable(key, error)
        if changed["IPPool"] or changed["Node"] or changed["FelixConfiguration"]:
            self._want_fixed_part()
        for key in self._stale_owners:
            self._place_owner(key)
        self._members.settle()
        for chain in sorted(self._stale_chains, key=lambda chain: chain.name):
            self._chains.refresh(chain)
        interfaces = self.bindings.settle()
        self._chains.refresh_stale()
        self._stale_owners.clear()
        self._stale_chains.clear()
        return interfaces

    def _apply(self, kind: str, key: ResourceKey, update: AnyResource | None) -> None:
        findings: list[Finding] = []
        if kind in POLICY_KINDS:
            self._apply_policy(key, cast("resources.Policy | None", update), findings)
        elif kind in _OWNER_KINDS:
            self._apply_owner(key, update, findings)
        elif kind == "Profile":
            self._apply_profile(key, cast("resources.Profile | None", update), findings)
        elif kind == "Tier":
            self._apply_tier(key, cast("resources.Tier | None", update))
        elif kind in _STAGED_KINDS:
            if update is not None:
                text = "a staged policy is not in force, and nothing here reports what it would do"
                findings.append(Finding(key, "warning", "staged", "", text))
        else:
            self._apply_environment(key, update, findings)
        if findings:
            self._findings[key] = findings
        else:
            self._findings.pop(key, None)

    def _apply_unreadable(self, key: ResourceKey, error: Unreadable) -> None:
        kept: list[Finding] = []
        if self._is_known(key):
            kept = [found for found in self._findings.get(key, ()) if found.feature != "unreadable"]
            outcome = "its last readable version stays in force"
        elif key.kind in POLICY_KINDS:
            outcome = self._stand_in(key, error)
        else:
            outcome = _UNREADABLE.get(key.kind, "it is left out")
        finding = Finding(key, "error", "unreadable", "", f"it cannot be read; {outcome}")
        self._findings[key] = [*kept, finding]

    def _is_known(self, key: ResourceKey) -> bool:
        if key.kind in POLICY_KINDS:
            known = self._policies.policies.get(key)
            return known is not None and known.readable
        if key.kind == "Profile":
            return key.name in self._policies.profiles
        if key.kind == "Tier":
            return key.name in self._policies.tiers
        return any(key in known for known in (self._owners, self._configurations, self._pools, self._nodes))

    def _stand_in(self, key: ResourceKey, error: Unreadable) -> str:
        """What becomes of it."""
        if self._settings.invalid_policy == "ignore":
            self.bindings.refresh_labels(self._policies.remove(key))
            return "it is left out, as configured"
        found = stand_in(key, error)
        changed = self._policies.remove(key) if found is None else self._policies.put(found)
        self.bindings.refresh_labels(changed)
        return consequence(key, found)

    def _apply_policy(self, key: ResourceKey, resource: resources.Policy | None, findings: list[Finding]) -> None:
        if resource is None:
            self.bindings.refresh_labels(self._policies.remove(key))
            return
        policy, found = compile_policy(key, resource)
        findings += found
        self.bindings.refresh_labels(self._policies.put(policy))
        self._stale_chains |= {RuleChain(key, direction) for direction in DIRECTIONS}

    def _apply_profile(self, key: ResourceKey, resource: resources.Profile | None, findings: list[Finding]) -> None:
        if key.name == DEFAULT_ALLOW_PROFILE:
            return
        profiles = self._policies.profiles
        before = profiles.pop(key.name, None)
        if resource is not None:
            profiles[key.name], found = compile_profile(key, resource)
            findings += found
        if _labels(before) != _labels(profiles.get(key.name)):
            self._stale_owners |= self._identities.users(key.name)
        self._stale_chains |= {RuleChain(key, direction) for direction in DIRECTIONS}

    def _apply_tier(self, key: ResourceKey, resource: resources.Tier | None) -> None:
        if resource is None:
            self._policies.tiers.pop(key.name, None)
        else:
            self._policies.tiers[key.name] = place_tier(resource)
        self.bindings.refresh_tiers()

    def _apply_environment(self, key: ResourceKey, update: AnyResource | None, findings: list[Finding]) -> None:
        """What rules need to know besides policy: options, pools, nodes."""
        for known in (self._configurations, self._pools, self._nodes):
            cast("dict[ResourceKey, Any]", known).pop(key, None)
        if update is None:
            return
        if key.kind == "FelixConfiguration":
            self._configurations[key] = update.spec
        elif key.kind == "Node":
            self._nodes[key] = node_networks(key, update, findings)
        elif (pool := read_pool(key, cast("resources.IPPool", update), findings)) is not None:
            self._pools[key] = pool

    def _apply_owner(self, key: ResourceKey, update: AnyResource | None, findings: list[Finding]) -> None:
        owner = self._owners.pop(key, None)
        if owner is not None:
            self._members.remove(owner)
        self._identities.remove(key)
        self._local.pop(key, None)
        self._stale_owners.discard(key)
        described = self._describe(key, update, findings) if update is not None else None
        if described is None:
            self.bindings.update(key, None, {})
            return
        identity, self._owners[key] = described
        self._identities.put(key, identity)
        self._stale_owners.add(key)

    def _describe(
        self, key: ResourceKey, resource: AnyResource, findings: list[Finding]
    ) -> tuple[identities.Identity, Owner] | None:
        if key.kind == "HostEndpoint":
            if resource.spec.node == self._node:
                text = "host endpoints are not enforced: the interfaces of this host are unprotected"
                findings.append(Finding(key, "error", "host-endpoint", "", text))
            return identities.host_identity(resource), endpoints.host_owner(key, resource, findings)
        if key.kind != "WorkloadEndpoint":
            identity = identities.network_set_identity(key, resource)
            return identity, endpoints.network_set_owner(key, resource, findings)
        addresses = endpoints.workload_addresses(key, resource, findings)
        if not addresses:
            return None
        if endpoints.is_local(key, resource, self._node):
            local = endpoints.local_endpoint(key, resource, addresses, findings)
            if local is not None:
                self._local[key] = local
        return identities.workload_identity(key, resource), endpoints.workload_owner(addresses, resource)

    def _place_owner(self, key: ResourceKey) -> None:
        owner, labels = self._owners[key], self._identities.labels(key)
        self._members.remove(owner)
        self._members.add(owner, labels)
        self.bindings.update(key, self._local.get(key), labels)

    def _apply_options(self) -> None:
        found: list[Finding] = []
        options = read_options(self._settings, self._configurations, node=self._node, findings=found)
        self._option_findings = found
        if options != self._chains.options:
            self._chains.refresh_all(options)
            self.bindings.refresh_all()

    def _want_fixed_part(self) -> None:
        vxlan = any(pool.vxlan for pool in self._pools.values())
        options = self._chains.options
        skeleton.want_skeleton(self._table, self._arp, options, vxlan=vxlan)
        self._networks.want(self._pools.values(), self._nodes.values(), options.vxlan_sources)


def _labels(profile: CompiledProfile | None) -> Mapping[str, str]:
    return profile.labels if profile else {}
