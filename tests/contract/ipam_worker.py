"""One host's IPAM as a process of its own, assigning and releasing until its quota is done.

    python -m tests.contract.ipam_worker ENDPOINT NODE DIRECTORY QUOTA

Every address held is a file in ``DIRECTORY/held``, created exclusively after the assignment and removed before the
release, so an address given out twice is seen at once, by whom it happens to. ``DIRECTORY/<node>`` counts, a byte for
every operation done. At its start a worker gives back what its earlier life left behind.
"""

from __future__ import annotations

import asyncio
import random
import sys
import uuid
from pathlib import Path

from calico_libnetwork.datastore.cache import Cache
from calico_libnetwork.datastore.etcd import EtcdDatastore, EtcdSettings, Timing
from calico_libnetwork.errors import DatastoreUnavailable, NoFreeAddress
from calico_libnetwork.ipam import PREFIXES, Ipam
from calico_libnetwork.model.ipam_keys import Address

IN_FLIGHT = 6
MOST = 14
"""Addresses one flow of work holds; all flows of all workers want more than the pool has."""
PAUSE = 0.2


class Worker:
    def __init__(self, ipam: Ipam, node: str, directory: Path, quota: int) -> None:
        self._ipam = ipam
        self._node = node
        self._held = directory / "held"
        self._count = (directory / node).open("ab", buffering=0)
        self._left = quota - self._count.tell()

    async def clean(self) -> None:
        while assignments := self._ipam.assignments(self._node):
            try:
                await asyncio.gather(*(self._release(assignment.address) for assignment in assignments))
            except DatastoreUnavailable:
                await asyncio.sleep(PAUSE)

    async def work(self) -> None:
        mine: list[Address] = []
        most = MOST
        while self._left > 0:
            try:
                if len(mine) < most and random.random() < 0.6:
                    mine.append(await self._assign())
                    most = MOST
                elif mine:
                    await self._release(mine.pop(random.randrange(len(mine))))
            except NoFreeAddress:
                most = max(len(mine), 1)
            except DatastoreUnavailable:
                await asyncio.sleep(PAUSE)

    async def _assign(self) -> Address:
        address = await self._ipam.auto_assign(4, handle=f"h.{uuid.uuid4().hex}", attributes={"node": self._node})
        with (self._held / str(address)).open("x") as file:
            file.write(self._node)
        self._done()
        return address

    async def _release(self, address: Address) -> None:
        (self._held / str(address)).unlink(missing_ok=True)
        await self._ipam.release(address)
        self._done()

    def _done(self) -> None:
        self._left -= 1
        self._count.write(b".")


async def main(endpoint: str, node: str, directory: Path, quota: int) -> None:
    store = EtcdDatastore(EtcdSettings((endpoint,)), timing=Timing(deadline=1.0))
    cache = Cache(store, PREFIXES, pause=0.1)
    running = asyncio.create_task(cache.run())
    ipam = Ipam(cache, node=node)
    await cache.in_sync.wait()
    worker = Worker(ipam, node, directory, quota)
    await worker.clean()
    await asyncio.gather(*(worker.work() for _ in range(IN_FLIGHT)))
    await worker.clean()
    await ipam.settled()
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    await store.close()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2], Path(sys.argv[3]), int(sys.argv[4])))
