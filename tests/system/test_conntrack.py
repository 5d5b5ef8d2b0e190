"""Connections of an address that changed hands are forgotten, all others stay."""

from __future__ import annotations

import errno
import re
import socket
from collections.abc import AsyncIterator, Callable, Sequence
from ipaddress import ip_address

import pytest

from calico_libnetwork.dataplane import conntrack as conntrack_module
from calico_libnetwork.dataplane.conntrack import Conntrack
from calico_libnetwork.dataplane.kernel import Kernel
from calico_libnetwork.dataplane.netlink import NETFILTER_PROTOCOL, Answer, Request, Socket, attributes
from calico_libnetwork.errors import KernelRefused
from tests.system.conftest import Namespace

ADDRESSES = ("10.65.0.1", "10.65.0.2", "10.65.0.3", "fd65::1", "fd65::2", "fd65::3")
PAIRS = [(a, b) for a in ADDRESSES for b in ADDRESSES if a < b and (":" in a) == (":" in b)]


@pytest.fixture
async def conntrack(namespace: Namespace) -> AsyncIterator[Conntrack]:
    async with Kernel(NETFILTER_PROTOCOL, name="conntrack") as kernel:
        yield Conntrack(kernel)


@pytest.fixture
def flows(namespace: Namespace) -> Callable[[], set[tuple[str, str]]]:
    """A UDP flow between each two addresses; called, it tells which are there."""
    track = "table inet t {\n chain o {\n type filter hook output priority 0;\n ct state new accept\n }\n}\n"
    namespace.run("nft", "-f", "-", stdin=track)
    for address in ADDRESSES:
        namespace.run("ip", "addr", "add", address, "dev", "lo", *(("nodad",) if ":" in address else ()))
    while namespace.run("ip", "-6", "route", "show", "table", "local").count("local fd65::") < 3:
        pass  # the kernel makes these some time after it has added the addresses
    for source, destination in PAIRS:
        with socket.socket(socket.AF_INET6 if ":" in source else socket.AF_INET, socket.SOCK_DGRAM) as sender:
            sender.bind((source, 0))
            sender.sendto(b"x", (destination, 9))

    def listed() -> set[tuple[str, str]]:
        found: set[tuple[str, str]] = set()
        for family in ("ipv4", "ipv6"):
            for line in namespace.run("conntrack", "-L", "-f", family, "-p", "udp").splitlines():
                sources = re.findall(r"src=(\S+)", line)
                found.add((sources[0], sources[1]))
        return found

    return listed


def involving(address: str) -> set[tuple[str, str]]:
    return {pair for pair in PAIRS if address in pair}


async def test_flows_from_and_to_the_address_go_and_no_others(
    conntrack: Conntrack, flows: Callable[[], set[tuple[str, str]]]
) -> None:
    assert flows() == set(PAIRS)
    await conntrack.forget([ip_address("10.65.0.2")])
    assert flows() == set(PAIRS) - involving("10.65.0.2")
    await conntrack.forget([ip_address("fd65::2"), ip_address("10.65.0.2")])
    assert flows() == set(PAIRS) - involving("10.65.0.2") - involving("fd65::2")


async def test_address_without_flows_is_a_no_op(
    namespace: Namespace, conntrack: Conntrack, flows: Callable[[], set[tuple[str, str]]]
) -> None:
    assert flows() == set(PAIRS)
    await conntrack.forget([ip_address("10.65.0.9"), ip_address("fd65::9")])
    assert flows() == set(PAIRS)
    await conntrack.forget([])
    assert flows() == set(PAIRS)


async def test_untranslated_datagrams_to_a_port_are_forgotten_and_no_other_flow(
    namespace: Namespace, conntrack: Conntrack
) -> None:
    translate = "table inet t {\n chain o {\n type nat hook output priority -100;\n"
    translate += f" ct state new\n udp dport 9 ip daddr {ADDRESSES[1]} dnat to {ADDRESSES[2]}:8\n }}\n}}\n"
    namespace.run("nft", "-f", "-", stdin=translate)
    namespace.run("ip", "link", "set", "lo", "up")
    for address in ADDRESSES[:3]:
        namespace.run("ip", "addr", "add", address, "dev", "lo")
    for target in ((ADDRESSES[0], 9), (ADDRESSES[0], 10), (ADDRESSES[1], 9), ("::1", 9), ("::1", 10)):
        family = socket.AF_INET6 if ":" in target[0] else socket.AF_INET
        with socket.socket(family, socket.SOCK_DGRAM) as sender:
            sender.sendto(b"x", target)

    def left() -> set[tuple[str, str]]:
        found: set[tuple[str, str]] = set()
        for family in ("ipv4", "ipv6"):
            lines = namespace.run("conntrack", "-L", "-f", family, "-p", "udp").splitlines()
            found |= {re.findall(r"dst=(\S+) .*?dport=(\d+)", line)[0] for line in lines}
        return found

    others = {(ADDRESSES[0], "10"), (ADDRESSES[1], "9"), ("::1", "10")}
    assert left() == {*others, (ADDRESSES[0], "9"), ("::1", "9")}
    await conntrack.forget_datagrams({9})
    assert left() == others
    await conntrack.forget_datagrams(set())


def test_kernel_that_deletes_by_no_filter_gets_each_flow_by_name(
    namespace: Namespace, flows: Callable[[], set[tuple[str, str]]]
) -> None:
    """As kernels before 6.11 answer; Debian 12 has 6.1."""

    class Older(Socket):
        refused = 0

        def exchange(self, requests: Sequence[Request]) -> list[Answer]:
            answers = []
            for request in requests:
                if conntrack_module._FILTER in attributes(request.body, 4):
                    self.refused += 1
                    answers.append(Answer(error=KernelRefused("Invalid argument", errno.EINVAL)))
                else:
                    answers += super().exchange([request])
            return answers

    kernel = Older(NETFILTER_PROTOCOL)
    try:
        conntrack_module._forget(kernel, (ip_address("10.65.0.2"), ip_address("fd65::2")))
    finally:
        kernel.close()
    assert kernel.refused == 2
    assert flows() == set(PAIRS) - involving("10.65.0.2") - involving("fd65::2")
