"""The ipam commands on an embedded datastore, as a user calls them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from ipaddress import ip_address
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from calico_libnetwork.cli.deletion import open_ipam
from calico_libnetwork.cli.ipam import ipam
from calico_libnetwork.cli.session import FILE, Session
from calico_libnetwork.config import Config
from calico_libnetwork.datastore.initialise import FirstStart, initialise
from calico_libnetwork.datastore.protocol import Put, Transaction
from calico_libnetwork.datastore.sqlite import SqliteDatastore
from calico_libnetwork.errors import CalicoError
from calico_libnetwork.model import documents
from calico_libnetwork.model.documents import new_document
from calico_libnetwork.model.kinds import ResourceKey
from tests.unit.first_start import plain_node

Command = Callable[..., Result]
HOST = FirstStart(node="host-a", node_document=plain_node("host-a"), ipv6=False)


@pytest.fixture
def calico(tmp_path: Path) -> Command:
    """On a datastore with one address in use (.0) and one that nobody uses (.1)."""
    asyncio.run(_prepare(tmp_path / FILE))
    config = Config(datastore_type="embedded", state_directory=tmp_path, run_directory=tmp_path)

    def call(*words: str) -> Result:
        return CliRunner().invoke(ipam, words, obj=Session(config))

    return call


async def _prepare(file: Path) -> None:
    store = await SqliteDatastore.open(file)
    await initialise(store, HOST)
    async with open_ipam(store, "host-a") as found:
        addresses = [
            await found.auto_assign(4, handle=f"h{number}", attributes={"node": "host-a"}) for number in range(2)
        ]
    spec = {"node": "host-a", "orchestrator": "libnetwork", "endpoint": "e", "ipNetworks": [f"{min(addresses)}/32"]}
    key = ResourceKey("WorkloadEndpoint", "host--a-libnetwork-libnetwork-e", "libnetwork")
    endpoint = new_document(key.kind, key.name, spec, uid="u", created="2026-11-24T00:00:00Z", namespace=key.namespace)
    await store.commit(Transaction([], [Put(key.path, documents.encode(endpoint))]))
    await store.close()


def used_and_leaked(calico: Command) -> tuple[str, str]:
    lines = calico("check", "--show-all-ips").stdout.splitlines()
    first, second = sorted(ip_address(line.split()[0]) for line in lines if line.startswith("  192.168."))
    return str(first), str(second)


def test_show_counts_addresses_per_pool(calico: Command) -> None:
    lines = calico("show").stdout.splitlines()
    assert lines[1].split(" | ")[0] == "| GROUPING"
    assert lines[3].replace("|", " ").split() == [
        "IP",
        "Pool",
        "192.168.0.0/16",
        "65536",
        "2",
        "(0%)",
        "0",
        "65534",
        "(100%)",
    ]
    assert len({len(line) for line in lines}) == 1
    blocks = calico("show", "--show-blocks").stdout.splitlines()
    assert blocks[4].replace("|", " ").split()[0] == "Block"
    assert "2 (3%)" in blocks[4]


def test_show_says_who_has_an_address(calico: Command) -> None:
    used, _ = used_and_leaked(calico)
    assert calico("show", "--ip", used).stdout == f"IP {used} is in use\nHandle: h0\nAttributes:\n  node: host-a\n"
    assert calico("show", "--ip", "192.0.2.1").stdout == "IP 192.0.2.1 is not assigned\n"
    assert "'x' is no IP address" in calico("show", "--ip", "x").output


def test_show_configuration_and_configure(calico: Command) -> None:
    assert "| AutoAllocateBlocks | true  |" in calico("show", "--show-configuration").stdout
    result = calico("configure", "--strictaffinity=true", "--max-blocks-per-host=4")
    assert result.stdout == "Successfully set strict_affinity to true, max_blocks_per_host to 4\n"
    shown = calico("show", "--show-configuration").stdout
    assert "| StrictAffinity     | true  |" in shown
    assert "| MaxBlocksPerHost   | 4     |" in shown
    refused = calico("configure", "--strictaffinity=false")
    assert isinstance(refused.exception, CalicoError)
    assert "a limit of blocks per host needs strict affinity on" in str(refused.exception)
    assert "Say what to change" in calico("configure").output


def test_borrowed_addresses_are_shown(calico: Command) -> None:
    assert len(calico("show", "--show-borrowed").stdout.splitlines()) == 4


def test_check_finds_what_nobody_uses(calico: Command) -> None:
    _, leaked = used_and_leaked(calico)
    result = calico("check", "--show-problem-ips")
    assert result.exit_code == 1
    assert f"Problem (leaked): {leaked} is assigned (handle h1, node host-a)" in result.stdout
    assert "Check complete; 2 addresses are assigned, 1 are in use, found 1 problems." in result.stdout


def test_report_and_release(calico: Command, tmp_path: Path) -> None:
    _, leaked = used_and_leaked(calico)
    report = tmp_path / "report.json"
    calico("check", "-o", str(report))
    result = calico("release", "--from-report", str(report))
    assert (result.exit_code, result.stdout) == (0, f"Successfully released IP {leaked}\n")
    assert calico("release", "--from-report", str(report)).stdout == f"IP {leaked} is not assigned\n"
    assert calico("check").exit_code == 0


def test_report_of_another_cluster_or_nonsense_is_refused(calico: Command, tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    calico("check", "-o", str(report))
    content = json.loads(report.read_text()) | {"clusterGUID": "other"}
    report.write_text(json.dumps(content))
    assert "the report is of another cluster" in str(calico("release", "--from-report", str(report)).exception)
    report.write_text("[]")
    assert "is no report of ipam check -o" in str(calico("release", "--from-report", str(report)).exception)


def test_address_in_use_is_released_by_force_alone(calico: Command) -> None:
    used, leaked = used_and_leaked(calico)
    refused = str(calico("release", "--ip", used).exception)
    assert refused.startswith(f"{used} is in use by /calico/resources/")
    assert calico("release", "--ip", leaked).stdout == f"Successfully released IP {leaked}\n"
    assert calico("release", "--ip", used, "--force").stdout == f"Successfully released IP {used}\n"
    assert "Give either --ip or --from-report" in calico("release").output


def test_unguarded_entries_of_a_report_need_force(calico: Command, tmp_path: Path) -> None:
    _, leaked = used_and_leaked(calico)
    report = tmp_path / "report.json"
    calico("check", "-o", str(report))
    content = json.loads(report.read_text())
    content["leaked"][0] |= {"handle": None, "sequenceNumber": None}
    report.write_text(json.dumps(content))
    result = calico("release", "--from-report", str(report))
    assert result.exit_code == 1
    assert f"Skipped {leaked}: nothing tells whether it is still the one reported" in result.stderr
    assert calico("release", "--from-report", str(report), "--force").exit_code == 0
