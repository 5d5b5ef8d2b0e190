"""What a deletion takes with it: a pool's blocks lose their hosts, a node's addresses and settings go with the node.

The order is Calico's: first whatever makes others stop using it, the object itself last, so that a deletion that was
cut short is simply done again.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from ipaddress import ip_interface

from calico_libnetwork.datastore.cache import Cache
from calico_libnetwork.datastore.editing import Editor
from calico_libnetwork.datastore.protocol import Datastore, Delete, Transaction
from calico_libnetwork.docker import networks
from calico_libnetwork.docker.endpoints import EndpointIndex
from calico_libnetwork.errors import NotFound
from calico_libnetwork.ipam import PREFIXES, Assignment, Ipam
from calico_libnetwork.model import ipam_keys
from calico_libnetwork.model.block import NODE_ATTRIBUTE
from calico_libnetwork.model.documents import Document
from calico_libnetwork.model.ipam_keys import Address, Network
from calico_libnetwork.model.kinds import KINDS, ResourceKey
from calico_libnetwork.model.validation import formats, validate

GRACE = 0.5
"""Seconds in which hosts that still knew a pool as enabled finish their assignments, as Calico itself has it."""

PRIVATE_PREFIX = "/calico-libnetwork/v1/hosts/"
_KEYS_PER_TRANSACTION = 100


async def delete(datastore: Datastore, key: ResourceKey, *, grace: float = GRACE) -> None:
    """Raises ``NotFound``, ``InvalidResource`` for what has to stay, ``Conflict``."""
    match key.kind:
        case "IPPool":
            await _delete_pool(datastore, key, grace)
        case "Node":
            await Editor(datastore).get(key)
            await delete_node(datastore, key.name)
        case _:
            await Editor(datastore).delete(key)


@asynccontextmanager
async def open_ipam(datastore: Datastore, node: str = "") -> AsyncGenerator[Ipam, None]:
    """IPAM on a cache that lives as long as the context."""
    async with _cached(datastore, PREFIXES) as cache:
        ipam = Ipam(cache, node=node)
        yield ipam
        await ipam.settled()


@asynccontextmanager
async def _cached(datastore: Datastore, prefixes: Sequence[str]) -> AsyncGenerator[Cache, None]:
    cache = Cache(datastore, prefixes)
    running = asyncio.create_task(cache.run())
    try:
        await cache.synced()
        yield cache
    finally:
        running.cancel()
        with suppress(asyncio.CancelledError):
            await running


async def _delete_pool(datastore: Datastore, key: ResourceKey, grace: float) -> None:
    editor = Editor(datastore)
    pool = await editor.get(key)
    cidr = formats.network(str(_spec(pool).get("cidr")))
    if cidr is not None:
        if not pool["spec"].get("disabled"):
            await editor.replace(validate(_disabled(pool)))
            await asyncio.sleep(grace)
        async with open_ipam(datastore) as ipam:
            for node, block in await _affinities(datastore):
                if block.version == cidr.version and cidr.overlaps(block):
                    await ipam.release_affinity(block, node=node, occupied=True)
    await editor.delete(key)


def _disabled(pool: Document) -> Document:
    return pool | {"spec": pool["spec"] | {"disabled": True}}


@dataclass(frozen=True, slots=True)
class Holdings:
    """What a node has in the datastore. ``others``: settings, host endpoints and BGP peers that name it."""

    node: str
    exists: bool
    endpoints: tuple[Document, ...]
    addresses: tuple[Address, ...]
    blocks: tuple[Network, ...]
    others: tuple[ResourceKey, ...]

    @property
    def nothing(self) -> bool:
        return not (self.exists or self.endpoints or self.addresses or self.blocks or self.others)


async def holdings(datastore: Datastore, node: str) -> Holdings:
    editor = Editor(datastore)
    settings = [ResourceKey(kind, f"node.{node}") for kind in ("FelixConfiguration", "BGPConfiguration")]
    key = ResourceKey("Node", node)
    stored = {item.key for item in (await datastore.get([each.path for each in (key, *settings)])).items}
    others = [each for each in settings if each.path in stored]
    for kind in ("HostEndpoint", "BGPPeer"):
        others += [_key(document) for document in await _naming(editor, kind, node)]
    endpoints = await _Endpoints.read(editor, node)
    async with open_ipam(datastore) as ipam:
        addresses = {each.address for each in ipam.assignments(node)} - endpoints.elsewhere
        addresses |= {each.address for each in endpoints.assignments(ipam)}
    return Holdings(
        node,
        key.path in stored,
        endpoints.documents,
        tuple(sorted(addresses, key=lambda address: (address.version, int(address)))),
        tuple(block for holder, block in await _affinities(datastore) if holder == node),
        tuple(others),
    )


async def delete_node(datastore: Datastore, node: str) -> None:
    """With all that ``holdings`` finds; the Node itself last. What is not there any more is no error."""
    editor = Editor(datastore)
    endpoints = await _Endpoints.read(editor, node)
    async with open_ipam(datastore) as ipam:
        for assignment in endpoints.assignments(ipam):
            await ipam.release(assignment.address, handle=assignment.handle, sequence=assignment.sequence)
        for document in endpoints.documents:
            await _delete_if_there(editor, _key(document))
        await ipam.release_node(node, keep=endpoints.elsewhere)
    for kind in ("HostEndpoint", "BGPPeer"):
        for document in await _naming(editor, kind, node):
            await _delete_if_there(editor, _key(document))
    for kind in ("FelixConfiguration", "BGPConfiguration"):
        await _delete_if_there(editor, ResourceKey(kind, f"node.{node}"))
    await _forget_networks(datastore, node)
    await _delete_private(datastore, node)
    await _delete_if_there(editor, ResourceKey("Node", node))


@dataclass(frozen=True, slots=True)
class _Endpoints:
    """The node's workload endpoints, and who has which address; plugins of old wrote no node with an address."""

    node: str
    documents: tuple[Document, ...]
    own: frozenset[Address]
    elsewhere: frozenset[Address]

    @classmethod
    async def read(cls, editor: Editor, node: str) -> _Endpoints:
        every = (await editor.list_kind("WorkloadEndpoint")).documents
        own = tuple(document for document in every if _spec(document).get("node") == node)
        others = (document for document in every if _spec(document).get("node") != node)
        elsewhere = frozenset(address for document in others for address in _addresses(document))
        addresses = frozenset(address for document in own for address in _addresses(document))
        return cls(node, own, addresses - elsewhere, elsewhere)

    def assignments(self, ipam: Ipam) -> list[Assignment]:
        found = (ipam.assignment(address) for address in self.own)
        return [each for each in found if each is not None and each.attributes.get(NODE_ATTRIBUTE) in (None, self.node)]


async def _naming(editor: Editor, kind: str, node: str) -> list[Document]:
    """The resources whose ``spec.node`` it is."""
    found = (await editor.list_kind(kind)).documents
    return [document for document in found if _spec(document).get("node") == node]


def _spec(document: Document) -> Document:
    spec = document.get("spec")
    return spec if isinstance(spec, dict) else {}


def _addresses(endpoint: Document) -> Iterator[Address]:
    texts = _spec(endpoint).get("ipNetworks")
    for text in texts if isinstance(texts, list) else ():
        with suppress(ValueError):
            yield ip_interface(str(text)).ip


def _key(document: Document) -> ResourceKey:
    metadata = document["metadata"]
    return ResourceKey(document["kind"], metadata["name"], metadata.get("namespace", ""))


async def _affinities(datastore: Datastore) -> list[tuple[str, Network]]:
    listing = await datastore.list([ipam_keys.AFFINITIES_PREFIX])
    return [parsed for item in listing.items if (parsed := ipam_keys.parse_affinity_key(item.key)) is not None]


class _GoneDocker:
    """Of a node that is no more."""

    async def network_name(self, network_id: str) -> str | None:
        return None

    async def network_exists(self, network_id: str) -> bool | None:
        return False


async def _forget_networks(datastore: Datastore, node: str) -> None:
    """As if its Docker had removed them: a profile that nobody else needs goes along."""
    prefixes = [networks.PREFIX, KINDS["WorkloadEndpoint"].prefix, KINDS["Profile"].prefix]
    async with _cached(datastore, prefixes) as cache:
        index = EndpointIndex(cache, node=node)
        known = networks.Networks(cache, index, _GoneDocker(), node=node, create_profiles=True)
        for stored in list(known.all()):
            if stored.record.node == node:
                await known.remove(stored.record.id)


async def _delete_private(datastore: Datastore, node: str) -> None:
    """What this project itself has stored for the node."""
    items = (await datastore.list([f"{PRIVATE_PREFIX}{node}/"])).items
    for start in range(0, len(items), _KEYS_PER_TRANSACTION):
        keys = [item.key for item in items[start : start + _KEYS_PER_TRANSACTION]]
        await datastore.commit(Transaction([], [Delete(key) for key in keys]))


async def _delete_if_there(editor: Editor, key: ResourceKey) -> None:
    with suppress(NotFound):
        await editor.delete(key)
