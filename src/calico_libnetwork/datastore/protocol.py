"""What a datastore is: etcd v3's semantics, and no more of them than this project needs.

One revision counter for the whole store: every successful transaction that writes takes the next one, and
everything it wrote carries it. A key deleted and created anew starts again at version 1. Three implementations
share one contract suite: ``memory`` (tests, demos), ``sqlite`` (one host), ``etcd`` (many hosts).
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import msgspec

TRANSACTION_LIMIT = 128
"""Compares and, apart from them, operations that one transaction may hold: etcd's default ``max-txn-ops``."""


class KeyValue(msgspec.Struct, frozen=True, gc=False):
    """One key as stored; ``version`` counts the writes since its creation, from 1."""

    key: str
    value: bytes
    create_revision: int
    mod_revision: int
    version: int


class Compare(msgspec.Struct, frozen=True, gc=False):
    """A condition of a transaction: ``target`` of ``key`` equals ``operand``.

    ``mod`` 0 means that the key is absent; an absent key has ``create`` 0 and ``version`` 0, and no ``value``.
    ``created`` and ``version`` may tell what else is true where ``mod`` is as said, so that no store has to look it up.
    """

    key: str
    target: Literal["mod", "create", "version", "value"]
    operand: int | bytes
    created: int = 0
    version: int = 0


def absent(key: str) -> Compare:
    return Compare(key, "mod", 0)


def unchanged(key_value: KeyValue) -> Compare:
    return Compare(key_value.key, "mod", key_value.mod_revision, key_value.create_revision, key_value.version)


class Put(msgspec.Struct, frozen=True, gc=False):
    key: str
    value: bytes


class Delete(msgspec.Struct, frozen=True, gc=False):
    """Deletes one key; a missing one is no error."""

    key: str


Operation = Put | Delete


class Transaction(msgspec.Struct, frozen=True):
    """All operations or none: they happen, in one revision, iff every compare holds.

    A key may be written once, and ``TRANSACTION_LIMIT`` holds; a breach is a ``ValueError`` here, on every store.
    """

    compares: Sequence[Compare]
    operations: Sequence[Operation]

    def __post_init__(self) -> None:
        if len({operation.key for operation in self.operations}) < len(self.operations):
            raise ValueError("a transaction may write a key once")
        if max(len(self.compares), len(self.operations)) > TRANSACTION_LIMIT:
            raise ValueError(f"a transaction may hold {TRANSACTION_LIMIT} compares and {TRANSACTION_LIMIT} operations")


class Outcome(msgspec.Struct, frozen=True):
    """What a transaction did.

    ``current`` holds, on success, each written key as it now is and, on failure, each compared key as it stands
    (None = absent), so that neither costs a further round trip. ``revision`` is that of the write, or of the reading.
    """

    succeeded: bool
    revision: int
    current: Mapping[str, KeyValue | None] = msgspec.field(default_factory=dict)


class Listing(msgspec.Struct, frozen=True):
    """A consistent reading: ``items`` in key order, all as of ``revision``."""

    revision: int
    items: tuple[KeyValue, ...]


class Event(msgspec.Struct, frozen=True):
    """One key changed at ``revision``; ``current`` is None for a deletion."""

    key: str
    current: KeyValue | None
    revision: int


@dataclass(frozen=True, slots=True)
class Batch:
    """Events in the order of their revisions; ``revision`` is the last of them.

    What one transaction wrote under one prefix comes together; etcd may part what it wrote under several. An empty
    batch is a sign of life.
    """

    revision: int
    events: tuple[Event, ...]


class Datastore(Protocol):
    """Raises ``DatastoreUnavailable`` within the store's own deadline instead of waiting without a limit."""

    @property
    def description(self) -> str:
        """For messages: the kind and where it is, ``etcd (https://10.0.0.1:2379)``."""
        ...

    async def get(self, keys: Sequence[str]) -> Listing:
        """Those of ``keys`` that exist, at one revision."""
        ...

    async def list(self, prefixes: Sequence[str]) -> Listing:
        """All keys under ``prefixes`` at one revision; prefixes do not overlap."""
        ...

    async def commit(self, transaction: Transaction) -> Outcome: ...

    def watch(self, prefixes: Sequence[str], start_revision: int) -> AsyncGenerator[Batch, None]:
        """Every change under ``prefixes`` from ``start_revision`` (at least 1) on; under each prefix in order.

        Raises ``Compacted`` if that revision is gone, ``DatastoreUnavailable`` when the stream breaks; either way the
        caller lists anew.
        """
        ...

    async def compact(self, revision: int) -> None:
        """Forgets history before ``revision``, which must have been reached; what is forgotten already is no error."""
        ...

    async def close(self) -> None: ...
