"""Lets other processes of this host into a datastore that this one owns, through a socket that only root can open.

The embedded datastore is one file with one owner, the running agent; the command line reaches it here.
"""

from __future__ import annotations

import os
import socket
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator, Iterable
from contextlib import aclosing, asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import TypeVar

import msgspec
from aiohttp import web

from calico_libnetwork.datastore import wire
from calico_libnetwork.datastore.protocol import Datastore
from calico_libnetwork.errors import ConfigError, DatastoreError

_MODE = 0o600
_BODY_LIMIT = 256 << 20
_SHUTDOWN = 1.0  # seconds that open watches may take to end
_encode = msgspec.msgpack.Encoder().encode

M = TypeVar("M", bound=wire.Message)


def application(datastore: Datastore) -> web.Application:
    """Serve it with ``handler_cancellation``, so that a watch ends with its client."""
    served = web.Application(client_max_size=_BODY_LIMIT)
    served.router.add_post("/describe", _unary(wire.Message, _describe, datastore))
    served.router.add_post("/get", _unary(wire.Keys, lambda store, request: store.get(request.keys), datastore))
    served.router.add_post("/list", _unary(wire.Keys, lambda store, request: store.list(request.keys), datastore))
    served.router.add_post(
        "/commit",
        _unary(wire.Commit, lambda store, request: store.commit(wire.transaction_of(request)), datastore),
    )
    served.router.add_post(
        "/compact", _unary(wire.Compact, lambda store, request: store.compact(request.revision), datastore)
    )
    served.router.add_post("/watch", _watch(datastore))
    return served


@asynccontextmanager
async def serving(datastore: Datastore, path: Path, *, also: Iterable[web.RouteDef] = ()) -> AsyncGenerator[None, None]:
    """Serves on ``path`` while the context lasts, and ``also`` what else the process tells its owner."""
    with listening(path) as listener:
        async with answering(datastore, listener, also=also):
            yield


@contextmanager
def listening(path: Path) -> Generator[socket.socket, None, None]:
    """What is asked waits until it is answered. Who may call this owns the datastore, so a file there is stale."""
    listener = _listener(path)
    try:
        yield listener
    finally:
        path.unlink(missing_ok=True)
        listener.close()


@asynccontextmanager
async def answering(
    datastore: Datastore, listener: socket.socket, *, also: Iterable[web.RouteDef] = ()
) -> AsyncGenerator[None, None]:
    served = application(datastore)
    served.add_routes(also)
    runner = web.AppRunner(served, handler_cancellation=True, access_log=None, shutdown_timeout=_SHUTDOWN)
    await runner.setup()
    try:
        await web.SockSite(runner, listener).start()
        yield
    finally:
        await runner.cleanup()


def _listener(path: Path) -> socket.socket:
    """The mode is set before the file exists: a bound socket's file takes it over."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        os.fchmod(listener.fileno(), _MODE)
        listener.bind(os.fspath(path))
        listener.listen()
    except OSError as error:
        listener.close()
        raise ConfigError(f"{path} cannot hold the datastore's socket: {error.strerror or error}") from error
    return listener


async def _describe(datastore: Datastore, _: wire.Message) -> str:
    return datastore.description


def _unary(
    request_type: type[M], call: Callable[[Datastore, M], Awaitable[object]], datastore: Datastore
) -> Callable[[web.Request], Awaitable[web.Response]]:
    decode = msgspec.msgpack.Decoder(request_type).decode

    async def answer(request: web.Request) -> web.Response:
        try:
            result = await call(datastore, decode(await request.read()))
        except (DatastoreError, ValueError) as error:
            return web.Response(status=500, body=_failure(error), content_type=wire.CONTENT_TYPE)
        return web.Response(body=_encode(result), content_type=wire.CONTENT_TYPE)

    return answer


def _failure(error: DatastoreError | ValueError) -> bytes:
    if isinstance(error, DatastoreError):
        return _encode(wire.failure_of(error))
    return _encode(wire.Failure("DatastoreError", str(error)))


def _watch(datastore: Datastore) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
    decode = msgspec.msgpack.Decoder(wire.Watch).decode

    async def answer(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        response.content_type = wire.CONTENT_TYPE
        with suppress(ConnectionResetError):  # of a command that is done already
            await response.prepare(request)
            await write(response, decode(await request.read()))
        return response

    async def write(response: web.StreamResponse, asked: wire.Watch) -> None:
        try:
            async with aclosing(datastore.watch(asked.prefixes, asked.start_revision)) as batches:
                async for batch in batches:
                    await response.write(_framed(_encode(batch)))
        except DatastoreError as error:
            await response.write(_framed(_failure(error)))
        await response.write_eof()

    return answer


def _framed(message: bytes) -> bytes:
    return len(message).to_bytes(wire.LENGTH_BYTES, "big") + message
