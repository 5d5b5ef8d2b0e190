"""Who has the embedded datastore's file: the process that runs, or for a moment a command.

A lock beside the file is the right to decide that. A command takes it, and keeps it for as long as it has the file
open; if it finds a process listening, it gives the lock back and asks that process. The process takes the lock to put
up its socket, before it opens the file, and again to close both. So nobody who holds the lock and finds nobody
listening can meet another with the file, and what is asked of a process that is still starting waits in its socket.
"""

from __future__ import annotations

import asyncio
import errno
import fcntl
import os
import socket
import threading
from collections.abc import AsyncGenerator, Iterable
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager
from pathlib import Path
from typing import cast

from aiohttp import web

from calico_libnetwork.datastore import serve
from calico_libnetwork.datastore.protocol import Datastore
from calico_libnetwork.datastore.remote import RemoteDatastore
from calico_libnetwork.datastore.sqlite import SqliteDatastore
from calico_libnetwork.errors import AlreadyExists, DatastoreUnavailable

PATIENCE = 10.0
"""Seconds that a command waits for other commands."""


class _Borrowed(SqliteDatastore):
    """The file in the hands of a command, with the lock."""

    lock = -1

    async def close(self) -> None:
        try:
            await super().close()
        finally:
            lock, self.lock = self.lock, -1
            if lock >= 0:
                os.close(lock)


async def opened(file: Path, path: Path) -> Datastore:
    """For a command. Through the process that listens on ``path`` where there is one, else the file itself.

    Raises ``DatastoreUnavailable``.
    """
    while True:
        lock = await _locked_in_time(file)
        if not _listens(path):
            return await _borrowed(file, lock)
        os.close(lock)
        try:
            return await RemoteDatastore.open(path)
        except DatastoreUnavailable:
            if _listens(path):
                raise


@asynccontextmanager
async def owned(file: Path, path: Path, *, also: Iterable[web.RouteDef] = ()) -> AsyncGenerator[Datastore, None]:
    """For the process: the file, served on ``path`` while the context lasts, and ``also`` what else it tells.

    Waits for a command that has the file. Raises ``AlreadyExists`` if another process listens on ``path``.
    """
    with ExitStack() as at_last:
        async with AsyncExitStack() as stack:
            lock = await _locked(file)
            try:
                if _listens(path):
                    raise AlreadyExists(f"another calico-libnetwork has the datastore {file}; stop it first")
                listener = stack.enter_context(serve.listening(path))
            finally:
                os.close(lock)
            datastore = await SqliteDatastore.open(file)
            stack.push_async_callback(datastore.close)
            await stack.enter_async_context(serve.answering(datastore, listener, also=also))
            try:
                yield datastore
            finally:
                at_last.callback(os.close, await _locked(file))


async def _borrowed(file: Path, lock: int) -> Datastore:
    try:
        datastore = cast("_Borrowed", await _Borrowed.open(file))
    except BaseException:
        os.close(lock)
        raise
    datastore.lock = lock
    return datastore


async def _locked_in_time(file: Path) -> int:
    try:
        async with asyncio.timeout(PATIENCE):
            return await _locked(file)
    except TimeoutError:
        raise DatastoreUnavailable(
            f"the datastore {file} is in use by another command for {PATIENCE:g} seconds; try again when it has ended"
        ) from None


async def _locked(file: Path) -> int:
    """The descriptor that holds the lock until it is closed. Those who wait get it in turn."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        lock = os.open(file.with_suffix(".lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise DatastoreUnavailable(f"the datastore {file} cannot be used: {error.strerror}") from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        await _awaited(lock)
    return lock


async def _awaited(lock: int) -> None:
    """In a thread of its own, which no end of this process waits for; given up, it closes what it gets."""
    loop = asyncio.get_running_loop()
    taken: asyncio.Future[None] = loop.create_future()

    def tell() -> None:
        if taken.cancelled():
            os.close(lock)
        else:
            taken.set_result(None)

    def wait() -> None:
        fcntl.flock(lock, fcntl.LOCK_EX)
        try:
            loop.call_soon_threadsafe(tell)
        except RuntimeError:  # the loop has ended
            os.close(lock)

    threading.Thread(target=wait, name="datastore lock", daemon=True).start()
    await taken


def _listens(path: Path) -> bool:
    """Whether a process does, be it too busy to take the connection."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
        client.setblocking(False)
        return client.connect_ex(os.fspath(path)) in (0, errno.EAGAIN)
