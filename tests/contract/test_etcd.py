"""What goes wrong with a real etcd: members that die, hang or are replaced, answers that are lost, users and tokens."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from dataclasses import replace

import pytest

from calico_libnetwork.cli.session import open_datastore
from calico_libnetwork.config import Config
from calico_libnetwork.datastore.cache import Cache
from calico_libnetwork.datastore.etcd import EtcdDatastore, EtcdSettings, Timing
from calico_libnetwork.datastore.protocol import Datastore, Delete, Operation, Put, Transaction, absent, unchanged
from calico_libnetwork.errors import ConfigError, DatastoreError, DatastoreUnavailable
from tests.contract.proxy import crowded, proxied
from tests.etcd_server import Certificates, EtcdServer, free_port

QUICK = Timing(deadline=0.5, limit=2, progress=0.2)
BRIEF = Timing(connect=0.3, deadline=0.6, limit=2)


@asynccontextmanager
async def connected(settings: EtcdSettings, timing: Timing = QUICK) -> AsyncIterator[EtcdDatastore]:
    store = EtcdDatastore(settings, timing=timing)
    try:
        yield store
    finally:
        await store.close()


@asynccontextmanager
async def cached(store: Datastore, prefix: str) -> AsyncIterator[Cache]:
    cache = Cache(store, [prefix], pause=0.05, patience=2)
    task = asyncio.create_task(cache.run())
    try:
        await cache.synced()
        yield cache
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def until(condition: Callable[[], bool], seconds: float = 15) -> None:
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110  conditions of many kinds
            await asyncio.sleep(0.01)


async def write(store: Datastore, *operations: Operation) -> int:
    return (await store.commit(Transaction((), operations))).revision


def content(cache: Cache) -> dict[str, bytes]:
    return {item.key: item.value for item in cache.under("/")}


@pytest.fixture
def own_etcd() -> Iterator[EtcdServer]:
    """For a test that stops it."""
    server = EtcdServer()
    server.start()
    yield server
    server.remove()


@pytest.fixture
def cluster() -> Iterator[list[EtcdServer]]:
    """Three members, which elect quickly."""
    peers = {name: free_port() for name in ("one", "two", "three")}
    members = [
        EtcdServer("--heartbeat-interval", "50", "--election-timeout", "500", name=n, cluster=peers) for n in peers
    ]
    for member in members:
        member.launch()
    for member in members:
        member.wait()
    yield members
    for member in members:
        member.remove()


def together(members: list[EtcdServer]) -> EtcdSettings:
    return EtcdSettings(tuple(member.endpoint for member in members))


async def test_no_etcd_is_said_at_once_and_by_name() -> None:
    endpoint = f"http://127.0.0.1:{free_port()}"
    async with connected(EtcdSettings((endpoint,)), Timing()) as store:
        begun = time.monotonic()
        with pytest.raises(DatastoreUnavailable, match=rf"^etcd \({endpoint}\) does not answer: .*refused"):
            await store.list(["/"])
        with pytest.raises(DatastoreUnavailable, match="does not answer"):
            await anext(store.watch(["/"], 1))
        assert time.monotonic() - begun < 1


async def test_hanging_etcd_fails_a_write_within_the_deadline(own_etcd: EtcdServer) -> None:
    async with connected(own_etcd.settings()) as store:
        await write(store, Put("/a", b"1"))
        with own_etcd.paused():
            begun = time.monotonic()
            with pytest.raises(DatastoreUnavailable, match="does not answer"):
                await write(store, Put("/a", b"2"))
            assert time.monotonic() - begun < 1
        await until_answers(store)


async def until_answers(store: Datastore) -> None:
    async with asyncio.timeout(10):
        while True:
            try:
                await store.list(["/"])
            except DatastoreUnavailable:
                await asyncio.sleep(0.05)
            else:
                return


async def test_connection_that_nobody_takes_is_given_up_in_time_and_said_by_name(etcd: EtcdServer) -> None:
    async with crowded(etcd.port) as (proxy, _), connected(EtcdSettings((proxy.endpoint,)), BRIEF) as store:
        begun = time.monotonic()
        said = rf"^etcd \({proxy.endpoint}\) does not answer: ipv4:127.0.0.1:{proxy.port}: no connection in time$"
        with pytest.raises(DatastoreUnavailable, match=said):
            await write(store, Put("/a", b"1"))
        assert time.monotonic() - begun < 1


@pytest.mark.parametrize("fault", ["cut", "mute", "crowded"])
async def test_endpoint_that_ends_or_drops_the_handshake_is_passed_over(
    etcd: EtcdServer, root: str, fault: str
) -> None:
    async with AsyncExitStack() as stack:
        if fault == "crowded":
            proxy, _ = await stack.enter_async_context(crowded(etcd.port))
        else:
            proxy = await stack.enter_async_context(proxied(etcd.port))
            proxy.closed, proxy.mute = fault == "cut", fault == "mute"
        store = await stack.enter_async_context(connected(EtcdSettings((proxy.endpoint, etcd.endpoint)), BRIEF))
        assert await write(store, Put(f"{root}a", b"1"))  # no compare: it is repeated only if it never left
        assert [item.value for item in (await store.list([root])).items] == [b"1"]


async def test_command_waits_for_a_connection_that_takes_long(etcd: EtcdServer) -> None:
    """On a machine under load, the first packet of a connection is sent a second and a third time."""
    async with crowded(etcd.port) as (proxy, server):
        store = await open_datastore(Config(datastore_type="etcdv3", etcd_endpoints=(proxy.endpoint,)))
        answer = asyncio.create_task(store.list(["/calico/"]))
        await asyncio.sleep(2.1)
        await server.start_serving()
        assert (await answer).revision > 0
        await store.close()


async def test_dead_endpoint_is_passed_over(etcd: EtcdServer, root: str) -> None:
    settings = replace(etcd.settings(), endpoints=(f"http://127.0.0.1:{free_port()}", etcd.endpoint))
    async with connected(settings) as store:
        revision = await write(store, Put(f"{root}a", b"1"))
        async with aclosing(store.watch([root], revision)) as batches:
            async for batch in batches:
                if batch.events:
                    break
            assert [event.key for event in batch.events] == [f"{root}a"]


@pytest.mark.parametrize("how", ["kill", "pause"])
async def test_cluster_that_loses_a_member_goes_on(cluster: list[EtcdServer], how: str) -> None:
    async with connected(together(cluster)) as store, cached(store, "/") as cache:
        await cache.commit(Transaction([absent("/before")], [Put("/before", b"")]))
        if how == "kill":
            await asyncio.to_thread(cluster[0].stop, kill=True)
            await survives(store, cache)
        else:
            with cluster[0].paused():
                await survives(store, cache)


async def survives(store: EtcdDatastore, cache: Cache) -> None:
    """After at most an election, writes and watches go on with the other members."""
    async with asyncio.timeout(10):
        while True:
            try:
                await cache.commit(Transaction([absent("/after")], [Put("/after", b"")]))
                break
            except DatastoreUnavailable:
                await asyncio.sleep(0.05)
    await until(lambda: cache.connected)
    await write(store, Put("/elsewhere", b""))
    await until(lambda: content(cache).keys() == {"/before", "/after", "/elsewhere"})


async def test_etcd_may_be_far_away(etcd: EtcdServer) -> None:
    async with proxied(etcd.port) as proxy, connected(EtcdSettings((proxy.endpoint,)), Timing()) as store:
        proxy.delay = 0.15
        await store.list(["/"])


async def test_write_whose_answer_is_lost_is_recognised_on_the_next_member(etcd: EtcdServer, root: str) -> None:
    async with proxied(etcd.port) as proxy, connected(EtcdSettings((proxy.endpoint, etcd.endpoint))) as store:
        before = await write(store, Put(f"{root}changed", b"1"), Put(f"{root}gone", b"1"))
        changed, gone = (await store.list([root])).items
        proxy.mute = True
        outcome = await store.commit(
            Transaction(
                [unchanged(changed), unchanged(gone), absent(f"{root}new")],
                [Put(f"{root}changed", b"2"), Delete(f"{root}gone"), Put(f"{root}new", b"1")],
            )
        )
        assert outcome.succeeded
        assert outcome.revision == before + 1
        assert outcome.current == {item.key: item for item in (await store.list([root])).items} | {f"{root}gone": None}


async def test_unconditional_write_whose_answer_is_lost_is_not_repeated(etcd: EtcdServer, root: str) -> None:
    async with proxied(etcd.port) as proxy, connected(EtcdSettings((proxy.endpoint, etcd.endpoint))) as store:
        await store.list([root])
        proxy.mute = True
        with pytest.raises(DatastoreUnavailable):
            await write(store, Put(f"{root}a", b"1"))
        assert [item.version for item in (await store.list([root])).items] == [1]


async def test_silent_watch_is_given_up_and_a_quiet_one_is_not(etcd: EtcdServer, root: str) -> None:
    async with proxied(etcd.port) as proxy, connected(EtcdSettings((proxy.endpoint,))) as store:
        start = (await store.list([root])).revision + 1
        async with aclosing(store.watch([root, "/other/"], start)) as batches:
            for _ in range(6):  # two confirmations, then signs of life
                assert (await anext(batches)).events == ()
            proxy.mute = True
            with pytest.raises(DatastoreUnavailable, match="said nothing for"):
                async for _ in batches:
                    pass


async def test_watch_on_a_hanging_member_is_given_up(own_etcd: EtcdServer) -> None:
    async with connected(own_etcd.settings()) as store:
        await store.list(["/"])
        with own_etcd.paused(), pytest.raises(DatastoreUnavailable):
            await anext(store.watch(["/"], 1))


async def test_cache_outlives_a_restart_of_etcd(own_etcd: EtcdServer) -> None:
    async with connected(own_etcd.settings()) as store, cached(store, "/") as cache:
        await cache.commit(Transaction((), [Put("/a", b"1")]))
        await asyncio.to_thread(own_etcd.stop)
        await until(lambda: not cache.connected)
        assert content(cache) == {"/a": b"1"}
        with pytest.raises(DatastoreUnavailable, match=own_etcd.endpoint):
            await cache.commit(Transaction((), [Put("/b", b"")]))
        await asyncio.to_thread(own_etcd.start)
        await until(lambda: cache.connected)
        await cache.commit(Transaction((), [Put("/b", b"1")]))
        assert content(cache) == {"/a": b"1", "/b": b"1"}


async def test_cache_follows_a_store_that_was_replaced(own_etcd: EtcdServer) -> None:
    async with connected(own_etcd.settings()) as store, cached(store, "/") as cache:
        for number in range(30):
            await cache.commit(Transaction((), [Put("/a", str(number).encode()), Put(f"/{number}", b"")]))
        await cache.commit(Transaction((), [Delete("/7")]))
        await asyncio.to_thread(own_etcd.wipe)
        await asyncio.to_thread(own_etcd.start)
        async with connected(own_etcd.settings()) as other:
            await write(other, Put("/a", b"new"), Put("/7", b"new"))
        await until(lambda: content(cache) == {"/a": b"new", "/7": b"new"})
        await cache.commit(Transaction((), [Put("/b", b"1")]))
        assert content(cache) == {"/a": b"new", "/7": b"new", "/b": b"1"}


async def test_all_prefixes_are_watched_over_one_stream(own_etcd: EtcdServer) -> None:
    async with connected(own_etcd.settings()) as store:
        cache = Cache(store, ["/a/", "/b/", "/c/"])
        task = asyncio.create_task(cache.run())
        await cache.synced()
        for number, prefix in enumerate(("/a/", "/b/", "/c/"), start=1):
            await write(store, Put(f"{prefix}key", b""))
            await until(lambda number=number: len(cache.under("/")) == number)  # type: ignore[misc]
        counted = await asyncio.to_thread(own_etcd.metrics)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    assert "\netcd_debugging_mvcc_watch_stream_total 1\n" in counted
    assert "\netcd_debugging_mvcc_watcher_total 3\n" in counted


async def test_change_of_cluster_ends_the_watch_on_the_old_one(etcd: EtcdServer, own_etcd: EtcdServer) -> None:
    async with connected(EtcdSettings((etcd.endpoint, own_etcd.endpoint))) as store:
        start = (await store.list(["/"])).revision + 1
        async with aclosing(store.watch(["/"], start)) as batches:
            await anext(batches)
            reader = asyncio.create_task(exhausted(batches))
            store._connection._current = 1
            await store.list(["/"])
            with pytest.raises(DatastoreUnavailable):
                await reader


async def exhausted(batches: AsyncIterator[object]) -> None:
    async for _ in batches:
        pass


async def test_cache_that_missed_a_compaction_catches_up(etcd: EtcdServer, root: str) -> None:
    async with (
        proxied(etcd.port) as proxy,
        connected(EtcdSettings((proxy.endpoint,))) as store,
        cached(store, root) as cache,
        connected(etcd.settings()) as other,
    ):
        await write(other, Put(f"{root}kept", b"1"), Put(f"{root}gone", b"1"), Put(f"{root}changed", b"1"))
        await until(lambda: len(content(cache)) == 3)
        proxy.cut()
        await until(lambda: not cache.connected)
        await write(other, Delete(f"{root}gone"), Put(f"{root}changed", b"2"))
        await other.compact(await write(other, Put(f"{root}new", b"1")))
        proxy.closed = False
        expected = {f"{root}kept": b"1", f"{root}changed": b"2", f"{root}new": b"1"}
        await until(lambda: content(cache) == expected)


async def test_token_that_expired_is_renewed_once(etcd_with_password: EtcdServer, root: str) -> None:
    settings = etcd_with_password.settings(username="calico", password="secret")
    async with connected(settings, Timing()) as store:
        await write(store, Put(f"{root}a", b"1"))
        token = store._connection._token
        await asyncio.sleep(2.5)  # the server's tokens live for one second
        readings = await asyncio.gather(*(store.list([root]) for _ in range(10)))
        assert {len(reading.items) for reading in readings} == {1}
        assert store._connection._token not in (None, token)


async def test_users_survive_a_restart_that_forgets_their_tokens(root: str) -> None:
    server = EtcdServer()
    await asyncio.to_thread(server.start)
    try:
        for command in (["user", "add", "root:secret"], ["user", "grant-role", "root", "root"], ["auth", "enable"]):
            await asyncio.to_thread(server.control, *command)
        settings = server.settings(username="root", password="secret")
        async with connected(settings, Timing()) as store, cached(store, root) as cache:
            await cache.commit(Transaction((), [Put(f"{root}a", b"1")]))
            await asyncio.to_thread(server.stop)
            await asyncio.to_thread(server.start)
            await until(lambda: cache.connected)
            await cache.commit(Transaction((), [Put(f"{root}b", b"1")]))
            assert len(content(cache)) == 2
    finally:
        server.remove()


async def test_wrong_password_is_said(etcd_with_password: EtcdServer) -> None:
    async with connected(etcd_with_password.settings(username="calico", password="wrong"), Timing()) as store:
        with pytest.raises(DatastoreError, match="refuses the user name or the password"):
            await store.list(["/"])


async def test_missing_user_is_said(etcd_with_password: EtcdServer) -> None:
    async with connected(etcd_with_password.settings()) as store:
        with pytest.raises(DatastoreError, match="user name is empty"):
            await store.list(["/"])


async def test_user_name_does_no_harm_where_etcd_has_no_users(etcd: EtcdServer, root: str) -> None:
    async with connected(etcd.settings(username="calico", password="secret")) as store:
        await write(store, Put(f"{root}a", b"1"))


async def test_user_without_permission_is_told_so(etcd_with_certificates: EtcdServer) -> None:
    await asyncio.to_thread(_add_stranger, etcd_with_certificates)
    async with connected(etcd_with_certificates.settings("stranger")) as store:
        with pytest.raises(DatastoreError, match="permits this user too little"):
            await store.list(["/"])
        with pytest.raises(DatastoreUnavailable, match="cancelled the watch"):
            await exhausted(store.watch(["/"], 1))


def _add_stranger(server: EtcdServer) -> None:
    if "stranger" not in server.control("user", "list").split():
        server.control("user", "add", "stranger", "--no-password")


async def test_client_certificate_is_needed_and_the_authority_checked(
    etcd_with_certificates: EtcdServer, certificates: Certificates
) -> None:
    without = replace(etcd_with_certificates.settings("calico"), cert_file="", key_file="")
    other_authority = replace(etcd_with_certificates.settings("calico"), ca_cert_file=certificates.file("stranger.crt"))
    for settings in (without, other_authority):
        async with connected(settings) as store:
            with pytest.raises(DatastoreUnavailable, match="does not answer"):
                await store.list(["/"])


async def test_certificate_files_are_checked_at_the_start(certificates: Certificates) -> None:
    with pytest.raises(ConfigError, match="/none cannot be read"):
        EtcdDatastore(EtcdSettings(("https://127.0.0.1:1",), ca_cert_file="/none"))
    with pytest.raises(ConfigError, match="go together"):
        EtcdDatastore(EtcdSettings(("https://127.0.0.1:1",), cert_file=certificates.file("root.crt")))


async def test_key_that_is_no_text_stops_nobody(etcd: EtcdServer) -> None:
    key = b"/no-text/\xff\xfe".decode("utf-8", "surrogateescape")
    async with connected(etcd.settings()) as store:
        await write(store, Put("/no-text/a", b""), Put(key, b""))
        assert [item.key for item in (await store.list(["/no-text/"])).items] == ["/no-text/a", key]
        await write(store, Delete(key))


async def test_value_that_is_too_large_is_refused_with_a_sentence(etcd: EtcdServer, root: str) -> None:
    async with connected(etcd.settings(), Timing()) as store:
        with pytest.raises(DatastoreError, match="too large"):
            await write(store, Put(f"{root}a", b"x" * 1_700_000))


async def test_full_etcd_is_said_with_the_remedy() -> None:
    server = EtcdServer("--quota-backend-bytes", "200000")
    await asyncio.to_thread(server.start)
    try:
        async with connected(server.settings(), Timing()) as store:
            with pytest.raises(DatastoreError, match="is full; compact and defragment it"):
                await fill(store)
    finally:
        server.remove()


async def fill(store: Datastore) -> None:
    for number in range(100):
        await write(store, Put(f"/{number}", b"x" * 100_000))


async def test_ten_thousand_keys_are_one_listing(etcd: EtcdServer, root: str) -> None:
    async with connected(etcd.settings(), Timing()) as store:
        for start in range(0, 10_000, 100):
            await write(store, *(Put(f"{root}{number:05}", b"x" * 600) for number in range(start, start + 100)))
        assert len((await store.list([root])).items) == 10_000


async def test_renewed_connections_serve_on_and_the_cache_follows(own_etcd: EtcdServer) -> None:
    """As after a change of the host's address, when the old ones are silent."""
    async with connected(own_etcd.settings()) as store, cached(store, "/") as cache:
        await write(store, Put("/a", b"1"))
        store.renew()
        await write(store, Put("/b", b"2"))
        await until(lambda: content(cache) == {"/a": b"1", "/b": b"2"})
