"""The Docker API, asked only where it answers at once, behind a breaker.

While dockerd starts it accepts connections and answers nothing, and in that time it calls this plugin for every
container with a restart policy: each question would cost its whole time-out and hold up the daemon. So a question
from inside a call is put only while the daemon is known to serve, and one that is not answered in time ends that
knowledge for a while. Never asked is what waits for the container's lock, as ``GET /containers/ID/json`` does.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import json
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

import aiohttp

from calico_libnetwork.docker.containers import Container, of_listing
from calico_libnetwork.errors import DockerRefused, DockerUnavailable, NotFound

if TYPE_CHECKING:
    from aiodocker import Docker

T = TypeVar("T")

DRIVERS = frozenset({"calico", "calico-ipam"})
"""As sockets; a managed plugin's driver has a tag behind its name, and may have any name."""
QUESTION_DEADLINE = 0.3
"""Seconds for one question from inside a call."""
LISTING_DEADLINE = 30.0
DESCRIPTION_DEADLINE = 2.0
"""Seconds; a container that is starting is not described before it has started."""
START_DEADLINE = 120.0
"""dockerd answers nothing before its last restarted container is up."""
_BREAK = 5.0
_NOT_CONNECTED = 900  # aiodocker's own, beside HTTP's
_EVENTS = ("create", "rename", "destroy", "remove", "prune", "start", "die", "connect", "disconnect")


class Daemon:
    """Unconnected at first; ``connect`` is for the watcher."""

    def __init__(self, docker_host: str, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._docker_host = docker_host
        self._clock = clock
        self._client: Docker | None = None
        self._broken_until = 0.0
        self._settled = asyncio.Event()  # whether the daemon serves has been found out once
        self._connection = asyncio.Event()

    @property
    def serving(self) -> bool:
        return self._client is not None and self._clock() >= self._broken_until

    async def connect(self) -> None:
        """Returns once the daemon answers. Raises ``DockerUnavailable``."""
        module = await asyncio.to_thread(importlib.import_module, "aiodocker")  # slow to import, not needed to listen
        client: Docker = module.Docker(url=self._docker_host)
        try:
            await _translated(client.version(), START_DEADLINE)
        except DockerUnavailable:
            await client.close()
            self._settled.set()
            raise
        self._client, self._broken_until = client, 0.0
        self._settled.set()
        self._connection.set()

    async def disconnect(self) -> None:
        client, self._client = self._client, None
        self._connection.clear()
        if client is not None:
            await client.close()

    async def started(self) -> None:
        """Returns as soon as the daemon answers, or when it should have started. Not for use inside a call."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(START_DEADLINE):
                await self._connection.wait()

    async def network(self, network_id: str) -> Mapping[str, Any]:
        """Raises ``NotFound``, ``DockerUnavailable``. Fit for use inside a call."""

        async def show(client: Docker) -> Mapping[str, Any]:
            networks = await asyncio.to_thread(importlib.import_module, "aiodocker.networks")
            shown: Mapping[str, Any] = await networks.DockerNetwork(client, network_id).show()
            return shown

        return await self._ask(show)

    async def container_named(self, name: str) -> Container | None:
        """Raises ``DockerUnavailable``. Fit for use inside a call."""

        async def find(client: Docker) -> Container | None:
            filters = json.dumps({"name": [f"^/{re.escape(name)}$"]})
            found = await client.containers.list(all=1, filters=filters)
            return of_listing(found[0]._container) if found else None  # noqa: SLF001 - no other way to all its fields

        return await self._ask(find)

    async def info(self) -> Mapping[str, Any]:
        return await self._list(lambda client: client.system.info())

    async def containers(self) -> list[Container]:
        async def find(client: Docker) -> list[Container]:
            found = await client.containers.list(all=1)
            return [of_listing(each._container) for each in found]  # noqa: SLF001 - no other way to all its fields

        return await self._list(find)

    async def container(self, container_id: str) -> Container | None:
        """Raises ``DockerUnavailable``."""

        async def find(client: Docker) -> Container | None:
            found = await client.containers.list(all=1, filters=json.dumps({"id": [container_id]}))
            return of_listing(found[0]._container) if found else None  # noqa: SLF001 - no other way to all its fields

        return await self._list(find)

    async def container_networks(self, container_id: str) -> Mapping[str, Mapping[str, Any]]:
        """By name, as its own description has them; waits for the container's lock, so never from inside a call.

        Raises ``NotFound``, ``DockerUnavailable``.
        """

        async def find(client: Docker) -> Mapping[str, Mapping[str, Any]]:
            shown = await (client.containers.container(container_id)).show()
            networks: Mapping[str, Mapping[str, Any]] = (shown.get("NetworkSettings") or {}).get("Networks") or {}
            return networks

        return await _translated(find(self._connected()), DESCRIPTION_DEADLINE)

    async def networks(self) -> list[dict[str, Any]]:
        return await self._list(lambda client: client.networks.list())

    async def create_network(self, request: Mapping[str, Any]) -> str:
        """Its id. Raises ``DockerRefused``, ``DockerUnavailable``. Calls this plugin back: never from inside a call."""

        async def create(client: Docker) -> str:
            created = await client.networks.create(dict(request))
            return str(created.id)

        return await self._change(create)

    async def remove_network(self, network_id: str) -> None:
        """Raises ``NotFound``, ``DockerRefused``, ``DockerUnavailable``. Calls this plugin back, as above."""

        async def remove(client: Docker) -> None:
            networks = await asyncio.to_thread(importlib.import_module, "aiodocker.networks")
            await networks.DockerNetwork(client, network_id).delete()

        await self._change(remove)

    async def own_networks(self, known: Collection[str]) -> list[Mapping[str, Any]]:
        """The networks of this driver, ``known`` by their ids or not, with their endpoints.

        Raises ``DockerUnavailable``.
        """
        networks = await self.networks()
        own = [each["Id"] for each in networks if each["Id"] in known or each["Driver"].partition(":")[0] in DRIVERS]
        found = []
        for network_id in own:
            with contextlib.suppress(NotFound):  # removed since it was listed
                found.append(await self.network(network_id))
        return found

    async def events(self, since: int) -> AsyncIterator[Mapping[str, Any]]:
        """Of containers and networks, from ``since`` (nanoseconds since 1970) until the daemon goes."""
        client = self._connected()
        module = await asyncio.to_thread(importlib.import_module, "aiodocker.events")
        events = module.DockerEvents(client)
        subscription = events.subscribe(create_task=False)
        seconds, nanoseconds = divmod(since, 1_000_000_000)
        filters = json.dumps({"type": ["container", "network"], "event": _EVENTS})
        stream = asyncio.create_task(
            _translated(events.run(since=f"{seconds}.{nanoseconds:09}", filters=filters), None), name="docker events"
        )
        try:
            while (event := await subscription.get()) is not None:
                yield event
            await stream
        finally:
            stream.cancel()
            with contextlib.suppress(asyncio.CancelledError, DockerUnavailable):
                await stream

    async def _ask(self, question: Callable[[Docker], Awaitable[T]]) -> T:
        await self._settle()
        if not self.serving:
            raise DockerUnavailable("the Docker API does not answer now")
        try:
            return await _translated(question(self._connected()), QUESTION_DEADLINE)
        except DockerUnavailable:
            self._broken_until = self._clock() + _BREAK
            raise

    async def _settle(self) -> None:
        """The very first question waits a moment for the first connection; after that none ever does."""
        if not self._settled.is_set():
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(QUESTION_DEADLINE):
                    await self._settled.wait()
            self._settled.set()

    async def _list(self, question: Callable[[Docker], Awaitable[T]]) -> T:
        return await _translated(question(self._connected()), LISTING_DEADLINE)

    async def _change(self, change: Callable[[Docker], Awaitable[T]]) -> T:
        return await _translated(change(self._connected()), LISTING_DEADLINE, answers_refuse=True)

    def _connected(self) -> Docker:
        if self._client is None:
            raise DockerUnavailable("the Docker API is not connected")
        return self._client


async def _translated(question: Awaitable[T], deadline: float | None, *, answers_refuse: bool = False) -> T:
    """The library's errors as ours; "no such object" is ``NotFound``, another error answer perhaps a refusal."""
    errors = importlib.import_module("aiodocker.exceptions")
    try:
        async with asyncio.timeout(deadline):
            return await question
    except TimeoutError:
        raise DockerUnavailable(f"the Docker API did not answer within {deadline} s") from None
    except errors.DockerError as error:
        if error.status == 404:
            raise NotFound(f"Docker says: {error.message}") from error
        if answers_refuse and error.status < _NOT_CONNECTED:
            raise DockerRefused(f"Docker says: {error.message}") from error
        raise DockerUnavailable(f"the Docker API failed: {error}") from error
    except aiohttp.ClientPayloadError:
        raise DockerUnavailable("Docker closed the connection") from None
    except (aiohttp.ClientError, OSError, ValueError) as error:
        raise DockerUnavailable(f"the Docker API failed: {error}") from error
