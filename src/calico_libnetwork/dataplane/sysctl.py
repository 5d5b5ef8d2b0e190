"""Kernel settings under /proc/sys/net: read first, written only when they differ.

Blocking, but for microseconds: callers run these in the netlink thread, whose network namespace decides which
settings are meant.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from calico_libnetwork.errors import DataplaneError

_NET = "/proc/sys/net/"
_VALUE_BYTES = 64


def ipv6_available() -> bool:
    """False where the kernel was started without IPv6."""
    return Path(_NET, "ipv6").is_dir()


def read(key: str) -> str:
    """Plain system calls, since every endpoint costs ten settings."""
    descriptor = os.open(_NET + key, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.read(descriptor, _VALUE_BYTES).decode("ascii").strip()
    finally:
        os.close(descriptor)


def write(key: str, value: str) -> None:
    """Without reading first: for a device nobody else has touched yet."""
    try:
        descriptor = os.open(_NET + key, os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(descriptor, value.encode("ascii"))
        finally:
            os.close(descriptor)
    except OSError as error:
        raise DataplaneError(f"sysctl net/{key} cannot be set to {value}: {error.strerror}") from error


def ensure(key: str, value: str) -> bool:
    """Whether it had to be written."""
    try:
        if read(key) == value:
            return False
    except OSError as error:
        raise DataplaneError(f"sysctl net/{key} cannot be read: {error.strerror}") from error
    write(key, value)
    return True


def workload_settings(interface: str, *, ipv6: bool, may_spoof: bool = False, siblings: bool = False) -> dict[str, str]:
    """What the host end of a workload's veth needs, in the order in which it is to be written.

    ``rp_filter`` follows the host's default: the real check of source addresses is a rule in our table. Only where
    addresses of ``siblings`` come in as well, it must not be in the way.
    With ``ndisc_notify`` the gateway announces itself when the kernel has its address ready: who asked too early, as a
    container's first packet does on a busy host, asks again only a second later.
    ``route_localnet`` stays 0: with 1 a crafted packet reaches services bound to 127.0.0.0/8 on the host.
    """
    v4, v6 = f"ipv4/conf/{interface}", f"ipv6/conf/{interface}"
    settings = {
        f"{v4}/proxy_arp": "1",
        f"ipv4/neigh/{interface}/proxy_delay": "0",
        f"{v4}/forwarding": "1",
        f"{v4}/rp_filter": "0" if may_spoof else reverse_path_filter(siblings=siblings),
    }
    if ipv6_available():
        settings[f"{v6}/accept_ra"] = "0"
        settings[f"{v6}/accept_dad"] = "0"
        settings[f"{v6}/addr_gen_mode"] = "0"
        if ipv6:
            settings[f"{v6}/disable_ipv6"] = "0"
            settings[f"{v6}/ndisc_notify"] = "1"
        settings[f"{v6}/proxy_ndp"] = "1"
        settings[f"{v6}/forwarding"] = "1"
    return settings


def reverse_path_filter(*, siblings: bool) -> str:
    """The kernel takes the higher of an interface's and the host's value; 2 is the highest and the one not strict."""
    if not siblings:
        return read("ipv4/conf/default/rp_filter")
    return "0" if read("ipv4/conf/all/rp_filter") == "0" else "2"


def ensure_all(settings: Mapping[str, str], reported: Mapping[str, str] | None = None) -> list[str]:
    """The keys that had to be written. What netlink has ``reported`` of an interface need not be read."""
    known = reported or {}
    written = []
    for key, value in settings.items():
        if key not in known:
            if ensure(key, value):
                written.append(key)
        elif known[key] != value:
            write(key, value)
            written.append(key)
    return written


def enable_forwarding(*, ipv6: bool) -> list[str]:
    """Forwarding for the host; the keys written.

    With IPv6 forwarding on, the kernel ignores router advertisements where ``accept_ra`` is 1, and a host that
    learned its default route from one would lose it on expiry; 2 keeps it listening.
    """
    written = ensure_all({"ipv4/ip_forward": "1"})
    if ipv6 and ipv6_available() and read("ipv6/conf/all/forwarding") != "1":
        listening = [f"ipv6/conf/{interface}/accept_ra" for interface in _interfaces_with_default_gateway()]
        settings = {key: "2" for key in listening if read(key) == "1"} | {"ipv6/conf/all/forwarding": "1"}
        written += ensure_all(settings)
    return written


def _interfaces_with_default_gateway() -> list[str]:
    """From /proc/net/ipv6_route: destination, its length, six more columns, flags, interface."""
    default, through_gateway = ("0" * 32, "00"), 0x2  # RTF_GATEWAY
    lines = Path("/proc/thread-self/net/ipv6_route").read_text(encoding="ascii").splitlines()
    columns = [line.split() for line in lines]
    return [row[9] for row in columns if (row[0], row[1]) == default and int(row[8], 16) & through_gateway]
