"""One transaction in the making: IPAM's objects as they would be after it.

Everything is derived from one moment of the cache and compared at commit, so whatever the requests of a draft decided
holds at the transaction's revision, or nothing of it happens. A draft is used once; after a conflict the requests
are applied to a new one, never a changed copy to fresh values.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import msgspec

from calico_libnetwork.datastore.protocol import (
    TRANSACTION_LIMIT,
    Compare,
    Delete,
    Operation,
    Put,
    Transaction,
    absent,
    unchanged,
)
from calico_libnetwork.ipam.view import View
from calico_libnetwork.model import block as blocks
from calico_libnetwork.model.block import Block
from calico_libnetwork.model.ipam_keys import (
    Network,
    Version,
    affinities_prefix,
    affinity_key,
    block_key,
    handle_key,
    parse_affinity_key,
)
from calico_libnetwork.model.ipam_records import AffinityState, Handle, affinity_state, encode_affinity
from calico_libnetwork.model.pools import Pool, Spans

_MARGIN = 12  # keys the largest single request may touch


class Own(msgspec.Struct, frozen=True):
    """A block this node has an affinity for; ``key`` is the block's."""

    network: Network
    key: str


class Scope(msgspec.Struct, eq=False):
    """What serves requests of one kind: usable pools, this node's blocks there (in key order), reservations.

    ``walk`` has the keys of all blocks of the pools in this node's order, once somebody needed it; ``dry`` are the
    sources that had nothing to give.
    """

    pools: tuple[Pool, ...]
    open: list[Own]
    full: list[Own]
    reserved: tuple[Network, ...]
    reserved_spans: Spans
    walk: list[str] | None = None
    dry: set[object] = msgspec.field(default_factory=set)


class Draft:
    """``now`` in nanoseconds since 1970. Requests change it only once nothing can go wrong any more."""

    def __init__(self, view: View, *, node: str, now: int) -> None:
        self.view = view
        self.node = node
        self.now = now
        self.config = view.config()
        self.pools = view.pools()
        self.scopes: dict[object, Scope] = {}
        self._compares: dict[str, Compare] = {}
        self._blocks: dict[str, Block | None] = {}
        self._written: set[str] = set()
        self._stored: dict[str, Block] = {}
        self._handles: dict[str, Handle] = {}
        self._affinities: dict[str, AffinityState | None] = {}
        self._deleted: set[str] = set()  # of other kinds

    @property
    def room(self) -> int:
        """How many more keys the transaction can take, after what one more request may need."""
        operations = len(self._written) + len(self._handles) + len(self._affinities) + len(self._deleted)
        return TRANSACTION_LIMIT - _MARGIN - max(len(self._compares), operations)

    @property
    def claims(self) -> bool:
        """Whether the node's affinities change with this transaction."""
        return bool(self._affinities)

    def expect(self, key: str) -> None:
        """Makes the transaction depend on ``key`` being as the cache has it."""
        if key not in self._compares:
            item = self.view.get(key)
            self._compares[key] = absent(key) if item is None else unchanged(item)

    def block(self, key: str) -> Block | None:
        """As Calico sees it on loading: addresses whose cooldown is over are free. Raises ``InvalidResource``."""
        try:
            return self._blocks[key]
        except KeyError:
            stored = self.view.block(key)
            block = stored and blocks.without_cooled(stored, now=self.now, cooldown=self.config.cooldown)
            self._blocks[key] = block
            return block

    def exists(self, key: str) -> bool:
        """Also of a block that cannot be read."""
        return self._blocks[key] is not None if key in self._blocks else self.view.get(key) is not None

    def is_full(self, key: str) -> bool:
        return key not in self._blocks and key in self.view.full

    def parted(self, own: Sequence[Own]) -> tuple[list[Own], list[Own]]:
        """Those that may have something to give, and the full ones."""
        full, known = self.view.full, self._blocks
        with_room = [each for each in own if each.key not in full or each.key in known]
        return with_room, [each for each in own if each.key in full and each.key not in known]

    def put_block(self, block: Block) -> None:
        self._set_block(block.key, block)

    def delete_block(self, key: str) -> None:
        self._set_block(key, None)
        self.scopes.clear()

    def reopen(self, key: str) -> None:
        """Addresses of a block have become free."""
        for scope in self.scopes.values():
            scope.dry.clear()
            freed = [own for own in scope.full if own.key == key]
            if freed:
                scope.full = [own for own in scope.full if own.key != key]
                scope.open = sorted([*scope.open, *freed], key=lambda own: own.key)

    def claimed(self, version: Version) -> Iterator[Network]:
        """Blocks that come into being with this transaction, among others it writes."""
        written = (self._blocks[key] for key in self._written)
        return (each.network for each in written if each is not None and each.network.version == version)

    def affinity(self, key: str) -> AffinityState | None:
        if key in self._affinities:
            return self._affinities[key]
        item = self.view.get(key)
        return None if item is None else affinity_state(item.value)

    def affinities(self, version: Version) -> list[Own]:
        """This node's, in key order."""
        prefix = affinities_prefix(self.node, version)
        keys = {key for key in self._affinities if key.startswith(prefix)} | set(self.view.keys(prefix))
        found = [parse_affinity_key(key) for key in sorted(keys) if self._affinities.get(key, "") is not None]
        return [Own(each[1], block_key(each[1])) for each in found if each is not None]

    def hold_affinity(self, block: Block) -> None:
        """This node's affinity for ``block`` is confirmed with this transaction, and not being taken away."""
        key = affinity_key(self.node, block.cidr)
        if key in self._compares and key not in self._affinities:
            return
        state = self.affinity(key)
        self.expect(key)
        if state != "confirmed":
            self._affinities[key] = "confirmed"
        if state is None:
            self.scopes.clear()

    def delete_affinity(self, node: str, network: Network) -> None:
        key = affinity_key(node, network)
        self.expect(key)
        self._affinities[key] = None
        self.scopes.clear()

    def add_to_handle(self, handle: str, cidr: str) -> None:
        stored = self.handle(handle) or Handle.empty()
        self._set_handle(handle_key(handle), stored.counted(cidr, stored.counts.get(cidr, 0) + 1))

    def take_from_handle(self, handle: str, block: Block, released: int) -> None:
        """Counts ``released`` addresses of ``block`` (as it is without them) off.

        Calico may have counted more than it assigned; an entry never outlives the last address it stands for.
        """
        stored = self.handle(handle)
        self.expect(handle_key(handle))  # also where it is missing: a cache may know the block and not yet the handle
        if stored is None or block.cidr not in stored.counts:
            return
        held = len(block.held_by(handle))
        if held:
            left = stored.counted(block.cidr, max(stored.counts[block.cidr] - released, held))
        else:
            left = stored.without(block.cidr)
        self._set_handle(handle_key(handle), left)

    def forget_in_handle(self, handle: str, cidr: str) -> None:
        stored = self.handle(handle)
        if stored is not None and cidr in stored.counts:
            self._set_handle(handle_key(handle), stored.without(cidr))

    def handle(self, handle: str) -> Handle | None:
        key = handle_key(handle)
        return self._handles.get(key) or self.view.handle(key)

    def delete(self, key: str) -> bool:
        """Of an object that is none of IPAM's. Returns whether it exists."""
        self.expect(key)
        if self.view.get(key) is None:
            return False
        self._deleted.add(key)
        return True

    def transaction(self) -> Transaction:
        operations: list[Operation] = []
        for key in sorted(self._written):
            block = self._blocks[key]
            if block is None:
                operations += self._operation(key, None)
                continue
            self._stored[key] = blocks.advanced(block)
            operations.append(Put(key, blocks.encode(self._stored[key])))
        for key, handle in self._handles.items():
            operations += self._operation(key, handle.encode() if handle.counts else None)
        for key, state in sorted(self._affinities.items()):
            stored = self.view.get(key)
            value = None if state is None else encode_affinity(state, stored.value if stored else b"")
            operations += self._operation(key, value)
        operations += (Delete(key) for key in sorted(self._deleted))
        return Transaction(tuple(self._compares.values()), operations)

    def remember(self, revision: int) -> None:
        """After the commit at ``revision``: what was written need not be decoded again."""
        for key, block in self._stored.items():
            self.view.remember(key, block, revision=revision)
        for key, handle in self._handles.items():
            self.view.remember(key, handle, revision=revision)

    def _set_block(self, key: str, block: Block | None) -> None:
        self.expect(key)
        self._blocks[key] = block
        self._written.add(key)

    def _set_handle(self, key: str, handle: Handle) -> None:
        self.expect(key)
        self._handles[key] = handle

    def _operation(self, key: str, value: bytes | None) -> list[Operation]:
        if value is not None:
            return [Put(key, value)]
        return [Delete(key)] if self.view.get(key) is not None else []
