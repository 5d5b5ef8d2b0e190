"""``ipam show``, ``check``, ``release`` and ``configure``, in calicoctl's forms."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import click

from calico_libnetwork.cli.deletion import open_ipam
from calico_libnetwork.cli.session import Session, pass_session
from calico_libnetwork.cli.tables import boxed, share, size
from calico_libnetwork.datastore.protocol import Datastore, Put, Transaction, absent, unchanged
from calico_libnetwork.errors import CalicoError, Conflict, InvalidResource
from calico_libnetwork.model import ipam_check, ipam_keys, ipam_usage, kinds
from calico_libnetwork.model.ipam_check import Report
from calico_libnetwork.model.ipam_keys import Address
from calico_libnetwork.model.ipam_records import IpamConfig
from calico_libnetwork.model.ipam_usage import Usage
from calico_libnetwork.model.kinds import ResourceKey

ATTEMPTS = 10
_CLUSTER = ResourceKey("ClusterInformation", "default")


def address_of(text: str) -> Address:
    """An option's value; click says what is wrong when this raises."""
    try:
        return ip_address(text)
    except ValueError:
        raise click.BadParameter(f"{text!r} is no IP address") from None


@click.group()
def ipam() -> None:
    """Look at and repair the assignment of addresses."""


@ipam.command()
@click.option("--ip", "address", type=address_of, metavar="ADDRESS", help="Say who has this address.")
@click.option("--show-blocks", is_flag=True, help="With the blocks of every pool.")
@click.option("--show-borrowed", is_flag=True, help="Addresses that a node has from another's block.")
@click.option("--show-configuration", is_flag=True, help="The configuration of IPAM.")
@pass_session
def show(
    session: Session, *, address: Address | None, show_blocks: bool, show_borrowed: bool, show_configuration: bool
) -> None:
    """How full the pools are."""
    if address is not None:
        session.run(_show_address(session, address))
        return
    values = session.run(_read(session, ipam_usage.PREFIXES))
    if show_configuration:
        click.echo(_configuration_table(IpamConfig.decode(values.get(ipam_keys.CONFIG_KEY))))
    elif show_borrowed:
        click.echo(_borrowed_table(values))
    else:
        click.echo(_usage_table(ipam_usage.usage(values, with_blocks=show_blocks)))


@ipam.command()
@click.option("--show-all-ips", is_flag=True, help="List every assigned address.")
@click.option("--show-problem-ips", is_flag=True, help="List every problem (default: the first ten).")
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Write a report for ipam release --from-report.")
@pass_session
def check(session: Session, *, show_all_ips: bool, show_problem_ips: bool, output: Path | None) -> None:
    """Compare IPAM with itself and with who uses addresses. Exit code 1 if there is a problem."""
    values = session.run(_read(session, (*ipam_check.PREFIXES, kinds.KINDS["ClusterInformation"].prefix)))
    report = ipam_check.check(values, now=time.time_ns())
    if show_all_ips:
        for block in ipam_usage.readable_blocks(values):
            for allocation in block.allocated():
                click.echo(f"  {allocation.address} {allocation.owner.handle or '-'} {allocation.node or '-'}")
    shown = report.problems if show_problem_ips else report.problems[:10]
    for finding in shown:
        click.echo(f"  Problem ({finding.kind}): {finding.sentence}")
    if len(shown) < len(report.problems):
        click.echo(f"  ... and {len(report.problems) - len(shown)} more, with --show-problem-ips")
    for finding in report.remarks:
        click.echo(f"  Remark ({finding.kind}): {finding.sentence}")
    if output is not None:
        output.write_text(json.dumps(_report(report, values), indent=2) + "\n")
    click.echo(
        f"Check complete; {report.assigned} addresses are assigned, {report.in_use} are in use, "
        f"found {len(report.problems)} problems."
    )
    if report.problems:
        sys.exit(1)


@ipam.command()
@click.option("--ip", "addresses", type=address_of, metavar="ADDRESS", multiple=True, help="Release this address.")
@click.option("--from-report", "reports", type=click.Path(path_type=Path), multiple=True, help="What a check found.")
@click.option("--force", is_flag=True, help="Also what is in use, and what nothing guards against a change since.")
@pass_session
def release(session: Session, *, addresses: tuple[Address, ...], reports: tuple[Path, ...], force: bool) -> None:
    """Release addresses that nobody uses."""
    if bool(addresses) == bool(reports):
        raise click.UsageError("Give either --ip or --from-report.")
    leaked = [entry for report in reports for entry in _read_report(report)]
    if session.run(_release(session, addresses, leaked, force=force)):
        sys.exit(1)


@ipam.command()
@click.option("--strictaffinity", type=bool, help="true: a node takes addresses from its own blocks alone.")
@click.option("--auto-allocate-blocks", type=bool, help="false: a node claims no further blocks by itself.")
@click.option("--max-blocks-per-host", type=click.IntRange(min=0), help="0: the default of 20.")
@click.option("--ip-cooldown-seconds", type=click.IntRange(min=0), help="Before a released address is used again.")
@pass_session
def configure(
    session: Session,
    *,
    strictaffinity: bool | None,
    auto_allocate_blocks: bool | None,
    max_blocks_per_host: int | None,
    ip_cooldown_seconds: int | None,
) -> None:
    """Set how addresses are assigned."""
    given = {
        "strict_affinity": strictaffinity,
        "auto_allocate_blocks": auto_allocate_blocks,
        "max_blocks_per_host": max_blocks_per_host,
        "cooldown": ip_cooldown_seconds,
    }
    changes = {name: value for name, value in given.items() if value is not None}
    if not changes:
        raise click.UsageError("Say what to change, for instance --strictaffinity=true.")
    session.run(_configure(session, changes))
    click.echo("Successfully set " + ", ".join(f"{name} to {_text(value)}" for name, value in changes.items()))


async def _read(session: Session, prefixes: Sequence[str]) -> dict[str, bytes]:
    async with session.datastore() as datastore:
        return {item.key: item.value for item in (await datastore.list(prefixes)).items}


def _text(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _usage_table(entries: Iterable[Usage]) -> str:
    rows = [["GROUPING", "CIDR", "CAPACITY", "IN USE", "RESERVED", "FREE"]]
    for entry in entries:
        in_use, free = (share(count, entry.capacity) for count in (entry.in_use, entry.free))
        grouping = "IP Pool" if entry.name else "Block"
        rows.append([grouping, str(entry.network), size(entry.capacity), in_use, str(entry.reserved), free])
    return boxed(rows)


def _borrowed_table(values: Mapping[str, bytes]) -> str:
    rows = [["IP", "BORROWING-NODE", "BLOCK", "BLOCK OWNER", "ALLOCATED-TO"]]
    rows += [
        [str(entry.address), entry.node, str(entry.block), entry.owner, entry.allocation.owner.handle or ""]
        for entry in ipam_usage.borrowed(values)
    ]
    return boxed(rows)


def _configuration_table(config: IpamConfig) -> str:
    return boxed(
        [
            ["PROPERTY", "VALUE"],
            ["StrictAffinity", _text(config.strict_affinity)],
            ["AutoAllocateBlocks", _text(config.auto_allocate_blocks)],
            ["MaxBlocksPerHost", str(config.max_blocks_per_host)],
            ["IPCooldownSeconds", str(config.cooldown)],
        ]
    )


async def _show_address(session: Session, address: Address) -> None:
    async with session.datastore() as datastore, open_ipam(datastore) as found:
        assignment = found.assignment(address)
    if assignment is None:
        click.echo(f"IP {address} is not assigned")
        return
    click.echo(f"IP {address} is in use")
    if assignment.handle is not None:
        click.echo(f"Handle: {assignment.handle}")
    click.echo("Attributes:")
    for name, text in sorted(assignment.attributes.items()):
        click.echo(f"  {name}: {text}")


def _report(report: Report, values: Mapping[str, bytes]) -> dict[str, Any]:
    return {
        "clusterGUID": _cluster_guid(values),
        "leaked": [
            {"ip": str(address), "handle": handle, "sequenceNumber": sequence}
            for address, handle, sequence in report.leaked
        ],
        "problems": [{"kind": finding.kind, "text": finding.sentence} for finding in report.problems],
    }


def _cluster_guid(values: Mapping[str, bytes]) -> str:
    value = values.get(_CLUSTER.path)
    try:
        return kinds.decode(_CLUSTER, value).spec.cluster_guid if value else ""
    except InvalidResource:
        return ""


def _read_report(path: Path) -> list[dict[str, Any]]:
    try:
        report = json.loads(path.read_text())
        guid, leaked = str(report["clusterGUID"]), report["leaked"]
        return [{"guid": guid, **entry, "ip": ip_address(entry["ip"])} for entry in leaked]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InvalidResource(f"{path} is no report of ipam check -o: {error}") from error


async def _release(
    session: Session, addresses: Sequence[Address], leaked: Sequence[Mapping[str, Any]], *, force: bool
) -> int:
    """How many were passed over."""
    async with session.datastore() as datastore:
        prefixes = (*ipam_check.PREFIXES, kinds.KINDS["ClusterInformation"].prefix)
        values = {item.key: item.value for item in (await datastore.list(prefixes)).items}
        guid = _cluster_guid(values)
        if any(entry["guid"] != guid for entry in leaked):
            raise InvalidResource(f"the report is of another cluster than this one ({guid}): check again")
        if addresses and not force:
            _require_unused(addresses, values)
        guards = [(address, None, None) for address in addresses]
        guards += [(entry["ip"], entry.get("handle"), entry.get("sequenceNumber")) for entry in leaked]
        return await _release_each(datastore, guards, of_report=bool(leaked), force=force)


def _require_unused(addresses: Sequence[Address], values: Mapping[str, bytes]) -> None:
    leaked = {address for address, _, _ in ipam_check.check(values, now=time.time_ns()).leaked}
    used = ipam_check.users(values)
    for address in addresses:
        if address not in leaked and address in used:
            raise InvalidResource(f"{address} is in use by {', '.join(used[address])}: remove that, or use --force")


async def _release_each(
    datastore: Datastore, guards: Sequence[tuple[Address, Any, Any]], *, of_report: bool, force: bool
) -> int:
    """An address of a report without handle and sequence number may have been assigned anew since."""
    passed_over = 0
    async with open_ipam(datastore) as found:
        for address, handle, sequence in guards:
            if of_report and handle is None and sequence is None and not force:
                click.echo(
                    f"Skipped {address}: nothing tells whether it is still the one reported; use --force", err=True
                )
                passed_over += 1
                continue
            try:
                released = await found.release(address, handle=handle, sequence=sequence)
            except CalicoError as error:
                click.echo(f"Skipped {address}: {error}", err=True)
                passed_over += 1
                continue
            click.echo(f"Successfully released IP {address}" if released else f"IP {address} is not assigned")
    return passed_over


async def _configure(session: Session, changes: Mapping[str, Any]) -> None:
    async with session.datastore() as datastore:
        for _ in range(ATTEMPTS):
            item = next(iter((await datastore.get([ipam_keys.CONFIG_KEY])).items), None)
            config = replace(IpamConfig.decode(item.value if item else None), **changes)
            value = config.encode(item.value if item else None)
            condition = unchanged(item) if item else absent(ipam_keys.CONFIG_KEY)
            if (await datastore.commit(Transaction([condition], [Put(ipam_keys.CONFIG_KEY, value)]))).succeeded:
                return
    raise Conflict(f"the IPAM configuration was changed by others {ATTEMPTS} times in a row; try again")
