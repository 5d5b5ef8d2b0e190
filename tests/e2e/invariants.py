"""What must hold on hosts that nothing disturbs: Docker says what runs, and everything else is compared with that."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from ipaddress import ip_interface
from typing import Any

from tests.e2e.lab import RESOURCES, Host

_INTERFACE = re.compile(r"\bcali[0-9a-f]{11}\b")


@dataclass(frozen=True)
class Attachment:
    """A running container on one of its Calico ``networks``, as Docker has it."""

    host: Host
    container: str
    network: str
    networks: frozenset[str]
    endpoint_id: str
    addresses: frozenset[str]
    mac: str
    pid: int

    @property
    def interface(self) -> str:
        return f"cali{self.endpoint_id[:11]}"

    @property
    def ipv4(self) -> str:
        return next(address for address in self.addresses if ":" not in address)


def attachments(host: Host) -> list[Attachment]:
    names = host.docker("ps", "--quiet").split()
    networks = set(host.docker("network", "ls", "--filter", "driver=calico", "--format", "{{.Name}}").split())
    found = []
    for answer in json.loads(host.docker("inspect", *names)) if names else ():
        mine = {
            name: of
            for name, of in answer["NetworkSettings"]["Networks"].items()
            if name in networks and of["EndpointID"]  # a network that could not be connected stays with none
        }
        found += [_attachment(host, answer, name, frozenset(mine), of) for name, of in mine.items()]
    return found


def _attachment(
    host: Host, answer: dict[str, Any], network: str, networks: frozenset[str], of: dict[str, Any]
) -> Attachment:
    return Attachment(
        host=host,
        container=answer["Name"].lstrip("/"),
        network=network,
        networks=networks,
        endpoint_id=of["EndpointID"],
        addresses=frozenset(filter(None, (of["IPAddress"], of["GlobalIPv6Address"]))),
        mac=of["MacAddress"],
        pid=answer["State"]["Pid"],
    )


def violations(hosts: Sequence[Host]) -> list[str]:
    """Everything that is not as it should be, but for packets; empty if nothing."""
    running = {host.name: attachments(host) for host in hosts}
    everything = [each for listed in running.values() for each in listed]
    found = list(_stored(hosts[0], everything))
    for host in hosts:
        found += [f"{host.name}: {each}" for each in _kernel(host, running[host.name])]
    return found


def _difference(what: str, expected: set[Any], actual: set[Any]) -> Iterator[str]:
    if expected != actual:
        yield f"{what}: missing {sorted(expected - actual)}, left over {sorted(actual - expected)}"


def _stored(host: Host, running: Sequence[Attachment]) -> Iterator[str]:
    """``host`` is where the command line is asked."""
    answer = host.calico_result("get", "workloadendpoints", "--all-namespaces", "--output", "json")
    if answer.returncode:
        yield f"endpoints cannot be read: {answer.stderr}"
        return
    specs = [item["spec"] for item in json.loads(answer.stdout)["items"]]
    stored = {(spec["node"], spec["endpoint"], spec["mac"], *_addresses(spec)) for spec in specs}
    wanted = {(each.host.name, each.endpoint_id, each.mac, *sorted(each.addresses)) for each in running}
    yield from _difference("workload endpoints", wanted, stored)
    check = host.calico_result("ipam", "check")
    addresses = sum(len(each.addresses) for each in running)
    said = re.search(r"(\d+) address(?:es are| is) assigned", check.stdout)
    if check.returncode or said is None or int(said[1]) != addresses:
        yield f"ipam check, with {addresses} addresses in use: {check.stdout} {check.stderr}"
    profiles = {key.rsplit("/", 1)[1] for key in host.stored(f"{RESOURCES}/profiles/")}
    used = {profile for spec in specs for profile in spec.get("profiles", ())}
    yield from (f"profile {name} is missing" for name in used - profiles)


def _addresses(spec: dict[str, Any]) -> list[str]:
    return sorted(str(ip_interface(each).ip) for each in spec.get("ipNetworks", ()))


def _kernel(host: Host, running: Sequence[Attachment]) -> Iterator[str]:
    pairs = {(address, each.interface) for each in running for address in each.addresses}
    interfaces = {each.interface for each in running}
    yield from _difference("interfaces", interfaces, host.machine.interfaces("cali"))
    yield from _difference("routes", pairs, set(_routes(host)))
    yield from _difference("neighbours", {(*pair,) for pair in pairs}, set(_neighbours(host)))
    for name in ("to_wl", "from_wl"):
        listed = host.machine.try_run("nft", "list", "map", "inet", "calico-libnetwork", name).stdout
        yield from _difference(f"map {name}", interfaces, set(_INTERFACE.findall(listed)))
    for each in running:
        command = ("nsenter", "-t", str(each.pid), "-n", "ip", "-json", "address", "show")
        inside = json.loads(host.machine.run(*command))
        held = {of["local"] for link in inside for of in link["addr_info"] if of["scope"] == "global"}
        if not each.addresses <= held:
            yield f"{each.container} has {sorted(held)} and not {sorted(each.addresses)}"


def _routes(host: Host) -> Iterator[tuple[str, str]]:
    for family in ("-4", "-6"):
        for route in json.loads(host.machine.run("ip", "-json", family, "route")):
            device, destination = route.get("dev", ""), route["dst"]
            if _INTERFACE.fullmatch(device) and not destination.startswith(("fe80:", "ff00:")):
                yield destination, device


def _neighbours(host: Host) -> Iterator[tuple[str, str]]:
    for entry in json.loads(host.machine.run("ip", "-json", "neighbour", "show", "nud", "permanent")):
        if _INTERFACE.fullmatch(entry.get("dev", "")):
            yield entry["dst"], entry["dev"]


def wrong_packets(hosts: Sequence[Host], *, at_most: int = 40) -> list[str]:
    """Pings within networks that are not answered, and those across that are."""
    everything = [each for host in hosts for each in attachments(host)]
    pairs = [(a, b) for a in everything for b in everything if a.container != b.container]
    found = []
    for source, target in pairs[:: max(1, len(pairs) // at_most)]:
        reached = source.host.pings(source.container, target.ipv4)
        if reached == source.networks.isdisjoint(target.networks):
            verb = "reaches" if reached else "does not reach"
            found.append(f"{source.container} in {source.network} {verb} {target.container} in {target.network}")
    return found
