"""What the owner of the embedded datastore and its clients say to each other: MessagePack over HTTP on a unix socket.

A request is a POST of one of these to the path of the method. An answer is the protocol's own type. A watch is
answered by a stream of batches, each after its length (4 bytes, big-endian). An error is a status of 500 and a
``Failure``.
"""

from __future__ import annotations

import msgspec

from calico_libnetwork import errors
from calico_libnetwork.datastore.protocol import Compare, Delete, Put, Transaction
from calico_libnetwork.errors import DatastoreError

CONTENT_TYPE = "application/vnd.msgpack"
LENGTH_BYTES = 4


class Message(msgspec.Struct, frozen=True, array_like=True):
    pass


class Keys(Message, frozen=True):
    """Of ``/get`` and ``/list``: keys or prefixes."""

    keys: list[str]


class Commit(Message, frozen=True):
    """``operations``: key and new value, None for a deletion."""

    compares: list[Compare]
    operations: list[tuple[str, bytes | None]]


class Watch(Message, frozen=True):
    prefixes: list[str]
    start_revision: int


class Compact(Message, frozen=True):
    revision: int


class Failure(Message, frozen=True):
    """``kind`` is the name of one of this project's datastore errors."""

    kind: str
    sentence: str
    revision: int = 0


def commit_of(transaction: Transaction) -> Commit:
    operations = [
        (operation.key, operation.value if isinstance(operation, Put) else None) for operation in transaction.operations
    ]
    return Commit(list(transaction.compares), operations)


def transaction_of(commit: Commit) -> Transaction:
    return Transaction(
        commit.compares, [Delete(key) if value is None else Put(key, value) for key, value in commit.operations]
    )


def failure_of(error: DatastoreError) -> Failure:
    return Failure(type(error).__name__, str(error), getattr(error, "revision", 0))


def error_of(failure: Failure) -> DatastoreError:
    kind = getattr(errors, failure.kind, DatastoreError)
    if kind is errors.Compacted:
        return errors.Compacted(failure.sentence, failure.revision)
    if isinstance(kind, type) and issubclass(kind, DatastoreError):
        return kind(failure.sentence)
    return DatastoreError(failure.sentence)
