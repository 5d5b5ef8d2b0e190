"""A TCP proxy in front of a server, whose answers can be swallowed and whose connections can be cut.

A crowded one takes no connection until it is relieved: its queue is full, as that of a server that gets no time.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager


class Proxy:
    def __init__(self, target: int) -> None:
        self.target = target
        self.port = 0
        self.mute = False  # the server hears, and its answers are lost
        self.delay = 0.0  # seconds each way
        self.closed = False  # connections are refused as soon as they are made
        self._writers: set[asyncio.StreamWriter] = set()

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def cut(self) -> None:
        """Ends every connection and takes no new one."""
        self.closed = True
        for writer in self._writers:
            writer.transport.abort()

    async def accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self.closed:
            writer.transport.abort()
            return
        try:
            server_reader, server_writer = await asyncio.open_connection("127.0.0.1", self.target)
        except OSError:
            writer.transport.abort()
            return
        self._writers |= {writer, server_writer}
        await asyncio.gather(
            self._copy(reader, server_writer, answers=False), self._copy(server_reader, writer, answers=True)
        )
        self._writers -= {writer, server_writer}

    async def _copy(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, answers: bool) -> None:
        try:
            while data := await reader.read(65536):
                await asyncio.sleep(self.delay)
                if not (answers and self.mute):
                    writer.write(data)
                    await writer.drain()
        except OSError:
            return
        finally:
            writer.close()


@asynccontextmanager
async def proxied(target: int) -> AsyncIterator[Proxy]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        async with _serving(Proxy(target), listener) as (proxy, server):
            await server.start_serving()
            yield proxy


@asynccontextmanager
async def crowded(target: int) -> AsyncIterator[tuple[Proxy, asyncio.Server]]:
    """``start_serving`` relieves it."""
    with socket.create_server(("127.0.0.1", 0), backlog=0) as listener, _crowd(listener.getsockname()):
        async with _serving(Proxy(target), listener) as made:
            yield made


@asynccontextmanager
async def _serving(proxy: Proxy, listener: socket.socket) -> AsyncIterator[tuple[Proxy, asyncio.Server]]:
    server = await asyncio.start_server(proxy.accept, sock=listener, start_serving=False)
    proxy.port = listener.getsockname()[1]
    async with server:
        yield proxy, server
        proxy.cut()


@contextmanager
def _crowd(address: tuple[str, int]) -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        for _ in range(4):
            client = stack.enter_context(socket.socket())
            client.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                client.connect(address)
        yield
