"""The embedded datastore's file goes from hand to hand: a process that starts and stops, and commands meanwhile."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Coroutine
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from calico_libnetwork.datastore import embedded, serve
from calico_libnetwork.datastore.protocol import Put, Transaction
from calico_libnetwork.datastore.remote import RemoteDatastore
from calico_libnetwork.datastore.sqlite import SqliteDatastore
from calico_libnetwork.errors import AlreadyExists, DatastoreUnavailable

ROUNDS = 40


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "lib" / "calico.db"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "run" / "control.sock"


Command = Callable[[int], Coroutine[Any, Any, type]]


@pytest.fixture
def command(file: Path, path: Path) -> Command:
    """Writes its number and reads it back; the kind of datastore that it had."""

    async def run(number: int) -> type:
        await asyncio.sleep(random.uniform(0, 0.03))
        store = await embedded.opened(file, path)
        await store.commit(Transaction((), [Put(f"/{number}", b"x")]))
        assert f"/{number}" in [item.key for item in (await store.list(["/"])).items]
        await store.close()
        return type(store)

    return run


async def test_a_process_that_starts_and_commands_meanwhile_never_meet(
    file: Path, path: Path, command: Command
) -> None:
    used: set[type] = set()
    for first in range(0, ROUNDS * 4, 4):
        commands = asyncio.gather(*(command(first + number) for number in range(4)))
        await asyncio.sleep(random.uniform(0, 0.03))
        async with embedded.owned(file, path):
            used |= {*await commands}
    assert len(used) == 2  # some had the file, some were answered by the process
    store = await embedded.opened(file, path)
    assert len((await store.list(["/"])).items) == ROUNDS * 4
    await store.close()


async def test_a_process_that_stops_leaves_no_moment_in_which_nobody_has_the_file(file: Path, path: Path) -> None:
    async def visit() -> None:
        await asyncio.sleep(random.uniform(0, 0.01))
        await (await embedded.opened(file, path)).close()

    for _ in range(10):
        async with AsyncExitStack() as process:
            await process.enter_async_context(embedded.owned(file, path))
            visits = asyncio.gather(*(visit() for _ in range(4)))
            await asyncio.sleep(random.uniform(0, 0.01))
        await visits
    assert not await asyncio.to_thread(path.exists)


async def test_a_process_waits_for_a_command_that_has_the_file(file: Path, path: Path) -> None:
    store = await embedded.opened(file, path)
    process = embedded.owned(file, path)
    start = asyncio.create_task(process.__aenter__())
    await asyncio.sleep(0.05)
    assert not start.done()
    await store.close()
    await start
    await process.__aexit__(None, None, None)


async def test_a_process_that_waits_can_be_stopped(file: Path, path: Path) -> None:
    store = await embedded.opened(file, path)
    start = asyncio.create_task(embedded.owned(file, path).__aenter__())
    await asyncio.sleep(0.05)
    start.cancel()
    with pytest.raises(asyncio.CancelledError):
        await start
    await store.close()
    async with asyncio.timeout(1):
        await (await embedded.opened(file, path)).close()


async def test_a_command_waits_for_a_process_that_listens_and_does_not_answer_yet(file: Path, path: Path) -> None:
    with serve.listening(path) as listener:
        opening = asyncio.create_task(embedded.opened(file, path))
        await asyncio.sleep(0.1)
        assert not opening.done()
        store = await SqliteDatastore.open(file)
        async with serve.answering(store, listener):
            remote = await opening
            assert isinstance(remote, RemoteDatastore)
            await remote.close()
        await store.close()


async def test_a_command_has_the_file_where_a_process_died(file: Path, path: Path) -> None:
    with serve.listening(path) as listener:
        listener.close()
        store = await embedded.opened(file, path)
        assert isinstance(store, SqliteDatastore)
        await store.close()


async def test_a_second_process_is_refused(file: Path, path: Path) -> None:
    async with embedded.owned(file, path):
        with pytest.raises(AlreadyExists, match=r"another calico-libnetwork has the datastore .*calico\.db; stop it"):
            await embedded.owned(file, path).__aenter__()
        await (await embedded.opened(file, path)).close()


async def test_a_command_that_keeps_the_file_is_named_to_the_next(
    file: Path, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embedded, "PATIENCE", 0.1)
    store = await embedded.opened(file, path)
    with pytest.raises(DatastoreUnavailable, match=r"calico\.db is in use by another command"):
        await embedded.opened(file, path)
    await store.close()


async def test_what_cannot_be_opened_is_given_back(file: Path, path: Path) -> None:
    await asyncio.to_thread(file.parent.mkdir)
    await asyncio.to_thread(file.write_bytes, b"no database at all, but long enough to look like a file" * 50)
    for _ in range(2):
        with pytest.raises(DatastoreUnavailable, match=r"calico\.db cannot be used"):
            await embedded.opened(file, path)
    assert file.with_suffix(".lock").stat().st_mode & 0o777 == 0o600
