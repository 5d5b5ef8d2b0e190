"""nft's JSON against our texts: the same thing said in two ways is the same."""

from __future__ import annotations

import pytest

from calico_libnetwork.dataplane.nft_listing import ChainListing, canonical, hook_text, mark, parse_hook, parse_listing
from calico_libnetwork.dataplane.table import Chain


@pytest.mark.parametrize(
    ("written", "listed"),
    [
        ("10.65.0.1", "10.65.0.1"),
        ("10.65.0.1/32", "10.65.0.1"),
        ("fd65::1/128", "fd65::1"),
        ('"cali1"', "cali1"),
        ("10.65.0.1 . tcp . 80", {"concat": ["10.65.0.1", 6, 80]}),
        ("10.65.0.1 . 132 . 80", {"concat": ["10.65.0.1", "sctp", 80]}),
        ('"cali1" . 10.65.0.1', {"concat": ["cali1", "10.65.0.1"]}),
        ("10.0.0.0/8", {"prefix": {"addr": "10.0.0.0", "len": 8}}),
        ("10.0.0.1-10.0.0.5", {"range": ["10.0.0.1", "10.0.0.5"]}),
        ("10.65.0.1", {"elem": {"val": "10.65.0.1", "timeout": 5}}),
        ("80-90", {"range": [80, 90]}),
    ],
)
def test_element_is_recognised_in_nfts_words(written: str, listed: object) -> None:
    listing = parse_listing([{"set": {"name": "s", "elem": [listed]}}])
    assert {canonical(written): ""} == listing.elements["s"]


@pytest.mark.parametrize(
    ("written", "listed"),
    [
        ("goto sig_a", {"goto": {"target": "sig_a"}}),
        ("jump sig_a", {"jump": {"target": "sig_a"}}),
        ("drop", {"drop": None}),
        ("accept", {"accept": None}),
    ],
)
def test_verdict_is_recognised_in_nfts_words(written: str, listed: object) -> None:
    listing = parse_listing([{"map": {"name": "m", "map": "verdict", "elem": [["cali1", listed]]}}])
    assert listing.elements["m"] == {"cali1": written}


@pytest.mark.parametrize(
    ("declaration", "hook"),
    [
        ("type filter hook forward priority -1; policy accept;", ("filter", "forward", -1, "accept")),
        ("type filter hook input priority filter - 1;  policy drop;", ("filter", "input", -1, "drop")),
        ("type nat hook postrouting priority srcnat + 10;", ("nat", "postrouting", 110, "accept")),
        ("type filter hook prerouting priority raw;", ("filter", "prerouting", -300, "accept")),
        ("type filter hook prerouting priority raw+1;", ("filter", "prerouting", -299, "accept")),
        ("", None),
    ],
)
def test_base_chain_is_read_and_written_back(declaration: str, hook: tuple[str, str, int, str] | None) -> None:
    assert hook == parse_hook(declaration) == parse_hook(hook_text(hook))


def test_nonsense_is_no_base_chain() -> None:
    with pytest.raises(ValueError, match="base chain"):
        parse_hook("policy accept;")


def test_chain_is_ours_only_with_every_rule_in_its_place() -> None:
    chain = Chain(("accept", "drop"))
    marks = [mark(rule) for rule in chain.rules]
    assert ChainListing(None, marks).holds(chain)
    assert not ChainListing(None, marks[::-1]).holds(chain)
    assert not ChainListing(None, [*marks, ""]).holds(chain)
    assert not ChainListing(("filter", "forward", 0, "accept"), marks).holds(chain)
