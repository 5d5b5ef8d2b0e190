"""The addresses of this host, as the kernel lists them for anybody to read."""

from __future__ import annotations

import contextlib
import re
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path

from calico_libnetwork.policy.flow import Address

_LOCAL = re.compile(r"\|-- (\S+)\n\s*/32 host LOCAL")


def host_addresses(directory: Path = Path("/proc/net")) -> frozenset[Address]:
    """Nothing of a family that the kernel does not have."""
    found: set[Address] = set()
    with contextlib.suppress(FileNotFoundError):
        found |= {IPv4Address(text) for text in _LOCAL.findall((directory / "fib_trie").read_text())}
    with contextlib.suppress(FileNotFoundError):
        lines = (directory / "if_inet6").read_text().splitlines()
        found |= {IPv6Address(bytes.fromhex(line.partition(" ")[0])) for line in lines}
    return frozenset(found)
