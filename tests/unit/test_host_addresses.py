"""The host's addresses, read from the kernel's own lists."""

from __future__ import annotations

from ipaddress import ip_address
from pathlib import Path

from calico_libnetwork.cli.host_addresses import host_addresses

TRIE = """Main:
  +-- 172.17.0.0/16 2 0 2
     |-- 172.17.0.0
        /16 link UNICAST
Local:
  +-- 172.17.0.0/16 2 0 2
     |-- 172.17.0.1
        /32 host LOCAL
     |-- 172.17.255.255
        /32 link BROADCAST
"""
INTERFACES = "fd003000000000000000000000000011 02 40 00 80     eth0\n"


def test_local_addresses_of_both_families_are_found(tmp_path: Path) -> None:
    (tmp_path / "fib_trie").write_text(TRIE)
    assert host_addresses(tmp_path) == {ip_address("172.17.0.1")}
    (tmp_path / "if_inet6").write_text(INTERFACES)
    assert host_addresses(tmp_path) == {ip_address("172.17.0.1"), ip_address("fd00:3000::11")}


def test_the_kernel_here_names_its_loopback() -> None:
    assert ip_address("127.0.0.1") in host_addresses()
