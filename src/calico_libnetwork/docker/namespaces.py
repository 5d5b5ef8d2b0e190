"""Which container has joined a network namespace, as /proc tells: without Docker, which is silent while it starts.

From Docker 28 on a process of the container lives in the namespace when Join is called, and its control group names
the container. Before 28 the namespace does not exist yet.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path

_CONTAINER = re.compile(r"docker[-/]([0-9a-f]{64})")


def container_in(sandbox: Path, *, processes: Path = Path("/proc")) -> str | None:
    """The container's id. Reads all of ``processes``, so it belongs in a thread."""
    try:
        namespace = sandbox.stat()
    except OSError:
        return None
    for process in _numbered(processes):
        with contextlib.suppress(OSError):  # it has ended meanwhile
            found = (process / "ns" / "net").stat()
            if (found.st_dev, found.st_ino) == (namespace.st_dev, namespace.st_ino):
                container = _CONTAINER.search((process / "cgroup").read_text())
                if container is not None:
                    return container[1]
    return None


def _numbered(processes: Path) -> Iterator[Path]:
    """Latest first: the one sought has just been started."""
    numbers = sorted((int(path.name) for path in processes.iterdir() if path.name.isdigit()), reverse=True)
    return (processes / str(number) for number in numbers)
