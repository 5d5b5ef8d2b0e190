"""A process as the commands find it: its control socket, with a datastore and a status behind it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry

from calico_libnetwork.cli.session import SOCKET
from calico_libnetwork.cli.status import ask
from calico_libnetwork.datastore import serve
from calico_libnetwork.datastore.protocol import Datastore
from calico_libnetwork.health import Health

ROUTING: dict[str, Any] = {
    "mode": "direct",
    "reason": "all nodes run this agent and share a subnet",
    "bird": {"version": "", "restarts": 0, "problem": ""},
    "peers": [],
    "routes": [],
}
PARTS: dict[str, Any] = {
    "datastore": {"where": "memory", "state": "connected", "revision": 7},
    "docker": {"where": "unix:///var/run/docker.sock", "answers": True},
    "dataplane": "built-in",
    "agent": {"endpoints": 0, "programmed": 0, "failures": [], "findings": []},
    "obstacles": [],
    "unreadable": [],
    "routing": ROUTING,
}


@contextmanager
def running_process(
    directory: Path, datastore: Datastore, *, node: str = "host-a", parts: Mapping[str, Any] | None = None
) -> Iterator[None]:
    health = Health(CollectorRegistry(), node=node)
    health.report("agent").say("0 endpoints in force", ready=True)
    for name, part in {**PARTS, **(parts or {})}.items():
        health.add_part(name, partial(_itself, part))
    started, loop, stop = threading.Event(), asyncio.new_event_loop(), asyncio.Event()

    async def serving() -> None:
        async with serve.serving(datastore, directory / SOCKET, also=health.routes()):
            started.set()
            await stop.wait()

    thread = threading.Thread(target=loop.run_until_complete, args=(serving(),))
    thread.start()
    started.wait()
    try:
        yield
    finally:
        ask(directory / SOCKET, "/status")  # connections are accepted in order: none is left half made
        loop.call_soon_threadsafe(stop.set)
        thread.join()
        loop.close()


def _itself(part: Any) -> Any:
    return part
