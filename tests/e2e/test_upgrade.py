"""A host on which the original plugin (Go) ran: this one takes over what is there."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from calico_libnetwork.datastore import transfer
from calico_libnetwork.datastore.transfer import Entry, Snapshot
from calico_libnetwork.model import documents, ipam_keys
from calico_libnetwork.model.kinds import KINDS, ResourceKey
from tests.e2e.conftest import MakeHost
from tests.e2e.lab import OUTSIDE, Host
from tests.e2e.machine import wait_for

POOL = "default-ipv4-ippool"
OLD_RULES = {
    "ingress": [{"action": "Allow", "source": {"selector": f"has({POOL})"}, "destination": {}}],
    "egress": [{"action": "Allow", "source": {}, "destination": {}}],
}
UNKNOWN_TO_IT = (ipam_keys.HANDLES_PREFIX, "/calico-libnetwork/", KINDS["Profile"].prefix)


def make_old(host: Host) -> None:
    """The datastore as the original would have left it; for a stopped plugin."""
    file = host.machine.directory / "export"
    host.calico("datastore", "export", "-o", str(file))
    snapshot = transfer.load(file.read_bytes())
    file.write_bytes(transfer.dump(as_the_original_wrote(snapshot)))
    host.machine.run("sh", "-c", "rm /var/lib/calico-libnetwork/calico.db*")
    host.calico("datastore", "import", "-f", str(file))


def as_the_original_wrote(snapshot: Snapshot) -> Snapshot:
    """Without annotations, handles, attributes and records of our own; with a profile named like the pool."""
    profile = documents.new_document("Profile", POOL, OLD_RULES, uid="u", created="2019-03-01T00:00:00Z")
    entries = [*_entries(snapshot), Entry(ResourceKey("Profile", POOL).path, documents.encode(profile))]
    return replace(snapshot, entries=tuple(entries))


def _entries(snapshot: Snapshot) -> Iterator[Entry]:
    for entry in snapshot.entries:
        if entry.key.startswith(UNKNOWN_TO_IT):
            continue
        document = documents.decode(entry.value)
        if entry.key.startswith(KINDS["WorkloadEndpoint"].prefix):
            del document["metadata"]["annotations"]
            document["spec"]["profiles"] = [POOL]
        elif entry.key.startswith(ipam_keys.BLOCKS_PREFIX):
            document["attributes"] = [{"handle_id": None, "secondary": None}]
            document["allocations"] = [None if index is None else 0 for index in document["allocations"]]
            document.pop("sequenceNumberForAllocation", None)
        yield Entry(entry.key, documents.encode(document))


def test_networks_and_containers_of_the_original_are_taken_over(make_host: MakeHost) -> None:
    host = make_host()
    host.network("net1")
    host.workload("old", "net1")
    address = host.ipv4("old", "net1")
    host.plugin.stop()
    make_old(host)
    host.plugin.start()

    host.machine.run("ping", "-c", "1", "-W", "1", address)
    assert host.pings("old", OUTSIDE)
    host.workload("new", "net1")
    host.workload("newer", "net1")
    assert host.pings("new", "newer.net1")
    assert host.ipv4("new", "net1") != address

    assert not host.pings("old", "new.net1")
    host.docker("restart", "--time", "0", "old")
    assert host.pings("new", "old.net1")

    host.calico("delete", "profile", POOL)
    host.clear()
    wait_for("the host to be clean", lambda: not host.traces(), seconds=10, found=host.traces)
    assert "0 addresses are assigned" in host.calico("ipam", "check")
