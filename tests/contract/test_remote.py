"""The socket through which other processes reach the embedded datastore."""

from __future__ import annotations

import asyncio
import logging
import socket
import stat
from collections.abc import Generator
from contextlib import aclosing
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from calico_libnetwork.datastore.memory import MemoryDatastore
from calico_libnetwork.datastore.protocol import Put, Transaction
from calico_libnetwork.datastore.remote import RemoteDatastore
from calico_libnetwork.datastore.serve import serving
from calico_libnetwork.datastore.sqlite import SqliteDatastore
from calico_libnetwork.errors import ConfigError, DatastoreUnavailable


@pytest.fixture
def path() -> Generator[Path, None, None]:
    with TemporaryDirectory(prefix="served-") as directory:
        yield Path(directory) / "run" / "datastore.sock"


def mode(path: Path) -> int | None:
    return stat.S_IMODE(path.stat().st_mode) if path.exists() else None


def make_stale(path: Path) -> None:
    path.parent.mkdir()
    path.touch()


async def test_only_root_may_open_the_socket_and_it_goes_with_its_owner(path: Path) -> None:
    async with serving(MemoryDatastore(), path):
        assert mode(path) == 0o600
    assert mode(path) is None


async def test_stale_socket_is_replaced(path: Path) -> None:
    make_stale(path)
    async with serving(MemoryDatastore(), path):
        await (await RemoteDatastore.open(path)).close()


async def test_unusable_place_is_named(path: Path) -> None:
    path.parent.touch()
    with pytest.raises(ConfigError, match="cannot hold the datastore's socket"):
        async with serving(MemoryDatastore(), path):
            pass


async def test_client_and_owner_see_each_others_writes(path: Path, tmp_path: Path) -> None:
    owned = await SqliteDatastore.open(tmp_path / "calico.db")
    async with serving(owned, path):
        remote = await RemoteDatastore.open(path)
        assert remote.description == owned.description
        async with aclosing(owned.watch(["/a"], 2)) as batches:
            waiting = asyncio.ensure_future(anext(batches))
            outcome = await remote.commit(Transaction((), [Put("/a", b"\x00\xff")]))
            assert (await waiting).events[0].current == outcome.current["/a"]
        assert await owned.list(["/"]) == await remote.list(["/"])
        await remote.close()
    await owned.close()


async def test_nobody_serving_is_one_sentence(path: Path) -> None:
    with pytest.raises(DatastoreUnavailable, match=r"calico-libnetwork does not answer on .*datastore.sock: start it"):
        await RemoteDatastore.open(path)


async def test_owner_that_stops_ends_watches_at_once(path: Path) -> None:
    async with serving(MemoryDatastore(), path):
        remote = await RemoteDatastore.open(path)
        batches = remote.watch(["/"], 2)
        reader = asyncio.ensure_future(anext(batches))
        await asyncio.sleep(0.05)
    async with asyncio.timeout(3):
        with pytest.raises(DatastoreUnavailable, match="does not answer"):
            await reader
        with pytest.raises(DatastoreUnavailable, match="does not answer"):
            await remote.get(["/a"])
    await remote.close()


async def test_a_client_that_is_gone_already_is_no_error(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async with serving(MemoryDatastore(), path):
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(path))
            client.sendall(b"POST /watch HTTP/1.1\r\nHost: test\r\nContent-Length: 5\r\n\r\n")
        await (await RemoteDatastore.open(path)).close()  # connections are accepted in order
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING] == []


async def test_large_contents_pass(path: Path) -> None:
    store = MemoryDatastore()
    for number in range(40):
        await store.commit(Transaction((), [Put(f"/{number:02}", bytes(1 << 19))]))
    async with serving(store, path):
        remote = await RemoteDatastore.open(path)
        assert await remote.list(["/"]) == await store.list(["/"])
        await remote.close()
