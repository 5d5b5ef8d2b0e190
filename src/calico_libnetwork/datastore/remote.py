"""A datastore that another process of this host owns, reached through its socket: the counterpart of ``serve``."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncGenerator, Sequence
from pathlib import Path

import aiohttp
import msgspec

from calico_libnetwork.datastore import wire
from calico_libnetwork.datastore.protocol import Batch, Listing, Outcome, Transaction
from calico_libnetwork.errors import DatastoreUnavailable

_DEADLINE = 10.0  # seconds
_encode = msgspec.msgpack.Encoder().encode
_decode_failure = msgspec.msgpack.Decoder(wire.Failure).decode
_decode_listing = msgspec.msgpack.Decoder(Listing).decode
_decode_outcome = msgspec.msgpack.Decoder(Outcome).decode
_decode_text = msgspec.msgpack.Decoder(str).decode
_batch_decoder: msgspec.msgpack.Decoder[Batch | wire.Failure] = msgspec.msgpack.Decoder(Batch | wire.Failure)


class RemoteDatastore:
    """Made by ``open``."""

    def __init__(self, session: aiohttp.ClientSession, path: Path, description: str = "") -> None:
        self._session = session
        self._path = path
        self._description = description
        self._watches: set[aiohttp.ClientResponse] = set()

    @classmethod
    async def open(cls, path: Path) -> RemoteDatastore:
        """Raises ``DatastoreUnavailable`` if nobody serves there."""
        session = aiohttp.ClientSession(
            "http://datastore",
            connector=aiohttp.UnixConnector(os.fspath(path)),
            timeout=aiohttp.ClientTimeout(_DEADLINE),
            read_bufsize=1 << 20,
        )
        datastore = cls(session, path)
        try:
            description = _decode_text(await datastore._call("/describe", wire.Message()))
        except DatastoreUnavailable:
            await session.close()
            raise
        return cls(session, path, description)

    @property
    def description(self) -> str:
        return self._description

    async def get(self, keys: Sequence[str]) -> Listing:
        return _decode_listing(await self._call("/get", wire.Keys(list(keys))))

    async def list(self, prefixes: Sequence[str]) -> Listing:
        return _decode_listing(await self._call("/list", wire.Keys([*prefixes])))

    async def commit(self, transaction: Transaction) -> Outcome:
        return _decode_outcome(await self._call("/commit", wire.commit_of(transaction)))

    async def compact(self, revision: int) -> None:
        await self._call("/compact", wire.Compact(revision))

    async def watch(self, prefixes: Sequence[str], start_revision: int) -> AsyncGenerator[Batch, None]:
        request = _encode(wire.Watch([*prefixes], start_revision))
        endless = aiohttp.ClientTimeout(None, sock_connect=_DEADLINE)
        try:
            async with self._session.post("/watch", data=request, timeout=endless) as response:
                self._watches.add(response)
                try:
                    while True:
                        yield await _next_batch(response.content)
                finally:
                    self._watches.discard(response)
        except (aiohttp.ClientError, OSError, asyncio.IncompleteReadError) as error:
            raise self._unavailable() from error

    async def close(self) -> None:
        """Closing a session does not wake who reads from it; closing the response does."""
        for response in self._watches:
            response.close()
        await self._session.close()

    async def _call(self, path: str, request: wire.Message) -> bytes:
        if self._session.closed:
            raise self._unavailable()
        try:
            async with self._session.post(path, data=_encode(request)) as response:
                body = await response.read()
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            raise self._unavailable() from error
        if response.status != 200:
            raise wire.error_of(_decode_failure(body))
        return body

    def _unavailable(self) -> DatastoreUnavailable:
        if self._session.closed:
            return DatastoreUnavailable(f"the connection to {self._path} is closed")
        return DatastoreUnavailable(
            f"calico-libnetwork does not answer on {self._path}: start it (calico-libnetwork run), or see its log"
        )


async def _next_batch(stream: aiohttp.StreamReader) -> Batch:
    length = int.from_bytes(await stream.readexactly(wire.LENGTH_BYTES), "big")
    message = _batch_decoder.decode(await stream.readexactly(length))
    if isinstance(message, wire.Failure):
        raise wire.error_of(message)
    return message
