"""Several hosts: ``docker run`` to a ping from another host, blocks to routes, traffic beside Docker's overlay.

    sudo python -m benchmarks.hosts [--rounds 30]

Hosts are network namespaces on one bridge, each with its dockerd and the plugin, with etcd in the fabric between them.
The overlay needs Docker 20.10 with a cluster store; ours runs on the same two daemons and alternates with it. When a
host's last container leaves an overlay network, that Docker leaves a thread of dockerd in what was the network's
namespace, and what the thread does next may find "network is unreachable". So a container of each network stays.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import re
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

from rich.console import Console
from rich.table import Table
from tests.e2e.lab import Host, Lab
from tests.e2e.machine import wait_for
from tests.e2e.several_hosts import a_cluster, networks, pool, reaches, release

from calico_libnetwork.cli.session import open_datastore
from calico_libnetwork.config import Config
from calico_libnetwork.datastore.protocol import Delete, Put, Transaction

SECONDS = 2
PINGS = 500
ONE_COPIED, ONE, FOUR = "TCP, one connection, copied at both ends", "TCP, one connection", "TCP, four connections"
COST, TRIP = "processor time per GB of four connections", "round trip"
TUNNELLED = "10.88.0.0/16"
OVERLAY = "10.89.0.0/16"
PLAIN = "10.90.0.0/16"
_UNCOPIED = Path(__file__).with_name("uncopied.py")
_STAMP = re.compile(r"^\[(\S+)\] (10\.99\.\S+) ")
# echo requests every two milliseconds until the first reply, whose time it prints; says when it has begun
_UNTIL_ANSWERED = """
import select, socket, struct, sys, time
def checksum(data):
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xffff) + (total >> 16)
    return ~total & 0xffff
header = struct.pack("!BBHHH", 8, 0, 0, 7, 7)
packet = header[:2] + struct.pack("!H", checksum(header)) + header[4:]
with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP) as icmp:
    print("begun", flush=True)
    while True:
        try:
            icmp.sendto(packet, (sys.argv[1], 0))
        except OSError:
            pass
        if select.select([icmp], [], [], 0.002)[0]:
            data, sender = icmp.recvfrom(2048)
            if data[20] == 0 and sender[0] == sys.argv[1]:
                print(time.monotonic(), flush=True)
                break
"""


# what most virtual network cards, and the older real ones, lack
_NO_TUNNEL_OFFLOAD = """
from pyroute2.ethtool import Ethtool
with Ethtool() as tool:
    features = tool.get_features("eth0")
    for name in ("tx-udp_tnl-segmentation", "tx-udp_tnl-csum-segmentation"):
        features.features[name].enable = False
    tool.set_features("eth0", features)
"""

# a switch asks nobody's firewall; left on, each of the overlay's many packets would pay for it
_PLAIN_SWITCH = """
for name in iptables ip6tables arptables; do echo 0 >/proc/sys/net/bridge/bridge-nf-call-$name; done
"""

Traffic = Mapping[str, Mapping[str, list[float]]]
"""By measure and network: Gbit/s, and seconds of processor time or of round trips."""


class Report:
    """Rows of ours, theirs and the ratio."""

    def __init__(self) -> None:
        self._table = Table("what", "ours", "overlay", "ratio", "n")

    def times(self, what: str, ours: Sequence[float], theirs: Sequence[float] = ()) -> None:
        """Seconds in, milliseconds out."""
        for name, share in (("p50", 0.5), ("p99", 0.99)):
            mine, other = _quantile(ours, share), _quantile(theirs, share) if theirs else None
            self._row(f"{what}, {name}", mine * 1000, None if other is None else other * 1000, "ms", len(ours))

    def rates(self, what: str, ours: Sequence[float], theirs: Sequence[float]) -> None:
        self._row(what, statistics.median(ours), statistics.median(theirs), "Gbit/s", len(ours))

    def costs(self, what: str, ours: Sequence[float], theirs: Sequence[float]) -> None:
        self._row(what, statistics.median(ours), statistics.median(theirs), "s", len(ours))

    def traffic(self, where: str, measured: Traffic, network: str) -> None:
        for measure in (ONE_COPIED, ONE, FOUR):
            self.rates(f"{measure}, {where}", measured[measure][network], measured[measure]["overlay"])
        self.costs(f"{COST}, {where}", measured[COST][network], measured[COST]["overlay"])
        self.times(f"{TRIP}, {where}", measured[TRIP][network], measured[TRIP]["overlay"])

    def show(self) -> None:
        Console(width=150).print(self._table)

    def _row(self, what: str, ours: float, theirs: float | None, unit: str, count: int) -> None:
        cells = ("", "") if theirs is None else (f"{_number(theirs)} {unit}", f"{ours / theirs:.2f}")
        self._table.add_row(what, f"{_number(ours)} {unit}", *cells, str(count))


def _number(value: float) -> str:
    return f"{value:.0f}" if value >= 1000 else f"{value:.3g}"


def _quantile(values: Sequence[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[round(share * (len(ordered) - 1))]


def run_to_ping(hosts: Sequence[Host], network: str, address: str) -> float:
    """Seconds from the call of ``docker run`` on the first host to the first answer at the second one's container."""
    first, second = hosts
    log = second.machine.directory / f"until-{time.monotonic_ns()}.log"
    prober = second.machine.start(
        *_inside(second, f"asker-{network}"), sys.executable, "-c", _UNTIL_ANSWERED, address, log=log
    )
    wait_for("the prober to begin", lambda: "begun" in log.read_text())
    started = time.monotonic()
    first.workload("answerer", network, "--ip", address)
    prober.entered.wait(30)
    first.docker("rm", "--force", "answerer")
    return float(log.read_text().split()[-1]) - started


def docker_run(hosts: Sequence[Host], subnets: dict[str, str], rounds: int) -> dict[str, list[float]]:
    """By network; they alternate, and each round has an address of its own."""
    times: dict[str, list[float]] = defaultdict(list)
    for network in subnets:
        hosts[1].workload(f"asker-{network}", network)
    for number in range(rounds):
        for network, subnet in subnets.items():
            times[network].append(run_to_ping(hosts, network, subnet.replace(".0.0/16", f".77.{number + 1}")))
    for network in subnets:
        hosts[1].docker("rm", "--force", f"asker-{network}")
    return times


def block_to_route(hosts: Sequence[Host], rounds: int) -> list[float]:
    """Seconds from the write of a new block's affinity at the first host to the route in the second one's kernel."""
    first, second = hosts
    log = second.machine.directory / f"monitor-{time.monotonic_ns()}.log"
    monitor = second.machine.start("ip", "-ts", "monitor", "route", log=log)
    written = asyncio.run(_write_blocks(first, rounds, lambda block: f" {block} " in log.read_text()))
    monitor.stop()
    seen: dict[str, float] = {}
    for line in log.read_text().splitlines():
        found = _STAMP.match(line)
        if found is not None:
            seen.setdefault(found[2], datetime.fromisoformat(found[1]).replace(tzinfo=UTC).timestamp())
    return [seen[block] - written[block] for block in written]


async def _write_blocks(host: Host, rounds: int, arrived: Callable[[str], bool]) -> dict[str, float]:
    config = Config(
        datastore_type="embedded",
        state_directory=host.machine.directory / "var/lib/calico-libnetwork",
        run_directory=host.machine.root / "run/calico-libnetwork",
    )
    datastore = await open_datastore(config)  # that of the plugin which runs there
    written = {}
    try:
        for number in range(rounds):
            block = f"10.99.{number}.0/26"
            key = f"/calico/ipam/v2/host/{host.name}/ipv4/block/10.99.{number}.0-26"
            written[block] = time.time()
            await datastore.commit(Transaction([], [Put(key, b'{"state":"confirmed"}')]))
            await asyncio.to_thread(wait_for, f"a route to {block}", partial(arrived, block))
            await datastore.commit(Transaction([], [Delete(key)]))
            await asyncio.sleep(0.1)
    finally:
        await datastore.close()
    return written


def traffic(hosts: Sequence[Host], subnets: Sequence[str], rounds: int) -> Traffic:
    first, second = hosts
    measured: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for network in subnets:
        first.workload(f"client-{network}", network)
        second.workload(f"server-{network}", network)
        for server in (["iperf3", "-s"], [sys.executable, str(_UNCOPIED), "receive"]):
            second.machine.start(*_inside(second, f"server-{network}"), *server, log=Path(os.devnull))
        address = second.ipv4(f"server-{network}", network)
        wait_for("the server", reaches(first, f"client-{network}", address))
    for _ in range(rounds):
        for network in subnets:
            address = second.ipv4(f"server-{network}", network)
            inside = _inside(first, f"client-{network}")
            answer = json.loads(first.machine.run(*inside, "iperf3", "-c", address, "-t", str(SECONDS), "-J"))
            measured[ONE_COPIED][network].append(answer["end"]["sum_received"]["bits_per_second"] / 1e9)
            measured[ONE][network].append(_uncopied(first, inside, address, 1)[0])
            rate, cost = _uncopied(first, inside, address, 4)
            measured[FOUR][network].append(rate)
            measured[COST][network].append(cost)
            pings = first.machine.run(*inside, "ping", "-n", "-i", "0.002", "-c", str(PINGS), address)
            measured[TRIP][network] += [float(found) / 1000 for found in re.findall(r"time=([\d.]+) ms", pings)]
    for network in subnets:
        first.docker("rm", "--force", f"client-{network}")
        second.docker("rm", "--force", f"server-{network}")
    return measured


def _uncopied(host: Host, inside: Sequence[str], address: str, connections: int) -> tuple[float, float]:
    """Gbit/s of all connections, and the seconds that the machine's processors worked per gigabyte."""
    command = [sys.executable, str(_UNCOPIED), "send", address, str(SECONDS), str(connections)]
    rate, cost = map(float, host.machine.run(*inside, *command).split())
    return rate, cost


def _inside(host: Host, container: str) -> list[str]:
    return ["nsenter", "-t", host.inspect(container, "{{.State.Pid}}"), "-n"]


def beside_the_overlay(lab: Lab, rounds: int, traffic_rounds: int, report: Report) -> None:
    """On two 20.10 hosts whose networks are global: plain and VXLAN pools of ours, and Docker's overlay."""
    with a_cluster(lab, options=("--enable-v2",)) as cluster:
        hosts = [cluster.join(release("20."), store=True) for _ in range(2)]
        cluster.apply(pool(PLAIN, "plain"), pool(TUNNELLED, "tunnelled", vxlanMode="Always"))
        wait_for("the tunnels", lambda: all("vxlan.calico" in host.machine.interfaces() for host in hosts))
        hosts[0].network("plain", "--subnet", PLAIN)
        hosts[0].network("tunnelled", "--subnet", TUNNELLED)
        hosts[0].docker("network", "create", "--driver", "overlay", "--subnet", OVERLAY, "overlay")
        names = ("plain", "tunnelled", "overlay")
        wait_for("the networks", lambda: set(names) <= set(networks(hosts[1])))
        lab.fabric.run("sh", "-ec", _PLAIN_SWITCH)
        for host in hosts:
            for network in names:
                host.workload(f"resident-{network}-{host.name}", network)
        for card in ("card segments tunnels", "card does not segment tunnels"):
            print(f"traffic, {card} ...", flush=True)
            measured = traffic(hosts, names, traffic_rounds)
            report.traffic(f"no encapsulation, {card}", measured, "plain")
            report.traffic(f"VXLAN, {card}", measured, "tunnelled")
            for host in hosts:
                host.machine.run(sys.executable, "-c", _NO_TUNNEL_OFFLOAD)
        print("docker run, 20.10 ...", flush=True)
        runs = docker_run(hosts, {"plain": PLAIN, "overlay": OVERLAY}, rounds)
        report.times("docker run to ping from the other host, 20.10, direct", runs["plain"], runs["overlay"])


def today(lab: Lab, rounds: int, report: Report) -> None:
    """On two hosts of the newest Docker, by direct routes and by BGP."""
    with a_cluster(lab) as cluster:
        hosts = [cluster.join(release("28.")) for _ in range(2)]
        cluster.apply(pool(PLAIN, "plain"), pool("10.99.0.0/16", "blocks"))
        cluster.network("plain", "--subnet", PLAIN)
        for mode, name in (("auto", "direct"), ("bird", "BGP")):
            print(f"{name} ...", flush=True)
            cluster.restart(CALICO_LIBNETWORK_ROUTES=mode)
            if mode == "bird":
                cluster.everywhere("the sessions", _meshed, seconds=30)
            runs = docker_run(hosts, {"plain": PLAIN}, rounds)
            report.times(f"docker run to ping from the other host, 28.5, {name}", runs["plain"])
            report.times(f"new block to the other host's route, {name}", block_to_route(hosts, rounds))


def _meshed(host: Host) -> bool:
    return (
        host.machine.try_run("birdc", "-s", "/run/calico-libnetwork/bird/bird.ctl", "show", "protocols").stdout.count(
            "Established"
        )
        == 2
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=30, help="of docker run and of new blocks")
    parser.add_argument("--traffic-rounds", type=int, default=5, help=f"of {SECONDS} seconds for each kind of traffic")
    arguments = parser.parse_args()
    report = Report()
    with Lab() as lab:
        beside_the_overlay(lab, arguments.rounds, arguments.traffic_rounds, report)
        today(lab, arguments.rounds, report)
    print(f"Linux {os.uname().release}, {os.cpu_count()} processors")
    report.show()


if __name__ == "__main__":
    main()
