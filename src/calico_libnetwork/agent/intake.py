"""What the datastore says, handed to those whom it concerns."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

from calico_libnetwork.datastore.protocol import Event, KeyValue
from calico_libnetwork.errors import InvalidResource
from calico_libnetwork.model import kinds
from calico_libnetwork.model.kinds import ResourceKey
from calico_libnetwork.model.resources import AnyResource

BLOCKS = "/calico/ipam/v2/host/"
"""Prefix of the block affinities."""


class ResourceConsumer(Protocol):
    def update(self, key: ResourceKey, resource: AnyResource | InvalidResource | None) -> None: ...


class BlockConsumer(Protocol):
    def update_block(self, key: str, value: bytes | None) -> None: ...


class Intake:
    """Decodes every change once. A value nobody can read is handed on as the error it is: policy closes on it."""

    def __init__(self, resources: Iterable[ResourceConsumer], blocks: Iterable[BlockConsumer]) -> None:
        self._resources = tuple(resources)
        self._blocks = tuple(blocks)

    def take_all(self, items: Iterable[KeyValue]) -> None:
        for item in items:
            self._put(item.key, item)

    def take(self, events: Iterable[Event]) -> bool:
        """Whether one of them concerns anybody here."""
        concerned = [self._put(event.key, event.current) for event in events]
        return any(concerned)

    def _put(self, path: str, current: KeyValue | None) -> bool:
        key = kinds.parse_path(path)
        if key is not None:
            resource = _decoded(key, current)
            for consumer in self._resources:
                consumer.update(key, resource)
            return True
        if path.startswith(BLOCKS):
            for blocks in self._blocks:
                blocks.update_block(path, None if current is None else current.value)
            return True
        return False


def _decoded(key: ResourceKey, current: KeyValue | None) -> AnyResource | InvalidResource | None:
    if current is None:
        return None
    try:
        return kinds.decode(key, current.value)
    except InvalidResource as error:
        return error
