"""What the Docker side has to know: filled from the configuration by the command that builds it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Scope = Literal["global", "local"]


def _ethernet_mtu() -> int:
    return 1500


@dataclass(frozen=True, kw_only=True)
class DockerSettings:
    """``veth_mtu`` is asked at every endpoint, since the uplink may change; durations are in seconds."""

    node: str
    plugin_directory: Path = Path("/run/docker/plugins")
    state_directory: Path = Path("/var/lib/calico-libnetwork")
    run_directory: Path = Path("/run/calico-libnetwork")
    docker_host: str = "unix:///var/run/docker.sock"
    scope: Literal["auto", "global", "local"] = "auto"
    interface_prefix: str = "cali"
    create_profiles: bool = True
    label_endpoints: bool = False
    label_poll_timeout: float = 5.0
    veth_mtu: Callable[[], int] = _ethernet_mtu
    log_bodies: bool = False
