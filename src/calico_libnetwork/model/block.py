"""Calico's allocation block as a value: decode, change by pure functions, encode.

Inside a block everything is Calico's, exactly: ordinals are handed out from the head of ``unallocated`` and come back
to its tail; equal owners share one entry of ``attributes`` and an entry goes with its last address; the sequence
number rises by one per write (``advanced``), and an address remembers the number that was *read* when it was assigned.

Invariant: every ordinal is either allocated or exactly once in ``unallocated``. Fields this module does not know stay
where they are in ``document``.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from functools import cached_property
from ipaddress import ip_network
from typing import Any

import msgspec

from calico_libnetwork.errors import InvalidResource
from calico_libnetwork.model import documents
from calico_libnetwork.model.documents import Document
from calico_libnetwork.model.ipam_keys import Address, Network, block_key

WINDOWS_HANDLE = "windows-reserved-ipam-handle"
NODE_ATTRIBUTE = "node"
_NANOSECONDS = 1_000_000_000
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class _Fields(msgspec.Struct, frozen=True, rename="camel"):
    """The part of a stored block that is interpreted; Go writes null for an empty slice or map."""

    cidr: str
    affinity: str | None = None
    host_affinity: str | None = None
    affinity_claim_time: str | None = msgspec.field(name="affinity_claim_time", default=None)
    allocations: tuple[int | None, ...] | None = None
    unallocated: tuple[int, ...] | None = None
    attributes: tuple[dict[str, Any], ...] | None = None
    sequence_number: int = 0
    sequence_number_for_allocation: dict[str, int] | None = None


_fields = msgspec.json.Decoder(_Fields)
_sorted = msgspec.json.Encoder(order="deterministic")  # as Go sorts the keys of a map: as text


class Owner(msgspec.Struct, frozen=True):
    """To whom an address is assigned: a handle, and attributes that tell people and Felix more."""

    handle: str | None
    attributes: Mapping[str, str] = msgspec.field(default_factory=dict)

    def entry(self) -> Document:
        entry: Document = {}
        if self.handle is not None:
            entry["handle_id"] = self.handle
        if self.attributes:
            entry["secondary"] = dict(sorted(self.attributes.items()))
        return entry


class Allocation(msgspec.Struct, frozen=True):
    """One allocated ordinal as the block tells it; ``sequence`` is None where the writer kept none."""

    ordinal: int
    address: Address
    owner: Owner
    sequence: int | None
    released: str | None

    @property
    def node(self) -> str | None:
        return self.owner.attributes.get(NODE_ATTRIBUTE)


class Block(msgspec.Struct, frozen=True, dict=True):
    """``affinity`` is ``host:<node>``, ``virtual:<name>`` or None; ``claimed`` is RFC 3339 as stored.

    ``cooling`` are the indices of attributes of addresses in cooldown.
    """

    network: Network
    cidr: str
    affinity: str | None
    claimed: str | None
    allocations: tuple[int | None, ...]
    unallocated: tuple[int, ...]
    attributes: tuple[Document, ...]
    sequence: int
    sequences: dict[str, int]
    document: Document
    cooling: tuple[int, ...] = ()

    @cached_property
    def key(self) -> str:
        return block_key(self.cidr)

    @property
    def node(self) -> str | None:
        """The host this block is affine to."""
        return self.affinity.removeprefix("host:") if self.affinity and self.affinity.startswith("host:") else None

    @cached_property
    def is_empty(self) -> bool:
        """No address but those Windows keeps for itself; one in cooldown counts."""
        used = {index for index in set(self.allocations) if index is not None}
        return all(self.attributes[index].get("handle_id") == WINDOWS_HANDLE for index in used)

    @property
    def is_full(self) -> bool:
        """And time alone will not change that."""
        return not self.unallocated and not self.cooling

    def free(self) -> Iterator[int]:
        """Free ordinals in the order they are handed out; what a damaged block lists twice is not free."""
        return (ordinal for ordinal in self.unallocated if self.allocations[ordinal] is None)

    def address(self, ordinal: int) -> Address:
        first = self.network.network_address
        return type(first)(int(first) + ordinal)

    def ordinal(self, address: Address) -> int:
        return int(address) - int(self.network.network_address)

    def allocation(self, address: Address) -> Allocation | None:
        ordinal = self.ordinal(address)
        index = self.allocations[ordinal]
        return None if index is None else self._allocation(ordinal, index)

    def allocated(self) -> Iterator[Allocation]:
        for ordinal, index in enumerate(self.allocations):
            if index is not None:
                yield self._allocation(ordinal, index)

    def held_by(self, handle: str) -> tuple[int, ...]:
        """Ordinals assigned under ``handle``."""
        text = handle.partition("\r")[0]
        entries = [
            index
            for index, entry in enumerate(self.attributes)
            if (stored := entry.get("handle_id")) and stored.startswith(text) and same_handle(stored, handle)
        ]
        return tuple([ordinal for ordinal, index in enumerate(self.allocations) if index in entries]) if entries else ()

    def _allocation(self, ordinal: int, index: int) -> Allocation:
        entry = self.attributes[index]
        return Allocation(
            ordinal=ordinal,
            address=self.address(ordinal),
            owner=Owner(entry.get("handle_id"), entry.get("secondary") or {}),
            sequence=self.sequences.get(str(ordinal)),
            released=entry.get("releasedAt"),
        )


def same_handle(stored: str | None, handle: str) -> bool:
    """Calico compares handles only up to a carriage return."""
    if stored is None or ("\r" not in stored and "\r" not in handle):
        return stored == handle
    return stored.partition("\r")[0] == handle.partition("\r")[0]


def decode(value: bytes) -> Block:
    """Raises ``InvalidResource`` for what cannot be used: wrong types, sizes or attribute indices."""
    block = parse(value)
    _verify(block)
    return block


def parse(value: bytes) -> Block:
    """A block that may contradict itself. Raises ``InvalidResource`` for what has not the form of one."""
    try:
        fields = _fields.decode(value)
        document = documents.decode(value)
        network = ip_network(fields.cidr)
    except (*documents.UNDECODABLE, InvalidResource, ValueError) as error:
        raise InvalidResource(f"an IPAM block is not readable: {error}") from error
    attributes = tuple(document.get("attributes") or ())  # the same objects compare at once
    return Block(
        network=network,
        cidr=str(network),
        affinity=_affinity(fields.affinity, fields.host_affinity),
        claimed=fields.affinity_claim_time,
        allocations=fields.allocations or (),
        unallocated=fields.unallocated or (),
        attributes=attributes,
        sequence=fields.sequence_number,
        sequences=fields.sequence_number_for_allocation or {},
        document=document,
        cooling=_cooling(attributes),
    )


def _verify(block: Block) -> None:
    size = block.network.num_addresses
    if len(block.allocations) != size:
        raise InvalidResource(f"block {block.network} lists {len(block.allocations)} addresses instead of {size}")
    for index in block.allocations:
        if index is not None and not 0 <= index < len(block.attributes):
            raise InvalidResource(f"block {block.network} has an address with attribute {index}, which it lacks")
    if any(not 0 <= ordinal < size for ordinal in block.unallocated):
        raise InvalidResource(f"block {block.network} lists a free address outside of itself")


def encode(block: Block) -> bytes:
    """The stored form; a field that did not change stays as its writer spelled it."""
    document = dict(block.document)
    if block.affinity != _affinity(document.get("affinity"), document.get("hostAffinity")):
        document["affinity"] = block.affinity
        document.pop("hostAffinity", None)
    if block.claimed is None:
        document.pop("affinity_claim_time", None)
    changed: tuple[tuple[str, Any], ...] = (
        ("allocations", list(block.allocations)),
        ("unallocated", list(block.unallocated)),
        ("attributes", list(block.attributes)),
        ("sequenceNumber", block.sequence),
    )
    for name, value in changed:
        if (document.get(name) or type(value)()) != value:
            document[name] = value
    if (document.get("sequenceNumberForAllocation") or {}) != block.sequences:
        document["sequenceNumberForAllocation"] = msgspec.Raw(_sorted.encode(block.sequences))
    return documents.encode(document)


def _affinity(affinity: str | None, host_affinity: str | None) -> str | None:
    """``hostAffinity`` is the field's older name."""
    return affinity or (f"host:{host_affinity}" if host_affinity else None)


def fresh(network: Network, *, node: str, now: int) -> Block:
    """A block newly claimed by ``node``; ``now`` in nanoseconds since 1970."""
    size = network.num_addresses
    claimed = timestamp(now)
    document: Document = {
        "cidr": str(network),
        "affinity": None,
        "affinity_claim_time": claimed,
        "allocations": [],
        "unallocated": [],
        "attributes": [],
        "sequenceNumber": 0,
        "sequenceNumberForAllocation": {},
        "deleted": False,
    }
    return Block(
        network=network,
        cidr=str(network),
        affinity=f"host:{node}",
        claimed=claimed,
        allocations=(None,) * size,
        unallocated=tuple(range(size)),
        attributes=(),
        sequence=now,
        sequences={},
        document=document,
    )


def assign(block: Block, ordinals: Sequence[int], owner: Owner) -> Block:
    """Gives free ``ordinals`` to ``owner``."""
    entry = owner.entry()
    attributes, index = _with_entry(block.attributes, entry)
    allocations = list(block.allocations)
    unallocated = list(block.unallocated)
    sequences = dict(block.sequences)
    for ordinal in ordinals:
        allocations[ordinal] = index
        unallocated.remove(ordinal)
        sequences[str(ordinal)] = block.sequence
    return _changed(block, allocations, tuple(unallocated), attributes, sequences)


def release(block: Block, ordinals: Iterable[int], *, now: int, cooldown: int) -> Block:
    """Frees allocated ``ordinals``; with ``cooldown`` seconds they stay taken, marked as released at ``now``."""
    if cooldown > 0:
        return _pruned(_cooled(block, ordinals, now))
    return _pruned(_freed(block, ordinals))


def without_cooled(block: Block, *, now: int, cooldown: int) -> Block:
    """The block as Calico sees it on loading: addresses released more than ``cooldown`` seconds ago are free."""
    over = [index for index in block.cooling if _is_over(block.attributes[index]["releasedAt"], now, cooldown)]
    if not over:
        return block
    return _pruned(_freed(block, [ordinal for ordinal, index in enumerate(block.allocations) if index in over]))


def advanced(block: Block) -> Block:
    """The next version, as every write stores it."""
    return _changed(
        block, block.allocations, block.unallocated, block.attributes, block.sequences, sequence=block.sequence + 1
    )


def orphaned(block: Block) -> Block:
    """The block without a host."""
    return msgspec.structs.replace(block, affinity=None, claimed=None)


def timestamp(now: int) -> str:
    """RFC 3339, UTC, whole seconds, of nanoseconds since 1970."""
    return (_EPOCH + timedelta(seconds=now // _NANOSECONDS)).strftime("%Y-%m-%dT%H:%M:%SZ")


def nanoseconds(text: str) -> int | None:
    """The inverse, also of times with a fraction or an offset; None if it is no time."""
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        return None
    delta = moment - _EPOCH if moment.tzinfo else moment.replace(tzinfo=UTC) - _EPOCH
    return (delta.days * 86_400 + delta.seconds) * _NANOSECONDS + delta.microseconds * 1_000


def _is_over(released: str, now: int, cooldown: int) -> bool:
    moment = nanoseconds(released)
    return moment is not None and moment < now - cooldown * _NANOSECONDS


def _freed(block: Block, ordinals: Iterable[int]) -> Block:
    allocations = list(block.allocations)
    unallocated = list(block.unallocated)
    sequences = dict(block.sequences)
    for ordinal in ordinals:
        allocations[ordinal] = None
        unallocated.append(ordinal)
        sequences.pop(str(ordinal), None)
    return _changed(block, allocations, tuple(unallocated), block.attributes, sequences)


def _cooled(block: Block, ordinals: Iterable[int], now: int) -> Block:
    attributes, index = _with_entry(block.attributes, {"releasedAt": timestamp(now)})
    allocations = list(block.allocations)
    sequences = dict(block.sequences)
    for ordinal in ordinals:
        allocations[ordinal] = index
        sequences[str(ordinal)] = block.sequence
    return _changed(block, allocations, block.unallocated, attributes, sequences, cooling=_cooling(attributes))


def _changed(
    block: Block,
    allocations: Iterable[int | None],
    unallocated: tuple[int, ...],
    attributes: tuple[Document, ...],
    sequences: dict[str, int],
    *,
    sequence: int | None = None,
    cooling: tuple[int, ...] | None = None,
) -> Block:
    """``msgspec.structs.replace`` for what changes with every address; it takes a third of the time."""
    return Block(
        network=block.network,
        cidr=block.cidr,
        affinity=block.affinity,
        claimed=block.claimed,
        allocations=tuple(allocations),
        unallocated=unallocated,
        attributes=attributes,
        sequence=block.sequence if sequence is None else sequence,
        sequences=sequences,
        document=block.document,
        cooling=block.cooling if cooling is None else cooling,
    )


def _cooling(attributes: Iterable[Document]) -> tuple[int, ...]:
    return tuple([index for index, entry in enumerate(attributes) if entry.get("releasedAt") is not None])


def _with_entry(attributes: tuple[Document, ...], entry: Document) -> tuple[tuple[Document, ...], int]:
    handle = entry.get("handle_id")
    for index, existing in enumerate(attributes):
        if existing.get("handle_id") == handle and _stripped(existing) == entry:
            return attributes, index
    return (*attributes, entry), len(attributes)


def _stripped(entry: Document) -> Document:
    return {name: value for name, value in entry.items() if value is not None}


def _pruned(block: Block) -> Block:
    """Without the entries no address refers to; the others keep their order."""
    used = set(block.allocations)
    used.discard(None)
    if len(used) == len(block.attributes):
        return block
    kept = [index for index in range(len(block.attributes)) if index in used]
    renumbered: list[int | None] = [None] * len(block.attributes)
    for new, old in enumerate(kept):
        renumbered[old] = new
    allocations = [None if index is None else renumbered[index] for index in block.allocations]
    attributes = tuple([block.attributes[index] for index in kept])
    return _changed(block, allocations, block.unallocated, attributes, block.sequences, cooling=_cooling(attributes))
