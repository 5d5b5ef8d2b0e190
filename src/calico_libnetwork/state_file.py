"""A small file of what should survive a restart: replaced as a whole, behind the caller's back, a burst at a time.

Losing the last moments of it is harmless to whoever does not wait for ``save``.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from pathlib import Path

import structlog

DELAY = 0.2
"""Seconds in which changes gather."""

_log = structlog.get_logger(__name__)


class StateFile:
    """``content`` gives what is to be stored at the moment of writing."""

    def __init__(self, path: Path, content: Callable[[], bytes]) -> None:
        self.path = path
        self._content = content
        self._changed = False
        self._closing = asyncio.Event()
        self._saving: asyncio.Task[None] | None = None
        self._writing = asyncio.Lock()

    def read(self) -> bytes | None:
        """None if there is none yet, or it cannot be read."""
        try:
            return self.path.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            _log.warning("state cannot be read, starting empty", file=str(self.path), reason=error.strerror)
            return None

    def discard(self, reason: str) -> None:
        """Says that what was read is of no use."""
        _log.warning("state is not understood, starting empty", file=str(self.path), reason=reason)

    def save_soon(self) -> None:
        self._changed = True
        if self._saving is None:
            self._saving = asyncio.create_task(self._save(), name=f"save {self.path.name}")

    async def save(self) -> None:
        """Returns when it is written as it is now; those who come meanwhile share the next writing."""
        self._changed = True
        async with self._writing:
            if self._changed:
                self._changed = False
                await asyncio.to_thread(self._write, self._content())

    async def close(self) -> None:
        """Returns when everything is written."""
        self._closing.set()
        if self._saving is not None:
            await self._saving

    async def _save(self) -> None:
        try:
            while self._changed:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(DELAY):
                        await self._closing.wait()
                if self._changed:
                    await self.save()
        finally:
            self._saving = None

    def _write(self, content: bytes) -> None:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            new = self.path.with_suffix(".new")
            new.write_bytes(content)
            new.replace(self.path)
        except OSError as error:
            _log.warning("state cannot be saved", file=str(self.path), reason=error.strerror)
