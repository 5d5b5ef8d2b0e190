"""The datastore protocol in etcd's messages and back. Pure.

Keys are UTF-8; what another tool stored under other bytes is kept apart by surrogate escapes and stops nobody.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from calico_libnetwork.datastore import etcd_pb2 as pb
from calico_libnetwork.datastore.protocol import (
    Compare,
    Event,
    KeyValue,
    Listing,
    Operation,
    Outcome,
    Put,
    Transaction,
)

_TARGETS = {
    "mod": pb.Compare.Target.MOD,
    "create": pb.Compare.Target.CREATE,
    "version": pb.Compare.Target.VERSION,
    "value": pb.Compare.Target.VALUE,
}


def encode_key(key: str) -> bytes:
    return key.encode("utf-8", "surrogateescape")


def prefix_range(prefix: str) -> tuple[bytes, bytes]:
    """First key and end of the range of ``prefix``; "" is every key."""
    first = encode_key(prefix)
    kept = first.rstrip(b"\xff")
    return first or b"\0", kept[:-1] + bytes([kept[-1] + 1]) if kept else b"\0"


def ranges_of_keys(keys: Sequence[str], revision: int = 0) -> pb.TxnRequest:
    """Reads all of them at one revision: the given one, or the latest."""
    return pb.TxnRequest(success=[_range_of_key(key, revision) for key in keys])


def ranges_of_prefixes(prefixes: Sequence[str]) -> pb.TxnRequest:
    ranges = (prefix_range(prefix) for prefix in prefixes)
    return pb.TxnRequest(
        success=[pb.RequestOp(request_range=pb.RangeRequest(key=first, range_end=end)) for first, end in ranges]
    )


def listing(response: pb.TxnResponse) -> Listing:
    items = (item for each in response.responses for item in each.response_range.kvs)
    return Listing(response.header.revision, tuple(_key_value(item) for item in items))


def transaction_request(transaction: Transaction) -> pb.TxnRequest:
    """Compares, writes, and for a failure the reading of every key that was compared."""
    known = _known(transaction)
    return pb.TxnRequest(
        compare=[_compare(compare) for compare in transaction.compares],
        success=[_write(operation, known) for operation in transaction.operations],
        failure=[_range_of_key(key) for key in _compared_keys(transaction)],
    )


def outcome(transaction: Transaction, response: pb.TxnResponse) -> Outcome:
    revision = response.header.revision
    current: dict[str, KeyValue | None] = {}
    if response.succeeded:
        known = _known(transaction)
        for operation, answer in zip(transaction.operations, response.responses, strict=True):
            current[operation.key] = _written(operation, answer.response_put, known.get(operation.key), revision)
    else:
        for key, answer in zip(_compared_keys(transaction), response.responses, strict=True):
            kvs = answer.response_range.kvs
            current[key] = _key_value(kvs[0]) if kvs else None
    return Outcome(response.succeeded, revision, current)


def watch_request(prefix: str, start_revision: int) -> pb.WatchRequest:
    first, end = prefix_range(prefix)
    create = pb.WatchCreateRequest(key=first, range_end=end, start_revision=start_revision, progress_notify=True)
    return pb.WatchRequest(create_request=create)


def events(response: pb.WatchResponse) -> tuple[Event, ...]:
    return tuple(_event(event) for event in response.events)


def is_guarded(transaction: Transaction) -> bool:
    """Whether a second run of the transaction fails if the first was carried out: every key is compared and written."""
    compared = {compare.key for compare in transaction.compares if compare.target == "mod"}
    return bool(transaction.operations) and all(operation.key in compared for operation in transaction.operations)


def settled(transaction: Transaction, repeated: Outcome) -> Outcome:
    """What a guarded transaction did whose first run has no known end and which was run again, with this outcome.

    If the second run was refused and every key is as the transaction leaves it, by one write that came after what it
    compared, then that write was the first run.
    """
    if repeated.succeeded:
        return repeated
    before = {compare.key: compare.operand for compare in transaction.compares if compare.target == "mod"}
    revisions = set()
    for operation in transaction.operations:
        item = repeated.current[operation.key]
        if isinstance(operation, Put):
            if item is None or item.value != operation.value or item.mod_revision == before[operation.key]:
                return repeated
            revisions.add(item.mod_revision)
        elif item is not None or before[operation.key] == 0:
            return repeated
    if len(revisions) > 1:
        return repeated
    written = {operation.key: repeated.current[operation.key] for operation in transaction.operations}
    return Outcome(True, revisions.pop() if revisions else repeated.revision, written)


def _range_of_key(key: str, revision: int = 0) -> pb.RequestOp:
    return pb.RequestOp(request_range=pb.RangeRequest(key=encode_key(key), revision=revision))


def _compared_keys(transaction: Transaction) -> Sequence[str]:
    return list(dict.fromkeys(compare.key for compare in transaction.compares))


def _event(event: pb.Event) -> Event:
    item = _key_value(event.kv)
    return Event(item.key, None if event.type == pb.Event.Type.DELETE else item, item.mod_revision)


def _key_value(item: pb.KeyValue) -> KeyValue:
    key = item.key.decode("utf-8", "surrogateescape")
    return KeyValue(key, item.value, item.create_revision, item.mod_revision, item.version)


def _compare(compare: Compare) -> pb.Compare:
    message = pb.Compare(target=_TARGETS[compare.target], key=encode_key(compare.key))
    match compare.operand:
        case bytes():
            message.value = compare.operand
        case int() if compare.target == "mod":
            message.mod_revision = compare.operand
        case int() if compare.target == "create":
            message.create_revision = compare.operand
        case int():
            message.version = compare.operand
    return message


def _known(transaction: Transaction) -> dict[str, Compare]:
    """Compares that tell all there is to know of what a write replaces, apart from its value."""
    return {
        compare.key: compare
        for compare in transaction.compares
        if compare.target == "mod" and (compare.operand == 0 or compare.version)
    }


def _write(operation: Operation, known: Mapping[str, Compare]) -> pb.RequestOp:
    key = encode_key(operation.key)
    if isinstance(operation, Put):
        put = pb.PutRequest(key=key, value=operation.value, prev_kv=operation.key not in known)
        return pb.RequestOp(request_put=put)
    return pb.RequestOp(request_delete_range=pb.DeleteRangeRequest(key=key))


def _written(operation: Operation, answer: pb.PutResponse, known: Compare | None, revision: int) -> KeyValue | None:
    if not isinstance(operation, Put):
        return None
    before = answer.prev_kv
    created, version = (known.created, known.version) if known else (before.create_revision, before.version)
    return KeyValue(operation.key, operation.value, created or revision, revision, version + 1)
