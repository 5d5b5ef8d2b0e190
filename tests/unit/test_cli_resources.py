"""The commands on an embedded datastore, as a user calls them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner, Result

from calico_libnetwork.cli import resources
from calico_libnetwork.cli.deletion import delete as delete_resource
from calico_libnetwork.cli.deletion import open_ipam
from calico_libnetwork.cli.session import FILE, Session
from calico_libnetwork.config import Config
from calico_libnetwork.datastore.initialise import FirstStart, initialise
from calico_libnetwork.datastore.memory import MemoryDatastore
from calico_libnetwork.datastore.protocol import Put, Transaction
from calico_libnetwork.datastore.sqlite import SqliteDatastore
from calico_libnetwork.errors import CalicoError, InvalidResource, NotFound
from calico_libnetwork.model.kinds import ResourceKey
from tests.unit.first_start import plain_node

CALICO = Path(__file__).parents[1] / "data" / "calico"
RECORDED = [json.loads(line) for line in (CALICO / "resources.jsonl").read_text().splitlines()]
INPUTS = [line["input"] for line in RECORDED if "input" in line]
COMMANDS = [line for line in RECORDED if "command" in line]

Command = Callable[..., Result]


@pytest.fixture
def calico(tmp_path: Path) -> Command:
    """Runs a command on a datastore of its own; an error of ours comes out as it would on stderr."""
    config = Config(datastore_type="embedded", state_directory=tmp_path, run_directory=tmp_path)
    (tmp_path / FILE).touch()
    table = {command.name: command for command in (
        resources.get, resources.create, resources.apply, resources.replace, resources.delete, resources.validate,
    )}  # fmt: skip

    def call(*words: str, documents: Any = None) -> Result:
        text = yaml.safe_dump_all(documents if isinstance(documents, list) else [documents]) if documents else None
        return CliRunner().invoke(table[words[0]], words[1:], input=text, obj=Session(config))

    return call


def succeeded(result: Result) -> str:
    assert result.exception is None, result.exception or result.output
    return result.stdout


def failed(result: Result) -> str:
    assert isinstance(result.exception, CalicoError | SystemExit), result.exception
    return str(result.exception) if isinstance(result.exception, CalicoError) else result.output


def document(kind: str, name: str, spec: dict[str, Any] | None = None, **metadata: Any) -> dict[str, Any]:
    return {
        "apiVersion": "projectcalico.org/v3",
        "kind": kind,
        "metadata": {"name": name} | metadata,
        "spec": spec or {},
    }


def read(calico: Command, *words: str) -> Any:
    return yaml.safe_load(succeeded(calico("get", *words, "-o", "yaml")))


def test_everything_recorded_can_be_created_and_is_shown_alike(calico: Command) -> None:
    assert (
        succeeded(calico("create", "-f", "-", documents=INPUTS)) == f"Successfully created {len(INPUTS)} resource(s)\n"
    )
    for line in COMMANDS:
        words = ["-A" if word == "--all-namespaces" else word for word in line["command"].split()[1:]]
        printed = succeeded(calico(*words))
        if "yaml" not in words and "clusterinformation" not in words:
            assert printed == line["stdout"], words


def test_objects_asked_for_by_name_are_no_list_and_those_that_exist_are_shown(calico: Command) -> None:
    succeeded(calico("apply", "-f", "-", documents=[document("Profile", "a"), document("Profile", "long-name")]))
    both = read(calico, "profile", "a", "long-name")
    assert [profile["metadata"]["name"] for profile in both] == ["a", "long-name"]
    tables = "NAME   \na      \n\nNAME        \nlong-name   \n\n"
    assert succeeded(calico("get", "profile", "a", "long-name")) == tables
    one_of_two = calico("get", "profile", "a", "b")
    assert one_of_two.stdout == "NAME   \na      \n\n"
    assert failed(one_of_two) == "Profile(b) does not exist"


def test_export_is_for_objects_asked_for_by_name(calico: Command) -> None:
    succeeded(calico("apply", "-f", "-", documents=document("Profile", "a")))
    assert set(read(calico, "profile", "a", "--export")["metadata"]) == {"name"}
    assert "uid" in read(calico, "profile", "--export")["items"][0]["metadata"]


def test_metadata_comes_in_the_order_of_calicos_tools(calico: Command) -> None:
    succeeded(calico("apply", "-f", "-", documents=document("NetworkSet", "a", labels={"b": "c"})))
    shown = json.loads(succeeded(calico("get", "networkset", "a", "-o", "json")))
    assert list(shown["metadata"]) == ["name", "namespace", "uid", "resourceVersion", "creationTimestamp", "labels"]


def test_json_is_escaped_as_go_does(calico: Command) -> None:
    policy = document("GlobalNetworkPolicy", "a", {"selector": "a == 'b' && has(c)"})
    succeeded(calico("apply", "-f", "-", documents=policy))
    shown = succeeded(calico("get", "gnp", "a", "-o", "json"))
    assert "\\u0026\\u0026" in shown
    assert json.loads(shown)["spec"]["selector"] == "a == 'b' && has(c)"


def test_unquoted_numbers_and_truth_values_are_text_where_text_is_wanted(calico: Command) -> None:
    """As calicoctl stores them."""
    labels = {"a": 1, "b": True, "c": 1.5, "k": 1.0, "f": None, "m": 12345678901, 5: "x"}
    succeeded(calico("apply", "-f", "-", documents=document("GlobalNetworkSet", "a", labels=labels)))
    assert read(calico, "globalnetworkset", "a")["metadata"]["labels"] == {
        "5": "x", "a": "1", "b": "true", "c": "1.5", "f": "", "k": "1", "m": "12345678901",
    }  # fmt: skip


def test_one_kind_is_named_in_the_summary(calico: Command) -> None:
    profiles = [document("Profile", "a"), document("Profile", "b")]
    assert succeeded(calico("apply", "-f", "-", documents=profiles)) == "Successfully applied 2 'Profile' resource(s)\n"


def test_create_refuses_what_exists_and_can_pass_it_over(calico: Command) -> None:
    succeeded(calico("create", "-f", "-", documents=document("Profile", "a")))
    both = [document("Profile", "a"), document("Profile", "b")]
    assert failed(calico("create", "-f", "-", documents=both)) == "Profile(a) exists already: use apply or replace"
    assert "Successfully created 1 'Profile'" in succeeded(calico("create", "--skip-exists", "-f", "-", documents=both))


def test_apply_keeps_uid_and_time_and_replaces_the_rest(calico: Command) -> None:
    succeeded(calico("apply", "-f", "-", documents=document("Node", "n", {"bgp": {"asNumber": 1}}, labels={"a": "b"})))
    before = read(calico, "node", "n")
    succeeded(calico("apply", "-f", "-", documents=document("Node", "n", {"bgp": {"asNumber": 2}})))
    after = read(calico, "node", "n")
    assert after["spec"] == {"bgp": {"asNumber": 2}}
    assert "labels" not in after["metadata"]
    for name in ("uid", "creationTimestamp"):
        assert after["metadata"][name] == before["metadata"][name]


def test_what_get_prints_can_be_applied_again(calico: Command) -> None:
    succeeded(calico("create", "-f", "-", documents=INPUTS))
    for kind in ("ippool", "gnp", "node", "tier", "bgppeer", "felixconfig", "wep"):
        scope = ("-A",) if kind == "wep" else ()
        before = read(calico, kind, *scope)
        succeeded(calico("apply", "-f", "-", documents=before))
        after = read(calico, kind, *scope)
        for item in before["items"] + after["items"]:
            del item["metadata"]["resourceVersion"]
        assert after["items"] == before["items"]


def test_stale_revision_is_a_conflict(calico: Command) -> None:
    succeeded(calico("apply", "-f", "-", documents=document("Profile", "a")))
    stale = read(calico, "profile", "a")
    succeeded(calico("apply", "-f", "-", documents=document("Profile", "a", {"labelsToApply": {"x": ""}})))
    assert "Profile(a) has changed since revision" in failed(calico("replace", "-f", "-", documents=stale))
    stale["metadata"]["resourceVersion"] = "new"
    assert "metadata.resourceVersion must be a number" in failed(calico("apply", "-f", "-", documents=stale))


def test_replace_needs_it_to_exist(calico: Command) -> None:
    assert failed(calico("replace", "-f", "-", documents=document("Profile", "a"))) == (
        "Profile(a) does not exist: use apply or create"
    )


def test_create_takes_nothing_that_has_an_identity(calico: Command) -> None:
    old = document("Profile", "a", uid="5f0c1e0e-6a55-4a0a-9f0b-2f1c7b3a9d11")
    assert "metadata.uid must be left out to create it; or use apply" in failed(
        calico("create", "-f", "-", documents=old)
    )


def test_nothing_is_written_if_one_document_is_wrong(calico: Command) -> None:
    documents = [document("Profile", "good"), document("Profile", "Bad"), document("Tier", "x", {"order": "high"})]
    message = failed(calico("apply", "-f", "-", documents=documents))
    assert "Profile(Bad): metadata.name must be" in message
    assert "Tier(x): spec.order must be a number" in message
    assert "good" not in succeeded(calico("get", "profile"))


def test_a_failure_half_way_says_how_far_it_came(calico: Command) -> None:
    documents = [
        document("Profile", "a"),
        document("GlobalNetworkPolicy", "p", {"tier": "none"}),
        document("Profile", "b"),
    ]
    result = calico("apply", "-f", "-", documents=documents)
    assert failed(result) == "GlobalNetworkPolicy(p) needs Tier(none), which does not exist: create it first"
    assert "Partial success: applied the first 1 out of 3 resources" in result.stderr
    assert "a  " in succeeded(calico("get", "profile"))


def test_validate_needs_no_datastore(calico: Command, tmp_path: Path) -> None:
    (tmp_path / FILE).unlink()
    result = calico("validate", "-f", "-", documents=document("IPPool", "p", {"cidr": "127.0.0.0/16"}))
    assert succeeded(result) == "Successfully validated 1 'IPPool' resource(s)\n"
    assert "Warning: IPPool(p): spec.cidr 127.0.0.0/16 is no range that containers can use" in result.stderr
    assert not list(tmp_path.iterdir())


def test_files_and_directories(calico: Command, tmp_path: Path) -> None:
    directory = tmp_path / "manifests"
    (directory / "deep").mkdir(parents=True)
    (directory / "a.yaml").write_text("# nothing\n---\n" + yaml.safe_dump(document("Profile", "a")))
    (directory / "b.json").write_text(json.dumps({"kind": "List", "items": [document("Profile", "b")]}))
    (directory / "README").write_text("{")
    (directory / "deep" / "c.yml").write_text(yaml.safe_dump([document("Profile", "c")]))
    assert "2 'Profile'" in succeeded(calico("apply", "-f", str(directory)))
    assert "3 'Profile'" in succeeded(calico("apply", "-R", "-f", str(directory)))
    (directory / "a.yaml").write_text("kind: Profile\nkind: Tier\n")
    assert failed(calico("apply", "-f", str(directory / "a.yaml"))).endswith(
        "a.yaml is not YAML in line 2: key kind is there twice"
    )
    assert "cannot be read: No such file" in failed(calico("apply", "-f", str(directory / "none.yaml")))
    assert "there is no document in -" in failed(calico("apply", "-f", "-"))


def test_dates_stay_text(calico: Command) -> None:
    metadata = "{name: a, creationTimestamp: 2026-11-24T00:28:56Z}"
    text = f"apiVersion: projectcalico.org/v3\nkind: Profile\nmetadata: {metadata}\n"
    succeeded(CliRunner().invoke(resources.validate, ["-f", "-"], input=text))


def test_namespaces(calico: Command) -> None:
    policy = document("NetworkPolicy", "p", {"selector": "all()"})
    succeeded(calico("apply", "-f", "-", documents=policy))
    succeeded(calico("apply", "-n", "libnetwork", "-f", "-", documents=policy))
    assert read(calico, "np", "p")["metadata"]["namespace"] == "default"
    assert read(calico, "np", "p", "-n", "libnetwork")["metadata"]["namespace"] == "libnetwork"
    assert succeeded(calico("get", "np", "-n", "libnetwork")) == "NAME   TIER      \np      default   \n\n"
    assert len(succeeded(calico("get", "np", "-A")).splitlines()) == 4
    assert failed(calico("get", "nodes", "-A")) == "Node resources belong to no namespace: leave out -A"
    succeeded(calico("delete", "np", "p", "-n", "libnetwork"))
    assert failed(calico("get", "np", "p", "-n", "libnetwork")) == "NetworkPolicy(libnetwork/p) does not exist"


def test_get_by_name_and_by_file(calico: Command) -> None:
    profiles = [document("Profile", "a"), document("Profile", "b")]
    succeeded(calico("apply", "-f", "-", documents=profiles))
    assert succeeded(calico("get", "profile", "b", "a", "-o", "name")) == "Profile/b\nProfile/a\n"
    assert succeeded(calico("get", "-f", "-", "-o", "name", documents=profiles)) == "Profile/a\nProfile/b\n"
    assert read(calico, "profile", "a", "b")[1]["kind"] == "Profile"
    assert "pods is no kind of resource" in failed(calico("get", "pods"))
    assert "Give a file with -f" in failed(calico("get"))


def test_export_leaves_out_what_belongs_to_this_cluster(calico: Command) -> None:
    succeeded(calico("apply", "-f", "-", documents=document("Profile", "a")))
    assert read(calico, "profile", "a", "--export")["metadata"] == {"name": "a"}


def test_a_question_makes_no_datastore_where_there_is_none(tmp_path: Path) -> None:
    there = Session(Config(datastore_type="embedded", state_directory=tmp_path / "none", run_directory=tmp_path))
    result = CliRunner().invoke(resources.get, ["nodes"], obj=there)
    assert "this host has no datastore" in failed(result)
    assert not (tmp_path / "none").exists()


def test_default_allow_profile_is_there_and_stays(calico: Command) -> None:
    assert read(calico, "profile", "projectcalico-default-allow")["spec"]["egress"] == [{"action": "Allow"}]
    assert "provided by Calico itself" in failed(calico("delete", "profile", "projectcalico-default-allow"))


def test_cluster_information_and_fixed_tiers_stay(calico: Command) -> None:
    succeeded(calico("apply", "-f", "-", documents=document("Tier", "t", {"order": 5})))
    succeeded(calico("apply", "-f", "-", documents=document("GlobalNetworkPolicy", "t.p", {"tier": "t"})))
    assert "kept by Calico itself" in failed(calico("delete", "clusterinfo", "default"))
    assert "kept by Calico itself" in failed(
        calico("apply", "-f", "-", documents=document("ClusterInformation", "default"))
    )
    assert failed(calico("delete", "tier", "default")) == "Tier(default) belongs to Calico and has to stay"
    assert (
        failed(calico("delete", "tier", "t")) == "Tier(t) still has GlobalNetworkPolicy(t.p): delete its policies first"
    )
    succeeded(calico("delete", "gnp", "t.p"))
    succeeded(calico("delete", "tier", "t"))


def test_delete_in_all_its_forms(calico: Command) -> None:
    profiles = [document("Profile", name) for name in "abc"]
    succeeded(calico("apply", "-f", "-", documents=profiles))
    assert succeeded(calico("delete", "profile", "a", "b")) == "Successfully deleted 2 'Profile' resource(s)\n"
    assert failed(calico("delete", "profile", "a")) == "Profile(a) does not exist"
    output = succeeded(calico("delete", "--skip-not-exists", "-f", "-", documents=profiles))
    assert output.endswith("Successfully deleted 1 'Profile' resource(s)\n")
    assert "Name what to delete" in failed(calico("delete", "profile"))
    assert "needs kind and metadata.name" in failed(calico("delete", "-f", "-", documents={"kind": "Profile"}))


POOL = {"cidr": "10.65.0.0/16", "blockSize": 28}


@pytest.mark.parametrize(
    ("spec", "sentence"),
    [
        ({"cidr": "10.64.0.0/15"}, "IPPool(q): spec.cidr 10.64.0.0/15 overlaps 10.65.0.0/16 of IPPool(p)"),
        ({"cidr": "10.65.1.0/24"}, "IPPool(q): spec.cidr 10.65.1.0/24 overlaps 10.65.0.0/16 of IPPool(p)"),
    ],
)
def test_pools_must_not_overlap(calico: Command, spec: dict[str, Any], sentence: str) -> None:
    succeeded(calico("create", "-f", "-", documents=document("IPPool", "p", POOL)))
    assert failed(calico("create", "-f", "-", documents=document("IPPool", "q", spec))) == sentence
    succeeded(calico("create", "-f", "-", documents=document("IPPool", "q", {"cidr": "10.66.0.0/16"})))


def test_what_a_pool_is_cannot_change(calico: Command) -> None:
    succeeded(calico("create", "-f", "-", documents=document("IPPool", "p", POOL)))
    succeeded(calico("apply", "-f", "-", documents=document("IPPool", "p", POOL | {"natOutgoing": True})))
    message = failed(calico("apply", "-f", "-", documents=document("IPPool", "p", {"cidr": "10.67.0.0/16"})))
    assert message == (
        "IPPool(p): spec.cidr cannot change, it is 10.65.0.0/16: create another pool; "
        "spec.blockSize cannot change, it is 28: create another pool"
    )


def test_unreadable_values_are_said_and_do_not_stop_the_rest(calico: Command, tmp_path: Path) -> None:
    async def spoil() -> None:
        store = await SqliteDatastore.open(tmp_path / "calico.db")
        keys = (ResourceKey("Profile", "bad"), ResourceKey("Profile", "worse"))
        await store.commit(Transaction([], [Put(keys[0].path, b"{"), Put(keys[1].path, b"{}")]))
        await store.close()

    asyncio.run(spoil())
    succeeded(calico("apply", "-f", "-", documents=document("Profile", "good")))
    result = calico("get", "profile")
    assert "good" in succeeded(result)
    assert result.stderr.count("is not readable") == 2
    assert (
        failed(calico("get", "profile", "bad"))
        == "Profile(bad) is not readable; apply a good version in its place, or delete it"
    )
    succeeded(calico("delete", "profile", "bad"))
    succeeded(calico("apply", "-f", "-", documents=document("Profile", "worse")))
    assert calico("get", "profile").stderr == ""


def test_policy_of_before_calico_3_30_is_edited_where_it_is(calico: Command, tmp_path: Path) -> None:
    stored = ResourceKey("NetworkPolicy", "default.old", "default").path
    value = (
        b'{"kind":"NetworkPolicy","apiVersion":"projectcalico.org/v3","metadata":{"name":"default.old",'
        b'"namespace":"default","uid":"u","creationTimestamp":"2020-01-01T00:00:00Z"},"spec":{"selector":"a == \'b\'"}}'
    )

    async def store(put: bool) -> list[str]:
        datastore = await SqliteDatastore.open(tmp_path / "calico.db")
        if put:
            await datastore.commit(Transaction([], [Put(stored, value)]))
        keys = [item.key for item in (await datastore.list(["/"])).items if "networkpolicies" in item.key]
        await datastore.close()
        return keys

    asyncio.run(store(True))
    policy = read(calico, "np", "old")
    assert policy["metadata"]["labels"] == {"projectcalico.org/tier": "default"}
    assert policy["spec"] == {"selector": "a == 'b'", "tier": "default"}
    policy["spec"]["order"] = 5
    succeeded(calico("apply", "-f", "-", documents=policy))
    assert asyncio.run(store(False)) == [stored]
    assert read(calico, "np", "old")["spec"]["order"] == 5
    assert read(calico, "np", "old")["metadata"]["uid"] == "u"
    succeeded(calico("delete", "np", "old"))


async def test_deleted_pool_leaves_its_addresses_and_takes_its_blocks_from_their_hosts() -> None:
    store = MemoryDatastore()
    await initialise(store, FirstStart(node="n", node_document=plain_node("n"), ipv6=False))
    async with open_ipam(store, "n") as ipam:
        address = await ipam.auto_assign(4, handle="h", attributes={"node": "n"})
    await delete_resource(store, ResourceKey("IPPool", "default-ipv4-ippool"), grace=0)
    keys = [
        item.key
        for item in (await store.list(["/calico/ipam/", "/calico/resources/v3/projectcalico.org/ippools/"])).items
    ]
    assert not [key for key in keys if "/host/" in key or "ippools" in key]
    async with open_ipam(store, "n") as ipam:
        assignment = ipam.assignment(address)
        assert assignment is not None
        assert assignment.handle == "h"


async def test_deleted_node_takes_everything_of_it_along() -> None:
    store = MemoryDatastore()
    await initialise(store, FirstStart(node="n", node_document=plain_node("n"), ipv6=False))
    await initialise(store, FirstStart(node="other", node_document=plain_node("other"), ipv6=False))
    for node in ("n", "other"):
        async with open_ipam(store, node) as ipam:
            await ipam.auto_assign(4, handle=f"h-{node}", attributes={"node": node})
    await delete_resource(store, ResourceKey("Node", "n"))
    keys = [item.key for item in (await store.list(["/calico/"])).items]
    assert not [key for key in keys if "/n/" in key or key.endswith(("/n", "node.n", "h-n"))]
    assert [key for key in keys if key.endswith(("node.other", "nodes/other", "h-other"))]
    with pytest.raises(NotFound, match=r"Node\(n\) does not exist"):
        await delete_resource(store, ResourceKey("Node", "n"))


async def test_deletion_of_what_has_to_stay_is_refused() -> None:
    with pytest.raises(InvalidResource, match="kept by Calico itself"):
        await delete_resource(MemoryDatastore(), ResourceKey("ClusterInformation", "default"))
