"""Calico's IPAM over any datastore: addresses are assigned, recorded and released in Calico's own blocks.

Decisions are made on the cache and compared at commit, so the steady state costs one transaction per assignment or
release and no read. Requests that come together share one transaction.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from dataclasses import dataclass

from calico_libnetwork.datastore.cache import Cache
from calico_libnetwork.errors import InvalidResource
from calico_libnetwork.ipam.assigning import Assign, AutoAssign
from calico_libnetwork.ipam.releasing import Release, ReleaseAffinity, ReleaseHandle, ReleaseWith
from calico_libnetwork.ipam.view import PREFIXES, View
from calico_libnetwork.ipam.writer import Writer
from calico_libnetwork.model.block import NODE_ATTRIBUTE, Allocation, Block, Owner
from calico_libnetwork.model.ipam_keys import (
    Address,
    Network,
    Version,
    affinities_prefix,
    block_key_at,
    parse_affinity_key,
)

__all__ = ["PREFIXES", "Assignment", "Ipam"]


@dataclass(frozen=True, slots=True)
class Assignment:
    """An assigned address as the datastore tells it.

    ``node`` is the node attribute, or the block's host where the writer set none (as the Go plugin of old did).
    ``sequence`` guards a release.
    """

    address: Address
    handle: str | None
    attributes: Mapping[str, str]
    node: str | None
    block: Network
    sequence: int | None


class Ipam:
    """For one node. ``clock`` gives nanoseconds since 1970."""

    def __init__(self, cache: Cache, *, node: str, clock: Callable[[], int] = time.time_ns) -> None:
        self._view = View(cache, node=node)
        self._node = node
        self._writer = Writer(cache, self._view, node=node, clock=clock)

    async def auto_assign(
        self, version: Version, *, handle: str, attributes: Mapping[str, str], pools: Sequence[Network] = ()
    ) -> Address:
        """An address out of ``pools`` (CIDRs of IP pools), or else out of any pool that serves this node.

        Raises ``NoPool``, ``NoFreeAddress``, ``BlockLimit``, ``NotFound`` for a node not (yet) in the datastore.
        """
        request = AutoAssign(version, tuple(pools), _owner(handle, attributes))
        return (await self._writer.submit(request)).address

    async def assign(self, address: Address, *, handle: str, attributes: Mapping[str, str]) -> None:
        """Raises ``AddressNotInPool``, ``AddressInUse``, and ``IpamError`` where strict affinity forbids it."""
        await self._writer.submit(Assign(address, _owner(handle, attributes)))

    async def release(self, address: Address, *, handle: str | None = None, sequence: int | None = None) -> bool:
        """False if the address was not assigned.

        Raises ``AddressInUse`` if it is assigned under another handle or sequence number than the given one.
        """
        return await self._writer.submit(Release(address, handle, sequence))

    async def release_with(self, key: str, assignments: Sequence[Assignment]) -> bool:
        """Deletes what is under ``key``, which the cache has to hold, and releases ``assignments`` with it.

        False if there is nothing under ``key``: then nothing is released. An assignment that has changed is kept.
        """
        releases = tuple(Release(each.address, each.handle, each.sequence) for each in assignments)
        return await self._writer.submit(ReleaseWith(key, releases))

    async def release_handle(self, handle: str) -> list[Address]:
        released, more = await self._writer.submit(ReleaseHandle(handle))
        while more:
            further, more = await self._writer.submit(ReleaseHandle(handle))
            released += further
        return released

    async def release_affinity(self, block: Network, *, node: str | None = None, occupied: bool = False) -> bool:
        """Gives up a node's (this one's) claim on a block; False if it had none.

        Raises ``IpamError`` for a block with addresses in it, unless ``occupied``: then it goes on without a host.
        """
        return await self._writer.submit(ReleaseAffinity(node or self._node, block, occupied=occupied))

    async def release_node(self, node: str, *, keep: Container[Address] = ()) -> list[Address]:
        """For a node that is gone: releases its addresses, then its blocks.

        ``keep`` are in use elsewhere, whatever is written with them.
        """
        assigned = [each for each in self.assignments(node) if each.address not in keep]
        answers = await asyncio.gather(
            *(self.release(each.address, handle=each.handle, sequence=each.sequence) for each in assigned)
        )
        released = [each.address for each, answer in zip(assigned, answers, strict=True) if answer]
        for prefix in (affinities_prefix(node, 4), affinities_prefix(node, 6)):
            for key in list(self._view.keys(prefix)):
                claim = parse_affinity_key(key)
                if claim is not None:
                    await self._writer.submit(ReleaseAffinity(node, claim[1], occupied=True))
        return released

    def assignments(self, node: str | None = None) -> list[Assignment]:
        """All assigned addresses, or those of ``node``; not the ones in cooldown."""
        found = (_assignment(block, each) for block in self._view.blocks(node) for each in block.allocated())
        return [each for each in found if each is not None and node in (None, each.node)]

    def assignment(self, address: Address) -> Assignment | None:
        for block in self._blocks_at(address):
            allocation = block.allocation(address)
            return None if allocation is None else _assignment(block, allocation)
        return None

    async def settled(self) -> None:
        """Waits until everything asked for so far is written, also what is given back for vanished callers."""
        await self._writer.idle()

    def _blocks_at(self, address: Address) -> Iterator[Block]:
        """At most one readable block; most likely it is of the size that its pool cuts."""
        every = range(20, 33) if address.version == 4 else range(116, 129)
        likely = [pool.block_length for pool in self._view.pools() if address in pool.network]
        for length in (*likely, *every):
            try:
                block = self._view.block(block_key_at(address, length))
            except InvalidResource:
                continue
            if block is not None:
                yield block


def _assignment(block: Block, allocation: Allocation) -> Assignment | None:
    if allocation.released is not None:
        return None
    owner = allocation.owner
    return Assignment(
        address=allocation.address,
        handle=owner.handle,
        attributes=owner.attributes,
        node=owner.attributes.get(NODE_ATTRIBUTE, block.node),
        block=block.network,
        sequence=allocation.sequence,
    )


def _owner(handle: str, attributes: Mapping[str, str]) -> Owner:
    if not handle or "/" in handle:
        raise ValueError(f"{handle!r} cannot be an IPAM handle: it is part of a key")
    return Owner(handle, attributes)
