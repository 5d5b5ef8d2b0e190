"""Local endpoints bound to the chains of their policies: the elements of the verdict maps.

Endpoints with equal labels and profiles are one group, and a group has one signature per direction. One more
endpoint in a known group is two elements, its anti-spoofing and nothing else.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from calico_libnetwork.dataplane.rules import names, skeleton
from calico_libnetwork.dataplane.rules.chains import Chains, SharedChain, signature
from calico_libnetwork.dataplane.rules.endpoints import LocalEndpoint
from calico_libnetwork.dataplane.rules.policies import Policies
from calico_libnetwork.dataplane.rules.published import Published
from calico_libnetwork.dataplane.rules.siblings import Siblings
from calico_libnetwork.dataplane.table import Table
from calico_libnetwork.model.kinds import ResourceKey
from calico_libnetwork.model.selector import Selector
from calico_libnetwork.policy.entity import covering
from calico_libnetwork.policy.findings import Finding
from calico_libnetwork.policy.labels import LabelSet
from calico_libnetwork.policy.rule import DIRECTIONS, Direction

_MAPS: dict[Direction, str] = {"egress": skeleton.FROM_WORKLOAD, "ingress": skeleton.TO_WORKLOAD}

Element = tuple[str, str]
_Signatures = dict[tuple[frozenset[Selector], tuple[str, ...]], dict[Direction, SharedChain]]


@dataclass(slots=True, eq=False)
class _Group:
    label_set: LabelSet
    profiles: tuple[str, ...]
    interfaces: set[str] = field(default_factory=set)
    chains: dict[Direction, SharedChain] = field(default_factory=dict)


@dataclass(slots=True, eq=False)
class _Binding:
    endpoint: LocalEndpoint
    group: _Group
    arp: frozenset[Element]
    spoof: frozenset[Element]


@dataclass(slots=True)
class _Candidate:
    endpoint: LocalEndpoint
    labels: Mapping[str, str]


class Bindings:
    """``update`` and ``refresh_labels`` take note, ``settle`` does the work and answers which interfaces changed."""

    def __init__(self, table: Table, arp: Table, policies: Policies, chains: Chains) -> None:
        self._table = table
        self._arp = arp
        self._policies = policies
        self._chains = chains
        self._candidates: dict[str, dict[ResourceKey, _Candidate]] = {}
        self._interfaces: dict[ResourceKey, str] = {}
        self._bound: dict[str, _Binding] = {}
        self.siblings = Siblings(table)
        self.published = Published(table)
        self._groups: dict[tuple[LabelSet, tuple[str, ...]], _Group] = {}
        self._groups_by_labels: dict[LabelSet, set[_Group]] = {}
        self._stale_interfaces: set[str] = set()
        self._stale_groups: set[_Group] = set()
        self.endpoints: dict[str, LocalEndpoint] = {}
        self.findings: dict[ResourceKey, Finding] = {}

    def update(self, key: ResourceKey, endpoint: LocalEndpoint | None, labels: Mapping[str, str]) -> None:
        interface = self._interfaces.pop(key, None)
        if interface is not None:
            candidates = self._candidates[interface]
            del candidates[key]
            if not candidates:
                del self._candidates[interface]
            self._stale_interfaces.add(interface)
        self.findings.pop(key, None)
        if endpoint is not None:
            self._interfaces[key] = endpoint.interface
            self._candidates.setdefault(endpoint.interface, {})[key] = _Candidate(endpoint, labels)
            self._stale_interfaces.add(endpoint.interface)

    def refresh_labels(self, label_sets: Iterable[LabelSet]) -> None:
        """The list of policies that apply to these labels changed."""
        for label_set in label_sets:
            self._stale_groups |= self._groups_by_labels.get(label_set, set())

    def refresh_tiers(self) -> None:
        self._stale_groups |= set(self._groups.values())

    def refresh_all(self) -> None:
        self.refresh_tiers()
        self._stale_interfaces |= self._candidates.keys()

    def settle(self) -> frozenset[str]:
        changed = frozenset(interface for interface in self._stale_interfaces if self._rebind(interface))
        known: _Signatures = {}
        for group in self._stale_groups:
            self._resolve(group, known)
        for interface in changed:
            binding = self._bound.get(interface)
            if binding is not None:
                self._want(interface, binding.group)
        self._stale_interfaces.clear()
        self._stale_groups.clear()
        return changed | self.siblings.settle(lambda interface: self._bound[interface].group.chains["egress"].name)

    def _rebind(self, interface: str) -> bool:
        old = self._bound.get(interface)
        winner = self._winner(interface)
        if winner is None:
            if old is None:
                return False
            del self._bound[interface], self.endpoints[interface]
            self.siblings.remove(interface)
            self.published.remove(interface)
            self._leave(interface, old)
            for name in _MAPS.values():
                self._table.elements.unwant((name, f'"{interface}"'))
            return True
        endpoint = winner.endpoint
        binding = _Binding(endpoint, self._join(interface, winner), _arp_elements(endpoint), self._spoof(endpoint))
        for element in binding.arp:
            self._arp.elements.want(element, "")
        for element in binding.spoof:
            self._table.elements.want(element, "")
        self._bound[interface], self.endpoints[interface] = binding, endpoint
        self.siblings.put(interface, endpoint)
        self.published.put(interface, endpoint)
        if old is not None:
            self._leave(interface, old, binding)
        return old is None or old.endpoint != endpoint or old.group is not binding.group

    def _winner(self, interface: str) -> _Candidate | None:
        candidates = self._candidates.get(interface, {})
        if not candidates:
            return None
        prefixes = self._chains.options.prefixes
        policed = interface.startswith(prefixes)
        winner = min(candidates.values(), key=lambda candidate: candidate.endpoint.rank)
        for key, candidate in candidates.items():
            if not policed:
                text = f"{interface} has no workload prefix ({', '.join(prefixes)}); the endpoint is left out"
                self.findings[key] = Finding(key, "error", "endpoint", "spec.interfaceName", text)
            elif candidate is not winner:
                text = f"{interface} belongs to {winner.endpoint.key}; this endpoint waits for it"
                self.findings[key] = Finding(key, "warning", "endpoint", "spec.interfaceName", text)
            else:
                self.findings.pop(key, None)
        return winner if policed else None

    def _join(self, interface: str, candidate: _Candidate) -> _Group:
        label_set = self._policies.index.hold_labels(candidate.labels)
        identity = (label_set, candidate.endpoint.profiles)
        group = self._groups.get(identity)
        if group is None:
            group = self._groups[identity] = _Group(*identity)
            self._groups_by_labels.setdefault(label_set, set()).add(group)
            self._stale_groups.add(group)
        elif interface in group.interfaces:
            self._policies.index.drop_labels(label_set)  # held once per interface already
        group.interfaces.add(interface)
        return group

    def _leave(self, interface: str, old: _Binding, new: _Binding | None = None) -> None:
        for element in old.arp - (new.arp if new else frozenset()):
            self._arp.elements.unwant(element)
        for element in old.spoof - (new.spoof if new else frozenset()):
            self._table.elements.unwant(element)
        group = old.group
        if new is not None and new.group is group:
            return
        group.interfaces.discard(interface)
        if not group.interfaces:
            self._stale_groups.add(group)
        self._policies.index.drop_labels(group.label_set)

    def _resolve(self, group: _Group, known: _Signatures) -> None:
        """``known`` are the signatures found in this round: many labels may meet with the same policies."""
        if not group.interfaces:
            del self._groups[group.label_set, group.profiles]
            groups = self._groups_by_labels[group.label_set]
            groups.discard(group)
            if not groups:
                del self._groups_by_labels[group.label_set]
            for chain in group.chains.values():
                self._chains.drop(chain)
            return
        identity = (frozenset(group.label_set.matching), group.profiles)
        if identity not in known:
            known[identity] = {direction: self._signature(group, direction) for direction in DIRECTIONS}
        before, group.chains = group.chains, known[identity]
        for chain in group.chains.values():
            self._chains.hold(chain)
        for chain in before.values():
            self._chains.drop(chain)
        if before and any(before[direction].name != group.chains[direction].name for direction in DIRECTIONS):
            for interface in group.interfaces:
                self._want(interface, group)
                self.siblings.refresh(interface)

    def _signature(self, group: _Group, direction: Direction) -> SharedChain:
        tiers = self._policies.resolve(group.label_set, direction)
        return signature(tiers, group.profiles, direction, self._chains.options)

    def _want(self, interface: str, group: _Group) -> None:
        for direction, chain in group.chains.items():
            self._table.elements.want((_MAPS[direction], f'"{interface}"'), f"goto {chain.name}")

    def _spoof(self, endpoint: LocalEndpoint) -> frozenset[Element]:
        if not self._chains.options.allow_spoofing:
            return frozenset()
        return frozenset(
            (name, f'"{endpoint.interface}" . {names.network_text(network)}')
            for name, version in ((skeleton.SPOOF4, 4), (skeleton.SPOOF6, 6))
            for network in covering(endpoint.spoofable, version)
        )


def _arp_elements(endpoint: LocalEndpoint) -> frozenset[Element]:
    return frozenset(
        (skeleton.OWN_ADDRESSES, f'"{endpoint.interface}" . {names.address_text(address)}')
        for address in endpoint.addresses
        if address.version == 4
    )
