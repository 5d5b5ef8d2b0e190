"""What the commands print: tables, YAML and JSON in the form of calicoctl, so that scripts written for it go on."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import yaml

from calico_libnetwork.model.documents import Document
from calico_libnetwork.model.kinds import Kind
from calico_libnetwork.model.resources import API_VERSION

OUTPUTS = ("yaml", "json", "wide", "name", "ps")

Cell = Callable[[Document], object]
Column = tuple[str, Cell]


def render(kind: Kind, found: Sequence[Document], *, output: str, revision: int | None, all_namespaces: bool) -> str:
    """``found`` in one of ``OUTPUTS``; with ``revision`` None they were asked for by name, and are no list."""
    if kind.name == "Tier":
        found = sorted(found, key=_tier_order)
    match output:
        case "name":
            return "".join(f"{kind.name}/{document['metadata']['name']}\n" for document in found)
        case "yaml" | "json":
            whole = _listed(kind, found, revision) if revision is not None else found[0] if len(found) == 1 else found
            return to_yaml(whole) if output == "yaml" else to_json(whole)
        case _:
            namespaced = all_namespaces and kind.namespaced
            columns = [("NAMESPACE", _metadata("namespace"))] if namespaced else []
            columns += _columns(kind.name, output)
            return table(columns, found) if revision is not None else "".join(table(columns, [one]) for one in found)


def _listed(kind: Kind, found: Sequence[Document], revision: int) -> Document:
    metadata = {"resourceVersion": str(revision)}
    return {"kind": f"{kind.name}List", "apiVersion": API_VERSION, "metadata": metadata, "items": list(found)}


def _tier_order(tier: Document) -> tuple[float, str]:
    spec = tier.get("spec")
    order = spec.get("order") if isinstance(spec, dict) else None
    return (order if isinstance(order, int | float) else float("inf")), tier["metadata"]["name"]


def table(columns: Sequence[Column], rows: Iterable[Document]) -> str:
    """Every cell is padded to its column and three blanks; an empty line ends the table."""
    lines = [[title for title, _ in columns]]
    lines += [[_shown(cell, row) for _, cell in columns] for row in rows]
    widths = [max(map(len, column)) + 3 for column in zip(*lines, strict=True)]
    padded = ("".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) for line in lines)
    return "\n".join(padded) + "\n\n"


def _shown(cell: Cell, row: Document) -> str:
    """What others wrote may hold anything in any place: that is one cell's problem, and -o yaml shows it."""
    try:
        return _text(cell(row))
    except (AttributeError, TypeError, ValueError):
        return "<invalid>"


def _text(value: object) -> str:
    match value:
        case None:
            return "<nil>"
        case bool():
            return str(value).lower()
        case list() | tuple():
            return ",".join(map(str, value))
        case dict():
            return ",".join(f"{key}={text}" for key, text in sorted(value.items()))
        case _:
            return str(value)


def go_float(value: float) -> str:
    """As Go prints a float by default: ``10.5``, ``1e+06``."""
    shortest = next(text for places in range(18) if float(text := f"{value:.{places}e}") == value)
    digits, _, exponent = shortest.partition("e")
    if value == 0 or -4 <= int(exponent) < 6:
        return f"{value:.15g}"
    return f"{digits}e{int(exponent):+03d}"


def _metadata(name: str) -> Cell:
    return lambda document: document["metadata"].get(name, "")


def _spec(name: str, default: object = "") -> Cell:
    return lambda document: (document.get("spec") or {}).get(name, default)


def _count(name: str) -> Cell:
    return lambda document: len((document.get("spec") or {}).get(name) or ())


def _order(document: Document) -> object:
    order = _spec("order", None)(document)
    return go_float(order) if isinstance(order, int | float) else order


def _bgp(name: str) -> Cell:
    return lambda document: ((document.get("spec") or {}).get("bgp") or {}).get(name, "")


def _as_number(document: Document) -> object:
    return _bgp("asNumber")(document) or f"({document.get(DEFAULT_AS_NUMBER, 64512)})"


DEFAULT_AS_NUMBER = "\0asNumber"
"""Under this key ``get node`` leaves the cluster's AS number in a Node's document, for its table alone."""


def _workload(document: Document) -> object:
    spec = document.get("spec") or {}
    return spec.get("pod", "") if spec.get("orchestrator") == "k8s" else spec.get("workload", "")


def _translations(document: Document) -> object:
    return [f"{entry.get('externalIP')}/32" for entry in (document.get("spec") or {}).get("ipNATs") or []]


def _peering_nodes(document: Document) -> object:
    spec = document.get("spec") or {}
    return spec.get("node") or spec.get("nodeSelector") or "(global)"


def _pod_selector(document: Document) -> str:
    """As Go prints a selector's labels and expressions."""
    selector = (document.get("spec") or {}).get("podSelector") or {}
    labels = " ".join(f"{key}:{value}" for key, value in sorted((selector.get("matchLabels") or {}).items()))
    expressions = [
        f"{{{each['key']} {each['operator']} [{' '.join(each.get('values') or ())}]}}"
        for each in selector.get("matchExpressions") or ()
    ]
    return f"{{map[{labels}] [{' '.join(expressions)}]}}"


_NAME: Column = ("NAME", _metadata("name"))
_POLICY: tuple[list[Column], list[Column]] = (
    [_NAME, ("TIER", _spec("tier"))],
    [_NAME, ("TIER", _spec("tier")), ("ORDER", _order), ("SELECTOR", _spec("selector"))],
)
_NETWORKS: list[Column] = [_NAME, ("NETS", _spec("nets"))]
_BGP: list[Column] = [
    _NAME,
    ("LOGSEVERITY", _spec("logSeverityScreen", "-")),
    ("MESHENABLED", _spec("nodeToNodeMeshEnabled", "-")),
    ("ASNUMBER", _spec("asNumber", "-")),
]
_CLUSTER: list[Column] = [
    _NAME,
    ("CLUSTERGUID", _spec("clusterGUID")),
    ("CLUSTERTYPE", _spec("clusterType")),
    ("CALICOVERSION", _spec("calicoVersion")),
    ("DATASTOREREADY", _spec("datastoreReady")),
]
_FILTER: list[Column] = [
    _NAME,
    ("NUMEXPORTV4", _count("exportV4")),
    ("NUMIMPORTV4", _count("importV4")),
    ("NUMEXPORTV6", _count("exportV6")),
    ("NUMIMPORTV6", _count("importV6")),
]
_PEER: list[Column] = [
    _NAME,
    ("PEERIP", _spec("peerIP")),
    ("NODE", _peering_nodes),
    ("ASN", _spec("asNumber", 0)),
]
_ENDPOINT: list[Column] = [
    ("WORKLOAD", _workload),
    ("NODE", _spec("node")),
    ("NETWORKS", _spec("ipNetworks")),
    ("INTERFACE", _spec("interfaceName")),
]
_IPAM: list[Column] = [
    _NAME,
    ("STRICTAFFINITY", _spec("strictAffinity", False)),
    ("MAXBLOCKSPERHOST", _spec("maxBlocksPerHost", 0)),
    ("AUTOALLOCATEBLOCKS", _spec("autoAllocateBlocks", False)),
]
_TIER: list[Column] = [_NAME, ("ORDER", _order)]
# kind -> columns of the table, and of the wide one
_TABLES: dict[str, tuple[list[Column], list[Column]]] = {
    "WorkloadEndpoint": (
        _ENDPOINT,
        [_NAME, *_ENDPOINT, ("PROFILES", _spec("profiles")), ("NATS", _translations)],
    ),
    "IPPool": (
        [_NAME, ("CIDR", _spec("cidr")), ("SELECTOR", _spec("nodeSelector", "all()"))],
        [
            _NAME,
            ("CIDR", _spec("cidr")),
            ("NAT", _spec("natOutgoing", False)),
            ("IPIPMODE", _spec("ipipMode", "Never")),
            ("VXLANMODE", _spec("vxlanMode", "Never")),
            ("DISABLED", _spec("disabled", False)),
            ("DISABLEBGPEXPORT", _spec("disableBGPExport", False)),
            ("SELECTOR", _spec("nodeSelector", "all()")),
            ("ASSIGNMENTMODE", _spec("assignmentMode", "Automatic")),
        ],
    ),
    "Node": (
        [_NAME],
        [_NAME, ("ASN", _as_number), ("IPV4", _bgp("ipv4Address")), ("IPV6", _bgp("ipv6Address"))],
    ),
    "Profile": ([_NAME], [_NAME, ("LABELS", _spec("labelsToApply"))]),
    "GlobalNetworkPolicy": _POLICY,
    "NetworkPolicy": _POLICY,
    "StagedGlobalNetworkPolicy": _POLICY,
    "StagedNetworkPolicy": _POLICY,
    "StagedKubernetesNetworkPolicy": ([_NAME], [_NAME, ("PODSELECTOR", _pod_selector)]),
    "GlobalNetworkSet": ([_NAME], _NETWORKS),
    "NetworkSet": ([_NAME], _NETWORKS),
    "HostEndpoint": (
        [_NAME, ("NODE", _spec("node"))],
        [
            _NAME,
            ("NODE", _spec("node")),
            ("INTERFACE", _spec("interfaceName")),
            ("IPS", _spec("expectedIPs")),
            ("PROFILES", _spec("profiles")),
        ],
    ),
    "BGPFilter": (_FILTER, _FILTER),
    "BGPPeer": (_PEER, _PEER),
    "BGPConfiguration": (_BGP, _BGP),
    "ClusterInformation": (_CLUSTER, _CLUSTER),
    "IPAMConfiguration": (_IPAM, _IPAM),
    "IPReservation": ([_NAME], [_NAME, ("CIDRS", _spec("reservedCIDRs"))]),
    "Tier": (_TIER, _TIER),
}


def _columns(kind: str, output: str) -> list[Column]:
    short, wide = _TABLES.get(kind, ([_NAME], [_NAME]))
    return wide if output == "wide" else short


_ESCAPED_BY_GO = str.maketrans({character: f"\\u{ord(character):04x}" for character in "&<>\u2028\u2029"})


def to_json(document: Any) -> str:
    return json.dumps(document, indent=2, ensure_ascii=False).translate(_ESCAPED_BY_GO) + "\n"


_TEXT_TAG = "tag:yaml.org,2002:str"


class _GoDumper(yaml.SafeDumper):
    """Quotes as Go's encoder does: double where plain text would be read as something else, else single."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _text_node(dumper: _GoDumper, text: str) -> yaml.ScalarNode:
    style = None
    if "\n" in text:
        style = "|"
    elif text.lower() in "yn" or _plain_tag(dumper, text) != _TEXT_TAG:
        style = '"'
    return dumper.represent_scalar(_TEXT_TAG, text, style=style)


def _plain_tag(dumper: _GoDumper, text: str) -> str:
    tag: str = dumper.resolve(yaml.ScalarNode, text, (True, False))  # type: ignore[no-untyped-call]  # untyped in the stubs
    return tag


_GoDumper.add_representer(str, _text_node)


def to_yaml(document: Any) -> str:
    """Block style, keys in order of the alphabet, no line folded."""
    return yaml.dump(
        document, Dumper=_GoDumper, default_flow_style=False, sort_keys=True, allow_unicode=True, width=1 << 30
    )
