"""Giving out addresses, in Calico's order: own blocks, a new block, an empty block of others, a borrowed address.

Claiming a block and taking its first address are one transaction here; Calico, which writes one key at a time, needs
the state ``pending`` in between. What is left behind is the same.
"""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from calico_libnetwork.errors import (
    AddressInUse,
    AddressNotInPool,
    BlockLimit,
    InvalidResource,
    IpamError,
    NoFreeAddress,
    NotFound,
)
from calico_libnetwork.ipam.draft import Draft, Own, Scope
from calico_libnetwork.ipam.view import CLUSTER_KEY
from calico_libnetwork.model import block as blocks
from calico_libnetwork.model import pools
from calico_libnetwork.model.block import Block, Owner
from calico_libnetwork.model.ipam_keys import (
    Address,
    Network,
    Version,
    affinity_key,
    block_key,
    block_key_at,
    blocks_prefix,
    parse_block_key,
)
from calico_libnetwork.model.pools import Pool, Spans

RECLAIM_AGE = 60
"""Seconds for which a newly claimed block is its host's even while it is empty."""
_NANOSECONDS = 1_000_000_000


class Assigned(msgspec.Struct, frozen=True):
    """``sequence`` tells this assignment from a later one of the same address."""

    address: Address
    owner: Owner
    sequence: int


class AutoAssign(msgspec.Struct, frozen=True):
    """Any address of ``version`` out of ``pools`` (CIDRs of IP pools), or of all that serve this node."""

    version: Version
    pools: tuple[Network, ...]
    owner: Owner

    def apply(self, draft: Draft) -> Assigned:
        _require_unlocked(draft)
        scope = _scope(draft, self.version, self.pools)
        while scope.open:
            found = _in_own_block(draft, scope, scope.open[0], self.owner)
            if found is not None:
                return found
            scope.full.append(scope.open.pop(0))
        _require_new_block_allowed(draft, scope)
        found = None
        for source in (_in_lost_block, _in_new_block, _in_reclaimed_block, _borrowed):
            if found is None and source not in scope.dry:
                found = source(draft, scope, self.owner)
                if found is None:
                    scope.dry.add(source)
        if found is None:
            raise NoFreeAddress(_exhausted(draft, scope))
        return found


class Assign(msgspec.Struct, frozen=True):
    """The one ``address``; selectors, reservations and the block limit do not matter to it."""

    address: Address
    owner: Owner

    def apply(self, draft: Draft) -> Assigned:
        _require_unlocked(draft)
        pool = pools.containing((pool for pool in draft.pools if pool.enabled), self.address)
        if pool is None:
            raise AddressNotInPool(
                f"address {self.address} is in no enabled IP pool; choose one inside a pool"
                " (calico-libnetwork get ippools -o wide)"
            )
        block = find_block(draft, self.address)
        if block is None:
            block = blocks.fresh(pool.block_of(self.address), node=draft.node, now=draft.now)
        draft.expect(block.key)
        _require_free(block, self.address)
        if draft.config.strict_affinity and block.node != draft.node:
            raise IpamError(
                f"address {self.address} belongs to block {block.cidr} of {block.affinity or 'no host'}, and the IPAM "
                "configuration is strict: choose an address of this host's blocks"
            )
        return _take(draft, block, block.ordinal(self.address), self.owner)


def _require_unlocked(draft: Draft) -> None:
    """The transaction depends on it: what is assigned after the lock would be missing where the cluster moves to."""
    draft.expect(CLUSTER_KEY)
    if draft.view.locked():
        raise IpamError(
            "the datastore is locked (datastoreReady is false in ClusterInformation(default)), so no address is"
            " assigned: unlock it (calico-libnetwork datastore unlock) once it has been moved"
        )


def find_block(draft: Draft, address: Address) -> Block | None:
    """The existing block that holds ``address``: of the size its pool cuts, or of any other."""
    pool = pools.containing(draft.pools, address)
    if pool is not None:
        block = draft.block(block_key_at(address, pool.block_length))
        if block is not None:
            return block
    lengths = range(32, 19, -1) if address.version == 4 else range(128, 115, -1)
    key = next((key for key in (block_key_at(address, length) for length in lengths) if draft.exists(key)), None)
    return None if key is None else draft.block(key)


def _require_free(block: Block, address: Address) -> None:
    taken = block.allocation(address)
    if taken is None:
        return
    if taken.released is not None:
        raise AddressInUse(f"address {address} was released at {taken.released} and is still in its cooldown")
    holder = f" to {taken.owner.handle}" if taken.owner.handle else ""
    place = f" on {taken.node}" if taken.node else ""
    raise AddressInUse(f"address {address} is already assigned{holder}{place}")


def _scope(draft: Draft, version: Version, requested: tuple[Network, ...]) -> Scope:
    scope = draft.scopes.get((version, requested))
    if scope is not None:
        return scope
    if draft.claims:
        grounds = _grounds(draft, version, requested)
    else:
        grounds = draft.view.keep((version, requested), lambda: _grounds(draft, version, requested))
    for own in grounds.elsewhere:
        release_unselected(draft, own.key)
    with_room, full = draft.parted(grounds.own)
    scope = Scope(grounds.pools, with_room, full, grounds.reserved, grounds.reserved_spans)
    draft.scopes[version, requested] = scope
    return scope


class _Grounds(msgspec.Struct, frozen=True):
    """What a scope starts from; ``elsewhere`` are this node's blocks in pools that do not serve it here."""

    pools: tuple[Pool, ...]
    own: tuple[Own, ...]
    elsewhere: tuple[Own, ...]
    reserved: tuple[Network, ...]
    reserved_spans: Spans


def _grounds(draft: Draft, version: Version, requested: tuple[Network, ...]) -> _Grounds:
    labels = draft.view.labels(draft.node)
    if labels is None and not requested:
        raise NotFound(
            f"node {draft.node} is not in the datastore, so no pool can be chosen for it: try again in a moment "
            "if it has just started, else check NODENAME"
        )
    usable = pools.serving(draft.pools, version=version, requested=requested, labels=labels or {})
    reserved = tuple(each for each in draft.view.reserved() if each.version == version)
    every = draft.affinities(version)
    own = tuple(each for each in every if any(pool.holds(each.network) for pool in usable))
    return _Grounds(usable, own, tuple(each for each in every if each not in own), reserved, Spans(reserved))


def release_unselected(draft: Draft, key: str) -> None:
    """Gives an empty block back whose pool does not select its node (any more)."""
    block = _readable(draft, key)
    if block is None or block.node is None or not block.is_empty or draft.room < 0:
        return
    pool = pools.containing(draft.pools, block.network.network_address)
    labels = draft.view.labels(block.node)
    if pool is not None and labels is not None and not pool.node_selector.matches(labels):
        draft.delete_block(key)
        draft.delete_affinity(block.node, block.network)


def _in_own_block(draft: Draft, scope: Scope, own: Own, owner: Owner) -> Assigned | None:
    """From a block this node has an affinity for; an affinity that another host's block contradicts is dropped."""
    if draft.exists(own.key):
        block = _readable(draft, own.key)
    else:
        block = blocks.fresh(own.network, node=draft.node, now=draft.now)
    if block is None:
        return None
    if block.node != draft.node:
        draft.expect(own.key)
        draft.delete_affinity(draft.node, own.network)
        return None
    return _first_free(draft, scope, block, owner)


def _require_new_block_allowed(draft: Draft, scope: Scope) -> None:
    config = draft.config
    owned = sum(draft.affinity(affinity_key(draft.node, own.network)) is not None for own in scope.full)
    if not config.auto_allocate_blocks:
        raise NoFreeAddress(
            f"the blocks of node {draft.node} are full, and the IPAM configuration forbids to claim new ones "
            "(auto_allocate_blocks is false)"
        )
    if owned >= config.block_limit:
        raise BlockLimit(
            f"node {draft.node} has {owned} full blocks and may have {config.block_limit}: release addresses, or raise "
            "the limit (calicoctl ipam configure --max-blocks-per-host)"
        )


def _existing(draft: Draft, scope: Scope) -> list[Network]:
    version = scope.pools[0].version
    found = (parse_block_key(key) for key in draft.view.keys(blocks_prefix(version)))
    return [*(network for network in found if network is not None), *draft.claimed(version)]


def _in_lost_block(draft: Draft, scope: Scope, owner: Owner) -> Assigned | None:
    """From a block that is this node's though the affinity is missing, which a crash between two writes leaves."""
    mark = f'"host:{draft.node}"'.encode()
    full = {own.key for own in scope.full}
    for network in _existing(draft, scope):
        key = block_key(network)
        item = draft.view.get(key)
        if (
            item is None
            or mark not in item.value
            or key in full
            or not any(pool.holds(network) for pool in scope.pools)
        ):
            continue
        block = _readable(draft, key)
        if block is None or block.node != draft.node:
            continue
        found = _first_free(draft, scope, block, owner)
        if found is not None:
            return found
    return None


def _in_new_block(draft: Draft, scope: Scope, owner: Owner) -> Assigned | None:
    existing = _existing(draft, scope)
    for pool in scope.pools:
        network = pools.free_block(pool, draft.node, existing=existing, reserved=scope.reserved)
        if network is not None:
            return _first_free(draft, scope, blocks.fresh(network, node=draft.node, now=draft.now), owner)
    return None


def _in_reclaimed_block(draft: Draft, scope: Scope, owner: Owner) -> Assigned | None:
    """From an empty block of another host, or of none, which is made anew for this one."""
    for block in _others(draft, scope):
        if not block.is_empty or (block.affinity is not None and block.node is None) or not _is_settled(draft, block):
            continue
        fresh = blocks.fresh(block.network, node=draft.node, now=max(draft.now, block.sequence + 1))
        if _free_ordinal(scope, fresh) is None:
            continue
        if block.node is not None:
            draft.delete_affinity(block.node, block.network)
        return _first_free(draft, scope, fresh, owner)
    return None


def _borrowed(draft: Draft, scope: Scope, owner: Owner) -> Assigned | None:
    if draft.config.strict_affinity:
        return None
    found = (_first_free(draft, scope, block, owner) for block in _others(draft, scope))
    return next((each for each in found if each is not None), None)


def _others(draft: Draft, scope: Scope) -> Iterator[Block]:
    """Blocks of other hosts or of none that have something to give, in the order this node visits them."""
    if scope.walk is None:
        existing = _existing(draft, scope)
        scope.walk = [block_key(each) for pool in scope.pools for each in pools.walk(pool, draft.node, existing)]
    for key in scope.walk:
        if draft.is_full(key):
            continue
        block = _readable(draft, key)
        if block is not None and block.node != draft.node:
            yield block


def _is_settled(draft: Draft, block: Block) -> bool:
    claimed = None if block.claimed is None else blocks.nanoseconds(block.claimed)
    return claimed is None or draft.now - claimed >= RECLAIM_AGE * _NANOSECONDS


def _free_ordinal(scope: Scope, block: Block) -> int | None:
    if not scope.reserved:
        return next(block.free(), None)
    first = int(block.network.network_address)
    return next((ordinal for ordinal in block.free() if first + ordinal not in scope.reserved_spans), None)


def _first_free(draft: Draft, scope: Scope, block: Block, owner: Owner) -> Assigned | None:
    ordinal = _free_ordinal(scope, block)
    return None if ordinal is None else _take(draft, block, ordinal, owner)


def _take(draft: Draft, block: Block, ordinal: int, owner: Owner) -> Assigned:
    draft.put_block(blocks.assign(block, [ordinal], owner))
    if block.node == draft.node:
        draft.hold_affinity(block)
    if owner.handle is not None:
        draft.add_to_handle(owner.handle, block.cidr)
    return Assigned(block.address(ordinal), owner, block.sequence)


def _readable(draft: Draft, key: str) -> Block | None:
    """None also for a block that cannot be read: it is reported once and then left alone."""
    try:
        return draft.block(key)
    except InvalidResource:
        return None


def _exhausted(draft: Draft, scope: Scope) -> str:
    names = ", ".join(f"{pool.name} ({pool.network})" for pool in scope.pools)
    strict = " to this host (the IPAM configuration is strict)" if draft.config.strict_affinity else ""
    return f"no address is free{strict} in IP pool {names}: release addresses or create another pool"
