"""The plugin's sockets on disk: never open to others, never taken from another instance, gone after a clean stop.

Docker finds a plugin by the name of its socket; a stale file delays dockerd by 15 seconds at every use.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from calico_libnetwork.errors import AlreadyExists, ConfigError

_MODE = 0o660
_BACKLOG = 128


@dataclass(frozen=True, slots=True)
class _Bound:
    path: Path
    inode: int


class PluginSockets:
    """Sockets ``NAME.sock`` in ``directory``, owned from entering the context to leaving it.

    The lock is on the directory itself, so no file of it is left behind and a second instance is refused whatever
    else it was configured with.
    """

    def __init__(self, directory: Path, names: tuple[str, ...]) -> None:
        self._directory = directory
        self._names = names
        self._lock = -1
        self._bound: list[_Bound] = []
        self.sockets: list[socket.socket] = []

    def __enter__(self) -> Self:
        """Raises ``AlreadyExists`` when another instance owns the directory, ``ConfigError`` if it is not usable."""
        try:
            self._directory.mkdir(parents=True, exist_ok=True)
            self._lock = os.open(self._directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            self._take_lock()
            for name in self._names:
                self._bind(self._directory / f"{name}.sock")
        except OSError as error:
            self._close()
            raise ConfigError(f"{self._directory} cannot hold the plugin's sockets: {error.strerror}") from error
        except AlreadyExists:
            self._close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._close()

    def _take_lock(self) -> None:
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise AlreadyExists(
                f"another calico-libnetwork serves the sockets in {self._directory}; stop it first"
            ) from error

    def _bind(self, path: Path) -> None:
        """The mode is set before the file exists: a bound socket's file takes it over, less the umask."""
        path.unlink(missing_ok=True)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sockets.append(listener)
        os.fchmod(listener.fileno(), _MODE)
        listener.bind(os.fspath(path))
        self._bound.append(_Bound(path, path.stat().st_ino))
        listener.listen(_BACKLOG)
        listener.setblocking(False)

    def _close(self) -> None:
        for bound in self._bound:
            with contextlib.suppress(OSError):
                if bound.path.stat().st_ino == bound.inode:
                    bound.path.unlink()
        for listener in self.sockets:
            listener.close()
        if self._lock >= 0:
            os.close(self._lock)
        self._bound, self.sockets, self._lock = [], [], -1
