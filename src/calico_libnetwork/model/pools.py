"""IP pools as IPAM reads them: which pools serve a request, how a pool is cut into blocks, which block comes next.

Defaults are applied on reading, since older pools lack them. Block numbers are plain integers: an IPv6 pool has far
too many blocks to hold, so every walk jumps over what it cannot use.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Network, ip_network

from calico_libnetwork.errors import InvalidResource, NoPool
from calico_libnetwork.model import selector
from calico_libnetwork.model.ipam_keys import Address, Network, Version
from calico_libnetwork.model.resources import IPPool, IPReservation
from calico_libnetwork.model.selector import Selector

_BLOCK_SIZES = {4: (26, range(20, 33)), 6: (122, range(116, 129))}  # default and allowed
_USES = ("Workload", "Tunnel")


@dataclass(frozen=True, slots=True)
class Pool:
    """``block_length`` is the prefix length of its blocks; ``enabled`` allows new addresses at all."""

    name: str
    network: Network
    block_length: int
    enabled: bool
    automatic: bool
    node_selector: Selector
    namespace_selector: Selector
    allowed_uses: frozenset[str]

    @classmethod
    def read(cls, resource: IPPool) -> Pool:
        """Raises ``InvalidResource`` for a pool that cannot be used."""
        spec = resource.spec
        try:
            network = ip_network(spec.cidr)
        except ValueError as error:
            raise InvalidResource(f"IPPool({resource.name}): spec.cidr {spec.cidr!r} is no network: {error}") from error
        default, allowed = _BLOCK_SIZES[network.version]
        length = spec.block_size or default
        if length not in allowed or length < network.prefixlen:
            raise InvalidResource(f"IPPool({resource.name}): spec.blockSize {length} does not fit {network}")
        return cls(
            name=resource.name,
            network=network,
            block_length=length,
            enabled=not spec.disabled and resource.metadata.deletion_timestamp is None and _is_allocatable(resource),
            automatic=spec.assignment_mode != "Manual",
            node_selector=selector.parse(spec.node_selector),
            namespace_selector=selector.parse(spec.namespace_selector),
            allowed_uses=frozenset(spec.allowed_uses or _USES),
        )

    @property
    def version(self) -> Version:
        return 4 if isinstance(self.network, IPv4Network) else 6

    @property
    def block_count(self) -> int:
        return 1 << (self.block_length - self.network.prefixlen)

    def block(self, number: int) -> Network:
        first = int(self.network.network_address) + number * self._block_size
        return type(self.network)((first, self.block_length))

    def number(self, first: int) -> int:
        """The number of the block that holds the address with the integer ``first``."""
        return (first - int(self.network.network_address)) // self._block_size

    def block_of(self, address: Address) -> Network:
        return self.block(self.number(int(address)))

    def holds(self, network: Network) -> bool:
        own = self.network
        host = own.max_prefixlen - own.prefixlen
        return (
            network.version == own.version
            and network.prefixlen >= own.prefixlen
            and int(network.network_address) >> host == int(own.network_address) >> host
        )

    def selects(self, labels: Mapping[str, str]) -> bool:
        """Whether a node with ``labels`` gets addresses from here unasked; Docker has no namespaces to select."""
        return self.automatic and self.node_selector.matches(labels) and self.namespace_selector.matches({})

    @property
    def _block_size(self) -> int:
        return 1 << (self.network.max_prefixlen - self.block_length)


def _is_allocatable(resource: IPPool) -> bool:
    conditions = (resource.status and resource.status.conditions) or ()
    return all(condition.type != "Allocatable" or condition.status != "False" for condition in conditions)


def serving(
    pools: Iterable[Pool],
    *,
    version: Version,
    requested: Sequence[Network],
    labels: Mapping[str, str],
    use: str = "Workload",
) -> tuple[Pool, ...]:
    """The pools, in their order, from which a request may be served. Raises ``NoPool``.

    For ``requested`` pools the selectors and the assignment mode do not matter, the allowed uses do.
    """
    enabled = [pool for pool in pools if pool.enabled and pool.version == version]
    if requested:
        missing = [str(network) for network in requested if network not in {pool.network for pool in enabled}]
        if missing:
            raise NoPool(
                f"{', '.join(missing)} is not the CIDR of an enabled IP pool; create or enable it"
                " (calico-libnetwork get ippools -o wide)"
            )
        found = [pool for pool in enabled if pool.network in requested]
    else:
        found = [pool for pool in enabled if pool.selects(labels)]
    usable = tuple(pool for pool in found if use in pool.allowed_uses)
    if not usable:
        raise NoPool(
            f"no enabled IPv{version} pool serves this node for use {use}: create one, or look at the pools' "
            "disabled, nodeSelector, assignmentMode and allowedUses"
        )
    return usable


def containing(pools: Iterable[Pool], address: Address) -> Pool | None:
    return next((pool for pool in pools if address in pool.network), None)


class Spans:
    """A set of addresses of one IP version as merged ranges; membership costs O(log n)."""

    def __init__(self, networks: Iterable[Network]) -> None:
        merged: list[tuple[int, int]] = []
        for first, last in sorted((int(each.network_address), int(each.broadcast_address)) for each in networks):
            if merged and first <= merged[-1][1] + 1:
                merged[-1] = (merged[-1][0], max(last, merged[-1][1]))
            else:
                merged.append((first, last))
        self._firsts = [first for first, _ in merged]
        self._lasts = [last for _, last in merged]

    def __bool__(self) -> bool:
        return bool(self._firsts)

    def __contains__(self, address: int) -> bool:
        return self.end_of_cover(address, address) is not None

    def end_of_cover(self, first: int, last: int) -> int | None:
        """The last address of the range that holds all of ``first`` to ``last``; None if none does."""
        position = bisect_right(self._firsts, first) - 1
        return self._lasts[position] if position >= 0 and last <= self._lasts[position] else None


def reserved_networks(reservation: IPReservation) -> tuple[Network, ...]:
    """Raises ``InvalidResource`` naming the reservation."""
    try:
        return tuple(ip_network(cidr, strict=False) for cidr in reservation.spec.reserved_cidrs or ())
    except ValueError as error:
        raise InvalidResource(f"IPReservation({reservation.name}): {error}") from error


def start(node: str, blocks: int) -> int:
    """Where ``node`` begins to look for a block: fixed per node, spread over nodes. FNV-1 of the name, 32 bits."""
    value = 2166136261
    for byte in node.encode():
        value = (value * 16777619 & 0xFFFFFFFF) ^ byte
    return value % blocks


def walk(pool: Pool, node: str, blocks: Iterable[Network]) -> list[Network]:
    """Existing ``blocks`` of a pool in the order in which ``node`` visits them: upwards from its start, wrapping."""
    first = start(node, pool.block_count)

    def distance(network: Network) -> tuple[int, int]:
        address = int(network.network_address)
        return (pool.number(address) - first) % pool.block_count, address

    return sorted((each for each in blocks if pool.holds(each)), key=distance)


def free_block(pool: Pool, node: str, *, existing: Iterable[Network], reserved: Iterable[Network]) -> Network | None:
    """The first block, in ``node``'s order, that does not exist and is not wholly reserved.

    A block of another size, left from an earlier life of the pool, bars what it overlaps.
    """
    taken, barriers = set(), list(reserved)
    for network in existing:
        if not pool.holds(network):
            continue
        if network.prefixlen < pool.block_length:
            barriers.append(network)
        else:
            taken.add(pool.number(int(network.network_address)))
    barred = Spans(each for each in barriers if each.version == pool.version)
    number = next(_candidates(pool, start(node, pool.block_count), taken, barred), None)
    return None if number is None else pool.block(number)


def _candidates(pool: Pool, first: int, taken: set[int], barred: Spans) -> Iterator[int]:
    size = 1 << (pool.network.max_prefixlen - pool.block_length)
    base = int(pool.network.network_address)
    for number, stop in ((first, pool.block_count), (0, first)):
        while number < stop:
            begin = base + number * size
            end = barred.end_of_cover(begin, begin + size - 1)
            if end is not None:
                number = pool.number(end + 1)
            else:
                if number not in taken:
                    yield number
                number += 1
