"""IPAM's objects as the cache holds them, decoded once per revision.

An object that cannot be read is reported with its key and then left alone: it serves nobody and stops nobody.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar, cast

from calico_libnetwork.datastore.cache import Cache
from calico_libnetwork.datastore.protocol import Event, KeyValue
from calico_libnetwork.errors import InvalidResource
from calico_libnetwork.model import block as blocks
from calico_libnetwork.model import ipam_keys, kinds
from calico_libnetwork.model.block import Block
from calico_libnetwork.model.ipam_keys import Network
from calico_libnetwork.model.ipam_records import Handle, IpamConfig
from calico_libnetwork.model.kinds import KINDS, ResourceKey
from calico_libnetwork.model.pools import Pool, reserved_networks
from calico_libnetwork.model.resources import AnyResource, ClusterInformation, IPPool

T = TypeVar("T")

POOLS = KINDS["IPPool"].prefix
RESERVATIONS = KINDS["IPReservation"].prefix
NODES = KINDS["Node"].prefix
CLUSTERS = KINDS["ClusterInformation"].prefix
CLUSTER_KEY = ResourceKey("ClusterInformation", "default").path
PREFIXES = (ipam_keys.IPAM_PREFIX, POOLS, RESERVATIONS, NODES, CLUSTERS)
"""What a cache has to hold for IPAM to work on it."""


class View:
    """``generation`` changes with what assignments of ``node`` are decided on, apart from blocks and handles.

    ``full`` are the keys of blocks of which it is known, without decoding anything, that they have nothing to give.
    """

    def __init__(self, cache: Cache, *, node: str) -> None:
        self.cache = cache
        self.get = cache.get
        self.generation = 0
        self.full: set[str] = set()
        self._decoded: dict[str, tuple[KeyValue, Any]] = {}
        self._grounds = (
            POOLS,
            RESERVATIONS,
            NODES,
            CLUSTERS,
            ipam_keys.CONFIG_KEY,
            f"{ipam_keys.AFFINITIES_PREFIX}{node}/",
        )
        self._kept: dict[object, tuple[int, Any]] = {}
        cache.subscribe(self._heard)

    def keep(self, name: object, make: Callable[[], T]) -> T:
        """What ``make`` returned in this generation."""
        kept = self._kept.get(name)
        if kept is None or kept[0] != self.generation:
            self._kept[name] = kept = (self.generation, make())
        kept_value: T = kept[1]
        return kept_value

    def config(self) -> IpamConfig:
        """Raises ``InvalidResource``: guessing at strict affinity would hand out what must not be."""
        item = self.get(ipam_keys.CONFIG_KEY)
        return IpamConfig() if item is None else self._known(item, _config)

    def locked(self) -> bool:
        """Whether somebody forbade new addresses, as while a cluster moves to another datastore."""
        return self.keep("locked", lambda: any(self._readable(CLUSTER_KEY, _locked)))

    def pools(self) -> tuple[Pool, ...]:
        """All readable pools, in name order."""
        return self.keep("pools", lambda: tuple(self._readable(POOLS, _pool)))

    def reserved(self) -> tuple[Network, ...]:
        return tuple(network for networks in self._readable(RESERVATIONS, _reserved) for network in networks)

    def labels(self, node: str) -> Mapping[str, str] | None:
        """The labels of a Node; None if it does not exist."""
        item = self.get(ResourceKey("Node", node).path)
        return None if item is None else self._known(item, _labels)

    def handle(self, key: str) -> Handle | None:
        item = self.get(key)
        return None if item is None else self._known(item, _handle)

    def block(self, key: str) -> Block | None:
        """Raises ``InvalidResource``."""
        item = self.get(key)
        return None if item is None else self._known(item, _block)

    def blocks(self, node: str | None = None) -> Iterator[Block]:
        """All readable blocks in key order, or those that mention ``node``; the others are not even decoded."""
        mark = b"" if node is None else f'{node}"'.encode()
        return self._readable(ipam_keys.BLOCKS_PREFIX, _block, mark)

    def keys(self, prefix: str) -> Iterator[str]:
        return (item.key for item in self.cache.under(prefix))

    def remember(self, key: str, decoded: object, *, revision: int) -> None:
        """Spares the decoding of what was written at ``revision``, unless it has been overwritten since."""
        item = self.get(key)
        if item is not None and item.mod_revision == revision:
            self._decoded[key] = (item, decoded)
            self._note_full(key, decoded)

    def _note_full(self, key: str, decoded: object) -> None:
        if isinstance(decoded, Block) and decoded.is_full:
            self.full.add(key)

    def _heard(self, events: Sequence[Event]) -> None:
        self.full.difference_update(event.key for event in events)
        if any(event.key.startswith(self._grounds) for event in events):
            self.generation += 1

    def _readable(self, prefix: str, decode: Callable[[KeyValue], T], mark: bytes = b"") -> Iterator[T]:
        for item in self.cache.under(prefix):
            if mark not in item.value:
                continue
            try:
                yield self._known(item, decode)
            except InvalidResource:
                continue

    def _known(self, item: KeyValue, decode: Callable[[KeyValue], T]) -> T:
        known = self._decoded.get(item.key)
        if known is None or known[0] is not item:
            try:
                decoded: T | InvalidResource = decode(item)
            except InvalidResource as error:
                decoded = error
                self.cache.unreadable.note(item, str(error))
            self._decoded[item.key] = known = (item, decoded)
            self._note_full(item.key, decoded)
        if isinstance(known[1], InvalidResource):
            raise InvalidResource(f"{item.key}: {known[1]}")
        found: T = known[1]  # one key is always decoded by the same function
        return found


def _config(item: KeyValue) -> IpamConfig:
    return IpamConfig.decode(item.value)


def _block(item: KeyValue) -> Block:
    return blocks.decode(item.value)


def _handle(item: KeyValue) -> Handle:
    return Handle.decode(item.value)


def _pool(item: KeyValue) -> Pool:
    return Pool.read(cast(IPPool, _resource(item)))


def _reserved(item: KeyValue) -> tuple[Network, ...]:
    return reserved_networks(_resource(item))


def _locked(item: KeyValue) -> bool:
    return cast(ClusterInformation, _resource(item)).spec.datastore_ready is False


def _labels(item: KeyValue) -> Mapping[str, str]:
    return _resource(item).labels


def _resource(item: KeyValue) -> AnyResource:
    key = kinds.parse_path(item.key)
    if key is None:
        raise InvalidResource("this key names no resource")
    return kinds.decode(key, item.value)
