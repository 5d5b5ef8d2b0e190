"""The MTU of workload interfaces: the host's, less what the encapsulations in use add to each packet."""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Literal

from calico_libnetwork.dataplane.rtnetlink import LinkInfo

Encapsulation = Literal["ipip", "vxlan", "vxlan-v6"]

DEFAULT_PATTERN = r"^((en|wl|ww|sl|ib)[Pcopsvx].*|(eth|wlan|wwan).*)"
FALLBACK_MTU = 1460
PUBLISHED = Path("/var/lib/calico/mtu")
_OVERHEAD: dict[Encapsulation, int] = {"ipip": 20, "vxlan": 50, "vxlan-v6": 70}


def host_mtu(links: Iterable[LinkInfo], pattern: str = DEFAULT_PATTERN) -> int:
    """The smallest of the uplinks that are up; 1460 without any, as Felix has it."""
    uplink = re.compile(pattern)
    return min((link.mtu for link in links if link.up and uplink.match(link.name)), default=FALLBACK_MTU)


def workload_mtu(host: int, encapsulations: Collection[Encapsulation]) -> int:
    return host - max((_OVERHEAD[encapsulation] for encapsulation in encapsulations), default=0)


def published(path: Path = PUBLISHED) -> int | None:
    """What the Felix of this host says fits through its encapsulations."""
    try:
        return int(path.read_text(encoding="ascii")) or None
    except (OSError, ValueError):
        return None


def publish(mtu: int, path: Path = PUBLISHED) -> None:
    """For Calico's CNI plugin, should it come to this host: the number, replaced in one step."""
    text = str(mtu)
    if path.is_file() and path.read_text(encoding="ascii").strip() == text:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(text, encoding="ascii")
    temporary.replace(path)
