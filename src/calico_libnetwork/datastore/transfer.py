"""Moves everything from one datastore to another: an embedded one into etcd, or back.

Values go over as they are, so uids, times and unknown fields stay, in the order in which the keys were created; only
revisions are the new store's own. ClusterInformation comes last: Felix and this project's agent wait for it, so nobody
acts on half of a cluster, and an import that was cut short is simply done again. Running containers do not notice,
since neither their interfaces nor their addresses depend on where they are recorded.
"""

from __future__ import annotations

from base64 import b64decode, b64encode
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from calico_libnetwork.datastore.protocol import Datastore, KeyValue, Put, Transaction, absent, unchanged
from calico_libnetwork.errors import AlreadyExists, Conflict, InvalidResource
from calico_libnetwork.model.kinds import ResourceKey

PREFIXES = ("/calico/", "/calico-libnetwork/v1/")
FORMAT = "calico-libnetwork datastore 1"
_LAST = ResourceKey("ClusterInformation", "default").path
_OPERATIONS = 64
_BYTES = 1 << 19  # of one transaction; etcd takes 1.5 MB


@dataclass(frozen=True, slots=True)
class Entry:
    key: str
    value: bytes


@dataclass(frozen=True, slots=True)
class Snapshot:
    """``entries`` in the order in which they were created."""

    source: str
    revision: int
    entries: tuple[Entry, ...]


async def export(datastore: Datastore) -> Snapshot:
    """Everything at one revision."""
    listing = await datastore.list(PREFIXES)
    items = sorted(listing.items, key=lambda item: (item.create_revision, item.key))
    return Snapshot(datastore.description, listing.revision, tuple(Entry(item.key, item.value) for item in items))


def dump(snapshot: Snapshot) -> bytes:
    """JSON, a line for the whole and one for each entry; a value that is no text is in base64."""
    lines: list[dict[str, Any]] = [
        {"format": FORMAT, "source": snapshot.source, "revision": snapshot.revision, "entries": len(snapshot.entries)}
    ]
    for entry in snapshot.entries:
        try:
            lines.append({"key": entry.key, "value": entry.value.decode()})
        except UnicodeDecodeError:
            lines.append({"key": entry.key, "base64": b64encode(entry.value).decode()})
    return b"".join(msgspec.json.encode(line) + b"\n" for line in lines)


def load(content: bytes) -> Snapshot:
    """Raises ``InvalidResource`` for what ``dump`` has not made, or not made whole."""
    try:
        header, *lines = (msgspec.json.decode(line) for line in content.splitlines())
        if header["format"] != FORMAT:
            raise InvalidResource(f"the export has the format {header['format']!r}, known is {FORMAT!r}")
        entries = tuple(
            Entry(line["key"], b64decode(line["base64"]) if "base64" in line else line["value"].encode())
            for line in lines
        )
        snapshot = Snapshot(header["source"], header["revision"], entries)
        expected = header["entries"]
    except (ValueError, KeyError, TypeError, AttributeError, msgspec.MsgspecError) as error:
        raise InvalidResource(f"this is no export of a datastore: {error}") from error
    if len(entries) != expected:
        raise InvalidResource(f"the export is cut off: it has {len(entries)} of {expected} entries")
    return snapshot


async def import_into(datastore: Datastore, snapshot: Snapshot, *, overwrite: bool = False) -> int:
    """The number of keys written. What is there alike already is left, what else is there stays.

    Raises ``AlreadyExists`` for a datastore with contents of its own, unless ``overwrite``: then what has the same key
    is replaced. Raises ``Conflict`` if somebody writes at the same time.
    """
    present = {item.key: item for item in (await datastore.list(PREFIXES)).items}
    wanted = {entry.key: entry.value for entry in snapshot.entries}
    foreign = [key for key, item in present.items() if wanted.get(key) != item.value]
    if foreign and not overwrite:
        raise AlreadyExists(
            f"{datastore.description} is not empty: it has {len(foreign)} keys of its own, such as {foreign[0]}; "
            "import into an empty datastore, or with --overwrite"
        )
    missing = [entry for entry in snapshot.entries if entry.key not in present or entry.key in foreign]
    ordered = sorted(missing, key=lambda entry: entry.key == _LAST)
    for part in _parts(ordered):
        if not (await datastore.commit(_transaction(part, present))).succeeded:
            raise Conflict(f"{datastore.description} is being written to: stop that, and import again")
    return len(ordered)


def _parts(entries: Sequence[Entry]) -> Iterator[list[Entry]]:
    """Transactions of a size that etcd takes; ClusterInformation is alone in the last."""
    part: list[Entry] = []
    size = 0
    for entry in entries:
        if part and (len(part) == _OPERATIONS or size + len(entry.value) > _BYTES or entry.key == _LAST):
            yield part
            part, size = [], 0
        part.append(entry)
        size += len(entry.value)
    if part:
        yield part


def _transaction(part: Sequence[Entry], present: dict[str, KeyValue]) -> Transaction:
    return Transaction(
        [unchanged(present[entry.key]) if entry.key in present else absent(entry.key) for entry in part],
        [Put(entry.key, entry.value) for entry in part],
    )
