"""A container on two Calico networks: it and the members of each reach each other; it forges no address."""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from tests.e2e.lab import IMAGE, Host
from tests.e2e.machine import wait_for
from tests.e2e.traffic import PROBE

_SERVE = "httpd -p 80; exec sleep 1000"
_SERVICES = ("tcp 80", "icmp")
YES, NO = [True] * len(_SERVICES), [False] * len(_SERVICES)
"""From one address."""
_SEND = """
import socket, sys
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
    sender.bind((sys.argv[1], 0))
    sender.sendto(b"?", (sys.argv[2], 4000))
"""


def inside(host: Host, container: str) -> tuple[str, ...]:
    return ("nsenter", "-t", host.inspect(container, "{{.State.Pid}}"), "-n")


def reaches(host: Host, container: str, *addresses: str) -> list[bool]:
    """Whether TCP and ICMP from the container get answers, address by address."""
    questions = json.dumps([[service, address] for address in addresses for service in _SERVICES])
    return list(json.loads(host.machine.run(*inside(host, container), sys.executable, PROBE, "ask", text=questions)))


def serve(host: Host, name: str, network: str, *options: str) -> None:
    host.docker("run", "-d", "--stop-timeout=0", "--net", network, "--name", name, *options, IMAGE, "sh", "-c", _SERVE)


def addresses(host: Host, container: str, network: str) -> tuple[str, str]:
    return host.ipv4(container, network), host.ipv6(container, network)


def start(host: Host) -> None:
    """``both`` on net1 and net2; ``one`` and ``first`` on net1, ``two`` on net2."""
    host.network("net1", "--ipv6")
    host.network("net2", "--ipv6")
    for name, network in (("one", "net1"), ("first", "net1"), ("two", "net2")):
        serve(host, name, network)
    serve(host, "both", "net1", "--cap-add", "NET_ADMIN")
    host.docker("network", "connect", "net2", "both")


@contextmanager
def reverse_path_filter(host: Host, value: int) -> Iterator[None]:
    names = [f"net.ipv4.conf.{name}.rp_filter" for name in ("all", "default")]
    before = [host.machine.run("sysctl", "-n", name) for name in names]
    host.machine.run("sysctl", "-qw", *(f"{name}={value}" for name in names))
    yield
    host.machine.run("sysctl", "-qw", *(f"{name}={was}" for name, was in zip(names, before, strict=True)))


def test_it_is_a_member_of_both_for_as_long_as_it_is_on_both_and_joins_nobody_else(host: Host) -> None:
    start(host)
    on_both(host)
    host.docker("network", "disconnect", "net2", "both")
    net1, two = addresses(host, "both", "net1"), addresses(host, "two", "net2")
    assert reaches(host, "both", *addresses(host, "one", "net1"), *two) == [*YES * 2, *NO * 2]
    assert reaches(host, "two", *net1) == NO * 2
    host.docker("network", "connect", "net2", "both")
    on_both(host)
    host.plugin.restart(signal.SIGKILL)
    on_both(host)
    strangers_stay_strangers(host)
    host.docker("network", "disconnect", "net1", "both")
    answered(host, "two", *addresses(host, "both", "net2"))
    assert reaches(host, "both", *addresses(host, "one", "net1")) == NO * 2


def test_a_strict_reverse_path_filter_changes_nothing(host: Host) -> None:
    with reverse_path_filter(host, 1):
        start(host)
        on_both(host)


def answered(host: Host, source: str, *targets: str) -> None:
    """Soon: the agent does not wait for one endpoint to be in force before it answers for another."""
    found: list[bool] = []

    def ask() -> bool:
        found[:] = reaches(host, source, *targets)
        return all(found)

    wait_for(f"answers to {source} from {', '.join(targets)}", ask, seconds=5, found=lambda: found)


def on_both(host: Host) -> None:
    net1, net2 = addresses(host, "both", "net1"), addresses(host, "both", "net2")
    one, two = addresses(host, "one", "net1"), addresses(host, "two", "net2")
    for source, targets in (("both", (*one, *two)), ("one", net1), ("two", net2)):
        answered(host, source, *targets)
    for source, name in (("both", "one"), ("both", "two"), ("one", "both"), ("two", "both")):
        assert host.pings(source, name), (source, name)
    assert host.pings("both", two[0], "-I", net2[0])


def strangers_stay_strangers(host: Host) -> None:
    assert reaches(host, "one", *addresses(host, "two", "net2")) == NO * 2
    assert reaches(host, "two", *addresses(host, "one", "net1")) == NO * 2


def test_what_it_sends_in_a_neighbours_name_is_dropped(host: Host) -> None:
    start(host)
    one, first = host.ipv4("one", "net1"), host.ipv4("first", "net1")
    log = host.machine.directory / "received.log"
    log.unlink(missing_ok=True)
    receive = f"import socket\ns = socket.socket(type=socket.SOCK_DGRAM)\ns.bind(('', 4000))\n{_REPORT}"
    receiver = host.machine.start(*inside(host, "one"), sys.executable, "-c", receive, log=log)
    wait_for("one to listen", lambda: "ready" in log.read_text())
    host.machine.run(*inside(host, "both"), "ip", "address", "add", f"{first}/32", "dev", "cali1")
    for sender, source in (("both", first), ("both", host.ipv4("both", "net1")), ("first", first)):
        host.machine.run(*inside(host, sender), sys.executable, "-c", _SEND, source, one)
    wait_for("two senders", lambda: len(log.read_text().split()) == 3, found=log.read_text)
    assert log.read_text().split() == ["ready", host.ipv4("both", "net1"), first]
    receiver.stop()


_REPORT = """
print("ready", flush=True)
while True:
    print(s.recvfrom(16)[1][0], flush=True)
"""
