"""Kernel settings: written only when they differ, and IPv6 forwarding does not cost the host its default route."""

from __future__ import annotations

import pytest

from calico_libnetwork.dataplane import rtnetlink, sysctl
from calico_libnetwork.dataplane.link_settings import parse_settings
from calico_libnetwork.dataplane.netlink import ROUTE_PROTOCOL, Message, Socket
from calico_libnetwork.errors import DataplaneError
from tests.system.conftest import Namespace


def test_setting_that_is_right_is_not_written(namespace: Namespace) -> None:
    sysctl.write("ipv4/conf/lo/proxy_arp", "0")
    assert sysctl.ensure("ipv4/conf/lo/proxy_arp", "1") is True
    assert sysctl.ensure("ipv4/conf/lo/proxy_arp", "1") is False


def test_forwarding_is_switched_on_once(namespace: Namespace) -> None:
    sysctl.write("ipv4/ip_forward", "0")
    assert sysctl.enable_forwarding(ipv6=True) == ["ipv4/ip_forward", "ipv6/conf/all/forwarding"]
    assert sysctl.enable_forwarding(ipv6=True) == []


def test_ipv6_forwarding_is_left_alone_unless_asked_for(namespace: Namespace) -> None:
    sysctl.enable_forwarding(ipv6=False)
    assert sysctl.read("ipv6/conf/all/forwarding") == "0"


def test_interface_with_a_learned_default_route_keeps_listening(namespace: Namespace) -> None:
    for name in ("eth0", "eth1"):
        namespace.run("ip", "link", "add", name, "type", "bridge")
        namespace.run("ip", "link", "set", name, "up")
        sysctl.write(f"ipv6/conf/{name}/accept_ra", "1")
    learned = ("-6", "route", "add", "default", "via", "fe80::1", "dev", "eth0", "proto", "ra", "expires", "1800")
    namespace.run("ip", *learned)
    assert "ipv6/conf/eth0/accept_ra" in sysctl.enable_forwarding(ipv6=True)
    assert sysctl.read("ipv6/conf/eth0/accept_ra") == "2"
    assert sysctl.read("ipv6/conf/eth1/accept_ra") == "1"


def test_unknown_setting_is_named_in_the_error(namespace: Namespace) -> None:
    with pytest.raises(DataplaneError, match="ipv4/conf/none/proxy_arp"):
        sysctl.ensure("ipv4/conf/none/proxy_arp", "1")
    with pytest.raises(DataplaneError, match="ipv4/conf/none/proxy_arp"):
        sysctl.write("ipv4/conf/none/proxy_arp", "1")


def test_settings_reported_by_netlink_are_those_in_the_files(namespace: Namespace) -> None:
    namespace.run("ip", "link", "add", "cali1", "type", "veth", "peer", "name", "temp1")
    wanted = sysctl.workload_settings("cali1", ipv6=True)
    for value in ("0", "1"):
        for key in wanted:
            sysctl.write(key, value)
        reported = parse_settings(_link("cali1"))
        assert len(reported) == 10  # all but the neighbour table's proxy_delay
        assert reported == {key: sysctl.read(key) for key in reported}
        assert set(reported.values()) == {value}
    wrong = {key for key in reported if wanted[key] != "1"}
    assert wrong == set(sysctl.ensure_all(wanted, parse_settings(_link("cali1"))))
    assert sysctl.ensure_all(wanted, parse_settings(_link("cali1"))) == []


def _link(name: str) -> Message:
    kernel = Socket(ROUTE_PROTOCOL)
    try:
        return kernel.ask(rtnetlink.get_link(name))
    finally:
        kernel.close()
