"""The one word that passes from the agent to the plugin: this endpoint is programmed."""

from __future__ import annotations

import asyncio
from collections.abc import Collection

from calico_libnetwork.model.kinds import ResourceKey


class ProgrammedEndpoints:
    """Local workload endpoints whose rules, routes and neighbours are in force."""

    def __init__(self) -> None:
        self._programmed: set[ResourceKey] = set()
        self._waiting: dict[ResourceKey, set[asyncio.Event]] = {}

    def __contains__(self, key: ResourceKey) -> bool:
        return key in self._programmed

    def __len__(self) -> int:
        return len(self._programmed)

    def keys(self) -> frozenset[ResourceKey]:
        return frozenset(self._programmed)

    def add(self, key: ResourceKey) -> None:
        self._programmed.add(key)
        for event in self._waiting.pop(key, ()):
            event.set()

    def discard(self, key: ResourceKey) -> None:
        self._programmed.discard(key)

    def retain(self, keys: Collection[ResourceKey]) -> None:
        """Forgets every endpoint but these."""
        self._programmed.intersection_update(keys)

    async def wait(self, key: ResourceKey, timeout: float) -> bool:  # noqa: ASYNC109 - an answer, not an error
        """Whether the endpoint was programmed within ``timeout`` seconds."""
        if key in self._programmed:
            return True
        event = asyncio.Event()
        self._waiting.setdefault(key, set()).add(event)
        try:
            async with asyncio.timeout(timeout):
                await event.wait()
        except TimeoutError:
            return False
        finally:
            waiting = self._waiting.get(key, set())
            waiting.discard(event)
            if not waiting:
                self._waiting.pop(key, None)
        return True
