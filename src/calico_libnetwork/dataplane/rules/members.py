"""Who is a member of what: addresses in the sets of the selectors that match their owner's labels.

Owners are the workload endpoints and host endpoints of all nodes and the network sets. A set exists while a chain
uses it; then every change of an endpoint is a change of a few elements, whatever the size of the set.

What network sets bring in is in interval sets beside those of the endpoints' addresses. The kernel makes a
transaction's rules and plain elements visible at one instant, but interval elements a little later, and meanwhile
packets would see new rules with old intervals. So an interval set is named by its content and never changes: the
writer fills a new one before any rule names it, and the rules go over from one to the other at once.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from calico_libnetwork.dataplane.rules import names
from calico_libnetwork.dataplane.table import SetSpec, Table
from calico_libnetwork.model.selector import Selector
from calico_libnetwork.policy.entity import Network, covering
from calico_libnetwork.policy.labels import LabelIndex, LabelSet

_VERSIONS = (4, 6)
_ADDRESSES = {version: SetSpec("set", f"type ipv{version}_addr;") for version in _VERSIONS}
_NETWORKS = {version: SetSpec("set", f"type ipv{version}_addr; flags interval;") for version in _VERSIONS}
_PORTS = {version: SetSpec("set", f"type ipv{version}_addr . inet_proto . inet_service;") for version in _VERSIONS}


@dataclass(slots=True, eq=False)
class Owner:
    """What one resource brings in: an endpoint its addresses and named ports, a network set its networks.

    ``addresses`` are (IP version, text); ``ports`` (name, IP version, text of the concatenation).
    """

    addresses: tuple[tuple[int, str], ...] = ()
    networks: tuple[Network, ...] = ()
    ports: tuple[tuple[str, int, str], ...] = ()
    label_set: LabelSet | None = None


@dataclass(slots=True, eq=False)
class _SelectorSets:
    """``users`` are the chains that name the sets.

    ``networks`` counts every network among the members; ``network_sets`` are the names of the sets that cover them.
    """

    address_names: dict[int, str]
    users: set[str] = field(default_factory=set)
    port_users: dict[str, set[str]] = field(default_factory=dict)
    networks: Counter[Network] = field(default_factory=Counter)
    network_sets: dict[int, str] = field(default_factory=dict)


@dataclass(slots=True, eq=False)
class _NetworkSet:
    texts: tuple[str, ...]
    users: int = 0


class Members:
    """``stale_chains`` collects the chains that name an interval set in whose place there is another now."""

    def __init__(self, table: Table) -> None:
        self._table = table
        self._index = LabelIndex()
        self._owners: dict[LabelSet, set[Owner]] = {}
        self._holders: dict[str, tuple[Owner, ...]] = {}
        self._sets: dict[Selector, _SelectorSets] = {}
        self._changed_networks: set[Selector] = set()
        self._network_sets: dict[str, _NetworkSet] = {}
        self.stale_chains: set[str] = set()

    def network_sets(self, selector: Selector) -> Mapping[int, str]:
        """By IP version, the set of the networks among the members of a selector in use."""
        return self._sets[selector].network_sets

    def add(self, owner: Owner, labels: Mapping[str, str]) -> None:
        label_set = owner.label_set = self._index.hold_labels(labels)
        self._owners.setdefault(label_set, set()).add(owner)
        for _, text in owner.addresses:
            self._holders[text] = (*self._holders.get(text, ()), owner)
        for selector in label_set.matching:
            self._enter(selector, owner)

    def remove(self, owner: Owner) -> None:
        label_set = owner.label_set
        if label_set is None:
            return
        for _, text in owner.addresses:
            rest = tuple(other for other in self._holders[text] if other is not owner)
            if rest:
                self._holders[text] = rest
            else:
                del self._holders[text]
        owners = self._owners[label_set]
        owners.discard(owner)
        for selector in label_set.matching:
            self._leave(selector, owner)
        if not owners:
            del self._owners[label_set]
        self._index.drop_labels(label_set)
        owner.label_set = None

    def use(self, selector: Selector, chain: str) -> None:
        sets = self._known(selector)
        if not sets.users:
            for version in _VERSIONS:
                self._table.sets.want(sets.address_names[version], _ADDRESSES[version])
            for owner in self._members(selector):
                self._enter_addresses(selector, sets, owner)
            self._changed_networks.discard(selector)
            self._cover(selector, sets)
        sets.users.add(chain)

    def use_port(self, selector: Selector, name: str, chain: str) -> None:
        sets = self._known(selector)
        users = sets.port_users.setdefault(name, set())
        if not users:
            for version in _VERSIONS:
                self._table.sets.want(names.port_set(version, selector, name), _PORTS[version])
            for owner in self._members(selector):
                self._enter_port(selector, name, owner)
        users.add(chain)

    def disuse(self, selector: Selector, chain: str) -> None:
        sets = self._sets[selector]
        sets.users.discard(chain)
        if not sets.users:
            for version in _VERSIONS:
                self._table.sets.unwant(sets.address_names[version])
            for owner in self._members(selector):
                for version, text in owner.addresses:
                    self._table.elements.unwant((sets.address_names[version], text))
            sets.networks.clear()
            self._cover(selector, sets)
            self._forget(selector, sets)

    def disuse_port(self, selector: Selector, name: str, chain: str) -> None:
        sets = self._sets[selector]
        sets.port_users[name].discard(chain)
        if not sets.port_users[name]:
            del sets.port_users[name]
            for owner in self._members(selector):
                for port, version, text in owner.ports:
                    if port == name:
                        self._table.elements.unwant((names.port_set(version, selector, name), text))
            for version in _VERSIONS:
                self._table.sets.unwant(names.port_set(version, selector, name))
            self._forget(selector, sets)

    def settle(self) -> None:
        """Chooses the interval sets anew, once per batch, where networks came or went."""
        for selector in self._changed_networks:
            sets = self._sets.get(selector)
            if sets is not None:
                self._cover(selector, sets)
        self._changed_networks.clear()

    def _known(self, selector: Selector) -> _SelectorSets:
        sets = self._sets.get(selector)
        if sets is None:
            sets = _SelectorSets({version: names.address_set(version, selector) for version in _VERSIONS})
            self._sets[selector] = sets
            self._index.add_selector(selector)
        return sets

    def _forget(self, selector: Selector, sets: _SelectorSets) -> None:
        if not sets.users and not sets.port_users:
            self._index.remove_selector(selector)
            del self._sets[selector]

    def _members(self, selector: Selector) -> Iterable[Owner]:
        for label_set in self._index.matching(selector):
            yield from self._owners.get(label_set, ())

    def _enter(self, selector: Selector, owner: Owner) -> None:
        sets = self._sets[selector]
        if sets.users:
            self._enter_addresses(selector, sets, owner)
        for name in sets.port_users:
            self._enter_port(selector, name, owner)

    def _enter_addresses(self, selector: Selector, sets: _SelectorSets, owner: Owner) -> None:
        for version, text in owner.addresses:
            self._table.elements.want((sets.address_names[version], text), "")
        if owner.networks:
            sets.networks.update(owner.networks)
            self._changed_networks.add(selector)

    def _enter_port(self, selector: Selector, name: str, owner: Owner) -> None:
        for port, version, text in owner.ports:
            if port == name:
                self._table.elements.want((names.port_set(version, selector, name), text), "")

    def _leave(self, selector: Selector, owner: Owner) -> None:
        sets = self._sets[selector]
        if sets.users:
            for version, text in owner.addresses:
                if not self._held_by_another(selector, text):
                    self._table.elements.unwant((sets.address_names[version], text))
            if owner.networks:
                sets.networks -= Counter(owner.networks)
                self._changed_networks.add(selector)
        for port, version, text in owner.ports:
            if port in sets.port_users and not self._offered_by_another(selector, owner, (port, version, text)):
                self._table.elements.unwant((names.port_set(version, selector, port), text))

    def _held_by_another(self, selector: Selector, text: str) -> bool:
        """The owner that leaves is no longer among the holders."""
        holders = self._holders.get(text, ())
        return any(holder.label_set is not None and selector in holder.label_set.matching for holder in holders)

    def _offered_by_another(self, selector: Selector, leaving: Owner, port: tuple[str, int, str]) -> bool:
        return any(port in owner.ports for owner in self._members(selector) if owner is not leaving)

    def _cover(self, selector: Selector, sets: _SelectorSets) -> None:
        before, after = sets.network_sets, {}
        for version in _VERSIONS:
            texts = tuple(names.network_text(network) for network in covering(sets.networks, version))
            if texts:
                after[version] = names.network_set(version, texts)
                self._hold_networks(after[version], version, texts)
        for name in before.values():
            self._drop_networks(name)
        if before != after:
            self.stale_chains |= sets.users
            sets.network_sets = after

    def _hold_networks(self, name: str, version: int, texts: tuple[str, ...]) -> None:
        """Selectors with the same networks share the set."""
        held = self._network_sets.get(name)
        if held is None:
            held = self._network_sets[name] = _NetworkSet(texts)
            self._table.sets.want(name, _NETWORKS[version])
            for text in texts:
                self._table.elements.want((name, text), "")
        held.users += 1

    def _drop_networks(self, name: str) -> None:
        held = self._network_sets[name]
        held.users -= 1
        if not held.users:
            del self._network_sets[name]
            self._table.sets.unwant(name)
            for text in held.texts:
                self._table.elements.unwant((name, text))
