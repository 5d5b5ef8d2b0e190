"""A document as a user wrote it: is it what Calico stores, and in which form is it stored?"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from calico_libnetwork.model.documents import POLICY_KINDS, Document
from calico_libnetwork.model.kinds import KINDS, ResourceKey
from calico_libnetwork.model.names import NAME_LIMIT, is_resource_name
from calico_libnetwork.model.resources import API_VERSION, DEFAULT_ALLOW_PROFILE
from calico_libnetwork.model.validation import bgp_schema, felix_schema, formats, network_schema, policy_schema
from calico_libnetwork.model.validation.fields import Field, Integer, ListOf, Object, Opaque, Text
from calico_libnetwork.model.validation.fields import read as read_value
from calico_libnetwork.model.validation.problems import InvalidDocument, Problem, Report

TIER_LABEL = "projectcalico.org/tier"
_NAMESPACE_LABEL = "projectcalico.org/namespace"
_ORCHESTRATOR_LABEL = "projectcalico.org/orchestrator"
DEFAULT_NAMESPACE = "default"
_ANNOTATION_LIMIT = 256 * 1024

SPECS: dict[str, Object] = {
    "IPPool": network_schema.IP_POOL,
    "IPReservation": network_schema.IP_RESERVATION,
    "Profile": policy_schema.PROFILE,
    "WorkloadEndpoint": network_schema.WORKLOAD_ENDPOINT,
    "NetworkPolicy": policy_schema.NETWORK_POLICY,
    "NetworkSet": policy_schema.NETWORK_SET,
    "StagedNetworkPolicy": policy_schema.STAGED_NETWORK_POLICY,
    "StagedKubernetesNetworkPolicy": policy_schema.STAGED_KUBERNETES_NETWORK_POLICY,
    "GlobalNetworkPolicy": policy_schema.GLOBAL_NETWORK_POLICY,
    "StagedGlobalNetworkPolicy": policy_schema.STAGED_GLOBAL_NETWORK_POLICY,
    "GlobalNetworkSet": policy_schema.NETWORK_SET,
    "HostEndpoint": network_schema.HOST_ENDPOINT,
    "Tier": policy_schema.TIER,
    "Node": network_schema.NODE,
    "ClusterInformation": network_schema.CLUSTER_INFORMATION,
    "FelixConfiguration": felix_schema.FELIX_CONFIGURATION,
    "BGPConfiguration": bgp_schema.BGP_CONFIGURATION,
    "BGPPeer": bgp_schema.BGP_PEER,
    "BGPFilter": bgp_schema.BGP_FILTER,
    "IPAMConfiguration": network_schema.IPAM_CONFIGURATION,
    "KubeControllersConfiguration": felix_schema.KUBE_CONTROLLERS_CONFIGURATION,
    "CalicoNodeStatus": network_schema.CALICO_NODE_STATUS,
}
# Kinds with a status; those of the first set always store one
_ALWAYS_STATUS = frozenset({"Tier", "Node", "KubeControllersConfiguration", "CalicoNodeStatus"})
_STATUS = _ALWAYS_STATUS | {"IPPool"}

_METADATA = Object(
    Field("name", Text()),
    Field("generateName", Text()),
    Field("namespace", Text()),
    Field("selfLink", Text()),
    Field("uid", Text()),
    Field("resourceVersion", Text()),
    Field("generation", Integer()),
    Field("creationTimestamp", Text()),
    Field("deletionTimestamp", Text()),
    Field("deletionGracePeriodSeconds", Integer(), kept=True),
    Field("labels", formats.LABELS),
    Field("annotations", formats.ANNOTATIONS),
    Field("ownerReferences", Opaque()),
    Field("finalizers", ListOf(Text())),
    Field("managedFields", Opaque()),
)
_UNSTORED = ("generateName", "selfLink", "resourceVersion", "generation", "managedFields")


@dataclass(frozen=True)
class Valid:
    """``document`` in the form that is stored, but for what only the writer knows (uid, time, annotation).

    ``warnings`` are sentences about what Calico accepts and hardly anybody wants. ``requires`` are the resources
    that must exist when it is created.
    """

    key: ResourceKey
    document: Document
    warnings: tuple[str, ...]
    requires: tuple[ResourceKey, ...] = ()


def validate(document: object) -> Valid:
    """Raises ``InvalidDocument`` with every problem of the document."""
    problems: list[Problem] = []

    def report(path: str, clause: str) -> None:
        problems.append(Problem(path, clause))

    stored = _read(document, report)
    if problems or stored is None:
        raise InvalidDocument(_subject(document), problems)
    metadata = stored["metadata"]
    key = ResourceKey(stored["kind"], metadata["name"], metadata.get("namespace", ""))
    requires = (ResourceKey("Tier", stored["spec"]["tier"]),) if key.kind in POLICY_KINDS else ()
    return Valid(key, stored, tuple(f"{key}: {problem}" for problem in _warnings(stored)), requires)


def _subject(document: object) -> str:
    if not isinstance(document, dict):
        return "the document"
    metadata = document.get("metadata")
    name = metadata.get("name", "") if isinstance(metadata, dict) else ""
    return f"{document.get('kind', 'an object without a kind')}({name})"


def _read(document: object, report: Report) -> Document | None:
    if not isinstance(document, dict):
        report("it", "must be a mapping with apiVersion, kind, metadata and spec")
        return None
    kind = document.get("kind")
    if not isinstance(kind, str) or kind not in SPECS:
        report("kind", f"must be one of {', '.join(sorted(SPECS))}")
        return None
    if document.get("apiVersion") != API_VERSION:
        report("apiVersion", f"must be {API_VERSION}, not {document.get('apiVersion', 'absent')}")
    allowed = {"apiVersion", "kind", "metadata", "spec"} | ({"status"} if kind in _STATUS else set())
    for name in document:
        if name not in allowed:
            report(str(name), "is not a field known here")
    metadata = _part(_METADATA, document.get("metadata"), "metadata", report)
    spec = _part(SPECS[kind], document.get("spec"), "spec", report)
    status = document.get("status")
    if status is not None:
        read_value(Opaque(), status, "status", report)
    stored: Document = {"kind": kind, "apiVersion": API_VERSION, "metadata": metadata, "spec": spec}
    if status is not None or kind in _ALWAYS_STATUS:
        stored["status"] = {} if status is None else status
    _settle_metadata(stored, report)
    return stored


def _part(schema: Object, value: object, path: str, report: Report) -> Document:
    content = read_value(schema, {} if value is None else value, path, report)
    return content if isinstance(content, dict) else {}


def _settle_metadata(stored: Document, report: Report) -> None:
    """Name, namespace and the labels that Calico's clients set themselves."""
    kind, metadata, spec = stored["kind"], stored["metadata"], stored["spec"]
    for name in _UNSTORED:
        metadata.pop(name, None)
    if KINDS[kind].namespaced:
        metadata["namespace"] = metadata.get("namespace") or DEFAULT_NAMESPACE
        _check_namespace(kind, metadata["namespace"], report)
    elif metadata.get("namespace"):
        report("metadata.namespace", f"must be left out: a {kind} belongs to no namespace")
    _check_name(kind, stored, report)
    labels = metadata.get("labels", {})
    if kind in ("NetworkSet", "GlobalNetworkSet") and _NAMESPACE_LABEL in labels:
        report(f"metadata.labels[{_NAMESPACE_LABEL}]", "is Calico's own: leave it out")
    if kind in POLICY_KINDS:
        labels = labels | {TIER_LABEL: spec.get("tier", "default")}
    if kind == "WorkloadEndpoint":
        orchestrator = spec.get("orchestrator", "")
        labels = labels | {_NAMESPACE_LABEL: metadata["namespace"], _ORCHESTRATOR_LABEL: orchestrator}
    if labels:
        metadata["labels"] = dict(sorted(labels.items()))
    annotations = metadata.get("annotations", {})
    size = sum(len(key.encode()) + len(value.encode()) for key, value in annotations.items())
    if size > _ANNOTATION_LIMIT:
        report("metadata.annotations", f"may have {_ANNOTATION_LIMIT} bytes together, not {size}")
    stored["metadata"] = {name: metadata[name] for name in _METADATA.fields if name in metadata}


_LABEL = r"[a-z0-9]([-a-z0-9]*[a-z0-9])?"
_NAME_RULES: dict[str, Text] = {
    "Tier": Text(
        "a-z, 0-9 and -, at most 63 characters, without a dot",
        lambda name: len(name) <= 63 and "." not in name and is_resource_name(name),
    ),
    "NetworkPolicy": Text(
        "a-z, 0-9 and -, with one dot at most",
        formats.matches(rf"{_LABEL}(\.{_LABEL})?|(knp|ossg)\.default\.{_LABEL}(\.{_LABEL})*"),
    ),
    "GlobalNetworkPolicy": Text("a-z, 0-9 and -, with one dot at most", lambda name: name.count(".") <= 1),
}
_NAME_RULES |= {
    "StagedNetworkPolicy": _NAME_RULES["NetworkPolicy"],
    "StagedGlobalNetworkPolicy": _NAME_RULES["GlobalNetworkPolicy"],
}
_OF_ALL_NODES = (  # of BGPConfiguration
    "nodeToNodeMeshEnabled",
    "asNumber",
    "serviceLoadBalancerIPs",
    "serviceExternalIPs",
    "serviceClusterIPs",
    "nodeMeshPassword",
    "nodeMeshMaxRestartTime",
)
_FIXED_TIERS: dict[str, tuple[int, str]] = {
    "default": (1000000, "Deny"),
    "kube-admin": (1000, "Pass"),
    "kube-baseline": (10000000, "Pass"),
}


def _check_name(kind: str, stored: Document, report: Report) -> None:
    metadata, spec = stored["metadata"], stored["spec"]
    if kind == "WorkloadEndpoint":
        _settle_endpoint_name(metadata, spec, report)
    name = metadata.get("name", "")
    if len(name) > NAME_LIMIT:
        report("metadata.name", f"may have {NAME_LIMIT} characters, not {len(name)}")
    elif not is_resource_name(name):
        report("metadata.name", f"must be {formats.NAME_RULE}, not {name!r}" if name else "must be given")
    elif kind in _NAME_RULES and not _NAME_RULES[kind].check(name):
        report("metadata.name", f"must be {_NAME_RULES[kind].allowed}, not {name!r}")
    tier = spec.get("tier") or "default"
    if kind in POLICY_KINDS and "." in name and not name.startswith((f"{tier}.", "knp.default.", "ossg.default.")):
        report("metadata.name", f"must begin with {tier}., the name of the policy's tier, or have no dot, not {name!r}")
    if (kind, name) == ("Profile", DEFAULT_ALLOW_PROFILE):
        report("metadata.name", "is the profile that Calico itself provides: it exists always and never changes")
    if kind in ("ClusterInformation", "IPAMConfiguration", "KubeControllersConfiguration") and name != "default":
        report("metadata.name", f"must be default: there is one {kind}")
    if kind == "BGPConfiguration" and name != "default":
        for field in _OF_ALL_NODES:
            if spec.get(field) not in (None, []):
                report(f"spec.{field}", "is for all nodes alike, so BGPConfiguration(default) alone may set it")
    if kind == "Tier" and name in _FIXED_TIERS:
        order, action = _FIXED_TIERS[name]
        for field, wanted in (("order", order), ("defaultAction", action)):
            if spec.get(field) != wanted:
                report(f"spec.{field}", f"must be {wanted} in the tier {name}")


def _check_namespace(kind: str, namespace: str, report: Report) -> None:
    """calicoctl takes any; one with a slash makes a key nobody reads, and an endpoint's is a label as well."""
    if kind == "WorkloadEndpoint" and not is_resource_name(namespace):
        report("metadata.namespace", f"must be {formats.NAME_RULE}, not {namespace!r}")
    elif "/" in namespace:
        report("metadata.namespace", f"must be without a slash, not {namespace!r}")


def _settle_endpoint_name(metadata: Document, spec: Document, report: Report) -> None:
    parts_missing = False

    def missing(path: str, clause: str) -> None:
        nonlocal parts_missing
        parts_missing = True
        if path.removeprefix("spec.") not in ("node", "orchestrator"):
            report(path, clause)

    wanted = network_schema.endpoint_name(spec, "spec", missing)
    if not metadata.get("name") and wanted:
        metadata["name"] = wanted
    elif not parts_missing and metadata.get("name") != wanted:
        report("metadata.name", f"must be {wanted!r}, which follows from spec, not {metadata.get('name')!r}")


def _warnings(stored: Document) -> Iterator[Problem]:
    check = _WARNINGS.get(stored["kind"])
    return check(stored["spec"]) if check else iter(())


def _pool_warnings(spec: Document) -> Iterator[Problem]:
    cidr = formats.network(spec["cidr"])
    if cidr is not None and (cidr.is_loopback or cidr.is_multicast or cidr.is_unspecified):
        yield Problem("spec.cidr", f"{cidr} is no range that containers can use")


def _profile_warnings(spec: Document) -> Iterator[Problem]:
    for direction in ("ingress", "egress"):
        for position, rule in enumerate(spec.get(direction, [])):
            if rule["action"] == "Pass":
                yield Problem(f"spec.{direction}[{position}].action", "Pass has nowhere to pass to in a Profile")


_WARNINGS: dict[str, Callable[[Document], Iterator[Problem]]] = {
    "IPPool": _pool_warnings,
    "Profile": _profile_warnings,
}
