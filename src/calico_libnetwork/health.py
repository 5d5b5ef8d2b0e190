"""What this process says of itself: liveness, readiness, status and metrics, over one unix socket.

Each long-lived task owns a report. A task is live while it has reported within its limit; the process is ready when
every report says so. Felix's paths are kept: ``/liveness``, ``/readiness``, ``/metrics``; ``/status`` is ours.
"""

from __future__ import annotations

import inspect
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import msgspec
from aiohttp import web
from prometheus_client import CollectorRegistry, generate_latest

from calico_libnetwork import __version__


@dataclass(slots=True)
class Report:
    """``limit``: seconds within which the task must report again; None for one that waits for events."""

    name: str
    limit: float | None = None
    ready: bool = False
    detail: str = "not started"
    reported: float = field(default_factory=time.monotonic)

    def say(self, detail: str, *, ready: bool) -> None:
        self.ready, self.detail, self.reported = ready, detail, time.monotonic()

    @property
    def live(self) -> bool:
        return self.limit is None or time.monotonic() - self.reported < self.limit


class Health:
    """All reports of the process, and further parts of ``/status`` by name."""

    def __init__(self, registry: CollectorRegistry, *, node: str) -> None:
        self._node = node
        self._registry = registry
        self._reports: dict[str, Report] = {}
        self._parts: dict[str, Callable[[], Awaitable[Any] | Any]] = {}

    def report(self, name: str, *, limit: float | None = None) -> Report:
        report = self._reports[name] = Report(name, limit)
        return report

    def add_part(self, name: str, describe: Callable[[], Awaitable[Any] | Any]) -> None:
        """``describe`` answers at once, or within a few seconds what it waits for."""
        self._parts[name] = describe

    @property
    def ready(self) -> bool:
        return all(report.ready for report in self._reports.values())

    @property
    def live(self) -> bool:
        return all(report.live for report in self._reports.values())

    async def status(self) -> dict[str, Any]:
        tasks = {
            report.name: {"ready": report.ready, "live": report.live, "detail": report.detail}
            for report in self._reports.values()
        }
        head = {"version": __version__, "node": self._node, "ready": self.ready, "live": self.live, "tasks": tasks}
        return head | {name: await _described(describe()) for name, describe in self._parts.items()}

    def routes(self) -> list[web.RouteDef]:
        return [
            web.get("/liveness", self._liveness),
            web.get("/readiness", self._readiness),
            web.get("/metrics", self._metrics),
            web.get("/status", self._status),
        ]

    async def _liveness(self, _request: web.Request) -> web.Response:
        return self._verdict(good=self.live)

    async def _readiness(self, _request: web.Request) -> web.Response:
        return self._verdict(good=self.ready)

    def _verdict(self, *, good: bool) -> web.Response:
        lines = [f"{report.name}: {report.detail}\n" for report in self._reports.values()]
        return web.Response(status=200 if good else 503, text="".join(lines))

    async def _metrics(self, _request: web.Request) -> web.Response:
        return web.Response(body=generate_latest(self._registry), headers={"Content-Type": "text/plain; version=0.0.4"})

    async def _status(self, _request: web.Request) -> web.Response:
        return web.Response(body=msgspec.json.encode(await self.status()), content_type="application/json")


async def _described(part: Awaitable[Any] | Any) -> Any:
    return await part if inspect.isawaitable(part) else part
