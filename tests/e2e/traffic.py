"""Containers that serve TCP, UDP and ICMP in both families, which of them reach which, and what arrives at one."""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from tests.e2e.lab import IMAGE, Host
from tests.e2e.machine import Machine, Process, wait_for

PROBE = str(Path(__file__).with_name("probe.py"))
SERVICES = ("tcp 3306", "tcp 80", "udp 3306", "icmp")
FAMILIES = ("IPv4", "IPv6")
UDP_PORT = "3306"
_SERVE_TCP = "httpd -p 80; exec nc -ll -p 3306 -e cat"
_LISTENING = {":0050", ":0CEA"}


class Workload(NamedTuple):
    pid: str
    addresses: dict[str, str]
    """By family."""


class Flow(NamedTuple):
    source: str
    destination: str
    service: str
    family: str


@dataclass(frozen=True)
class Tally:
    """Of flows, as their senders write it down; one file per family."""

    logs: Sequence[Path]

    @property
    def sent(self) -> int:
        """In the family that is behind."""
        return min(log.read_text().count("sent") for log in self.logs)

    @property
    def unanswered(self) -> int:
        """In the family that is worse off; the last flow may still get its answer."""
        return max(log.read_text().count("sent") - log.read_text().count("answered") for log in self.logs)


@dataclass
class Traffic:
    """``workload`` starts a container that takes part; ``close`` ends what serves UDP for them."""

    host: Host
    elsewhere: Sequence[Traffic] = ()
    """Of other hosts, whose workloads are destinations, too."""
    _workloads: dict[str, Workload] = field(default_factory=dict)
    _servers: list[Process] = field(default_factory=list)

    def workload(self, name: str, network: str, *options: str) -> None:
        command = ("sh", "-c", _SERVE_TCP)
        self.host.docker("run", "-d", "--stop-timeout=0", "--net", network, "--name", name, *options, IMAGE, *command)
        addresses = {"IPv4": self.host.ipv4(name, network), "IPv6": self.host.ipv6(name, network)}
        self._workloads[name] = Workload(self.host.inspect(name, "{{.State.Pid}}"), addresses)
        log = self.host.machine.directory / f"{name}.udp.log"
        log.unlink(missing_ok=True)
        server = self.host.machine.start(*self.inside(name), sys.executable, PROBE, "serve", UDP_PORT, log=log)
        self._servers.append(server)
        table = self.host.machine.root / f"proc/{self._workloads[name].pid}/net/tcp6"
        wait_for(f"{name} to serve", lambda: _serves(table.read_text()) and log.read_text() == "ready\n")

    def inside(self, name: str) -> list[str]:
        """What runs a command of the host's in the container's network."""
        return ["nsenter", "-t", self._workloads[name].pid, "-n"]

    def address(self, name: str, family: str) -> str:
        return self._known()[name].addresses[family]

    def _known(self) -> dict[str, Workload]:
        return self._workloads | {name: one for other in self.elsewhere for name, one in other._workloads.items()}

    def flows(self) -> set[Flow]:
        """All there are between any two, in both directions."""
        return {
            Flow(source, destination, service, family)
            for source in self._workloads
            for destination in self._known()
            if source != destination
            for service in SERVICES
            for family in FAMILIES
        }

    def passing(self) -> set[Flow]:
        """Those of ``flows`` that are answered, tried all at once."""
        with ThreadPoolExecutor() as pool:
            return set().union(*pool.map(self._passing_from, self._workloads))

    def expect(self, allowed: Callable[[Flow], bool]) -> None:
        """Fails, naming the flows that differ, unless soon exactly the ``allowed`` ones pass."""
        expected = {flow for flow in self.flows() if allowed(flow)}

        def wrong() -> list[str]:
            passing = self.passing()
            extra = [f"passes: {' '.join(flow)}" for flow in sorted(passing - expected)]
            return extra + [f"is dropped: {' '.join(flow)}" for flow in sorted(expected - passing)]

        wait_for("exactly the allowed flows to pass", lambda: not wrong(), seconds=4, found=lambda: "\n".join(wrong()))

    @contextmanager
    def insisting(self, source: str, destination: str, *, patience: float) -> Iterator[Tally]:
        """New UDP flows all along, in both families, each of which is given ``patience`` seconds."""
        tally = Tally([self.host.machine.directory / f"{source}.{family}.log" for family in FAMILIES])
        running = []
        for family, log in zip(FAMILIES, tally.logs, strict=True):
            log.unlink(missing_ok=True)
            probe = (sys.executable, PROBE, "insist", self.address(destination, family), UDP_PORT, str(patience))
            running.append(self.host.machine.start(*self.inside(source), *probe, log=log))
        try:
            yield tally
        finally:
            for process in running:
                process.stop()

    def close(self) -> None:
        for server in self._servers:
            server.stop(signal.SIGKILL)

    def _passing_from(self, source: str) -> set[Flow]:
        flows = [flow for flow in self.flows() if flow.source == source]
        questions = json.dumps([[flow.service, self.address(flow.destination, flow.family)] for flow in flows])
        answers = json.loads(self.host.machine.run(*self.inside(source), sys.executable, PROBE, "ask", text=questions))
        return {flow for flow, answered in zip(flows, answers, strict=True) if answered}


def _serves(table: str) -> bool:
    listening = {line.split()[1][-5:] for line in table.splitlines()[1:] if line.split()[3] == "0A"}
    return listening >= _LISTENING


@contextmanager
def arrivals(machine: Machine, *matches: str, inside: Sequence[str] = ()) -> Iterator[Callable[[], int]]:
    """Counts the packets that any of ``matches`` (of nft) fits where they arrive; ``inside`` enters a container."""

    def nft(*arguments: str, text: str = "") -> str:
        return machine.run(*inside, "nft", *arguments, text=text)

    def count() -> int:
        listed = json.loads(nft("--json", "list", "counters", "table", "inet", "arrivals"))["nftables"]
        return sum(int(item["counter"]["packets"]) for item in listed if "counter" in item)

    rules = "\n".join(f'{match} counter name "seen"' for match in matches)
    hook = "type filter hook prerouting priority raw;"
    nft("-f", "-", text=f"table inet arrivals {{\ncounter seen {{ }}\nchain seen {{\n{hook}\n{rules}\n}}\n}}\n")
    try:
        yield count
    finally:
        machine.try_run(*inside, "nft", "delete", "table", "inet", "arrivals")


@dataclass
class Resources:
    """What a test applies, as with calicoctl; ``remove`` takes all of it away again."""

    host: Host
    _applied: list[str] = field(default_factory=list)

    def apply(self, documents: str) -> None:
        self.host.calico("apply", "-f", "-", text=documents)
        self._applied.append(documents)

    def delete(self, documents: str) -> None:
        self.host.calico("delete", "-f", "-", text=documents)

    def remove(self) -> None:
        for documents in self._applied:
            self.host.calico("delete", "--skip-not-exists", "-f", "-", text=documents)
