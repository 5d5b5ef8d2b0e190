"""The ports that ``docker run -p`` asks for, which no Calico network publishes: its containers are reached directly."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

PORT_MAP = "com.docker.network.portmap"
_PROTOCOLS = {6: "tcp", 17: "udp", 132: "sctp"}


def published_ports(options: Mapping[str, Any] | None) -> str:
    """As ``docker run -p`` takes them, ``127.0.0.1:8082:82/udp``; "" for none."""
    asked = (options or {}).get(PORT_MAP)
    return ", ".join(_text(each) for each in asked if isinstance(each, dict)) if isinstance(asked, list) else ""


def _text(port: Mapping[str, Any]) -> str:
    host = port.get("HostIP") or ""
    if ":" in host:
        host = f"[{host}]"
    outside = f"{host}:" if host else ""
    outside += f"{port['HostPort']}:" if port.get("HostPort") else ""
    return f"{outside}{port.get('Port')}/{_PROTOCOLS.get(port.get('Proto', 0), port.get('Proto'))}"
