"""Does the datastore's IPAM agree with itself, and with who uses addresses? The tests of ``calicoctl ipam check``.

Problems are what that command counts, and what could give an address away twice. Remarks are worth a look but may be
an operation of Calico's caught half way, since Calico writes one key at a time. An address is legitimately assigned
and not yet in use between Docker's request for it and the creation of the endpoint.
"""

from __future__ import annotations

import contextlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from ipaddress import ip_interface
from typing import Any, Literal

from calico_libnetwork.errors import InvalidResource
from calico_libnetwork.model import block as blocks
from calico_libnetwork.model import documents, ipam_keys, kinds
from calico_libnetwork.model.block import Block
from calico_libnetwork.model.ipam_keys import Address, Network
from calico_libnetwork.model.ipam_records import Handle
from calico_libnetwork.model.kinds import KINDS
from calico_libnetwork.model.names import NETWORK_RECORDS
from calico_libnetwork.model.pools import Pool

Kind = Literal["unreadable", "malformed", "overlap", "leaked", "shared", "unassigned", "outside", "handle", "affinity"]

PREFIXES = (
    ipam_keys.IPAM_PREFIX,
    KINDS["IPPool"].prefix,
    KINDS["Node"].prefix,
    KINDS["WorkloadEndpoint"].prefix,
    NETWORK_RECORDS,
)
"""What ``check`` wants to see."""
_TUNNELS = (
    ("bgp", "ipv4IPIPTunnelAddr"),
    ("ipv4VXLANTunnelAddr",),
    ("ipv6VXLANTunnelAddr",),
    ("wireguard", "interfaceIPv4Address"),
    ("wireguard", "interfaceIPv6Address"),
)


@dataclass(frozen=True, slots=True)
class Finding:
    """``subject`` is the address, block or handle, as text."""

    kind: Kind
    subject: str
    sentence: str


@dataclass
class Report:
    """``leaked`` addresses come with their handle and sequence number, which guard a release."""

    assigned: int = 0
    in_use: int = 0
    problems: list[Finding] = field(default_factory=list)
    remarks: list[Finding] = field(default_factory=list)
    leaked: list[tuple[Address, str | None, int | None]] = field(default_factory=list)


def check(values: Mapping[str, bytes], *, now: int) -> Report:
    """``values`` are all keys under ``PREFIXES`` at one revision; ``now`` in nanoseconds since 1970."""
    report = Report()
    found = list(_blocks(values, report))
    for block in found:
        report.problems += (Finding("malformed", block.cidr, text) for text in _contradictions(block, now))
    report.problems += _overlaps(found)
    sound = [block for block in found if not any(_contradictions(block, now))]
    in_use = users(values)
    _compare_use(report, sound, in_use, list(_active_pools(values, report)))
    _compare_handles(report, sound, values)
    report.remarks += _affinities(sound, values)
    return report


def _blocks(values: Mapping[str, bytes], report: Report) -> Iterator[Block]:
    for key, value in values.items():
        network = ipam_keys.parse_block_key(key)
        if network is None:
            continue
        try:
            block = blocks.parse(value)
        except InvalidResource as error:
            report.problems.append(Finding("unreadable", str(network), str(error)))
            continue
        if block.network != network:
            report.problems.append(
                Finding("malformed", str(network), f"block {network} says that it is {block.network}")
            )
        yield block


def _contradictions(block: Block, now: int) -> Iterator[str]:
    size, entries = block.network.num_addresses, len(block.attributes)
    if len(block.allocations) != size:
        yield f"block {block.cidr} lists {len(block.allocations)} addresses instead of {size}"
    referenced = {index for index in block.allocations if index is not None}
    if any(not 0 <= index < entries for index in referenced):
        yield f"block {block.cidr} has an address with an attribute that does not exist"
    for index in sorted(set(range(entries)) - referenced):
        yield f"block {block.cidr} keeps attribute {index}, which no address refers to"
    for entry in block.attributes:
        moment = blocks.nanoseconds(entry["releasedAt"]) if entry.get("releasedAt") else 0
        if moment is None or moment > now:
            yield f"block {block.cidr} has an address released in the future, at {entry['releasedAt']}"
    taken = [ordinal for ordinal, index in enumerate(block.allocations) if index is not None]
    counts = Counter([*taken, *block.unallocated])
    if any(not 0 <= ordinal < size for ordinal in block.unallocated):
        yield f"block {block.cidr} lists a free address outside of itself"
    for ordinal, count in sorted(counts.items()):
        if count > 1:
            yield f"block {block.cidr} lists ordinal {ordinal} {count} times, as free or taken"
    for ordinal in sorted(set(range(size)) - counts.keys()):
        yield f"block {block.cidr} lists ordinal {ordinal} neither as free nor as taken"


def _overlaps(found: list[Block]) -> Iterator[Finding]:
    previous: Network | None = None
    for network in sorted((block.network for block in found), key=lambda each: (each.version, each)):
        if previous is not None and previous.version == network.version and previous.overlaps(network):
            yield Finding("overlap", str(network), f"blocks {previous} and {network} overlap")
        else:
            previous = network


def users(values: Mapping[str, bytes]) -> dict[Address, list[str]]:
    """Addresses of endpoints, node tunnels and --aux-address of networks, with the keys that name them."""
    found: dict[Address, list[str]] = defaultdict(list)
    for key, value in values.items():
        for text in _addresses(key, value):
            try:
                found[ip_interface(text).ip].append(key)
            except ValueError:
                continue
    return found


def _addresses(key: str, value: bytes) -> Iterator[str]:
    if key.startswith(NETWORK_RECORDS):
        with contextlib.suppress(InvalidResource):
            yield from _texts(documents.decode(value).get("auxiliaryAddresses"))
        return
    resource = kinds.parse_path(key)
    if resource is None or resource.kind not in ("WorkloadEndpoint", "Node"):
        return
    try:
        spec: Any = documents.decode(value).get("spec")
    except InvalidResource:
        return
    if not isinstance(spec, dict):
        return
    if resource.kind == "WorkloadEndpoint":
        yield from _texts(spec.get("ipNetworks"))
        return
    for path in _TUNNELS:
        place: Any = spec
        for name in path:
            place = place.get(name) if isinstance(place, dict) else None
        yield from _texts([place])


def _texts(stored: Any) -> Iterator[str]:
    """Of a list that may be anything."""
    return (each for each in stored if each and isinstance(each, str)) if isinstance(stored, list) else iter(())


def _active_pools(values: Mapping[str, bytes], report: Report) -> Iterator[Pool]:
    for key, value in values.items():
        resource = kinds.parse_path(key)
        if resource is None or resource.kind != "IPPool":
            continue
        try:
            pool = Pool.read(kinds.decode(resource, value))  # type: ignore[arg-type]  # an IPPool, by its key
        except InvalidResource as error:
            report.problems.append(Finding("unreadable", resource.name, str(error)))
            continue
        if pool.enabled:
            yield pool


def _compare_use(
    report: Report, sound: list[Block], users: Mapping[Address, list[str]], active: Iterable[Pool]
) -> None:
    active = list(active)
    assigned = {each.address: each for block in sound for each in block.allocated() if each.released is None}
    report.assigned, report.in_use = len(assigned), len(users)
    for address, each in assigned.items():
        if address not in users:
            report.leaked.append((address, each.owner.handle, each.sequence))
            owner = f"handle {each.owner.handle}" if each.owner.handle else "no handle"
            sentence = f"{address} is assigned ({owner}, node {each.node}) but no endpoint or tunnel has it"
            report.problems.append(Finding("leaked", str(address), sentence))
    for address, keys in users.items():
        if len(keys) > 1:
            report.problems.append(Finding("shared", str(address), f"{address} is used by {', '.join(sorted(keys))}"))
        if not any(address in pool.network for pool in active):
            report.problems.append(Finding("outside", str(address), f"{address} of {keys[0]} is in no active pool"))
        elif address not in assigned:
            report.problems.append(Finding("unassigned", str(address), f"{address} of {keys[0]} is not assigned"))


def _compare_handles(report: Report, sound: list[Block], values: Mapping[str, bytes]) -> None:
    held: dict[str, Counter[str]] = defaultdict(Counter)
    for block in sound:
        for each in block.allocated():
            if each.owner.handle is not None:
                held[each.owner.handle.partition("\r")[0]][block.cidr] += 1
    for key, value in values.items():
        handle = ipam_keys.parse_handle_key(key)
        if handle is None:
            continue
        try:
            counts = dict(Handle.decode(value).counts)
        except InvalidResource as error:
            report.problems.append(Finding("unreadable", handle, str(error)))
            continue
        actual = dict(held.pop(handle.partition("\r")[0], {}))
        if not actual:
            report.problems.append(Finding("handle", handle, f"handle {handle} has no address"))
        elif actual != counts:
            report.remarks.append(Finding("handle", handle, f"handle {handle} counts {counts} but has {actual}"))
    for handle, actual in held.items():
        report.remarks.append(
            Finding("handle", handle, f"handle {handle} has {sum(actual.values())} addresses but does not exist")
        )


def _affinities(sound: list[Block], values: Mapping[str, bytes]) -> Iterator[Finding]:
    claimed = {parsed for key in values if (parsed := ipam_keys.parse_affinity_key(key)) is not None}
    owned = {(block.node, block.network) for block in sound if block.node is not None}
    for node, network in sorted(claimed - owned, key=str):
        yield Finding("affinity", str(network), f"node {node} claims block {network}, which is not its own")
    for owner, network in sorted(owned - claimed, key=str):
        yield Finding("affinity", str(network), f"block {network} is of node {owner}, which has no affinity for it")
    for block in sound:
        if block.affinity is None and block.is_empty:
            yield Finding("affinity", block.cidr, f"block {block.cidr} has no host and no address")
