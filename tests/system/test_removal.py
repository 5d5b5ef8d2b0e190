"""Uninstalling takes what is ours from the kernel and nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest

from calico_libnetwork.agent import removal
from tests.system.conftest import Namespace

OURS = """
ip link add cali0123456789a type veth peer name peer0
ip link set cali0123456789a up; ip link set peer0 up
ip link add vxlan.calico type vxlan id 4096 dstport 4789 local 192.0.2.1 dev up0
ip route add 192.168.0.2 dev cali0123456789a proto 3 metric 1024
ip route add blackhole 192.168.0.0/26 proto 80
ip route add 192.168.1.0/26 via 192.0.2.2 proto 80
ip -6 route add fd00:99::/122 via fd00:1::2 proto 80
nft add table inet calico-libnetwork; nft add table arp calico-libnetwork
nft insert rule ip filter FORWARD meta mark '&' 0x10000 == 0x10000 counter accept comment '"calico-libnetwork"'
"""
OTHERS = """
ip link add up0 type veth peer name up1; ip link set up0 up; ip link set up1 up
ip address add 192.0.2.1/24 dev up0; ip address add fd00:1::1/64 dev up0 nodad
ip route add 198.51.100.0/24 via 192.0.2.9
ip route add 203.0.113.0/24 via 192.0.2.9 proto 12
nft add table inet somebody
nft add table ip filter
nft 'add chain ip filter FORWARD { type filter hook forward priority 0; policy drop; }'
"""
SHOW = "ip -o link; ip route; ip -6 route; nft list ruleset"


@pytest.fixture
def others(namespace: Namespace) -> str:
    namespace.run("sh", "-ec", OTHERS)
    return namespace.run("sh", "-c", SHOW)


def stable(shown: str) -> set[str]:
    """Without the interfaces that stay: the veth goes with its container."""
    return {line.strip() for line in shown.splitlines() if "cali0123456789a" not in line and "peer0" not in line}


async def test_removal_leaves_what_is_not_ours(namespace: Namespace, others: str, tmp_path: Path) -> None:
    namespace.run("sh", "-ec", OURS)
    told = await removal.remove_all(tmp_path / "bird", felix=False)
    assert stable(namespace.run("sh", "-c", SHOW)) == stable(others)
    assert sorted(told) == [
        "interface vxlan.calico",
        "nftables table arp calico-libnetwork",
        "nftables table inet calico-libnetwork, and its rule in Docker's firewall",
        "routes that drop what has no other: 1",
        "routes through cali0123456789a: 1",
        "routes through up0: 2",
    ]
    assert await removal.remove_all(tmp_path / "bird", felix=False) == []


async def test_beside_felix_the_routes_and_tunnels_stay(namespace: Namespace, others: str, tmp_path: Path) -> None:
    namespace.run("sh", "-ec", OURS)
    await removal.remove_all(tmp_path / "bird", felix=True)
    shown = namespace.run("sh", "-c", SHOW)
    assert "blackhole 192.168.0.0/26" in shown
    assert "vxlan.calico" in shown
    assert "calico-libnetwork" not in shown


async def test_routes_of_a_bird_that_ran_here_go_with_its_files(
    namespace: Namespace, others: str, tmp_path: Path
) -> None:
    directory = tmp_path / "bird"
    directory.mkdir()
    (directory / "bird.conf").write_text("")
    assert "BIRD's files and routes" in await removal.remove_all(directory, felix=False)
    assert "203.0.113.0/24" not in namespace.run("ip", "route")
    assert not directory.exists()
