"""A host with workloads and an outside, and packets sent between them: what arrives is what policy let through.

Everything is in network namespaces. Workloads never answer, so no probe makes a flow an established one; a test that
wants conversations lets them ``talk``.
"""

from __future__ import annotations

import os
import socket
import struct
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv6Address
from typing import Any, TypeVar

import msgspec

from calico_libnetwork.dataplane.rules import Ruleset, RulesSettings
from calico_libnetwork.dataplane.table import Table
from calico_libnetwork.model.kinds import ResourceKey, decode
from calico_libnetwork.model.resources import AnyResource
from tests import policy_worlds
from tests.policy_worlds import NODE, OUTSIDE, Address, addresses, document, interface
from tests.system.conftest import Namespace, Workloads, enter
from tests.system.packets import UDP, Packet, encode, number_of

T = TypeVar("T")

HOST_MAC = "ee:ee:ee:ee:ee:ee"
LINK_LOCAL = "fe80::ecee:eeff:feee:eeee"
HOST_V4, HOST_V6 = IPv4Address("192.0.2.1"), IPv6Address("2001:db8::1")
_ETH_P = {4: 0x0800, 6: 0x86DD}
_ETH_P_ALL = 0x0003
_PACKET_OUTGOING = 4
_MESSENGER = Packet(OUTSIDE[0], HOST_V4, UDP, 9, 9)
_SILENT = "table inet silent { chain input { type filter hook input priority 0; policy drop; }\n}\n"


def resource(
    kind: str, name: str, spec: Mapping[str, Any], *, namespace: str = "", labels: Mapping[str, str] | None = None
) -> tuple[ResourceKey, AnyResource]:
    key, value = document(kind, name, dict(spec), namespace, labels=dict(labels or {}))
    return key, decode(key, msgspec.json.encode(value))


def workload(number: int, *, labels: Mapping[str, str] | None = None, **spec: Any) -> tuple[ResourceKey, AnyResource]:
    """The endpoint of workload ``number``, with the interface and addresses that the lab gives it."""
    key, value = policy_worlds.workload(number, labels=dict(labels or {}), **spec)
    return key, decode(key, msgspec.json.encode(value))


def table_text(table: Table) -> str:
    """The whole desired table in place of whatever there is."""
    elements: dict[str, list[str]] = {}
    for (name, element), verdict in table.elements.desired.items():
        elements.setdefault(name, []).append(f"{element} : {verdict}" if verdict else element)
    lines = [f"add table {table.family} {table.name}", f"delete table {table.family} {table.name}"]
    lines.append(f"table {table.family} {table.name} {{")
    for name, spec in table.sets.desired.items():
        content = f"elements = {{ {', '.join(elements.pop(name))} }}" if name in elements else ""
        lines.append(f"{spec.kind} {name} {{ {spec.declaration} {content}\n}}")
    assert not elements, f"elements without a set: {sorted(elements)}"
    for name, chain in table.chains.desired.items():
        lines += [f"chain {name} {{", chain.hook, *chain.rules, "}"]
    return "\n".join([*lines, "}", ""])


class Rules:
    """A ruleset and the tables it fills."""

    def __init__(self, settings: RulesSettings | None = None) -> None:
        self.ruleset = Ruleset(node=NODE, settings=settings or RulesSettings())
        self.table = Table("inet", "calico-libnetwork")
        self.arp = Table("arp", "calico-libnetwork")

    def put(self, *items: tuple[ResourceKey, Any]) -> None:
        for key, value in items:
            self.ruleset.update(key, value)

    def delete(self, *keys: ResourceKey) -> None:
        for key in keys:
            self.ruleset.update(key, None)

    def text(self) -> str:
        self.ruleset.render(self.table, self.arp)
        return table_text(self.table) + table_text(self.arp)


def inside(namespace: Namespace, action: Callable[[], T]) -> T:
    """Runs ``action`` in a thread that has entered the namespace; sockets it makes stay there."""

    def run() -> T:
        enter(namespace.descriptor)
        return action()

    with ThreadPoolExecutor(max_workers=1) as executor:
        return executor.submit(run).result()


@dataclass
class _Port:
    """A place packets leave from and arrive at."""

    socket: socket.socket
    is_link: bool = False
    arrived: set[int] = field(default_factory=set)

    def collect(self) -> None:
        while True:
            try:
                data, origin = self.socket.recvfrom(2048)
            except BlockingIOError:
                return
            number = number_of(data)
            outgoing = self.is_link and origin[2] == _PACKET_OUTGOING
            if number is not None and not outgoing:
                self.arrived.add(number)


class Lab:
    """``workload_count`` workloads numbered from 1, the outside, and the host's own addresses."""

    def __init__(self, host: Namespace, workloads: Workloads, workload_count: int, stack: ExitStack) -> None:
        self.host = host
        self._stack = stack
        self._number = 0
        self._where: dict[Address, str] = {}
        self._ports: dict[str, _Port] = {}
        self.namespaces: dict[str, Namespace] = {}
        self._prepare_host()
        for number in range(1, workload_count + 1):
            self._add_workload(number, workloads)
        self._add_outside(workloads)
        self._host_ports = [
            _Port(self._raw_socket(family, protocol))
            for family in (socket.AF_INET, socket.AF_INET6)
            for protocol in (6, 17, 1 if family == socket.AF_INET else 58)
        ]

    def load(self, text: str) -> None:
        """Runs in the test's thread, which is in the host's namespace."""
        done = subprocess.run(["nft", "-f", "-"], input=text, capture_output=True, text=True, check=False)
        if done.returncode:
            raise AssertionError(f"{done.stderr}\n{text}")

    def deliver(self, packets: Iterable[Packet], *, via: str = "") -> list[bool]:
        """Which of the packets, sent in this order, reach their destination. ``via``: the interface they leave by."""
        self.forget_flows()
        self.forget_arrivals()
        sent = [(self.send(packet, via=via), packet) for packet in packets]
        arrived = self.arrived()
        return [number in arrived[self._where[packet.destination]] for number, packet in sent]

    def send(self, packet: Packet, *, via: str = "") -> int:
        """The number by which the packet is known when it arrives."""
        self._number += 1
        port = self._ports[via or self._where[packet.source]]
        frame = bytes.fromhex(HOST_MAC.replace(":", "")) + b"\x02" * 6
        port.socket.send(frame + struct.pack("!H", _ETH_P[packet.source.version]) + encode(packet, self._number))
        return self._number

    def delivered(self, packet: Packet) -> bool:
        return self.deliver([packet])[0]

    def talk(self, number: int) -> Namespace:
        """The workload's namespace, with addresses and a gateway, free to answer."""
        namespace = self.namespaces[interface(number)]
        v4, v6 = addresses(number)
        commands = f"""addr add {v4}/32 dev cali0
            addr add {v6}/128 dev cali0 nodad
            route add 169.254.1.1 dev cali0
            route add default via 169.254.1.1 dev cali0
            route add default via {LINK_LOCAL} dev cali0
            neigh replace 169.254.1.1 lladdr {HOST_MAC} dev cali0 nud permanent
            neigh replace {LINK_LOCAL} lladdr {HOST_MAC} dev cali0 nud permanent"""
        namespace.run("ip", "-batch", "-", stdin=commands)
        namespace.run("nft", "delete", "table", "inet", "silent")
        return namespace

    def talk_outside(self) -> Namespace:
        namespace = self.namespaces["outside"]
        commands = "".join(f"addr add {address}/32 dev outer\n" for address in OUTSIDE if address.version == 4)
        commands += f"route add {HOST_V4} dev outer\nroute add default via {HOST_V4} dev outer\n"
        commands += f"neigh replace {HOST_V4} lladdr {HOST_MAC} dev outer nud permanent\n"
        namespace.run("ip", "-batch", "-", stdin=commands)
        namespace.run("nft", "delete", "table", "inet", "silent")
        return namespace

    def forget_arrivals(self) -> None:
        self.arrived()
        for port in (*self._ports.values(), *self._host_ports):
            port.arrived.clear()

    def arrived(self) -> dict[str, set[int]]:
        """The numbers of the packets that arrived, by place.

        Everything sent from here is processed on one processor, in order, two queues per packet: what was sent
        before the last of two messengers has arrived or never will.
        """
        for _ in range(2):
            messenger = self.send(_MESSENGER)
            deadline = time.monotonic() + 5
            while not any(messenger in port.arrived for port in self._host_ports):
                if time.monotonic() > deadline:
                    raise AssertionError("a packet from the outside to the host does not arrive")
                for port in self._host_ports:
                    port.collect()
        arrived: dict[str, set[int]] = {}
        for name, port in self._ports.items():
            port.collect()
            arrived[name] = port.arrived
        arrived["host"] = set().union(*(port.arrived for port in self._host_ports))
        return arrived

    def _prepare_host(self) -> None:
        for path in ("ipv4/ip_forward", "ipv6/conf/all/forwarding"):
            self.host.run("sysctl", "-qw", f"net.{path.replace('/', '.')}=1")
        self.host.run("sysctl", "-qw", "net.ipv4.conf.all.rp_filter=0", "net.ipv4.conf.default.rp_filter=0")

    def _add_workload(self, number: int, workloads: Workloads) -> None:
        name, peer = interface(number), f"peer{number}"
        v4, v6 = addresses(number)
        mac = f"02:00:00:00:00:{number:02x}"
        commands = f"""link add {name} address {HOST_MAC} type veth peer name {peer}
            link set {name} up
            route add {v4}/32 dev {name}
            route add {v6}/128 dev {name}
            neigh replace {v4} lladdr {mac} dev {name} nud permanent
            neigh replace {v6} lladdr {mac} dev {name} nud permanent"""
        self.host.run("ip", "-batch", "-", stdin=commands)
        namespace = workloads.attach(peer, mac=mac)
        namespace.run("nft", "-f", "-", stdin=_SILENT)
        self._listen(name, namespace, "cali0", (v4, v6))

    def _add_outside(self, workloads: Workloads) -> None:
        namespace = workloads.namespace()
        mac = "02:00:00:00:ff:01"
        self.host.run("ip", "link", "add", "eth0", "address", HOST_MAC, "type", "veth", "peer", "name", "outer")
        self.host.run("ip", "link", "set", "outer", "netns", namespace.path)
        namespace.run("ip", "link", "set", "outer", "address", mac, "up")
        commands = f"link set eth0 up\naddr add {HOST_V4}/24 dev eth0\naddr add {HOST_V6}/64 dev eth0 nodad\n"
        for address in OUTSIDE:
            commands += f"neigh replace {address} lladdr {mac} dev eth0 nud permanent\n"
        commands += "route add default via 192.0.2.2\nroute add default via 2001:db8::2\n"
        self.host.run("ip", "-batch", "-", stdin=commands)
        self._await_address("eth0")
        namespace.run("nft", "-f", "-", stdin=_SILENT)
        self._listen("outside", namespace, "outer", OUTSIDE)
        for address in (HOST_V4, HOST_V6):
            self._where[address] = "host"

    def _await_address(self, device: str) -> None:
        """The kernel makes an IPv6 address usable from a queue that all namespaces share, so not at once."""
        deadline = time.monotonic() + 30
        while self.host.run("ip", "-6", "address", "show", "dev", device, "tentative").strip():
            if time.monotonic() > deadline:
                raise AssertionError(f"{device} does not get its IPv6 address")

    def _listen(self, name: str, namespace: Namespace, device: str, own: Iterable[Address]) -> None:
        def make() -> socket.socket:
            made = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(_ETH_P_ALL))
            made.bind((device, _ETH_P_ALL))
            made.setblocking(False)
            made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 22)
            return made

        made = inside(namespace, make)
        self.namespaces[name] = namespace
        self._stack.callback(made.close)
        self._ports[name] = _Port(made, is_link=True)
        for address in own:
            self._where[address] = name

    def _raw_socket(self, family: int, protocol: int) -> socket.socket:
        made = socket.socket(family, socket.SOCK_RAW, protocol)
        made.setblocking(False)
        self._stack.callback(made.close)
        return made

    def forget_flows(self) -> None:
        """Empties this namespace's connection tracking: a delete message that names no flow deletes all."""
        with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 12) as netlink:
            message = struct.pack("=IHHIIBBH", 20, (1 << 8) | 2, 0x1 | 0x4, 1, 0, 0, 0, 0)
            netlink.send(message)
            netlink.recv(4096)


@contextmanager
def lab(host: Namespace, workloads: Workloads, workload_count: int) -> Iterator[Lab]:
    with ExitStack() as stack:
        before = os.sched_getaffinity(0)
        os.sched_setaffinity(0, {min(before)})
        stack.callback(os.sched_setaffinity, 0, before)
        yield Lab(host, workloads, workload_count, stack)
