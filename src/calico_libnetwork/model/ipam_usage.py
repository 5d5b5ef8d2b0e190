"""How full pools and blocks are, and which addresses a node has borrowed from another's block."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network, collapse_addresses

from calico_libnetwork.errors import InvalidResource
from calico_libnetwork.model import block as blocks
from calico_libnetwork.model import ipam_keys, kinds, pools
from calico_libnetwork.model.block import Allocation, Block
from calico_libnetwork.model.ipam_keys import Address, Network
from calico_libnetwork.model.kinds import KINDS
from calico_libnetwork.model.pools import Pool

PREFIXES = (ipam_keys.IPAM_PREFIX, KINDS["IPPool"].prefix, KINDS["IPReservation"].prefix)
"""What ``usage`` and ``borrowed`` want to see."""


@dataclass(frozen=True, slots=True)
class Usage:
    """Of a pool or a block; ``reserved`` addresses are free and never given out unasked."""

    name: str
    network: Network
    in_use: int
    reserved: int

    @property
    def capacity(self) -> int:
        return self.network.num_addresses

    @property
    def free(self) -> int:
        return self.capacity - self.in_use - self.reserved


@dataclass(frozen=True, slots=True)
class Borrowed:
    address: Address
    node: str
    block: Network
    owner: str
    allocation: Allocation


def usage(values: Mapping[str, bytes], *, with_blocks: bool) -> Iterator[Usage]:
    """Of every pool by name, each followed by its blocks if wanted; what is unreadable is left out."""
    reserved = _reservations(values)
    found = list(readable_blocks(values))
    for pool in _pools(values):
        inside = [block for block in found if pool.holds(block.network)]
        yield _usage(pool.name, pool.network, inside, reserved)
        for block in inside if with_blocks else ():
            yield _usage("", block.network, [block], reserved)


def _usage(name: str, network: Network, inside: Sequence[Block], reserved: Sequence[Network]) -> Usage:
    held = [each for each in reserved if each.version == network.version and each.overlaps(network)]
    covered = sum(min(each.num_addresses, network.num_addresses) for each in held)
    taken = [allocation.address for block in inside for allocation in block.allocated()] if held else []
    return Usage(
        name,
        network,
        in_use=sum(block.network.num_addresses - len(block.unallocated) for block in inside),
        reserved=covered - sum(any(address in each for each in held) for address in taken),
    )


@dataclass(frozen=True, slots=True)
class NodeUsage:
    """What a node has claimed of a pool; ``pool`` is "" for blocks outside of every pool."""

    node: str
    pool: str
    blocks: tuple[Network, ...]
    in_use: int

    @property
    def capacity(self) -> int:
        return sum(block.num_addresses for block in self.blocks)


def by_node(values: Mapping[str, bytes]) -> list[NodeUsage]:
    """By node and pool; blocks without a host are left out."""
    pools = list(_pools(values))
    found: dict[tuple[str, str], list[Block]] = {}
    for block in readable_blocks(values):
        if block.node is not None:
            pool = next((pool.name for pool in pools if pool.holds(block.network)), "")
            found.setdefault((block.node, pool), []).append(block)
    return [
        NodeUsage(
            node,
            pool,
            tuple(block.network for block in held),
            in_use=sum(block.network.num_addresses - len(block.unallocated) for block in held),
        )
        for (node, pool), held in sorted(found.items())
    ]


def borrowed(values: Mapping[str, bytes]) -> Iterator[Borrowed]:
    """Addresses whose node is not their block's."""
    for block in readable_blocks(values):
        for allocation in block.allocated():
            node = allocation.node
            if allocation.released is None and node is not None and node != block.node:
                yield Borrowed(allocation.address, node, block.network, block.node or "", allocation)


def readable_blocks(values: Mapping[str, bytes]) -> Iterator[Block]:
    for key in sorted(values, key=_block_order):
        if ipam_keys.parse_block_key(key) is None:
            continue
        try:
            yield blocks.decode(values[key])
        except InvalidResource:
            continue


def _block_order(key: str) -> tuple[int, int]:
    network = ipam_keys.parse_block_key(key)
    return (0, 0) if network is None else (network.version, int(network.network_address))


def _pools(values: Mapping[str, bytes]) -> Iterator[Pool]:
    for key, value in values.items():
        resource = kinds.parse_path(key)
        if resource is not None and resource.kind == "IPPool":
            try:
                yield Pool.read(kinds.decode(resource, value))  # type: ignore[arg-type]  # an IPPool, by its key
            except InvalidResource:
                continue


def _reservations(values: Mapping[str, bytes]) -> list[Network]:
    """Disjoint, whatever overlaps in what users wrote."""
    found: list[Network] = []
    for key, value in values.items():
        resource = kinds.parse_path(key)
        if resource is not None and resource.kind == "IPReservation":
            with suppress(InvalidResource):
                found += pools.reserved_networks(kinds.decode(resource, value))
    return [
        *collapse_addresses([each for each in found if isinstance(each, IPv4Network)]),
        *collapse_addresses([each for each in found if isinstance(each, IPv6Network)]),
    ]
