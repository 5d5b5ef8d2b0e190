from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager

import pytest
import structlog

from calico_libnetwork.datastore.cache import Cache
from calico_libnetwork.datastore.ledger import Ledger
from calico_libnetwork.datastore.memory import MemoryDatastore
from calico_libnetwork.datastore.protocol import (
    Batch,
    Delete,
    Event,
    KeyValue,
    Listing,
    Outcome,
    Put,
    Transaction,
    absent,
    unchanged,
)
from calico_libnetwork.errors import Compacted, DatastoreError, DatastoreUnavailable


class Faulty:
    """A datastore whose watch can be held back or broken, and which can be exchanged for another."""

    def __init__(self) -> None:
        self.store = MemoryDatastore()
        self.down = False
        self.open_gate = asyncio.Event()
        self.open_gate.set()
        self.broken: asyncio.Future[Exception] = asyncio.get_running_loop().create_future()
        self.listings = 0

    @property
    def description(self) -> str:
        return "etcd (http://10.0.0.1:2379)"

    def fail(self, error: Exception) -> None:
        """The present watch ends with ``error``."""
        broken, self.broken = self.broken, asyncio.get_running_loop().create_future()
        broken.set_result(error)

    async def get(self, keys: Sequence[str]) -> Listing:
        self.require_up()
        return await self.store.get(keys)

    async def list(self, prefixes: Sequence[str]) -> Listing:
        self.require_up()
        self.listings += 1
        return await self.store.list(prefixes)

    async def commit(self, transaction: Transaction) -> Outcome:
        self.require_up()
        return await self.store.commit(transaction)

    async def watch(self, prefixes: Sequence[str], start_revision: int) -> AsyncGenerator[Batch, None]:
        batches = self.store.watch(prefixes, start_revision)
        broken = self.broken
        try:
            while True:
                following = asyncio.ensure_future(anext(batches))
                watched: list[asyncio.Future[object]] = [following, broken]  # type: ignore[list-item]
                await asyncio.wait(watched, return_when=asyncio.FIRST_COMPLETED)
                if broken.done():
                    following.cancel()
                    await asyncio.gather(following, return_exceptions=True)
                    raise broken.result()
                await self.open_gate.wait()
                yield following.result()
        finally:
            await batches.aclose()

    async def compact(self, revision: int) -> None:
        await self.store.compact(revision)

    async def close(self) -> None:
        await self.store.close()

    def require_up(self) -> None:
        if self.down:
            raise DatastoreUnavailable(f"{self.description} does not answer")


class Running:
    """A cache that runs, and everything its listeners were told."""

    def __init__(self, faulty: Faulty, cache: Cache) -> None:
        self.faulty = faulty
        self.cache = cache
        self.told: list[Event] = []
        cache.subscribe(self.told.extend)

    async def elsewhere(self, *operations: Put | Delete) -> int:
        """Another process writes."""
        return (await self.faulty.store.commit(Transaction((), operations))).revision

    def content(self) -> dict[str, bytes]:
        return {item.key: item.value for item in self.cache.under("/")}


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not condition():  # noqa: ASYNC110  conditions of many kinds
            await asyncio.sleep(0.001)


@asynccontextmanager
async def started(*, wait: bool = True) -> AsyncIterator[Running]:
    faulty = Faulty()
    cache = Cache(faulty, ["/calico/", "/own/"], pause=0.01, patience=0.05)
    running = Running(faulty, cache)
    task = asyncio.create_task(cache.run())
    if wait:
        await cache.synced()
    try:
        yield running
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


@pytest.fixture
async def running() -> AsyncIterator[Running]:
    async with started() as each:
        yield each


async def test_writes_of_others_arrive_and_are_told_once(running: Running) -> None:
    revision = await running.elsewhere(Put("/calico/a", b"1"), Put("/elsewhere/b", b"2"))
    await until(lambda: running.cache.get("/calico/a") is not None)
    assert running.told == [Event("/calico/a", KeyValue("/calico/a", b"1", revision, revision, 1), revision)]
    assert running.cache.get("/elsewhere/b") is None


async def test_own_write_is_visible_and_told_before_commit_returns_and_its_echo_is_no_news(running: Running) -> None:
    outcome = await running.cache.commit(Transaction([absent("/calico/a")], [Put("/calico/a", b"1")]))
    assert running.cache.get("/calico/a") == outcome.current["/calico/a"]
    assert [event.revision for event in running.told] == [outcome.revision]
    await running.elsewhere(Put("/own/after", b""))
    await until(lambda: len(running.told) > 1)
    assert [event.key for event in running.told] == ["/calico/a", "/own/after"]


async def test_failed_commit_brings_what_is_there(running: Running) -> None:
    running.faulty.open_gate.clear()
    await running.elsewhere(Put("/calico/a", b"theirs"))
    outcome = await running.cache.commit(Transaction([absent("/calico/a")], [Put("/calico/a", b"ours")]))
    assert not outcome.succeeded
    assert running.content() == {"/calico/a": b"theirs"}
    assert [event.key for event in running.told] == ["/calico/a"]


async def test_failed_commit_brings_that_a_key_is_gone(running: Running) -> None:
    await running.cache.commit(Transaction((), [Put("/calico/a", b"1")]))
    item = running.cache.get("/calico/a")
    assert item is not None
    running.faulty.open_gate.clear()
    revision = await running.elsewhere(Delete("/calico/a"))
    assert not (await running.cache.commit(Transaction([unchanged(item)], [Put("/calico/a", b"2")]))).succeeded
    assert running.told[-1] == Event("/calico/a", None, revision)
    assert running.content() == {}


async def test_late_events_neither_undo_an_own_write_nor_bring_back_what_was_deleted(running: Running) -> None:
    running.faulty.open_gate.clear()
    await running.elsewhere(Put("/calico/a", b"1"), Put("/calico/b", b"1"))
    await running.elsewhere(Delete("/calico/a"))
    await running.cache.commit(Transaction((), [Put("/calico/a", b"2"), Delete("/calico/b")]))
    expected = [("/calico/a", b"2"), ("/calico/b", None)]
    assert running.content() == {"/calico/a": b"2"}
    running.faulty.open_gate.set()
    await running.elsewhere(Put("/own/after", b""))
    await until(lambda: running.cache.get("/own/after") is not None)
    told = [(event.key, event.current.value if event.current else None) for event in running.told]
    assert told == [expected[0], ("/own/after", b"")]
    assert running.content() == {"/calico/a": b"2", "/own/after": b""}


async def test_key_created_again_by_others_after_an_own_delete_is_seen(running: Running) -> None:
    await running.cache.commit(Transaction((), [Put("/calico/a", b"1")]))
    await running.cache.commit(Transaction((), [Delete("/calico/a")]))
    await running.elsewhere(Put("/calico/a", b"2"))
    await until(lambda: running.content() == {"/calico/a": b"2"})


async def test_refresh_reads_anew(running: Running) -> None:
    await running.cache.commit(Transaction((), [Put("/calico/gone", b"1")]))
    running.faulty.open_gate.clear()
    await running.elsewhere(Put("/calico/a", b"1"), Delete("/calico/gone"))
    await running.cache.refresh(["/calico/a", "/calico/gone", "/calico/none"])
    assert running.content() == {"/calico/a": b"1"}


@pytest.mark.parametrize("error", [Compacted("gone", 5), DatastoreUnavailable("lost"), DatastoreError("refused")])
async def test_after_a_lost_watch_the_difference_is_applied(running: Running, error: Exception) -> None:
    await running.elsewhere(Put("/calico/kept", b"1"), Put("/calico/gone", b"1"), Put("/calico/changed", b"1"))
    await until(lambda: len(running.told) == 3)
    running.told.clear()
    running.faulty.open_gate.clear()
    await running.elsewhere(Delete("/calico/gone"), Put("/calico/changed", b"2"), Put("/calico/new", b"1"))
    running.faulty.fail(error)
    running.faulty.open_gate.set()
    await until(lambda: len(running.told) == 3)
    assert {(event.key, event.current.value if event.current else None) for event in running.told} == {
        ("/calico/gone", None), ("/calico/changed", b"2"), ("/calico/new", b"1"),
    }  # fmt: skip
    assert running.content() == {"/calico/kept": b"1", "/calico/changed": b"2", "/calico/new": b"1"}


async def test_store_whose_revision_went_back_replaces_everything(running: Running) -> None:
    for number in range(20):
        await running.cache.commit(Transaction((), [Put("/calico/a", str(number).encode()), Put("/calico/b", b"")]))
    await running.cache.commit(Transaction((), [Delete("/calico/b")]))
    restored = MemoryDatastore()
    await restored.commit(Transaction((), [Put("/calico/a", b"old"), Put("/calico/b", b"old")]))
    running.faulty.store = restored
    running.faulty.fail(DatastoreUnavailable("restored"))
    await until(lambda: running.content() == {"/calico/a": b"old", "/calico/b": b"old"})
    await running.elsewhere(Put("/calico/a", b"new"))
    await running.elsewhere(Delete("/calico/b"))
    await until(lambda: running.content() == {"/calico/a": b"new"})
    outcome = await running.cache.commit(Transaction((), [Put("/calico/b", b"own")]))
    assert running.cache.get("/calico/b") == outcome.current["/calico/b"]


async def test_other_cluster_at_a_higher_revision_replaces_everything(running: Running) -> None:
    await running.cache.commit(Transaction((), [Put("/calico/a", b"1"), Put("/calico/b", b"1")]))
    item = KeyValue("/calico/a", b"other", 2, 2, 1)  # the very revision of ours, and another value
    running.faulty.store = MemoryDatastore(Ledger([item], revision=50))
    running.faulty.fail(DatastoreUnavailable("exchanged"))
    await until(lambda: running.content() == {"/calico/a": b"other"})


async def test_write_during_a_listing_is_not_undone_by_it(running: Running) -> None:
    listing = await running.faulty.store.list(["/calico/", "/own/"])
    await running.cache.commit(Transaction((), [Put("/calico/a", b"1")]))
    await running.cache.commit(Transaction((), [Put("/calico/b", b"1")]))
    await running.cache.commit(Transaction((), [Delete("/calico/b")]))
    assert running.cache._adopt(listing, listing.revision) == []
    assert running.content() == {"/calico/a": b"1"}


async def test_outage_is_logged_when_it_begins_and_when_it_ends() -> None:
    with structlog.testing.capture_logs() as logs:
        async with started() as running:
            running.faulty.down = True
            running.faulty.fail(DatastoreUnavailable("connection refused"))
            await until(lambda: not running.cache.connected)
            await asyncio.sleep(0.05)
            assert running.cache.outage == "etcd (http://10.0.0.1:2379) does not answer"
            assert running.cache.in_sync.is_set()
            running.faulty.down = False
            await until(lambda: running.cache.connected)
    assert [entry["event"] for entry in logs] == ["datastore unavailable", "datastore is back"]


async def test_before_the_first_listing_writes_fail_in_bounded_time_and_name_the_store() -> None:
    async with started(wait=False) as running:
        running.faulty.down = True
        begun = time.monotonic()
        with pytest.raises(DatastoreUnavailable, match=r"etcd \(http://10\.0\.0\.1:2379\).*does not answer"):
            await running.cache.commit(Transaction((), [Put("/calico/a", b"")]))
        assert time.monotonic() - begun < 1
        running.faulty.down = False
        await running.cache.synced()
        assert (await running.cache.commit(Transaction((), [Put("/calico/a", b"")]))).succeeded


async def test_failing_listener_fails_neither_the_write_nor_the_others(running: Running) -> None:
    reported: list[str] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: reported.append(str(context["exception"])))

    def fail(_: Sequence[Event]) -> None:
        raise RuntimeError("no")

    running.cache.subscribe(fail)
    after: list[Event] = []
    unsubscribe = running.cache.subscribe(after.extend)
    await running.cache.commit(Transaction((), [Put("/calico/a", b"")]))
    assert reported == ["no"]
    assert [event.key for event in after] == ["/calico/a"]
    unsubscribe()
    await running.cache.commit(Transaction((), [Put("/calico/b", b"")]))
    assert [event.key for event in after] == ["/calico/a"]


async def test_prefix_is_read_in_key_order_and_cheaply_among_ten_thousand(running: Running) -> None:
    for first in range(0, 10_000, 100):
        await running.elsewhere(
            *(Put(f"/calico/{number % 7}/{number:05}", b"x") for number in range(first, first + 100))
        )
    await until(lambda: len(running.told) == 10_000)
    begun = time.perf_counter()
    for _ in range(1000):
        assert running.cache.under("/calico/none/") == []
        assert running.cache.get("/calico/3/00003") is not None
    assert time.perf_counter() - begun < 0.1
    keys = [item.key for item in running.cache.under("/calico/3/")]
    assert keys == sorted(keys)
    assert len(keys) == 1429


async def test_remembered_absences_are_bounded(running: Running) -> None:
    for first in range(0, 10_000, 100):
        await running.cache.commit(
            Transaction((), [Delete(f"/calico/{number}") for number in range(first, first + 100)])
        )
    assert len(running.cache._absent) == 4096
