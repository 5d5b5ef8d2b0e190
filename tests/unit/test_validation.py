"""The validator accepts, refuses and stores what calicoctl does, and names every field at fault."""

from __future__ import annotations

import copy
import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from calico_libnetwork.model import documents
from calico_libnetwork.model.kinds import KINDS, ResourceKey, parse_path
from calico_libnetwork.model.validation import InvalidDocument, Valid, validate
from calico_libnetwork.model.validation.documents import SPECS
from calico_libnetwork.model.validation.formats import format_duration, parse_duration

CALICO = Path(__file__).parents[1] / "data" / "calico"


def _lines(name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (CALICO / f"{name}.jsonl").read_text().splitlines()]


RECORDED = _lines("validation")
CREATED = [record for record in _lines("resources") if "input" in record]
ALWAYS_THERE = {ResourceKey("Tier", name) for name in ("default", "kube-admin", "kube-baseline")}


def outcome(document: dict[str, Any]) -> Valid | list[str]:
    """What ``validate`` says: the stored form, or the paths at fault."""
    try:
        valid = validate(document)
    except InvalidDocument as error:
        return [problem.path for problem in error.problems]
    missing = [key for key in valid.requires if key not in ALWAYS_THERE]
    return ["spec.tier" for _ in missing] or valid


def fields_at_fault(sentence: str) -> list[str]:
    """The names of fields in calicoctl's own sentence, lower-cased: the last part of each path it gives."""
    if "resource does not exist: Tier" in sentence:
        return ["tier"]
    if "already exists" in sentence:
        return ["name"]
    if "unknown resource type" in sentence:
        return ["apiversion"]
    patterns = (
        r"error with field (\S+)",
        r"^- +(\S+)",
        r"in the wrong location: (\S+)",
        r"Go struct field (\S+)",
    )
    found = [match for pattern in patterns for match in re.findall(pattern, sentence, re.MULTILINE)]
    renamed = {"portname": "ports", "port": "port", "tier": "defaultaction"}
    names = [re.sub(r"\[[^]]*]", "", match).rpartition(".")[2].lower() for match in found]
    return [renamed.get(name, name) for name in names]


@pytest.mark.parametrize("record", RECORDED, ids=[str(number) for number in range(len(RECORDED))])
def test_accepts_and_refuses_what_calicoctl_does(record: dict[str, Any]) -> None:
    result = outcome(record["input"])
    assert isinstance(result, Valid) == record["accepted"], result
    if isinstance(result, list):
        paths = " ".join(result).lower()
        assert all(name in paths for name in fields_at_fault(record["says"])), (result, record["says"])


@pytest.mark.parametrize("record", CREATED, ids=[record["key"].rpartition("/")[2][:40] for record in CREATED])
def test_stores_the_bytes_that_calicoctl_stores(record: dict[str, Any]) -> None:
    valid = validate(record["input"])
    assert valid.key.path == record["key"]
    document = documents.with_policy_annotation(valid.document)
    recorded = json.loads(record["value"])["metadata"]
    metadata = document["metadata"] | {name: recorded[name] for name in ("uid", "creationTimestamp")}
    document = document | {"metadata": {name: metadata[name] for name in recorded}}
    assert documents.encode(document).decode() == record["value"]


def test_everything_that_calico_stored_passes() -> None:
    for record in _lines("resources") + _lines("go-plugin") + _lines("calico-node"):
        if "key" not in record or parse_path(record["key"]) is None:
            continue
        document = documents.without_policy_annotation(json.loads(record["value"]))
        valid = validate(document)
        assert valid.key.path == record["key"]
        assert validate(valid.document).document == valid.document


def test_every_kind_has_a_schema() -> None:
    assert SPECS.keys() == KINDS.keys()


def document(kind: str, spec: dict[str, Any], name: str = "x", **metadata: Any) -> dict[str, Any]:
    return {"apiVersion": "projectcalico.org/v3", "kind": kind, "metadata": {"name": name, **metadata}, "spec": spec}


def test_all_problems_are_listed_at_once() -> None:
    policy = document(
        "NetworkPolicy",
        {
            "order": "first",
            "selector": "role ==",
            "types": ["ingress"],
            "ingress": [
                {"action": "allow"},
                {"action": "Allow", "protocol": "TCP", "destination": {"ports": ["80-90"]}},
            ],
        },
        "My_Policy",
        labels={"a b": "c d"},
    )
    with pytest.raises(InvalidDocument) as caught:
        validate(policy)
    assert [problem.path for problem in caught.value.problems] == [
        "metadata.labels[a b]",
        "metadata.labels[a b]",
        "spec.order",
        "spec.ingress[0].action",
        "spec.ingress[1].destination.ports[0]",
        "spec.selector",
        "spec.types[0]",
        "metadata.name",
    ]
    assert str(caught.value).startswith(
        "NetworkPolicy(My_Policy) has 8 problems:\n  metadata.labels[a b] is no label key"
    )


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ("text", "the document: it must be a mapping with apiVersion, kind, metadata and spec"),
        (document("Pod", {}), r"Pod\(x\): kind must be one of BGPConfiguration, .*WorkloadEndpoint"),
        (document("Profile", []), r"Profile\(x\): spec must be a mapping, not a list"),  # type: ignore[arg-type]
        (document("Profile", {"labelsToApply": {"a": [5]}}), "spec.labelsToApply must be a mapping of text to text"),
        (document("Profile", {}, namespace="n"), "metadata.namespace must be left out: a Profile belongs to no namesp"),
        (document("WorkloadEndpoint", {}, namespace="N"), "metadata.namespace must be a lower-case DNS name"),
        (document("NetworkSet", {}, namespace="a/b"), "metadata.namespace must be without a slash, not 'a/b'"),
        (document("Profile", {}) | {"status": {}}, r"Profile\(x\): status is not a field known here"),
        (document("Tier", {}) | {"status": 5}, "status must be a mapping or a list, not the number 5"),
        (document("Tier", {"order": True}), "spec.order must be a number, not true"),
        (document("Tier", {"order": 1}, "default"), "spec.order must be 1000000 in the tier default"),
        (document("Tier", {"order": 1000, "defaultAction": "Deny"}, "kube-admin"), "spec.defaultAction must be Pass"),
        (document("GlobalNetworkPolicy", {}, "a.b.c"), "metadata.name must be a-z, 0-9 and -, with one dot at most"),
        (document("NetworkPolicy", {}, "a.b.c"), "metadata.name must be a-z, 0-9 and -, with one dot at most"),
        (document("ClusterInformation", {}, "other"), "metadata.name must be default"),
        (document("Profile", {}, ""), r"Profile\(\): metadata.name must be given"),
        (document("Profile", {}, annotations={"a": "x" * 300000}), "metadata.annotations may have 262144 bytes"),
        (
            document("GlobalNetworkSet", {}, labels={"projectcalico.org/namespace": "x"}),
            "is Calico's own: leave it out",
        ),
        (document("IPPool", {"cidr": "10.0.0.0/16", "blocksize": 5}), "blocksize is not a field known here; did you m"),
        (document("IPPool", {"cidr": "10.0.0.0/16", "allowedUses": ["LoadBalancer", "Tunnel"]}), "allowedUses may not"),
        (document("IPPool", {"cidr": "10.0.0.0/16", "ipipMode": "Always", "vxlanMode": "Always"}), "vxlanMode must be"),
        (document("Node", {"bgp": {}}), "spec.bgp must have a field, or be left out"),
        (document("BGPPeer", {"node": "n", "nodeSelector": "all()"}), "spec.nodeSelector may not stand beside node"),
        (document("BGPPeer", {"peerIP": "10.0.0.1", "reachableBy": "fd00::1"}), "spec.reachableBy needs a peerIP of"),
        (
            document("BGPFilter", {"exportV4": [{"action": "Reject", "operations": [{"setPriority": {"value": 5}}]}]}),
            r"spec.exportV4\[0\].operations may only stand in a rule with action Accept",
        ),
        (
            document("FelixConfiguration", {"routeTableRange": {"min": 5, "max": 1}}),
            "spec.routeTableRange.min must not be greater than max",
        ),
        (document("FelixConfiguration", {"wireguardMTU": "1400"}), "must be a whole number, not the text '1400'"),
        (
            document("StagedNetworkPolicy", {"stagedAction": "Delete", "selector": "all()"}),
            "spec.selector may not stand in a policy with stagedAction Delete",
        ),
        (
            document(
                "WorkloadEndpoint", {"node": "n", "orchestrator": "libnetwork", "endpoint": "e", "interfaceName": "c"}
            ),
            "metadata.name must be 'n-libnetwork-libnetwork-e', which follows from spec, not 'x'",
        ),
    ],
)
def test_sentences_say_what_is_allowed(wrong: Any, sentence: str) -> None:
    with pytest.raises(InvalidDocument, match=sentence):
        validate(wrong)


def rule_problem(rule: dict[str, Any], direction: str = "ingress") -> list[str]:
    result = outcome(document("GlobalNetworkPolicy", {direction: [{"action": "Allow"} | rule]}))
    return result if isinstance(result, list) else []


@pytest.mark.parametrize(
    ("rule", "path"),
    [
        ({"source": {"nets": ["10.0.0.0/8"]}, "destination": {"nets": ["fd00::/8"]}}, "destination.nets"),
        ({"source": {"nets": ["10.0.0.1"]}}, "source.nets[0]"),
        ({"source": {"services": {"name": "s", "namespace": "n"}, "selector": "all()"}}, "source.selector"),
        ({"source": {"services": {"name": "s"}}}, "source.services.namespace"),
        ({"source": {"namespaceSelector": "global() && has(a)"}}, "source.namespaceSelector"),
        ({"source": {"notSelector": "global()"}}, "source.notSelector"),
        ({"protocol": "tcp"}, "protocol"),
        ({"protocol": 0}, "protocol"),
        ({"protocol": "ICMPv6", "ipVersion": 4}, "ipVersion"),
        ({"protocol": "UDP", "http": {"methods": ["GET"]}}, "protocol"),
        ({"action": "Deny", "http": {"methods": ["GET"]}}, "http"),
        ({"http": {"methods": ["GET", "GET"]}}, "http.methods"),
        ({"http": {"paths": [{"exact": "/a", "prefix": "/b"}]}}, "http.paths[0]"),
        ({"http": {"paths": [{"exact": "a"}]}}, "http.paths[0].exact"),
    ],
)
def test_rules_are_looked_at_as_a_whole(rule: dict[str, Any], path: str) -> None:
    assert rule_problem(rule) == [f"spec.ingress[0].{path}"]


def test_ports_are_stored_as_calico_stores_them() -> None:
    rule = {"action": "Allow", "protocol": "TCP", "destination": {"ports": ["80", "100:100", "1:2", "http", 443]}}
    valid = validate(document("Profile", {"ingress": [rule]}))
    assert valid.document["spec"]["ingress"][0]["destination"]["ports"] == [80, 100, "1:2", "http", 443]


def test_policy_types_follow_the_rules() -> None:
    rules = [{"action": "Allow"}]
    for spec, types in (
        ({}, ["Ingress"]),
        ({"ingress": rules}, ["Ingress"]),
        ({"egress": rules}, ["Egress"]),
        ({"ingress": rules, "egress": rules}, ["Ingress", "Egress"]),
        ({"ingress": rules, "types": ["Egress"]}, ["Egress"]),
    ):
        assert validate(document("NetworkPolicy", spec)).document["spec"]["types"] == types


def test_namespaced_kinds_go_to_the_default_namespace() -> None:
    assert validate(document("NetworkPolicy", {})).key == ResourceKey("NetworkPolicy", "x", "default")


def test_endpoint_gets_its_name_and_calicos_labels() -> None:
    spec = {"node": "a-b", "orchestrator": "libnetwork", "endpoint": "e1", "interfaceName": "cali1"}
    endpoint = document("WorkloadEndpoint", spec, "", namespace="libnetwork")
    endpoint["metadata"]["labels"] = {"projectcalico.org/orchestrator": "k8s"}
    stored = validate(endpoint).document["metadata"]
    assert stored["name"] == "a--b-libnetwork-libnetwork-e1"
    assert stored["labels"] == {
        "projectcalico.org/namespace": "libnetwork",
        "projectcalico.org/orchestrator": "libnetwork",
    }


def test_cidr_is_stored_in_its_one_form() -> None:
    assert validate(document("IPPool", {"cidr": "FD00:0:0::/64"})).document["spec"]["cidr"] == "fd00::/64"


def test_as_number_may_be_dotted() -> None:
    assert validate(document("Node", {"bgp": {"asNumber": "1.10"}})).document["spec"]["bgp"]["asNumber"] == 65546


@pytest.mark.parametrize(
    ("kind", "spec", "warning"),
    [
        ("IPPool", {"cidr": "127.0.0.0/16"}, "IPPool(x): spec.cidr 127.0.0.0/16 is no range that containers can use"),
        ("Profile", {"egress": [{"action": "Pass"}]}, "Profile(x): spec.egress[0].action Pass has nowhere to pass to"),
    ],
)
def test_what_calico_accepts_and_should_not_is_warned_about(kind: str, spec: dict[str, Any], warning: str) -> None:
    (sentence,) = validate(document(kind, spec)).warnings
    assert sentence.startswith(warning)


def test_the_input_is_not_changed() -> None:
    given_ = copy.deepcopy(CREATED[0]["input"])
    validate(given_)
    assert given_ == CREATED[0]["input"]


@pytest.mark.parametrize(
    ("text", "stored"),
    [
        ("60s", "1m0s"),
        ("90m", "1h30m0s"),
        ("1.5s", "1.5s"),
        ("0", "0s"),
        ("-1m", "-1m0s"),
        ("100ms", "100ms"),
        ("1500us", "1.5ms"),
        ("20ns", "20ns"),
        ("1h0.5s", "1h0m0.5s"),
        (".5h", "30m0s"),
    ],
)
def test_durations_are_stored_as_go_prints_them(text: str, stored: str) -> None:
    nanoseconds = parse_duration(text)
    assert nanoseconds is not None
    assert format_duration(nanoseconds) == stored


@given(st.integers(-(10**18), 10**18))
def test_durations_round_trip(nanoseconds: int) -> None:
    assert parse_duration(format_duration(nanoseconds)) == nanoseconds


@pytest.mark.parametrize("text", ["", "soon", "5", "s", "1 s", "1s ", "--1s", "1x"])
def test_what_is_no_duration(text: str) -> None:
    assert parse_duration(text) is None


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


@given(st.sampled_from(sorted(SPECS)), JSON, JSON)
def test_nonsense_ends_in_a_list_of_problems(kind: str, spec: Any, metadata: Any) -> None:
    nonsense = {"apiVersion": "projectcalico.org/v3", "kind": kind, "metadata": metadata, "spec": spec}
    outcome(nonsense)


@settings(max_examples=300)
@given(st.sampled_from(CREATED), st.data(), JSON)
def test_one_wrong_field_in_a_good_object_ends_in_a_list_of_problems(
    record: dict[str, Any], data: st.DataObject, value: Any
) -> None:
    """Replaces any one field, however deep; whatever comes out is accepted as it is stored, or refused by path."""
    changed = copy.deepcopy(record["input"])
    place: Any = changed[data.draw(st.sampled_from(["metadata", "spec"]))]
    while True:
        name = data.draw(st.sampled_from(sorted(place))) if isinstance(place, dict) else 0
        deeper = place[name]
        if not (isinstance(deeper, dict | list) and deeper) or data.draw(st.booleans()):
            place[name] = value
            break
        place = deeper
    result = outcome(changed)
    if isinstance(result, Valid):
        assert validate(result.document).document == result.document
