"""Selectors as Calico's own parser reads them, and the edge cases of its lexer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from calico_libnetwork.errors import InvalidResource
from calico_libnetwork.model.selector import conjunction, parse

CASES: list[dict[str, Any]] = [
    json.loads(line) for line in (Path(__file__).parent.parent / "data/calico/selectors.jsonl").read_text().splitlines()
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: repr(case["selector"])[:60])
def test_selector_reads_as_in_calico(case: dict[str, Any]) -> None:
    if "error" in case:
        with pytest.raises(InvalidResource, match=r"is invalid at character \d+: "):
            parse(case["selector"])
        return
    selector = parse(case["selector"])
    assert selector.canonical == case["canonical"]
    assert selector.unique_id == case["unique_id"]
    assert selector.matches(case["labels"]) is case["match"]


@pytest.mark.parametrize(
    "text",
    [
        "", "  ", " all()", "(all() )", 'a=="b"', "a!='\"'", 'a == "\'"', "!! ! has(a)", "! a == 'x' || !has(b)",
        "a in {}", "a not in {}", 'a in {"x",}', 'k8s.io/x starts with "p"', 'a in{"x"}', 'a contains"x"',
        'a notin{"x"}', "\thas(a)\t", "has(" + "a" * 512 + ")", "a == 'line\nbreak'", "(((((has(a))))))",
    ],
)  # fmt: skip
def test_valid_text_is_accepted_and_its_canonical_form_means_the_same(text: str) -> None:
    selector = parse(text)
    assert parse(selector.canonical) == selector


@pytest.mark.parametrize(
    "text",
    [
        "a", "a b", "!", "()", "(", '(a == "x"', ")", 'a = "b"', "a == b", "'b' == a", 'a == "b" &', 'a == "b" |',
        "has(a) &&", "has()", "has (a)", "has(a b)", "all(x)", 'a in "x"', 'a in {"x" "y"}', "a in {,}",
        'a in {"", ||', '"FOO', "\"FOO'", "%", 'a == "b" && %', "has(a)\n", "\nhas(a)", "a inx", "a inx {'x'}",
        "has(" + "a" * 513 + ")", "(" * 101 + "has(a)" + ")" * 101, "(" * 100_000, "a in {'x',,}", "a starts 'x'",
    ],
)  # fmt: skip
def test_invalid_text_is_refused(text: str) -> None:
    with pytest.raises(InvalidResource):
        parse(text)


def test_the_error_names_position_and_reason() -> None:
    with pytest.raises(InvalidResource, match=r"'role ==' is invalid at character 8: expected a string in quotes"):
        parse("role ==")


@pytest.mark.parametrize(
    ("text", "labels", "expected"),
    [
        ("a in {}", {"a": ""}, False),
        ("a not in {}", {}, True),
        ("a not in {'x'}", {}, True),
        ("a != 'x'", {}, True),
        ("!a == 'b'", {"a": "b"}, False),
        ("!a == 'b'", {}, True),
        ("a contains ''", {}, False),
        ("a == ''", {}, False),
        ("has(a) || has(b) && has(c)", {"a": ""}, True),
    ],
)
def test_absent_labels_and_precedence(text: str, labels: dict[str, str], *, expected: bool) -> None:
    assert parse(text).matches(labels) is expected


@pytest.mark.parametrize(
    ("text", "required"),
    [
        ("has(a)", {"a": None}),
        ("a == 'x'", {"a": {"x"}}),
        ("a in {'x', 'y'} && has(b)", {"a": {"x", "y"}, "b": None}),
        ("a in {'x', 'y'} && a in {'y', 'z'}", {"a": {"y"}}),
        ("a == 'x' && a starts with 'x'", {"a": {"x"}}),
        ("a == 'x' || a == 'y'", {"a": {"x", "y"}}),
        ("a == 'x' || has(a)", {"a": None}),
        ("a == 'x' || b == 'y'", {}),
        ("!has(a)", {}),
        ("a != 'x'", {}),
        ("a not in {'x'}", {}),
        ("all()", {}),
        ("a == 'x' || all()", {}),
    ],
)
def test_requirements_name_the_labels_a_match_needs(text: str, required: dict[str, Any]) -> None:
    assert parse(text).requirements == required


def test_prefix_and_conjunction_keep_the_meaning() -> None:
    prefixed = parse("a == 'x' || !has(b) || all()").prefixed("pcns.", everything=parse("has(n)"))
    selector = conjunction([parse("all()"), prefixed, parse("has(c)")])
    assert selector.canonical == '((pcns.a == "x" || !has(pcns.b) || has(n)) && has(c))'
    assert conjunction([]).canonical == "all()"
    assert conjunction([parse("has(a)"), parse("has(a)")]).canonical == "has(a)"


def test_global_is_recognised_alone_and_inside() -> None:
    assert parse("global()").is_global
    assert not parse("!global()").is_global
    assert parse("has(a) || !global()").mentions_global
    assert not parse("all() && has(a)").mentions_global


_label = st.sampled_from(["a", "b", "in", "has"])
_value = st.sampled_from(["", "x", "xy", "y"])
_operator = st.sampled_from(["==", "!=", "contains", "startswith", "ends with"])
_text: st.SearchStrategy[str] = st.recursive(
    st.one_of(
        st.just("all()"),
        _label.map("has({})".format),
        st.builds("{} {} '{}'".format, _label, _operator, _value),
        st.builds(
            lambda label, operator, values: f"{label} {operator} {{{', '.join(map(repr, values))}}}",
            _label, st.sampled_from(["in", "not in"]), st.lists(_value, max_size=3),
        ),
    ),
    lambda inner: st.one_of(
        inner.map("!({})".format),
        st.builds("({}) && {}".format, inner, inner),
        st.builds("{} || ({})".format, inner, inner),
    ),
    max_leaves=8,
)  # fmt: skip


@given(_text, st.dictionaries(_label, _value, max_size=4))
def test_canonical_text_keeps_the_meaning_and_requirements_hold(text: str, labels: dict[str, str]) -> None:
    # not the text: Calico writes !(!(x)) as !!x, and reads that as x
    selector = parse(text)
    assert parse(selector.canonical).matches(labels) is selector.matches(labels)
    if selector.matches(labels):
        for label, values in selector.requirements.items():
            assert label in labels
            assert values is None or labels[label] in values
