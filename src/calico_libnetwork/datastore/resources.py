"""Typed access to the cached resources, and the project's one compare-and-swap.

A value is decoded once per write of it. A value somebody else wrote and nobody can read is logged once, with its key,
and is absent for everybody; it never stops the rest. What is stored is made from the stored tree, so that fields this
project does not know survive, and is read back before it is written, so that it never makes another reader stumble.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Sequence
from datetime import UTC, datetime

from calico_libnetwork.datastore.cache import Cache
from calico_libnetwork.datastore.protocol import (
    Compare,
    Delete,
    Event,
    KeyValue,
    Operation,
    Put,
    Transaction,
    absent,
    unchanged,
)
from calico_libnetwork.errors import AlreadyExists, Conflict, InvalidResource, NotFound
from calico_libnetwork.model import documents, kinds
from calico_libnetwork.model.documents import Document
from calico_libnetwork.model.kinds import KINDS, ResourceKey
from calico_libnetwork.model.resources import AnyResource

ATTEMPTS = 10
"""Tries of one compare-and-swap; each lost one means that another writer succeeded."""


def _now() -> datetime:
    return datetime.now(UTC)


def _new_uid() -> str:
    return str(uuid.uuid4())


class Resources:
    def __init__(
        self, cache: Cache, *, clock: Callable[[], datetime] = _now, new_uid: Callable[[], str] = _new_uid
    ) -> None:
        self._cache = cache
        self._clock = clock
        self._new_uid = new_uid
        self._decoded: dict[str, tuple[KeyValue, AnyResource | None]] = {}
        cache.subscribe(self._forget)

    def get(self, key: ResourceKey) -> AnyResource | None:
        item = self._cache.get(key.path)
        return self._view(key, item) if item else None

    def list(self, kind: str, *, namespace: str = "") -> list[AnyResource]:
        """All readable ones in key order; of one namespace, if given."""
        prefix = f"{KINDS[kind].prefix}{namespace}/" if namespace else KINDS[kind].prefix
        views = (
            self._view(key, item)
            for item in self._cache.under(prefix)
            if (key := kinds.parse_path(item.key)) is not None
        )
        return [view for view in views if view is not None]

    async def create(
        self,
        key: ResourceKey,
        spec: Document,
        *,
        labels: dict[str, str] | None = None,
        annotations: dict[str, str] | None = None,
        also: Sequence[Compare | Operation] = (),
    ) -> AnyResource:
        """Raises ``AlreadyExists``, or ``Conflict`` if a compare in ``also`` fails; ``also`` happens with it or not."""
        document = documents.new_document(
            key.kind, key.name, spec,
            uid=self._new_uid(), created=self._timestamp(), namespace=key.namespace,
            labels=labels, annotations=annotations,
        )  # fmt: skip
        value = documents.encode(document)
        resource = kinds.decode(key, value)
        compares = [part for part in also if isinstance(part, Compare)]
        operations = [part for part in also if not isinstance(part, Compare)]
        outcome = await self._cache.commit(
            Transaction([absent(key.path), *compares], [Put(key.path, value), *operations])
        )
        if outcome.succeeded:
            return resource
        if outcome.current[key.path] is not None:
            raise AlreadyExists(f"{key} exists already")
        raise Conflict(f"{key} was not created: what it rests on has changed; try again")

    async def update(self, key: ResourceKey, change: Callable[[Document], Document | None]) -> AnyResource:
        """Replaces what is stored by what ``change`` makes of it; None, or no difference, writes nothing.

        ``change`` is pure: it gets a tree of its own, and gets a new one whenever another writer was faster. Raises
        ``NotFound``, ``InvalidResource``, or ``Conflict`` when others kept being faster.
        """
        for _ in range(ATTEMPTS):
            item = self._cache.get(key.path)
            if item is None:
                raise NotFound(f"{key} does not exist")
            if self._view(key, item) is None:
                raise InvalidResource(
                    f"{key} is stored in a form nobody can read; apply a good version in its place, or delete it"
                )
            value = self._changed_value(item, change)
            resource = kinds.decode(key, value)
            if value == item.value:
                return resource
            outcome = await self._cache.commit(Transaction([unchanged(item)], [Put(key.path, value)]))
            if outcome.succeeded:
                return resource
        raise Conflict(f"{key} was changed by others {ATTEMPTS} times in a row; try again")

    async def delete(self, key: ResourceKey) -> bool:
        """Returns whether it existed."""
        path = key.path
        for _ in range(ATTEMPTS):
            item = self._cache.get(path)
            # an absence is confirmed by the store: the cache may not have heard of a creation yet
            condition, operations = (unchanged(item), [Delete(path)]) if item else (absent(path), [])
            outcome = await self._cache.commit(Transaction([condition], operations))
            if outcome.succeeded:
                return item is not None
        raise Conflict(f"{key} was changed by others {ATTEMPTS} times in a row; try again")

    def _changed_value(self, item: KeyValue, change: Callable[[Document], Document | None]) -> bytes:
        stored = documents.decode(item.value)
        changed = change(documents.decode(item.value))
        if changed is None or changed == stored:
            return item.value
        metadata, kept = changed["metadata"], stored["metadata"]
        metadata["uid"] = kept.get("uid") or self._new_uid()
        metadata["creationTimestamp"] = kept.get("creationTimestamp") or self._timestamp()
        metadata.pop("resourceVersion", None)
        return documents.encode(changed)

    def _view(self, key: ResourceKey, item: KeyValue) -> AnyResource | None:
        known = self._decoded.get(item.key)
        if known is not None and known[0] is item:
            return known[1]
        view: AnyResource | None
        try:
            view = kinds.decode(key, item.value)
        except InvalidResource as error:
            self._cache.unreadable.note(item, str(error))
            view = None
        self._decoded[item.key] = (item, view)
        return view

    def _forget(self, events: Sequence[Event]) -> None:
        for event in events:
            self._decoded.pop(event.key, None)

    def _timestamp(self) -> str:
        return self._clock().astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
