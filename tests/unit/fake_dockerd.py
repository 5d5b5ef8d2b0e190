"""The part of Docker's API that is asked, on a unix socket; it can fall silent, as dockerd does while it starts."""

from __future__ import annotations

import asyncio
import json
import re
from pathlib import Path
from typing import Any

from aiohttp import web


class FakeDockerd:
    def __init__(self, path: Path) -> None:
        self.path = path
        self.version = "28.5.2"
        self.swarm = "inactive"
        self.cluster_store = ""
        self.networks: dict[str, dict[str, Any]] = {}
        self.containers: dict[str, dict[str, Any]] = {}
        self.requests: list[str] = []
        self.since: list[str] = []
        self.answers = asyncio.Event()
        self.answers.set()
        self.streaming = asyncio.Event()
        self._streams: list[asyncio.Queue[dict[str, Any] | None]] = []
        self._runner: web.AppRunner | None = None
        self._now = 1_700_000_000_000_000_000

    @property
    def url(self) -> str:
        return f"unix://{self.path}"

    async def start(self) -> None:
        application = web.Application()
        application.router.add_get("/version", self._version)
        application.router.add_get("/{api:v[0-9.]+}/version", self._version)
        application.router.add_get("/{api}/info", self._info)
        application.router.add_get("/{api}/networks", self._list_networks)
        application.router.add_get("/{api}/networks/{id}", self._show_network)
        application.router.add_get("/{api}/containers/json", self._list_containers)
        application.router.add_get("/{api}/events", self._events)
        self._runner = web.AppRunner(application, access_log=None, shutdown_timeout=0.1)
        await self._runner.setup()
        await web.UnixSite(self._runner, str(self.path)).start()

    async def stop(self) -> None:
        self.answers.set()
        self.streaming.clear()
        for stream in self._streams:
            stream.put_nowait(None)
        if self._runner is not None:
            await self._runner.cleanup()
        self.path.unlink(missing_ok=True)

    def add_network(self, network_id: str, name: str, members: dict[str, Any] | None = None) -> None:
        self.networks[network_id] = {"Id": network_id, "Name": name, "Driver": "calico", "Containers": members or {}}

    def add_container(self, container_id: str, name: str, labels: dict[str, str] | None = None) -> None:
        self.containers[container_id] = {
            "Id": container_id,
            "Names": [f"/{name}"],
            "Image": "busybox",
            "Labels": labels or {},
        }

    def emit(self, kind: str, action: str, identity: str, **attributes: str) -> int:
        self._now += 1_000_000_007
        event = {
            "Type": kind,
            "Action": action,
            "Actor": {"ID": identity, "Attributes": attributes},
            "time": self._now // 1_000_000_000,
            "timeNano": self._now,
        }
        for stream in self._streams:
            stream.put_nowait(event)
        return self._now

    async def _answer(self, request: web.Request, value: Any) -> web.Response:
        self.requests.append(request.path)
        await self.answers.wait()
        return web.json_response(value)

    async def _version(self, request: web.Request) -> web.Response:
        return await self._answer(request, {"Version": self.version, "ApiVersion": "1.51"})

    async def _info(self, request: web.Request) -> web.Response:
        info = {"ServerVersion": self.version, "Swarm": {"LocalNodeState": self.swarm}}
        return await self._answer(request, info | ({"ClusterStore": self.cluster_store} if self.cluster_store else {}))

    async def _list_networks(self, request: web.Request) -> web.Response:
        return await self._answer(request, list(self.networks.values()))

    async def _show_network(self, request: web.Request) -> web.Response:
        network = self.networks.get(request.match_info["id"])
        if network is None:
            self.requests.append(request.path)
            return web.json_response({"message": "network not found"}, status=404)
        return await self._answer(request, network)

    async def _list_containers(self, request: web.Request) -> web.Response:
        found = list(self.containers.values())
        filters = json.loads(request.query.get("filters", "{}"))
        found = [each for each in found if each["Id"] in filters.get("id", [each["Id"]])]
        for pattern in filters.get("name", ()):
            found = [each for each in found if any(re.search(pattern, name) for name in each["Names"])]
        return await self._answer(request, found)

    async def _events(self, request: web.Request) -> web.StreamResponse:
        self.since.append(request.query["since"])
        await self.answers.wait()
        response = web.StreamResponse(headers={"Content-Type": "application/json"})
        await response.prepare(request)
        stream: asyncio.Queue[dict[str, Any] | None] = asyncio.Queue()
        self._streams.append(stream)
        self.streaming.set()
        while (event := await stream.get()) is not None:
            await response.write(json.dumps(event).encode() + b"\n")
        self._streams.remove(stream)
        return response
