"""Interfaces on their way out: Docker does not wait for them, and nobody builds one anew before it is gone.

Taking an interface out of use waits for the kernel's lock, some 20 ms when a container's namespace is being torn
down at the same time; the workload endpoint, which is what counts, is deleted by then.
"""

from __future__ import annotations

import asyncio
from typing import Protocol

import structlog

from calico_libnetwork.errors import CalicoError

_log = structlog.get_logger(__name__)


class Remover(Protocol):
    async def schedule_delete(self, host_name: str) -> None:
        """No such interface is success."""
        ...


class Removals:
    def __init__(self, veths: Remover) -> None:
        self._veths = veths
        self._tasks: dict[str, asyncio.Task[None]] = {}

    def start(self, host_name: str) -> None:
        if host_name not in self._tasks:
            self._tasks[host_name] = asyncio.create_task(self._remove(host_name), name=f"remove {host_name}")

    async def finish(self, host_name: str) -> None:
        """Returns when no removal of that interface is under way."""
        task = self._tasks.get(host_name)
        if task is not None:
            await asyncio.shield(task)

    async def drain(self) -> None:
        while self._tasks:
            await asyncio.gather(*self._tasks.values())

    async def _remove(self, host_name: str) -> None:
        """What fails is left to the reconciler."""
        try:
            await self._veths.schedule_delete(host_name)
        except CalicoError as error:
            _log.warning("interface could not be removed yet", interface=host_name, reason=str(error))
        finally:
            del self._tasks[host_name]
