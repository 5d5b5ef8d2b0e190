"""Our own work from resources to nftables, and nft's for the same final ruleset, in one run.

    python -m benchmarks.policy [--endpoints 1000 10000] [--policies 100 1000] [--rounds 5]

For every combination: the first full load, one endpoint more, one policy changed that selects ten endpoints and one
that selects all. With root, the changes are written into a network namespace of its own by the product's writer, in
the agent's order: the closed skeleton, then the load, with the garbage collector off. After each of the three loads
the final ruleset is loaded once more by ``nft -f``. What one endpoint more takes through the whole agent, and the
agent's memory, is measured by ``benchmarks.in_force``.
Every endpoint has a profile (50 of them) and the labels role (one of a hundred) and app (one of ten in each role);
policy i selects one role, or for every fifth one app, and allows from the endpoints of another role.
"""

from __future__ import annotations

import argparse
import asyncio
import ctypes
import gc
import json
import os
import resource as limits
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from calico_libnetwork.dataplane.nft import Nft
from calico_libnetwork.dataplane.nft_program import render, replacement
from calico_libnetwork.dataplane.nftables import TableWriter, apply_together
from calico_libnetwork.dataplane.rules import Ruleset, RulesSettings
from calico_libnetwork.dataplane.table import Table
from calico_libnetwork.model.kinds import ResourceKey, decode
from calico_libnetwork.model.resources import AnyResource

LOADS = 3
_CLONE_NEWNET = 0x40000000

Item = tuple[ResourceKey, bytes]


def document(kind: str, name: str, spec: dict[str, Any], namespace: str = "", **metadata: Any) -> Item:
    value = {
        "kind": kind,
        "apiVersion": "projectcalico.org/v3",
        "metadata": {"name": name, "namespace": namespace, **metadata},
        "spec": spec,
    }
    return ResourceKey(kind, name, namespace), msgspec.json.encode(value)


def endpoint(number: int) -> Item:
    name = f"{number:08x}".ljust(64, "0")
    spec = {
        "orchestrator": "libnetwork",
        "workload": "libnetwork",
        "node": "n1",
        "endpoint": name,
        "ipNetworks": [f"10.{65 + (number >> 16)}.{number >> 8 & 255}.{number & 255}/32", f"fd00::{number:x}/128"],
        "profiles": [f"net-{number % 50}"],
        "interfaceName": f"cali{number:08x}",
        "mac": "02:42:0a:41:4d:41",
    }
    labels = {"role": f"r{number % 100}", "app": f"a{number % 1000}"}
    return document("WorkloadEndpoint", f"n1-libnetwork-libnetwork-{name}", spec, "libnetwork", labels=labels)


def profile(number: int) -> Item:
    label = f"network.projectcalico.org/net-{number}"
    ingress = [{"action": "Allow", "source": {"selector": f"has({label})"}}]
    spec = {"labelsToApply": {label: ""}, "ingress": ingress, "egress": [{"action": "Allow"}]}
    return document("Profile", f"net-{number}", spec)


def policy(number: int, selector: str = "", port: int = 80) -> Item:
    own = f"app == 'a{number % 1000}'" if number % 5 == 0 else f"role == 'r{number % 100}'"
    source = {"selector": f"role == 'r{(number * 7 + 1) % 100}'"}
    spec = {
        "order": number % 10,
        "selector": selector or own,
        "types": ["Ingress"],
        "ingress": [
            {"action": "Allow", "protocol": "TCP", "source": source, "destination": {"ports": [port, 443]}},
            {"action": "Deny", "protocol": "TCP", "source": {"nets": [f"10.0.{number % 250}.0/24"]}},
        ],
    }
    return document("GlobalNetworkPolicy", f"policy-{number}", spec)


def cluster(endpoints: int, policies: int) -> Iterator[Item]:
    yield from (profile(number) for number in range(50))
    yield from (policy(number) for number in range(policies))
    yield from (endpoint(number) for number in range(endpoints))


class Subject:
    def __init__(self) -> None:
        self.table = Table("inet", "calico-libnetwork")
        self.arp = Table("arp", "calico-libnetwork")
        self.ruleset = Ruleset(node="n1", settings=RulesSettings())

    def take(self, items: Iterator[Item] | list[Item]) -> None:
        for key, value in items:
            resource: AnyResource = decode(key, value)
            self.ruleset.update(key, resource)
        self.ruleset.render(self.table, self.arp)


def milliseconds(action: Callable[[], None]) -> float:
    started = time.perf_counter()
    action()
    return (time.perf_counter() - started) * 1000


def resident_megabytes() -> float:
    return int(Path("/proc/self/statm").read_text().split()[1]) * limits.getpagesize() / 2**20


class Kernel:
    """Writes the subject's tables for real; without root it only pretends that they are written."""

    def __init__(self, subject: Subject, nft: Nft | None) -> None:
        self.tables = (subject.table, subject.arp)
        self._nft = nft
        self._writers = [TableWriter(nft, table) for table in self.tables] if nft else []

    async def close(self) -> None:
        for writer in self._writers:
            await writer.ensure_closed()

    async def apply(self) -> float | None:
        if self._nft is None:
            for table in self.tables:
                replacement(table).settle(table)
            return None
        started = time.perf_counter()
        await apply_together(self._nft, self._writers)
        return (time.perf_counter() - started) * 1000

    def load_plainly(self) -> float:
        """Everything as one program through the nft command, in the place of what is there."""
        nft_command("".join(f"delete table {table.family} {table.name}\n" for table in self.tables))
        text = "".join(render(table, replacement(table)) for table in self.tables)
        return milliseconds(lambda: nft_command(text))

    def delete(self) -> None:
        nft_command("".join(f"delete table {table.family} {table.name}\n" for table in self.tables))


@dataclass
class Load:
    subject: Subject
    kernel: Kernel
    ours: float
    written: float | None
    plain: float | None

    @property
    def factor(self) -> float:
        return (self.ours + (self.written or 0)) / self.plain if self.plain else 0


async def full_load(endpoints: int, policies: int, nft: Nft | None) -> Load:
    items = list(cluster(endpoints, policies))
    subject = Subject()
    kernel = Kernel(subject, nft)
    await kernel.close()
    gc.collect()
    gc.disable()
    ours = milliseconds(lambda: subject.take(items))
    written = await kernel.apply()
    gc.enable()
    return Load(subject, kernel, ours, written, kernel.load_plainly() if nft else None)


async def measure(endpoints: int, policies: int, rounds: int, nft: Nft | None) -> dict[str, Any]:
    result: dict[str, Any] = {"endpoints": endpoints, "policies": policies}
    loads: list[Load] = []
    for _ in range(LOADS):
        if loads and nft:
            loads[-1].kernel.delete()
        loads.append(await full_load(endpoints, policies, nft))
    result["full load, ours"] = statistics.median(load.ours for load in loads)
    result["full load, written"] = statistics.median(load.written or 0 for load in loads)
    result["full load, nft -f"] = statistics.median(load.plain or 0 for load in loads)
    result["full load, times nft -f"] = statistics.median(load.factor for load in loads)
    result |= await changes(loads[-1], endpoints, rounds)
    tables = loads[-1].kernel.tables
    for kind in ("chains", "sets", "elements"):
        result[kind] = sum(len(getattr(table, kind).desired) for table in tables)
    return result


async def changes(load: Load, endpoints: int, rounds: int) -> dict[str, float]:
    subject, kernel = load.subject, load.kernel
    result: dict[str, float] = {}
    made: dict[str, Callable[[int], Item]] = {
        "one endpoint more": lambda round_: endpoint(endpoints + round_),
        "a rule of a policy selecting 10": lambda round_: policy(5, port=1000 + round_),
        "a policy's selector, 10 endpoints": lambda round_: policy(5, f"app == 'a{round_}'"),
        "a rule of a policy selecting all": lambda round_: policy(0, "all()", port=1000 + round_),
    }
    subject.take([policy(0, "all()")])
    await kernel.apply()
    for name, change in made.items():
        own, written = [], []
        for round_ in range(rounds):
            item = change(round_)
            own.append(milliseconds(lambda item=item: subject.take([item])))  # type: ignore[misc]
            written.append(await kernel.apply() or 0)
        result[name] = statistics.median(own)
        result[f"{name}, written"] = statistics.median(written)
    result["a policy's selector, all endpoints"] = milliseconds(lambda: subject.take([policy(0)]))
    result["a policy's selector, all endpoints, written"] = await kernel.apply() or 0
    return result


def nft_command(text: str) -> None:
    subprocess.run(["nft", "-f", "-"], input=text, text=True, check=True)


async def run(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    async def all_of_them(nft: Nft | None) -> list[dict[str, Any]]:
        return [await measure(e, p, arguments.rounds, nft) for e in arguments.endpoints for p in arguments.policies]

    if os.geteuid() != 0:
        return await all_of_them(None)
    if ctypes.CDLL(None, use_errno=True).unshare(_CLONE_NEWNET) != 0:
        raise OSError(ctypes.get_errno(), "no network namespace of our own")
    async with Nft() as nft:
        return await all_of_them(nft)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--endpoints", type=int, nargs="+", default=[1000, 10000])
    parser.add_argument("--policies", type=int, nargs="+", default=[100, 1000])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    results = asyncio.run(run(arguments))
    if arguments.json:
        json.dump(results, sys.stdout, indent=1)
        return
    for name in results[0]:
        values = "".join(
            f"{value:>16.2f}" if isinstance(value := r[name], float) else f"{value!s:>16}" for r in results
        )
        print(f"{name:<48}{values}")


if __name__ == "__main__":
    main()
