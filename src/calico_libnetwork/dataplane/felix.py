"""Calico's own agent on this host: whether it runs, and what it says of an endpoint.

Where Felix runs it programs what we write, and we leave the kernel to it. Felix is known by its process in this network
namespace. For each endpoint in force it keeps a file, whose appearance is awaited by inotify.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
from pathlib import Path
from urllib.parse import quote

from calico_libnetwork.errors import DataplaneError
from calico_libnetwork.model.kinds import ResourceKey
from calico_libnetwork.model.names import split_workload_endpoint_name
from calico_libnetwork.model.resources import LIBNETWORK_NAMESPACE, ORCHESTRATOR

CHECK_SECONDS = 0.25
STATUS_DIRECTORY = Path("/var/run/calico/endpoint-status")
_IN_CLOSE_WRITE, _IN_MOVED_TO = 0x8, 0x80
_IN_CREATE = 0x100
_EVENT_BYTES = 4096
_COMMAND_BYTES = 4096
_OURS = f"{ORCHESTRATOR} {quote(f'{LIBNETWORK_NAMESPACE}/libnetwork', safe='')}"


def find_felix(proc: Path = Path("/proc")) -> int | None:
    """The process id of a Felix that shares our network namespace; None without one."""
    own = _namespace(proc / "self")
    for name in os.listdir(proc):  # noqa: PTH208 - looked at every other second, where paths would cost twice the time
        if name.isdigit() and _is_felix(_words(f"{proc}/{name}/cmdline")) and _namespace(proc / name) == own:
            return int(name)
    return None


def _words(command_line: str) -> list[bytes]:
    try:
        descriptor = os.open(command_line, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:  # ended since it was listed
        return [b""]
    try:
        return os.read(descriptor, _COMMAND_BYTES).split(b"\0")
    except OSError:
        return [b""]
    finally:
        os.close(descriptor)


def _is_felix(words: list[bytes]) -> bool:
    """``calico-felix``, ``calico-node -felix`` and, from 2026 on, ``calico component felix``."""
    command = words[0].rpartition(b"/")[2]
    return command == b"calico-felix" or (
        command in (b"calico-node", b"calico") and any(word.lstrip(b"-") == b"felix" for word in words[1:])
    )


def _namespace(process: Path) -> str | None:
    try:
        return str((process / "ns/net").readlink())
    except OSError:
        return None


def status_file(key: ResourceKey, directory: Path = STATUS_DIRECTORY) -> Path:
    return directory / f"{_OURS} {split_workload_endpoint_name(key.name)[-1]}"


class FelixEndpoints:
    """Felix's word in the place of our agent's."""

    def __init__(self, directory: Path = STATUS_DIRECTORY) -> None:
        self._directory = directory

    def disbelieve(self) -> None:
        """Forgets what a Felix that has ended said of our endpoints; one that comes back says it anew."""
        for file in self._directory.glob(f"{_OURS} *"):
            file.unlink(missing_ok=True)

    async def reporting(self) -> None:
        """Returns once Felix reports endpoints at all, which it begins to do some time after its start."""
        while not self._directory.is_dir():  # noqa: ASYNC110 - there may be no directory yet that could be watched
            await asyncio.sleep(CHECK_SECONDS)

    async def wait(self, key: ResourceKey, timeout: float) -> bool:  # noqa: ASYNC109 - an answer, not an error
        """Whether Felix had the endpoint in force within ``timeout`` seconds."""
        file = status_file(key, self._directory)
        try:
            with DirectoryWatch(self._directory) as watch:
                async with asyncio.timeout(timeout):
                    while not file.exists():
                        await watch.changed()
        except TimeoutError:
            return False
        except DataplaneError:  # Felix has not made the directory: it does not report endpoints
            return False
        return True


class DirectoryWatch:
    """inotify on one directory."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._descriptor = -1

    def __enter__(self) -> DirectoryWatch:
        """Raises ``DataplaneError`` if there is no such directory."""
        libc = ctypes.CDLL(None, use_errno=True)
        self._descriptor = libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        mask = _IN_CREATE | _IN_CLOSE_WRITE | _IN_MOVED_TO
        if self._descriptor < 0 or libc.inotify_add_watch(self._descriptor, os.fsencode(self._directory), mask) < 0:
            reason = os.strerror(ctypes.get_errno())
            self.__exit__()
            raise DataplaneError(f"{self._directory} cannot be watched: {reason}")
        return self

    def __exit__(self, *_: object) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    async def changed(self) -> None:
        """Returns after the next change, or at once if one has happened since the last call."""
        loop = asyncio.get_running_loop()
        ready = asyncio.Event()
        loop.add_reader(self._descriptor, ready.set)
        try:
            await ready.wait()
        finally:
            loop.remove_reader(self._descriptor)
        os.read(self._descriptor, _EVENT_BYTES)
