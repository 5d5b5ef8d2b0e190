"""What a deletion takes with it: a pool's blocks lose their hosts, a node's addresses and settings go with the node.

The order is Calico's: first whatever makes others stop using it, the object itself last, so that a deletion that was
cut short is simply done again.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress

from calico_libnetwork.datastore.cache import Cache
from calico_libnetwork.datastore.editing import Editor
from calico_libnetwork.datastore.protocol import Datastore
from calico_libnetwork.errors import NotFound
from calico_libnetwork.ipam import PREFIXES, Ipam
from calico_libnetwork.model import ipam_keys
from calico_libnetwork.model.documents import Document
from calico_libnetwork.model.kinds import ResourceKey
from calico_libnetwork.model.validation import formats, validate

GRACE = 0.5
"""Seconds in which hosts that still knew a pool as enabled finish their assignments, as Calico itself has it."""


async def delete(datastore: Datastore, key: ResourceKey, *, grace: float = GRACE) -> None:
    """Raises ``NotFound``, ``InvalidResource`` for what has to stay, ``Conflict``."""
    match key.kind:
        case "IPPool":
            await _delete_pool(datastore, key, grace)
        case "Node":
            await _delete_node(datastore, key)
        case _:
            await Editor(datastore).delete(key)


@asynccontextmanager
async def open_ipam(datastore: Datastore, node: str = "") -> AsyncGenerator[Ipam, None]:
    """IPAM on a cache that lives as long as the context."""
    cache = Cache(datastore, PREFIXES)
    running = asyncio.create_task(cache.run())
    try:
        await cache.synced()
        ipam = Ipam(cache, node=node)
        yield ipam
        await ipam.settled()
    finally:
        running.cancel()
        with suppress(asyncio.CancelledError):
            await running


async def _delete_pool(datastore: Datastore, key: ResourceKey, grace: float) -> None:
    editor = Editor(datastore)
    pool = await editor.get(key)
    cidr = formats.network(str((pool.get("spec") or {}).get("cidr")))
    if cidr is not None:
        if not pool["spec"].get("disabled"):
            await editor.replace(validate(_disabled(pool)))
            await asyncio.sleep(grace)
        async with open_ipam(datastore) as ipam:
            for item in (await datastore.list([ipam_keys.AFFINITIES_PREFIX])).items:
                node, block = ipam_keys.parse_affinity_key(item.key) or ("", None)
                if block is not None and block.version == cidr.version and cidr.overlaps(block):
                    await ipam.release_affinity(block, node=node, occupied=True)
    await editor.delete(key)


def _disabled(pool: Document) -> Document:
    return pool | {"spec": pool["spec"] | {"disabled": True}}


async def _delete_node(datastore: Datastore, key: ResourceKey) -> None:
    editor = Editor(datastore)
    await editor.get(key)
    for kind in ("WorkloadEndpoint", "HostEndpoint", "BGPPeer"):
        for document in (await editor.list_kind(kind)).documents:
            if (document.get("spec") or {}).get("node") == key.name:
                metadata = document["metadata"]
                await _delete_if_there(editor, ResourceKey(kind, metadata["name"], metadata.get("namespace", "")))
    async with open_ipam(datastore) as ipam:
        await ipam.release_node(key.name)
    for kind in ("FelixConfiguration", "BGPConfiguration"):
        await _delete_if_there(editor, ResourceKey(kind, f"node.{key.name}"))
    await editor.delete(key)


async def _delete_if_there(editor: Editor, key: ResourceKey) -> None:
    with suppress(NotFound):
        await editor.delete(key)
