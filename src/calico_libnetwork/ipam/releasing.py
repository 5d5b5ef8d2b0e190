"""Taking addresses and blocks back. What is not there is no error: a release that comes twice has had its way."""

from __future__ import annotations

import contextlib

import msgspec

from calico_libnetwork.errors import AddressInUse, InvalidResource, IpamError
from calico_libnetwork.ipam.assigning import find_block, release_unselected
from calico_libnetwork.ipam.draft import Draft
from calico_libnetwork.model import block as blocks
from calico_libnetwork.model import pools
from calico_libnetwork.model.block import Block, same_handle
from calico_libnetwork.model.ipam_keys import Address, Network, affinity_key, block_key, block_key_at, handle_key


class Release(msgspec.Struct, frozen=True):
    """With ``handle`` or ``sequence`` only if the address is still assigned just so, else ``AddressInUse``."""

    address: Address
    handle: str | None = None
    sequence: int | None = None

    def apply(self, draft: Draft) -> bool:
        """False if the address was not assigned."""
        block = find_block(draft, self.address)
        if block is None:
            pool = pools.containing(draft.pools, self.address)
            if pool is not None:
                draft.expect(block_key_at(self.address, pool.block_length))
            return False
        draft.expect(block.key)
        allocation = block.allocation(self.address)
        if allocation is None or allocation.released is not None:
            return False
        if self.handle is not None and not same_handle(allocation.owner.handle, self.handle):
            holder = allocation.owner.handle
            raise AddressInUse(f"address {self.address} was not released: it belongs to {holder}, not to {self.handle}")
        if self.sequence is not None and self.sequence != allocation.sequence:
            raise AddressInUse(f"address {self.address} was not released: it has been assigned anew since")
        after = _free(draft, block, (allocation.ordinal,))
        if allocation.owner.handle is not None:
            draft.take_from_handle(allocation.owner.handle, after, 1)
        return True


class ReleaseWith(msgspec.Struct, frozen=True):
    """The object under ``key`` is deleted, and what was assigned for it released, at one revision."""

    key: str
    releases: tuple[Release, ...]

    def apply(self, draft: Draft) -> bool:
        """False if there is no such object, and so nothing to release with it.

        An address that has found another owner, or whose block nobody can read, does not keep the object.
        """
        if not draft.delete(self.key):
            return False
        for release in self.releases:
            with contextlib.suppress(AddressInUse, InvalidResource):
                release.apply(draft)
        return True


class ReleaseHandle(msgspec.Struct, frozen=True):
    """All addresses of ``handle``, as far as one transaction takes them."""

    handle: str

    def apply(self, draft: Draft) -> tuple[list[Address], bool]:
        """The addresses, and whether more are left for a further request."""
        stored = draft.handle(self.handle)
        draft.expect(handle_key(self.handle))
        released: list[Address] = []
        for cidr in stored.counts if stored else ():
            if draft.room <= 0:
                return released, True
            draft.expect(block_key(cidr))
            block = draft.block(block_key(cidr))
            held = block.held_by(self.handle) if block else ()
            if block is not None and held:
                released += [block.address(ordinal) for ordinal in held]
                _free(draft, block, held)
            draft.forget_in_handle(self.handle, cidr)
        return released, False


class ReleaseAffinity(msgspec.Struct, frozen=True):
    """``node``'s claim on a block. An empty block is deleted; any other goes on without a host if ``occupied``."""

    node: str
    network: Network
    occupied: bool

    def apply(self, draft: Draft) -> bool:
        """False if the block was not this node's; an affinity that said so is deleted all the same."""
        key = block_key(self.network)
        block = draft.block(key)
        draft.expect(key)
        ours = block is not None and block.node == self.node
        if block is not None and ours and not block.is_empty and not self.occupied:
            raise IpamError(f"block {block.cidr} of node {self.node} holds addresses: release them first")
        if draft.view.get(affinity_key(self.node, self.network)) is not None:
            draft.delete_affinity(self.node, self.network)
        if block is None or not ours:
            return False
        draft.scopes.clear()
        if block.is_empty:
            draft.delete_block(key)
        else:
            draft.put_block(blocks.orphaned(block))
        return True


def _free(draft: Draft, block: Block, ordinals: tuple[int, ...]) -> Block:
    """The block without ``ordinals``; their handles are the caller's to correct."""
    after = blocks.release(block, ordinals, now=draft.now, cooldown=draft.config.cooldown)
    if after.affinity is None and after.is_empty:
        draft.delete_block(block.key)
    else:
        draft.put_block(after)
        draft.reopen(block.key)
    release_unselected(draft, block.key)
    return after
