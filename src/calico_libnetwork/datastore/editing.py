"""Resources as users edit them: whole documents, created, applied, replaced and read one at a time.

A document comes here validated. What rests on other objects is checked here, against the datastore as it is: a policy
needs its tier, a pool must not overlap another, what is immutable stays. A replaced document keeps uid, time of
creation and status; a ``resourceVersion`` in it makes the write depend on nobody having changed it since.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from calico_libnetwork.datastore.protocol import (
    Datastore,
    Delete,
    KeyValue,
    Listing,
    Put,
    Transaction,
    absent,
    unchanged,
)
from calico_libnetwork.errors import AlreadyExists, Conflict, InvalidResource, NotFound
from calico_libnetwork.model import documents, ipam_keys, kinds
from calico_libnetwork.model.documents import POLICY_KINDS, Document
from calico_libnetwork.model.kinds import KINDS, ResourceKey
from calico_libnetwork.model.resources import DEFAULT_ALLOW_PROFILE
from calico_libnetwork.model.validation import TIER_LABEL, Valid, pools_in_the_way

ATTEMPTS = 10
READ_ONLY = frozenset({"ClusterInformation"})
_FIXED_TIERS = frozenset({"default", "kube-admin", "kube-baseline"})
_DEFAULT_ALLOW: Document = {
    "kind": "Profile",
    "apiVersion": "projectcalico.org/v3",
    "metadata": {"name": DEFAULT_ALLOW_PROFILE, "resourceVersion": "1"},
    "spec": {"ingress": [{"action": "Allow"}], "egress": [{"action": "Allow"}]},
}


@dataclass(frozen=True)
class Found:
    """Documents as users see them, with their ``resourceVersion``; all as of ``revision``."""

    revision: int
    documents: tuple[Document, ...]
    unreadable: tuple[str, ...] = ()


class Editor:
    def __init__(self, datastore: Datastore) -> None:
        self._datastore = datastore

    async def list_kind(self, kind: str, *, namespace: str = "") -> Found:
        """All of one kind in the order of their names, of one namespace or (with "") of all."""
        prefix = f"{KINDS[kind].prefix}{namespace}/" if namespace else KINDS[kind].prefix
        listing = await self._datastore.list([prefix])
        found, unreadable = [], []
        for item in listing.items:
            document = _readable(item)
            if document is None:
                unreadable.append(item.key)
            else:
                found.append(shown(document, item.mod_revision))
        if kind == "Profile":
            found.append(_DEFAULT_ALLOW)
        return Found(listing.revision, tuple(found), tuple(unreadable))

    async def get(self, key: ResourceKey) -> Document:
        """Raises ``NotFound``, or ``InvalidResource`` for a value that nobody can read."""
        if key == ResourceKey("Profile", DEFAULT_ALLOW_PROFILE):
            return _DEFAULT_ALLOW
        item = await self._item(key)
        if item is None:
            raise NotFound(f"{key} does not exist")
        document = _readable(item)
        if document is None:
            raise InvalidResource(f"{key} is not readable; apply a good version in its place, or delete it")
        return shown(document, item.mod_revision)

    async def create(self, valid: Valid) -> Document:
        """Raises ``AlreadyExists`` and what ``apply`` raises."""
        _require_writable(valid.key)
        if await self._item(valid.key) is not None:
            raise AlreadyExists(f"{valid.key} exists already: use apply or replace")
        await self._check_surroundings(valid, None)
        document = self._stored(valid, None)
        outcome = await self._datastore.commit(_write(valid.key.path, document, None))
        if not outcome.succeeded:
            raise AlreadyExists(f"{valid.key} exists already: use apply or replace")
        return document

    async def replace(self, valid: Valid, *, revision: int | None = None) -> Document:
        """Raises ``NotFound``, and ``Conflict`` if it is not at ``revision`` or others kept changing it."""
        _require_writable(valid.key)
        for _ in range(ATTEMPTS):
            item = await self._item(valid.key)
            if item is None:
                raise NotFound(f"{valid.key} does not exist: use apply or create")
            if revision is not None and item.mod_revision != revision:
                raise Conflict(
                    f"{valid.key} has changed since revision {revision}: read it again, or leave resourceVersion out"
                )
            await self._check_surroundings(valid, item)
            document = self._stored(valid, item)
            outcome = await self._datastore.commit(_write(item.key, document, item))
            if outcome.succeeded:
                return document
        raise Conflict(f"{valid.key} was changed by others {ATTEMPTS} times in a row; try again")

    async def apply(self, valid: Valid, *, revision: int | None = None) -> Document:
        """Replaces it if it exists, creates it if not. Raises ``InvalidResource``, ``NotFound`` and ``Conflict``."""
        for _ in range(ATTEMPTS):
            try:
                if await self._item(valid.key) is None:
                    return await self.create(valid)
                return await self.replace(valid, revision=revision)
            except (AlreadyExists, NotFound):
                if await self._missing(valid.requires):
                    raise
        raise Conflict(f"{valid.key} was created and deleted by others {ATTEMPTS} times in a row; try again")

    async def delete(self, key: ResourceKey) -> None:
        """Raises ``NotFound``, and ``InvalidResource`` for what has to stay."""
        _require_writable(key)
        if key.kind == "Tier":
            await self._require_removable_tier(key)
        for _ in range(ATTEMPTS):
            item = await self._item(key)
            if item is None:
                raise NotFound(f"{key} does not exist")
            if (await self._datastore.commit(Transaction([unchanged(item)], [Delete(item.key)]))).succeeded:
                return
        raise Conflict(f"{key} was changed by others {ATTEMPTS} times in a row; try again")

    async def _item(self, key: ResourceKey) -> KeyValue | None:
        """Under its name, or for a policy from before Calico 3.30 under its name with ``default.`` before it."""
        paths = [key.path]
        if key.kind in POLICY_KINDS:
            paths.append(ResourceKey(key.kind, f"default.{key.name}", key.namespace).path)
        listing = await self._datastore.get(paths)
        by_path = {item.key: item for item in listing.items}
        if key.path in by_path:
            return by_path[key.path]
        legacy = by_path.get(paths[-1])
        document = _readable(legacy) if legacy else None
        return legacy if document is not None and documents.shown_name(document) == key.name else None

    async def _missing(self, keys: Sequence[ResourceKey]) -> list[ResourceKey]:
        existing = {item.key for item in (await self._datastore.get([key.path for key in keys])).items}
        return [key for key in keys if key.path not in existing]

    async def _check_surroundings(self, valid: Valid, item: KeyValue | None) -> None:
        for missing in await self._missing(valid.requires):
            raise NotFound(f"{valid.key} needs {missing}, which does not exist: create it first")
        if valid.key.kind != "IPPool":
            return
        stored = _readable(item) if item else None
        listing = await self._datastore.list([KINDS["IPPool"].prefix, ipam_keys.BLOCKS_PREFIX])
        problems = list(pools_in_the_way(valid.document, stored, _other_pools(listing, valid.key), _blocks(listing)))
        if problems:
            raise InvalidResource(f"{valid.key}: {'; '.join(problems)}")

    async def _require_removable_tier(self, key: ResourceKey) -> None:
        if key.name in _FIXED_TIERS:
            raise InvalidResource(f"{key} belongs to Calico and has to stay")
        listing = await self._datastore.list([KINDS[kind].prefix for kind in sorted(POLICY_KINDS)])
        for item in listing.items:
            document = _readable(item) or {}
            if (document.get("spec") or {}).get("tier") == key.name:
                raise InvalidResource(f"{key} still has {kinds.parse_path(item.key)}: delete its policies first")

    def _stored(self, valid: Valid, item: KeyValue | None) -> Document:
        """The validated document with what only the datastore knows."""
        old = (_readable(item) if item else None) or {}
        kept = old.get("metadata") or {}
        metadata = dict(valid.document["metadata"])
        metadata["name"] = kept.get("name") or metadata["name"]
        metadata["uid"] = kept.get("uid") or str(uuid.uuid4())
        created = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        metadata["creationTimestamp"] = kept.get("creationTimestamp") or created
        order = ("name", "namespace", "uid", "creationTimestamp")
        metadata = {name: metadata[name] for name in order if name in metadata} | metadata
        document = valid.document | {"metadata": metadata}
        if not document.get("status") and "status" in old:
            document["status"] = old["status"]
        named = documents.with_policy_annotation(document | {"metadata": metadata | {"name": valid.key.name}})
        return named | {"metadata": named["metadata"] | {"name": metadata["name"]}}


def shown(document: Document, revision: int) -> Document:
    """As calicoctl shows it: a policy under its own name and in a tier, every object with its revision."""
    document = documents.without_policy_annotation(document)
    metadata = _with_revision(document["metadata"], revision)
    if document.get("kind") in POLICY_KINDS:
        spec = document.get("spec") or {}
        tier = spec.get("tier") or "default"
        labels = metadata.get("labels") or {}
        metadata["labels"] = dict(sorted(({TIER_LABEL: tier} | labels).items()))
        document = document | {"spec": {"tier": tier} | spec | {"tier": tier}}
    return document | {"metadata": metadata}


def _readable(item: KeyValue) -> Document | None:
    try:
        document = documents.decode(item.value)
    except InvalidResource:
        return None
    metadata = document.get("metadata")
    return document if isinstance(metadata, dict) and isinstance(metadata.get("name"), str) else None


def _require_writable(key: ResourceKey) -> None:
    if key.kind in READ_ONLY:
        raise InvalidResource(f"{key} is kept by Calico itself and cannot be edited")
    if key == ResourceKey("Profile", DEFAULT_ALLOW_PROFILE):
        raise InvalidResource(f"{key} is provided by Calico itself: it exists always and never changes")


def _write(path: str, document: Document, item: KeyValue | None) -> Transaction:
    return Transaction([unchanged(item) if item else absent(path)], [Put(path, documents.encode(document))])


def _other_pools(listing: Listing, key: ResourceKey) -> Iterator[tuple[str, str]]:
    """Name and CIDR of every other pool."""
    for item in listing.items:
        found = kinds.parse_path(item.key)
        document = _readable(item) if found is not None and found != key else None
        if document is not None:
            yield document["metadata"]["name"], str((document.get("spec") or {}).get("cidr"))


def _blocks(listing: Listing) -> Iterator[str]:
    return (str(block) for item in listing.items if (block := ipam_keys.parse_block_key(item.key)) is not None)


def _with_revision(metadata: Document, revision: int) -> Document:
    """In its place among the others, which Kubernetes fixes: after name, namespace and uid."""
    first = {name: metadata[name] for name in ("name", "namespace", "uid") if name in metadata}
    return first | {"resourceVersion": str(revision)} | {k: v for k, v in metadata.items() if k not in first}
