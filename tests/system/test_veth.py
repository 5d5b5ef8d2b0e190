"""Workload veths: what both ends look like, and that they go without anybody waiting."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest

from calico_libnetwork.dataplane import sysctl
from calico_libnetwork.dataplane.kernel import Kernel
from calico_libnetwork.dataplane.veth import DYING_PREFIX, VethPairs, VethSpec
from calico_libnetwork.errors import AlreadyExists, DataplaneError
from tests.system.conftest import Namespace, Workloads

SPEC = VethSpec(host_name="cali1234567890a", peer_name="temp1234567890a", peer_mac="02:00:00:00:00:01", mtu=1410)
_ETHERNET_IPV6, _ICMPV6, _NEIGHBOUR_ADVERTISEMENT = 0x86DD, 58, 136


@pytest.fixture
async def veths(kernel: Kernel) -> AsyncIterator[VethPairs]:
    async with VethPairs(kernel) as opened:
        yield opened


def interfaces(namespace: Namespace) -> set[str]:
    return {line.split()[0].split("@")[0] for line in namespace.run("ip", "-br", "link").splitlines()}


async def test_both_ends_have_mac_and_mtu_and_the_host_end_is_up(namespace: Namespace, veths: VethPairs) -> None:
    veth = await veths.create(SPEC)
    host = namespace.run("ip", "link", "show", SPEC.host_name)
    peer = namespace.run("ip", "link", "show", SPEC.peer_name)
    assert host.startswith(f"{veth.index}:")
    assert "ee:ee:ee:ee:ee:ee" in host
    assert "mtu 1410" in host
    assert ",UP" in host
    assert "02:00:00:00:00:01" in peer
    assert "mtu 1410" in peer
    assert str(veth.gateway_v6) == "fe80::ecee:eeff:feee:eeee"


async def test_host_end_has_a_carrier_before_docker_takes_the_other_where_felix_wants_one(
    namespace: Namespace, veths: VethPairs
) -> None:
    await veths.create(SPEC)
    assert "NO-CARRIER" in namespace.run("ip", "link", "show", SPEC.host_name)
    await veths.delete(SPEC.host_name)
    await veths.create(replace(SPEC, carrier=True))
    assert "LOWER_UP" in namespace.run("ip", "link", "show", SPEC.host_name)


async def test_host_end_has_every_setting(namespace: Namespace, veths: VethPairs) -> None:
    await veths.create(SPEC)
    settings = sysctl.workload_settings(SPEC.host_name, ipv6=True)
    assert len(settings) == 11
    assert settings == {key: sysctl.read(key) for key in settings}
    assert sysctl.read(f"ipv4/conf/{SPEC.host_name}/route_localnet") == "0"


async def test_endpoint_that_may_spoof_has_no_reverse_path_filter(namespace: Namespace, veths: VethPairs) -> None:
    sysctl.write("ipv4/conf/default/rp_filter", "1")
    await veths.create(SPEC)
    assert sysctl.read(f"ipv4/conf/{SPEC.host_name}/rp_filter") == "1"
    other = VethSpec(host_name="cali2", peer_name="temp2", peer_mac="02:00:00:00:00:02", mtu=1500, may_spoof=True)
    await veths.create(other)
    assert sysctl.read("ipv4/conf/cali2/rp_filter") == "0"


@pytest.mark.parametrize(("everywhere", "default", "expected"), [("0", "1", "0"), ("1", "0", "2"), ("2", "2", "2")])
def test_interfaces_of_one_container_have_no_strict_reverse_path_filter(
    namespace: Namespace, everywhere: str, default: str, expected: str
) -> None:
    sysctl.write("ipv4/conf/all/rp_filter", everywhere)
    sysctl.write("ipv4/conf/default/rp_filter", default)
    settings = sysctl.workload_settings("cali1", ipv6=True, siblings=True)
    assert settings["ipv4/conf/cali1/rp_filter"] == expected


async def test_endpoint_without_ipv6_gets_no_gateway(veths: VethPairs) -> None:
    spec = VethSpec(host_name="cali2", peer_name="temp2", peer_mac="02:00:00:00:00:02", mtu=1500, ipv6=False)
    assert (await veths.create(spec)).gateway_v6 is None


async def test_second_create_of_the_same_endpoint_finds_the_pair(veths: VethPairs) -> None:
    assert await veths.create(SPEC) == await veths.create(SPEC)


async def test_half_made_pair_is_replaced(namespace: Namespace, veths: VethPairs) -> None:
    namespace.run("ip", "link", "add", SPEC.host_name, "type", "veth", "peer", "name", "other")
    await veths.create(SPEC)
    assert interfaces(namespace) == {"lo", SPEC.host_name, SPEC.peer_name}


async def test_foreign_interface_of_the_same_name_is_left_alone(namespace: Namespace, veths: VethPairs) -> None:
    namespace.run("ip", "link", "add", SPEC.host_name, "type", "bridge")
    with pytest.raises(AlreadyExists, match=SPEC.host_name):
        await veths.create(SPEC)
    assert SPEC.host_name in interfaces(namespace)


async def test_failed_create_leaves_nothing(namespace: Namespace, veths: VethPairs) -> None:
    namespace.run("ip", "link", "add", SPEC.peer_name, "type", "bridge")
    with pytest.raises(DataplaneError, match=f"{SPEC.host_name} cannot be created: File exists"):
        await veths.create(SPEC)
    assert interfaces(namespace) == {"lo", SPEC.peer_name}


async def test_failed_setting_leaves_nothing(
    namespace: Namespace, veths: VethPairs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sysctl, "workload_settings", lambda _name, **_flags: {"ipv4/conf/no-such/proxy_arp": "1"})
    with pytest.raises(DataplaneError, match="no-such"):
        await veths.create(SPEC)
    assert interfaces(namespace) == {"lo"}


async def test_delete_takes_the_pair_and_tolerates_absence(namespace: Namespace, veths: VethPairs) -> None:
    await veths.create(SPEC)
    await veths.delete(SPEC.host_name)
    assert interfaces(namespace) == {"lo"}
    await veths.delete(SPEC.host_name)


async def test_scheduled_deletion_frees_name_and_address_at_once(namespace: Namespace, veths: VethPairs) -> None:
    for _ in range(5):
        await veths.create(SPEC)
        namespace.run("ip", "route", "add", "10.65.0.1/32", "dev", SPEC.host_name)
        await veths.schedule_delete(SPEC.host_name)
        assert "10.65.0.1" not in namespace.run("ip", "route")
    veth = await veths.create(SPEC)
    await veths.drain()
    assert interfaces(namespace) == {"lo", SPEC.host_name, SPEC.peer_name}
    assert namespace.run("ip", "link", "show", SPEC.host_name).startswith(f"{veth.index}:")


async def test_dying_interface_still_counts_as_a_workloads(
    namespace: Namespace, veths: VethPairs, workloads: Workloads
) -> None:
    """Whatever its container still sends meets the table's drop for unknown cali* interfaces."""
    await veths.create(SPEC)
    workloads.attach(SPEC.peer_name)
    await veths.schedule_delete(SPEC.host_name)
    assert all(name == "lo" or name.startswith(DYING_PREFIX) for name in interfaces(namespace))
    await veths.drain()
    assert interfaces(namespace) == {"lo"}


async def test_deletions_that_come_together_cost_little_more_than_one(namespace: Namespace, veths: VethPairs) -> None:
    specs = [VethSpec(host_name=f"cali{n}", peer_name=f"temp{n}", peer_mac=SPEC.peer_mac, mtu=1500) for n in range(21)]
    for spec in specs:
        await veths.create(spec)
    started = time.perf_counter()
    await veths.delete(specs[0].host_name)
    one = time.perf_counter() - started
    started = time.perf_counter()
    await asyncio.gather(*(veths.schedule_delete(spec.host_name) for spec in specs[1:]))
    await veths.drain()
    assert time.perf_counter() - started < 8 * one
    assert interfaces(namespace) == {"lo"}


async def test_dying_interfaces_of_an_earlier_process_are_swept(namespace: Namespace, veths: VethPairs) -> None:
    namespace.run("ip", "link", "add", f"{DYING_PREFIX}0123456789", "type", "veth", "peer", "name", "t")
    namespace.run("ip", "link", "add", "cali2", "type", "veth", "peer", "name", "t2")
    await veths.sweep()
    await veths.drain()
    assert interfaces(namespace) == {"lo", "cali2", "t2"}


async def test_gateway_announces_itself_when_its_address_is_ready(namespace: Namespace, veths: VethPairs) -> None:
    """Else a container that asked before has its first packet answered a second later."""
    veth = await veths.create(SPEC)
    assert veth.gateway_v6 is not None
    with socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(_ETHERNET_IPV6)) as heard:
        heard.bind((SPEC.peer_name, _ETHERNET_IPV6))
        heard.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)  # takes the word that the interface is down
        namespace.run("ip", "link", "set", SPEC.peer_name, "up")
        heard.settimeout(5)
        packet = bytes(64)
        while (packet[6], packet[40]) != (_ICMPV6, _NEIGHBOUR_ADVERTISEMENT):
            packet = heard.recv(2048)
    assert packet[48:64] == veth.gateway_v6.packed


@pytest.mark.parametrize("detection", ["off", "on"])
async def test_first_ipv6_packet_waits_for_no_address_detection(
    namespace: Namespace, veths: VethPairs, workloads: Workloads, detection: str
) -> None:
    """The gateway answers at once because of accept_dad; with detection on, after two seconds."""
    sysctl.enable_forwarding(ipv6=True)
    veth = await veths.create(SPEC)
    if detection == "on":
        sysctl.write(f"ipv6/conf/{SPEC.host_name}/accept_dad", "1")
    namespace.run("ip", "-6", "route", "add", "fd65::1/128", "dev", SPEC.host_name)
    namespace.run("ip", "addr", "add", "fd65::ffff/128", "dev", "lo", "nodad")
    started = time.perf_counter()
    workload = workloads.attach(SPEC.peer_name, addresses=("fd65::1/128",), gateway_v6=str(veth.gateway_v6))
    answered = "until ping -6 -c 1 -W 0.02 fd65::ffff >/dev/null; do :; done"
    await asyncio.to_thread(workload.run, "sh", "-c", answered)
    assert (time.perf_counter() - started < 1) == (detection == "off")
