"""Which node each block and each borrowed address belongs to. Pure, and incremental.

An address is borrowed when its node has no affinity to the block it lies in; it then needs a route of its own. The
work done for a change is that of the destinations it concerns: a block and the known addresses inside it.
"""

from __future__ import annotations

import ipaddress
from collections import Counter, defaultdict

from calico_libnetwork.routing.cluster import IPAddress, IPNetwork

_Place = tuple[int, int]  # IP version, address as a number


class Destinations:
    """``changed`` collects the destinations whose owner may be another since it was last emptied."""

    def __init__(self, node: str) -> None:
        self._node = node
        self._owners: dict[IPNetwork, set[str]] = {}
        self._blocks: dict[tuple[int, int, int], IPNetwork] = {}  # version, length, leading bits
        self._lengths: Counter[tuple[int, int]] = Counter()
        self._hosts: dict[_Place, IPNetwork] = {}
        self._claims: dict[IPNetwork, dict[str, str]] = {}
        self._of_node: defaultdict[str, Counter[IPNetwork]] = defaultdict(Counter)
        self.changed: set[IPNetwork] = set()

    def add_block(self, network: IPNetwork, node: str) -> None:
        owners = self._owners.setdefault(network, set())
        if node not in owners:
            owners.add(node)
            self._blocks[_block_key(network)] = network
            self._lengths[network.version, network.prefixlen] += 1
            self._of_node[node][network] += 1
            self._touch(network)

    def remove_block(self, network: IPNetwork, node: str) -> None:
        owners = self._owners.get(network, set())
        if node in owners:
            owners.remove(node)
            self._lengths[network.version, network.prefixlen] -= 1
            self._drop(node, network)
            if not owners:
                del self._owners[network]
                del self._blocks[_block_key(network)]
            self._touch(network)

    def add_address(self, address: IPAddress, node: str, source: str) -> None:
        """``source`` is what claims the address for the node; two may, while one replaces the other."""
        place = address.version, int(address)
        network = self._hosts.get(place) or host_network(address)
        self._hosts[place] = network
        self._claims.setdefault(network, {})[source] = node
        self._of_node[node][network] += 1
        self.changed.add(network)

    def remove_address(self, address: IPAddress, source: str) -> None:
        place = address.version, int(address)
        network = self._hosts.get(place)
        node = self._claims[network].pop(source, None) if network is not None else None
        if network is not None and node is not None:
            self._drop(node, network)
            if not self._claims[network]:
                del self._claims[network]
                del self._hosts[place]
            self.changed.add(network)

    def local_blocks(self) -> tuple[IPNetwork, ...]:
        return tuple(network for network, owners in self._owners.items() if self._node in owners)

    def all(self) -> set[IPNetwork]:
        return {*self._owners, *self._claims}

    def of_node(self, node: str) -> set[IPNetwork]:
        """What a node claims, whether or not it is the owner."""
        return set(self._of_node.get(node, ()))

    def owner(self, destination: IPNetwork) -> str | None:
        """The node that packets for ``destination`` go to; None where a route of its own has no place.

        Of several that claim the same, this node if it is one of them, else the first by name.
        """
        owners = self._owners.get(destination)
        claims = self._claims.get(destination)
        if claims is None:
            return self._first(owners) if owners else None
        owner = self._first(set(claims.values()))
        return None if owners is None and self._covered(destination, owner) else owner

    def claimant(self, destination: IPNetwork) -> str | None:
        """The node that has this one address, be it borrowed or not."""
        claims = self._claims.get(destination)
        return None if claims is None else self._first(set(claims.values()))

    def _covered(self, host: IPNetwork, node: str) -> bool:
        """Whether the address lies in a block of its own node."""
        number, bits = int(host.network_address), host.max_prefixlen
        for (version, length), count in self._lengths.items():
            if count and version == host.version:
                block = self._blocks.get((version, length, number >> (bits - length)))
                if block is not None and self._first(self._owners[block]) == node:
                    return True
        return False

    def _first(self, nodes: set[str]) -> str:
        return self._node if self._node in nodes else min(nodes)

    def _drop(self, node: str, network: IPNetwork) -> None:
        counted = self._of_node[node]
        counted[network] -= 1
        if not counted[network]:
            del counted[network]
        if not counted:
            del self._of_node[node]

    def _touch(self, network: IPNetwork) -> None:
        """The block itself, and the addresses inside it, which may have become borrowed or stopped being so."""
        self.changed.add(network)
        version, first, size = network.version, int(network.network_address), network.num_addresses
        if size <= len(self._hosts):
            places = ((version, number) for number in range(first, first + size))
            self.changed.update(self._hosts[place] for place in places if place in self._hosts)
        else:
            self.changed.update(
                host
                for (family, number), host in self._hosts.items()
                if family == version and 0 <= number - first < size
            )


def host_network(address: IPAddress) -> IPNetwork:
    return ipaddress.ip_network(address)


def _block_key(network: IPNetwork) -> tuple[int, int, int]:
    bits = network.max_prefixlen - network.prefixlen
    return network.version, network.prefixlen, int(network.network_address) >> bits
