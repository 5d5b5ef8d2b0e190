"""Addresses assigned per second, beside what the same store does with raw single-key transactions in the same run.

    python -m benchmarks.ipam [--rounds 5] [--addresses 1000] [sqlite] [etcd]

Rounds of each kind alternate, so that a machine whose disk speed drifts is fair to all; the medians are printed. A raw
transaction creates one key of an IPAM handle's size. *Raw* is the store itself: SQLite through Python's own module,
one commit to the disk per transaction, with a thread per request in flight; etcd over gRPC. *Through ours* is the same
from the event loop through this project's datastore, which for SQLite commits together what waits. One "of IPAM's
size" also writes a value as large as a half full block, and a cache watches it: what an assignment costs before
anything is decided. Releases happen between the rounds and are timed too.
"""

from __future__ import annotations

import argparse
import asyncio
import sqlite3
import statistics
import tempfile
import threading
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console
from rich.table import Table
from tests.etcd_server import EtcdServer

from calico_libnetwork.datastore.cache import Cache
from calico_libnetwork.datastore.etcd import EtcdDatastore
from calico_libnetwork.datastore.protocol import Datastore, Put, Transaction, absent
from calico_libnetwork.datastore.sqlite import SqliteDatastore
from calico_libnetwork.ipam import PREFIXES, Ipam
from calico_libnetwork.model import documents
from calico_libnetwork.model.ipam_keys import CONFIG_KEY, IPAM_PREFIX
from calico_libnetwork.model.ipam_records import IpamConfig
from calico_libnetwork.model.kinds import ResourceKey

NODE = "bench"
IN_FLIGHT = (1, 8, 64)
_SMALL = b'{"block":{"10.64.77.64/26":1},"deleted":false}'
_HALF_FULL = b"x" * 4500
TARGETS = {1: 0.8, 64: 1.0}
"""IPAM's rate as a part of the raw rate, to reach."""


@dataclass
class Rates:
    """Per second, one entry a round; ``transactions`` per address."""

    raw: list[float] = field(default_factory=list)
    ours: list[float] = field(default_factory=list)
    sized: list[float] = field(default_factory=list)
    assigned: list[float] = field(default_factory=list)
    released: list[float] = field(default_factory=list)
    transactions: list[float] = field(default_factory=list)


class Counted:
    """A store that counts the transactions of the cache above it."""

    def __init__(self, store: Datastore) -> None:
        self._store = store
        self.get, self.list, self.watch = store.get, store.list, store.watch
        self.compact, self.close = store.compact, store.close
        self.transactions = 0

    @property
    def description(self) -> str:
        return self._store.description

    async def commit(self, transaction: Transaction) -> object:
        self.transactions += 1
        return await self._store.commit(transaction)


Raw = Callable[[int, Sequence[str]], float]
"""Runs raw transactions, so many at a time, for each of the keys; returns their number per second."""


@dataclass(frozen=True)
class Measured:
    """``raw`` is None where the store cannot be reached but through ours."""

    store: Datastore
    raw: Raw | None


async def measure(measured: Measured, *, rounds: int, addresses: int) -> dict[int, Rates]:
    store = measured.store
    counted = Counted(store)
    cache = Cache(counted, PREFIXES)  # type: ignore[arg-type]  # commit's answer is passed through
    await _prepare(store)
    watching = asyncio.create_task(cache.run())
    try:
        await cache.synced()
        bench = Bench(measured, counted, Ipam(cache, node=NODE), addresses)
        rates = {flight: Rates() for flight in IN_FLIGHT}
        for number in range(rounds + 1):
            for flight in IN_FLIGHT:
                await bench.round(flight, rates[flight] if number else Rates())
        return rates
    finally:
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)


async def _prepare(store: Datastore) -> None:
    def resource(kind: str, name: str, spec: documents.Document) -> Put:
        document = documents.new_document(kind, name, spec, uid="bench", created="2026-11-24T00:00:00Z")
        return Put(ResourceKey(kind, name).path, documents.encode(document))

    config = IpamConfig(strict_affinity=True, auto_allocate_blocks=True, max_blocks_per_host=1000)
    writes = (
        resource("IPPool", "bench", {"cidr": "10.64.0.0/16"}),
        resource("Node", NODE, {}),
        Put(CONFIG_KEY, config.encode()),
    )
    await store.commit(Transaction((), writes))


class Bench:
    def __init__(self, measured: Measured, counted: Counted, ipam: Ipam, addresses: int) -> None:
        self._store = measured.store
        self._raw = measured.raw
        self._counted = counted
        self._ipam = ipam
        self._addresses = addresses
        self._number = 0

    async def round(self, flight: int, rates: Rates) -> None:
        names = [f"libnetwork.{NODE}.{self._number + each:032x}" for each in range(self._addresses)]
        self._number += self._addresses
        rates.ours.append(await _timed(flight, names, self._single))
        rates.raw.append(await asyncio.to_thread(self._raw, flight, names) if self._raw else rates.ours[-1])
        rates.sized.append(await _timed(flight, names, self._sized))
        before = self._counted.transactions
        rates.assigned.append(await _timed(flight, names, self._assign))
        rates.transactions.append((self._counted.transactions - before) / len(names))
        rates.released.append(await _timed(flight, names, self._release))

    async def _single(self, name: str) -> None:
        key = f"/calico-libnetwork/v1/bench/{name}"
        outcome = await self._store.commit(Transaction((absent(key),), (Put(key, _SMALL),)))
        _require(outcome.succeeded)

    async def _sized(self, name: str) -> None:
        key = f"{IPAM_PREFIX}bench/{name}"
        block = Put(f"{IPAM_PREFIX}bench/block", _HALF_FULL)
        outcome = await self._store.commit(Transaction((absent(key),), (Put(key, _SMALL), block)))
        _require(outcome.succeeded)

    async def _assign(self, name: str) -> None:
        await self._ipam.auto_assign(4, handle=name, attributes={"node": NODE})

    async def _release(self, name: str) -> None:
        _require(bool(await self._ipam.release_handle(name)))


def _require(happened: bool) -> None:
    """Not ``assert``, which an optimised Python leaves out together with what it asks."""
    if not happened:
        raise RuntimeError("the datastore or IPAM refused what nothing stands in the way of")


async def _timed(flight: int, names: Sequence[str], call: Callable[[str], Awaitable[None]]) -> float:
    """Calls per second with ``flight`` of them under way at any time."""
    waiting = iter(names)

    async def work() -> None:
        for name in waiting:
            await call(name)

    start = time.perf_counter()
    await asyncio.gather(*(work() for _ in range(flight)))
    return len(names) / (time.perf_counter() - start)


class RawSqlite:
    """SQLite itself, set as the embedded datastore sets it: each statement is a transaction and a commit to the disk.

    All threads share one connection. With one each they are slower: they wait for the file's lock by sleeping.
    """

    def __init__(self, path: Path) -> None:
        self._connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        for setting in ("locking_mode = EXCLUSIVE", "journal_mode = WAL", "synchronous = FULL"):
            self._connection.execute(f"PRAGMA {setting}")
        self._connection.execute("CREATE TABLE item (key TEXT PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID")
        self._lock = threading.Lock()

    def run(self, flight: int, names: Sequence[str]) -> float:
        waiting = iter(names)

        def work() -> None:
            while True:
                with self._lock:
                    name = next(waiting, None)
                    if name is None:
                        return
                    key = f"/calico-libnetwork/v1/bench/{name}"
                    self._connection.execute("INSERT INTO item VALUES (?, ?)", (key, _SMALL))

        threads = [threading.Thread(target=work) for _ in range(flight)]
        start = time.perf_counter()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return len(names) / (time.perf_counter() - start)

    def close(self) -> None:
        self._connection.close()


@asynccontextmanager
async def sqlite() -> AsyncGenerator[Measured, None]:
    with tempfile.TemporaryDirectory(prefix="bench-ipam-", dir=Path.cwd()) as directory:
        store = await SqliteDatastore.open(Path(directory) / "calico.db")
        raw = RawSqlite(Path(directory) / "raw.db")
        try:
            yield Measured(store, raw.run)
        finally:
            raw.close()
            await store.close()


@asynccontextmanager
async def etcd() -> AsyncGenerator[Measured, None]:
    server = EtcdServer()
    await asyncio.to_thread(server.start)
    store = EtcdDatastore(server.settings())
    try:
        yield Measured(store, None)
    finally:
        await store.close()
        await asyncio.to_thread(server.remove)


STORES = {"sqlite": sqlite, "etcd": etcd}


def show(store: str, rates: dict[int, Rates]) -> Table:
    table = Table(title=f"IPAM on {store}: per second, median of the rounds")
    for heading in (
        "in flight",
        "raw",
        "through ours",
        "of IPAM's size",
        "assigned",
        "of raw",
        "to reach",
        "of ours",
        "released",
        "writes per address",
    ):
        table.add_column(heading, justify="right")
    for flight, each in rates.items():
        raw, ours, assigned = (statistics.median(rate) for rate in (each.raw, each.ours, each.assigned))
        sized, released = statistics.median(each.sized), statistics.median(each.released)
        table.add_row(
            str(flight), f"{raw:.0f}", f"{ours:.0f}", f"{sized:.0f}", f"{assigned:.0f}", f"{assigned / raw:.2f}",
            str(TARGETS.get(flight, "")), f"{assigned / ours:.2f}", f"{released:.0f}",
            f"{statistics.median(each.transactions):.2f}",
        )  # fmt: skip
    return table


async def run(stores: Sequence[str], *, rounds: int, addresses: int) -> None:
    for name in stores:
        async with AsyncExitStack() as stack:
            measured = await stack.enter_async_context(STORES[name]())
            Console().print(show(name, await measure(measured, rounds=rounds, addresses=addresses)))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("stores", nargs="*", choices=[[], *STORES], default=[])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--addresses", type=int, default=1000)
    arguments = parser.parse_args()
    asyncio.run(run(arguments.stores or list(STORES), rounds=arguments.rounds, addresses=arguments.addresses))


if __name__ == "__main__":
    main()
