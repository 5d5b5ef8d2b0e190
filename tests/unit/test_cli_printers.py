"""Tables and YAML are, byte for byte, what calicoctl prints for the same objects."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from calico_libnetwork.cli.printers import go_float, render, to_yaml
from calico_libnetwork.datastore.editing import shown
from calico_libnetwork.model import documents
from calico_libnetwork.model.kinds import KINDS, find_kind, parse_path
from calico_libnetwork.model.resources import DEFAULT_ALLOW_PROFILE

CALICO = Path(__file__).parents[1] / "data" / "calico"
LINES = [json.loads(line) for line in (CALICO / "resources.jsonl").read_text().splitlines()]
COMMANDS = [line for line in LINES if "command" in line]
DEFAULT_ALLOW = {
    "kind": "Profile",
    "apiVersion": "projectcalico.org/v3",
    "metadata": {"name": DEFAULT_ALLOW_PROFILE, "resourceVersion": "1"},
    "spec": {"ingress": [{"action": "Allow"}], "egress": [{"action": "Allow"}]},
}


def _revisions() -> dict[str, int]:
    """uid -> resourceVersion, from calicoctl's own YAML."""
    found = {}
    for line in COMMANDS:
        if line["command"].endswith("yaml"):
            for item in yaml.safe_load(line["stdout"])["items"]:
                found[item["metadata"].get("uid", "")] = int(item["metadata"]["resourceVersion"])
    return found


REVISIONS = _revisions()


def _objects(kind: str) -> list[dict[str, Any]]:
    found = {}
    for line in LINES:
        key = parse_path(line.get("key", ""))
        if key is not None and key.kind == kind:
            document = json.loads(line["value"])
            found[line["key"]] = shown(document, REVISIONS.get(document["metadata"]["uid"], 0))
    listed = [found[key] for key in sorted(found)]
    return [*listed, DEFAULT_ALLOW] if kind == "Profile" else listed


@pytest.mark.parametrize("line", COMMANDS, ids=[line["command"].removeprefix("calicoctl get ") for line in COMMANDS])
def test_prints_what_calicoctl_prints(line: dict[str, Any]) -> None:
    words = line["command"].split()
    kind = find_kind(words[2])
    output = words[words.index("-o") + 1] if "-o" in words else "ps"
    printed = render(kind, _objects(kind.name), output=output, revision=38, all_namespaces="--all-namespaces" in words)
    assert printed == line["stdout"]


def test_recording_covers_most_kinds() -> None:
    recorded = {find_kind(line["command"].split()[2]).name for line in COMMANDS}
    assert len(recorded) >= 13


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("output", ["ps", "wide", "yaml", "json", "name"])
def test_every_kind_prints_an_object_without_a_spec(kind: str, output: str) -> None:
    bare = {"kind": kind, "apiVersion": "projectcalico.org/v3", "metadata": {"name": "x", "namespace": "n"}}
    printed = render(KINDS[kind], [bare], output=output, revision=None, all_namespaces=True)
    assert "x" in printed or "\nn " in printed


def test_a_single_object_is_printed_by_itself() -> None:
    (pool, *_) = _objects("IPPool")
    kind = KINDS["IPPool"]
    assert yaml.safe_load(render(kind, [pool], output="yaml", revision=None, all_namespaces=False)) == pool
    printed = render(kind, [pool], output="json", revision=None, all_namespaces=False)
    assert json.loads(printed) == pool
    assert printed.startswith('{\n  "kind": "IPPool",\n  "apiVersion"')


def test_names_can_be_fed_to_other_commands() -> None:
    printed = render(KINDS["Tier"], _objects("Tier"), output="name", revision=1, all_namespaces=False)
    assert printed.splitlines()[0] == "Tier/security"


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (50, "50"), (10.5, "10.5"), (1000000, "1e+06"), (1e21, "1e+21"), (-3, "-3"), (123456, "123456"),
     (1234567, "1.234567e+06"), (0.00001, "1e-05"), (0.1, "0.1")],
)  # fmt: skip
def test_floats_are_printed_as_go_prints_them(value: float, text: str) -> None:
    assert go_float(value) == text


@given(
    st.text(max_size=20) | st.sampled_from(["yes", "No", "1", "0x1", "1:20", "null", "~", "", " ", "=", "<<", "- a"])
)
def test_any_text_survives_yaml(text: str) -> None:
    printable = "".join(character for character in text if character.isprintable() or character in "\n\t")
    printable = re.sub(r"[\ud800-\udfff]", "", printable)
    document = {"metadata": {"annotations": {"a": printable}}}
    assert yaml.safe_load(to_yaml(document)) == document


def test_stored_selectors_survive_yaml() -> None:
    for policy in _objects("GlobalNetworkPolicy"):
        assert yaml.safe_load(to_yaml(policy)) == policy
        assert documents.encode(policy)
