"""Who is in our BIRD's way: another BIRD in the same network namespace, or whoever listens on BGP's port."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

_LISTENING = "0A"
_BIRD_NAMES = ("bird", "bird6")


def foreign_bird(namespace: Path, *, proc: Path = Path("/proc")) -> int | None:
    """The process id of a BIRD that runs in this network namespace."""
    for directory in proc.iterdir():
        with contextlib.suppress(OSError):  # a process that ended meanwhile is in nobody's way
            is_bird = directory.name.isdigit() and _name(directory) in _BIRD_NAMES
            if is_bird and (directory / "ns" / "net").samefile(namespace):
                return int(directory.name)
    return None


def port_conflict(port: int, *, own_pid: int, proc: Path = Path("/proc")) -> str | None:
    """One sentence naming the process that holds ``port`` in the network namespace of process ``own_pid``."""
    inodes = _listening_inodes(port, proc / str(own_pid) / "net")
    if not inodes:
        return None
    for directory in proc.iterdir():
        if directory.name.isdigit() and _holds(directory / "fd", inodes):
            if int(directory.name) == own_pid:
                return None
            return _sentence(port, _name(directory), directory.name)
    return f"TCP port {port} is held by a process that cannot be seen from here, so BIRD cannot listen; stop it"


def _sentence(port: int, name: str, pid: str) -> str:
    return (
        f"TCP port {port} is held by {name} (pid {pid}), so BIRD cannot listen for its peers;"
        " stop it, or set listenPort in BGPConfiguration(default)"
    )


def _listening_inodes(port: int, directory: Path) -> set[str]:
    """``sl local remote st …`` with the inode as the tenth field; addresses end in the port in hexadecimal."""
    found = set()
    for name in ("tcp", "tcp6"):
        with contextlib.suppress(OSError):
            for line in (directory / name).read_text().splitlines()[1:]:
                fields = line.split()
                if fields[3] == _LISTENING and fields[1].endswith(f":{port:04X}"):
                    found.add(f"socket:[{fields[9]}]")
    return found


def _holds(directory: Path, sockets: set[str]) -> bool:
    with contextlib.suppress(OSError):  # a process that ended meanwhile holds nothing
        for descriptor in directory.iterdir():
            with contextlib.suppress(OSError):
                if os.readlink(descriptor) in sockets:  # noqa: PTH115 - a socket's name is no path
                    return True
    return False


def _name(directory: Path) -> str:
    with contextlib.suppress(OSError):
        return (directory / "comm").read_text().strip()
    return "a process"
