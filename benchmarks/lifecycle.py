"""What a container costs: the plugin's calls, ``docker run``, throughput, memory and start, on a lab host.

    sudo python -m benchmarks.lifecycle [--rounds 50]

The plugin runs as users run it, with the embedded datastore on the disk and policy in the kernel. Life cycles are the
calls dockerd makes, in its order, over connections that are kept, without dockerd's own time. What is compared
with Docker's bridge driver alternates with it. Raw netlink and the disk's fsync are measured in the same run, since
absolute times differ between machines.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import secrets
import socket
import statistics
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console
from rich.table import Table
from tests.e2e.lab import Host, Lab, dockers
from tests.e2e.machine import wait_for

UP = ("RequestAddress", "CreateEndpoint", "Join", "ProgramExternalConnectivity", "EndpointOperInfo")
DOWN = ("RevokeExternalConnectivity", "Leave", "DeleteEndpoint", "ReleaseAddress")
THROUGHPUT_ROUNDS = 5
START_ROUNDS = 10
CONCURRENT = 8
_RAW = """
import statistics, time
from pyroute2 import IPRoute
with IPRoute() as ip:
    for step in ("add", "del"):
        times = []
        for number in range(50):
            names = dict(ifname=f"raw{number}", kind="veth", peer=f"rawp{number}") if step == "add" else {}
            started = time.perf_counter()
            if step == "add":
                ip.link("add", **names)
            else:
                ip.link("del", index=ip.link_lookup(ifname=f"raw{number}")[0])
            times.append(time.perf_counter() - started)
        print(statistics.median(times) * 1000)
"""


@dataclass
class Client:
    """One kept connection to a plugin socket, as dockerd has it."""

    path: Path
    times: dict[str, list[float]]
    _connection: http.client.HTTPConnection = field(init=False)

    def __post_init__(self) -> None:
        self._connection = http.client.HTTPConnection("plugin")
        self._connection.sock = socket.socket(socket.AF_UNIX)
        self._connection.sock.connect(str(self.path))

    def call(self, method: str, **body: object) -> dict[str, object]:
        """Milliseconds go to ``times`` under the method's last word."""
        started = time.perf_counter()
        self._connection.request("POST", f"/{method}", json.dumps(body), {"Host": "plugin"})
        response = self._connection.getresponse()
        answer = json.loads(response.read())
        self.times[method.split(".")[1]].append((time.perf_counter() - started) * 1000)
        if response.status != 200:
            raise RuntimeError(f"{method}: {answer}")
        return dict(answer)


class LifeCycles:
    """Times of single calls, and of whole lives up and down, in milliseconds."""

    def __init__(self, sockets: Sequence[Path], network: str) -> None:
        self.times: dict[str, list[float]] = defaultdict(list)
        self._sockets, self._network = sockets, network
        self._thread = threading.local()

    def once(self, _: int = 0) -> None:
        network, ipam = self._clients()
        ids = {"NetworkID": self._network, "EndpointID": secrets.token_hex(32)}
        started = time.perf_counter()
        answer = ipam.call("IpamDriver.RequestAddress", PoolID="CalicoPoolIPv4", Address="", Options=None)
        address = str(answer["Address"])
        interface = {"Address": address, "AddressIPv6": "", "MacAddress": ""}
        network.call("NetworkDriver.CreateEndpoint", **ids, Interface=interface, Options={})
        sandbox = f"/var/run/docker/netns/{secrets.token_hex(6)}"
        network.call("NetworkDriver.Join", **ids, SandboxKey=sandbox, Options={})
        network.call("NetworkDriver.ProgramExternalConnectivity", **ids, Options={})
        network.call("NetworkDriver.EndpointOperInfo", **ids)
        joined = time.perf_counter()
        for method in ("RevokeExternalConnectivity", "Leave", "DeleteEndpoint"):
            network.call(f"NetworkDriver.{method}", **ids)
        ipam.call("IpamDriver.ReleaseAddress", PoolID="CalicoPoolIPv4", Address=address.split("/")[0])
        ended = time.perf_counter()
        self.times["up"].append((joined - started) * 1000)
        self.times["down"].append((ended - joined) * 1000)
        self.times["life"].append((ended - started) * 1000)

    def _clients(self) -> tuple[Client, Client]:
        if not hasattr(self._thread, "clients"):
            self._thread.clients = [Client(path, self.times) for path in self._sockets]
        network, ipam = self._thread.clients
        return network, ipam


def life_cycles(host: Host, rounds: int, report: Report) -> None:
    network = host.network("net1")
    full = host.docker("network", "inspect", "--format", "{{.Id}}", network)
    one_by_one = LifeCycles(host.plugin.sockets, full)
    one_by_one.once()
    one_by_one.times.clear()
    for number in range(rounds):
        one_by_one.once(number)
    for name in (*UP, *DOWN, "up", "down", "life"):
        report.times(f"{name}, one by one", one_by_one.times[name])
    at_once = LifeCycles(host.plugin.sockets, full)
    with ThreadPoolExecutor(CONCURRENT) as pool:
        list(pool.map(at_once.once, range(CONCURRENT * 2)))
        at_once.times.clear()
        started = time.perf_counter()
        list(pool.map(at_once.once, range(rounds * 4)))
        elapsed = time.perf_counter() - started
    for name in ("up", "down", "life"):
        report.times(f"{name}, {CONCURRENT} at a time", at_once.times[name])
    report.figure(f"life cycles a second, {CONCURRENT} at a time", f"{rounds * 4 / elapsed:.0f}")
    host.docker("network", "rm", "net1")


def docker_run(host: Host, rounds: int, report: Report) -> None:
    """``docker run`` of a container that ends with its first answered ping."""
    host.network("net1")
    host.docker("network", "create", "bridge1")
    times: dict[str, list[float]] = defaultdict(list)
    for network in ("net1", "bridge1"):
        host.workload(f"target-{network}", network)
    for _ in range(rounds):
        for network in ("net1", "bridge1"):
            address = host.ipv4(f"target-{network}", network)
            started = time.perf_counter()
            host.docker("run", "--rm", "--net", network, "busybox", "ping", "-c", "1", "-W", "1", address)
            times[network].append((time.perf_counter() - started) * 1000)
    report.times("docker run to first ping and end, calico", times["net1"])
    report.times("docker run to first ping and end, bridge", times["bridge1"])
    report.figure("docker run, ratio to bridge", f"{_ratio(times['net1'], times['bridge1']):.3f}")
    host.clear()


def throughput(host: Host, report: Report) -> None:
    host.network("net1")
    host.docker("network", "create", "bridge1")
    rates: dict[str, list[float]] = defaultdict(list)
    for network in ("net1", "bridge1"):
        for end in ("server", "client"):
            host.workload(f"{end}-{network}", network)
        host.machine.start(*_inside(host, f"server-{network}"), "iperf3", "-s", log=Path(os.devnull))
    for _ in range(THROUGHPUT_ROUNDS):
        for network in ("net1", "bridge1"):
            address = host.ipv4(f"server-{network}", network)
            command = [*_inside(host, f"client-{network}"), "iperf3", "-c", address, "-t", "3", "-J"]
            answer = json.loads(host.machine.run(*command))
            rates[network].append(answer["end"]["sum_received"]["bits_per_second"] / 1e9)
    for network, name in (("net1", "calico"), ("bridge1", "bridge")):
        report.figure(f"TCP, {name}", f"{statistics.median(rates[network]):.2f} Gbit/s")
    report.figure("TCP, ratio to bridge", f"{_ratio(rates['net1'], rates['bridge1']):.3f}")
    host.clear()


def _inside(host: Host, container: str) -> list[str]:
    return ["nsenter", "-t", host.inspect(container, "{{.State.Pid}}"), "-n"]


def start_and_memory(host: Host, report: Report) -> None:
    status = Path(f"/proc/{host.plugin.pid}/status").read_text()
    resident = next(line.split()[1] for line in status.splitlines() if line.startswith("VmRSS"))
    report.figure("resident memory after all of the above", f"{int(resident) / 1024:.1f} MB")
    times = []
    for _ in range(START_ROUNDS):
        host.plugin.stop()
        started = time.perf_counter()
        host.plugin.launch()
        wait_for("both sockets to answer", host.plugin.answers)
        times.append((time.perf_counter() - started) * 1000)
        wait_for("the plugin to be ready", host.plugin.ready)
    report.times("start to both sockets answering", times)


def beside(host: Host, report: Report) -> None:
    """What no plugin could do without."""
    python = str(Path(".venv/bin/python").absolute())
    add, delete = host.machine.run(python, "-c", _RAW).split()
    report.figure("raw netlink: veth add", f"{float(add):.2f} ms")
    report.figure("raw netlink: veth delete", f"{float(delete):.2f} ms")
    report.times("fsync of 4 KB", list(_fsyncs(host.machine.directory / "fsync", 100)))


def _fsyncs(path: Path, rounds: int) -> Iterator[float]:
    with path.open("wb") as file:
        for _ in range(rounds):
            file.write(os.urandom(4096))
            file.flush()
            started = time.perf_counter()
            os.fsync(file.fileno())
            yield (time.perf_counter() - started) * 1000


def _ratio(ours: list[float], theirs: list[float]) -> float:
    return statistics.median(ours) / statistics.median(theirs)


class Report:
    def __init__(self) -> None:
        self._table = Table("what", "p50", "p99", "n")
        self._console = Console()

    def times(self, what: str, milliseconds: list[float]) -> None:
        ordered = sorted(milliseconds)
        p99 = ordered[min(len(ordered) - 1, round(0.99 * (len(ordered) - 1)))]
        self._table.add_row(what, f"{statistics.median(ordered):.2f} ms", f"{p99:.2f} ms", str(len(ordered)))

    def figure(self, what: str, value: str) -> None:
        self._table.add_row(what, value, "", "")

    def show(self) -> None:
        self._console.print(self._table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=50, help="life cycles one by one; four times as many at once")
    rounds = parser.parse_args().rounds
    report = Report()
    docker = dockers()[-1]
    with Lab() as lab:
        host = lab.host(docker)
        host.plugin.start()
        steps: list[tuple[str, Callable[[], None]]] = [
            ("life cycles", lambda: life_cycles(host, rounds, report)),
            ("docker run", lambda: docker_run(host, rounds, report)),
            ("throughput", lambda: throughput(host, report)),
            ("start and memory", lambda: start_and_memory(host, report)),
            ("the machine itself", lambda: beside(host, report)),
        ]
        for name, step in steps:
            print(f"{name} ...", flush=True)
            step()
    print(f"Docker {docker.version}, Linux {os.uname().release}, {os.cpu_count()} processors")
    report.show()


if __name__ == "__main__":
    main()
