"""Everything in etcd instead of the embedded datastore: the same containers, networks and commands."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.e2e.etcd import ADDRESS, etcd_in, on_etcd, requests
from tests.e2e.lab import Host, Lab, dockers, tail
from tests.e2e.machine import wait_for
from tests.e2e.test_restart import pinging
from tests.etcd_server import Certificates, EtcdServer

GO_PLUGIN = Path(__file__).parents[1] / "data" / "calico" / "go-plugin.jsonl"

latest = pytest.mark.parametrize("docker", dockers()[-1:], ids=str, scope="session")


@pytest.fixture
def host(host_on_etcd: Host) -> Host:
    return host_on_etcd


def test_networks_addresses_and_isolation_as_on_one_host(host: Host) -> None:
    host.network("net1", "--ipv6", "--subnet", "192.168.0.0/16")
    host.network("net2")
    host.workload("workload-A", "net1")
    host.workload("workload-B", "net1", "--ip", "192.168.77.7")
    host.workload("stranger", "net2")

    assert host.ipv4("workload-B", "net1") == "192.168.77.7"
    assert host.pings("workload-A", "192.168.77.7")
    assert host.pings("workload-A", host.ipv6("workload-B", "net1"), "-6")
    assert not host.pings("stranger", "192.168.77.7")
    taken = host.docker_refuses("run", "--rm", "--net", "net1", "--ip", "192.168.77.7", "busybox", "true")
    assert "address 192.168.77.7 is in use by container workload-B" in taken
    assert len(host.endpoints()) == 3
    assert "5 addresses are assigned" in host.calico("ipam", "check")

    host.docker("rm", "--force", "workload-A", "workload-B", "stranger")
    host.docker("network", "rm", "net1", "net2")
    assert host.traces() == []


@latest
def test_a_container_costs_four_round_trips(host: Host, etcd: EtcdServer) -> None:
    """From RequestAddress to ReleaseAddress; the name that a container has for people included."""
    host.network("net1")
    host.workload("workload-A", "net1")
    before = requests(etcd)

    for number in range(5):
        host.workload(f"further-{number}", "net1")
        host.docker("rm", "--force", f"further-{number}")

    spent = requests(etcd) - before
    assert spent.keys() == {"Txn"}
    assert spent["Txn"] <= 5 * 4


@latest
def test_a_locked_datastore_gives_no_address_until_it_is_unlocked(host: Host) -> None:
    host.network("net1")
    host.workload("workload-A", "net1", "--stop-timeout", "0")
    host.workload("workload-B", "net1")
    target = host.ipv4("workload-B", "net1")
    with pinging(host, "workload-A", target):
        host.calico("datastore", "lock")
        host.plugin.restart()  # it starts on a locked datastore as well
        refusal = host.docker_refuses("run", "--net", "net1", "--name", "late", "-tid", "busybox")
        assert "IpamDriver.RequestAddress: the datastore is locked" in refusal
        assert "unlock" in refusal
        assert host.pings("workload-A", target)
    host.docker("stop", "workload-A")
    assert "1 addresses are assigned" in host.calico("ipam", "check")

    host.calico("datastore", "unlock")
    host.docker("start", "late", "workload-A")
    assert host.pings("late", target)


@latest
def test_client_certificates_out_of_calicoctls_own_file(lab: Lab, bare_host: Host, tmp_path: Path) -> None:
    """The plugin and every command; the certificate's name is etcd's user."""
    certificates = Certificates.made_in(tmp_path, "root", "calico", address=ADDRESS)
    file = certificates.file
    with (
        etcd_in(lab, certificates=certificates) as etcd,
        calicoctl_file(
            bare_host,
            datastoreType="etcdv3",
            etcdEndpoints=etcd.endpoint,
            etcdCACertFile=file("ca.crt"),
            etcdCertFile=file("calico.crt"),
            etcdKeyFile=file("calico.key"),
        ),
    ):
        etcd.enable_users(password=False)
        with on_etcd(bare_host, etcd, environment={}) as host:
            works(host)


@latest
def test_a_user_with_a_password(lab: Lab, bare_host: Host) -> None:
    with etcd_in(lab, "--auth-token-ttl", "2") as etcd:
        etcd.enable_users(password=True)
        etcd.user = "root:secret"
        environment = {"ETCD_ENDPOINTS": etcd.endpoint, "ETCD_USERNAME": "calico", "ETCD_PASSWORD": "secret"}
        with on_etcd(bare_host, etcd, environment) as host:
            works(host)


def works(host: Host) -> None:
    """A container, and the commands beside it."""
    host.network("net1")
    host.workload("workload-A", "net1")
    host.workload("workload-B", "net1")
    assert host.pings("workload-A", "workload-B.net1")
    assert "2 addresses are assigned" in host.calico("ipam", "check")
    assert len(host.endpoints()) == 2


@contextmanager
def calicoctl_file(host: Host, **spec: str) -> Iterator[None]:
    file = host.machine.root / "etc/calico/calicoctl.cfg"
    file.parent.mkdir(exist_ok=True)
    document = {"apiVersion": "projectcalico.org/v3", "kind": "CalicoAPIConfig", "metadata": {}, "spec": spec}
    file.write_text(json.dumps(document))
    try:
        yield
    finally:
        file.unlink()


@latest
def test_an_embedded_datastore_moves_into_etcd_under_running_containers(bare_host: Host, etcd: EtcdServer) -> None:
    host = bare_host
    export = str(host.machine.directory / "export")
    host.plugin.environment = {}
    host.plugin.start()
    host.network("net1", "--ipv6")
    host.network("net2")
    for name, network in (("workload-A", "net1"), ("workload-B", "net1"), ("stranger", "net2")):
        host.workload(name, network)
    target = host.ipv4("workload-B", "net1")
    with pinging(host, "workload-A", target):
        host.plugin.stop()
        host.calico("datastore", "export", "--output", export)
        host.plugin.environment = {"ETCD_ENDPOINTS": etcd.endpoint}
        host.calico("datastore", "import", "--filename", export)
        host.etcd = etcd
        host.plugin.start()
        assert not host.pings("stranger", target)
        assert len(host.endpoints()) == 3
        host.workload("workload-C", "net1")
        assert host.pings("workload-C", target)
        assert "7 addresses are assigned" in host.calico("ipam", "check")
    with on_etcd(host, etcd):
        host.docker("rm", "--force", "stranger", "workload-C")
        host.docker("network", "rm", "net2")
        assert len(host.endpoints()) == 2
        assert "4 addresses are assigned" in host.calico("ipam", "check")


BROKEN = {
    "/calico/resources/v3/projectcalico.org/globalnetworksets/broken": "{",
    "/calico/resources/v3/projectcalico.org/ippools/broken": "[]",
    "/calico/resources/v3/projectcalico.org/clusterinformations/broken": "null",
    "/calico/ipam/v2/assignment/ipv4/block/10.99.0.0-26": "not JSON",
    "/calico/ipam/v2/host/h1/ipv4/block/10.99.0.0-26": "",
    "/calico/ipam/v2/handle/broken": "7",
}


@latest
def test_data_of_the_original_plugin_and_values_nobody_can_read_stop_nothing(bare_host: Host, etcd: EtcdServer) -> None:
    """The containers it was recorded with are gone, and so their endpoints and addresses go. Its variable works too."""
    recorded = [json.loads(line) for line in GO_PLUGIN.read_text().splitlines()]
    for entry in recorded:
        if entry["step"].startswith(("two networks", "containers")):
            etcd.control("put", "--", entry["key"], entry["value"])
    for key, value in BROKEN.items():
        etcd.control("put", "--", key, value)
    log = bare_host.plugin.log
    start = log.stat().st_size if log.exists() else 0
    with on_etcd(bare_host, etcd, {"ETCD_AUTHORITY": f"{ADDRESS}:{etcd.port}", "NODENAME": "h1"}) as host:
        host.network("net1", "--subnet", "10.99.0.0/16")
        host.workload("workload-A", "net1")
        host.workload("workload-B", "net1")
        assert host.pings("workload-A", "workload-B.net1")
        wait_for("only our own endpoints", lambda: len(host.endpoints()) == 2, seconds=30, found=host.endpoints)
        shown = json.loads(host.calico("get", "profiles", "pool5", "--output", "json"))
        assert shown["metadata"]["name"] == "pool5"
        status = json.loads(host.calico_result("status", "-o", "json").stdout)
        assert {line.partition(": ")[0] for line in status["unreadable"]} >= {
            key for key in BROKEN if "/host/h1/" not in key and "/handle/" not in key
        }
        host.docker("rm", "--force", "workload-A", "workload-B")
        etcd.control("del", "/calico/resources/v3/projectcalico.org/profiles/pool4")
        etcd.control("del", "/calico/resources/v3/projectcalico.org/profiles/pool5")
        assert [
            key for key in etcd.keys("/calico/ipam/v2/assignment/") if '"secondary"' in etcd.control("get", key)
        ] == []
        for key in BROKEN:
            etcd.control("del", key)
    lines = tail(log, start=start, lines=10000).splitlines()
    told = [line for line in lines if re.search(r'"level":"(warning|error)"', line)]
    for name in ("GlobalNetworkSet(broken)", "IPPool(broken)", "block/10.99.0.0-26"):
        naming = [line.partition('"level"')[2] for line in told if name in line]
        assert len(naming) == 1, (name, naming)
    assert not any("Traceback" in line for line in lines)
    (line,) = [line for line in lines if "deprecated setting" in line]
    assert f"ETCD_AUTHORITY is deprecated; set ETCD_ENDPOINTS={etcd.endpoint} instead" in line
