"""What the datastore says, handed to those whom it concerns."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Protocol

from calico_libnetwork.agent.last_readable import LastReadable
from calico_libnetwork.datastore.protocol import Event, KeyValue
from calico_libnetwork.errors import InvalidResource, Unreadable
from calico_libnetwork.model import kinds
from calico_libnetwork.model.ipam_keys import parse_affinity_key
from calico_libnetwork.model.ipam_records import affinity_state
from calico_libnetwork.model.kinds import ResourceKey
from calico_libnetwork.model.names import workload_endpoint_prefix
from calico_libnetwork.model.resources import AnyResource
from calico_libnetwork.policy.unreadable import read

BLOCKS = "/calico/ipam/v2/host/"
"""Prefix of the block affinities."""


class ResourceConsumer(Protocol):
    def update(self, key: ResourceKey, resource: AnyResource | Unreadable | None) -> None:
        """Of what becomes unreadable, the last readable version stays."""
        ...


class BlockConsumer(Protocol):
    def update_block(self, key: str, value: bytes | None) -> None: ...


class Intake:
    """Decodes every change once. A value nobody can read is handed on as the error it is, and ``note`` is told.

    The version before it goes first where the consumers cannot know that: after a start.
    """

    def __init__(
        self,
        resources: Iterable[ResourceConsumer],
        blocks: Iterable[BlockConsumer],
        *,
        node: str,
        note: Callable[[KeyValue, str], None],
        last_readable: LastReadable,
    ) -> None:
        self._resources = tuple(resources)
        self._blocks = tuple(blocks)
        self._note = note
        self._last_readable = last_readable
        self._own = workload_endpoint_prefix(node)
        self._readable: dict[str, KeyValue] = {}  # but for other nodes' workload endpoints, which are many

    def take_all(self, items: Iterable[KeyValue]) -> None:
        """Everything there is, once, before anything else."""
        unreadable = {item.key for item in items if self._put(item.key, item) is False}
        self._last_readable.keep_only(unreadable)

    def take(self, events: Iterable[Event]) -> bool:
        """Whether one of them concerns anybody here."""
        concerned = [self._put(event.key, event.current) is not None for event in events]
        return any(concerned)

    def _put(self, path: str, current: KeyValue | None) -> bool | None:
        """Whether it can be read; None if it concerns nobody."""
        key = kinds.parse_path(path)
        if key is not None:
            return self._put_resource(key, path, current)
        if path.startswith(BLOCKS):
            return self._put_block(path, current)
        return None

    def _put_block(self, path: str, current: KeyValue | None) -> bool:
        """A claim of a block that becomes unreadable stays as it was."""
        if current is not None and parse_affinity_key(path) is not None:
            try:
                affinity_state(current.value)
            except InvalidResource as error:
                self._note(current, str(error))
                return False
        for blocks in self._blocks:
            blocks.update_block(path, None if current is None else current.value)
        return True

    def _put_resource(self, key: ResourceKey, path: str, current: KeyValue | None) -> bool:
        before = self._readable.pop(path, None)
        if current is None:
            self._last_readable.drop(path)
            self._hand_on(key, None)
            return True
        try:
            resource = read(key, current.value, first=current.version == 1)
        except Unreadable as error:
            self._note(current, str(error))
            self._bring_back(key, path, before)
            self._hand_on(key, error)
            return False
        if key.kind != "WorkloadEndpoint" or key.name.startswith(self._own):
            self._readable[path] = current
        self._last_readable.drop(path)
        self._hand_on(key, resource)
        return True

    def _bring_back(self, key: ResourceKey, path: str, before: KeyValue | None) -> None:
        if before is not None:
            self._last_readable.put(path, before.value)
            return
        value = self._last_readable.get(path)
        if value is not None:
            try:
                self._hand_on(key, read(key, value, first=False))
            except Unreadable:
                self._last_readable.drop(path)  # another release of this program could read it

    def _hand_on(self, key: ResourceKey, resource: AnyResource | Unreadable | None) -> None:
        for consumer in self._resources:
            consumer.update(key, resource)
