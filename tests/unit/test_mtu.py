"""The workloads' MTU from the uplinks and the encapsulations."""

from __future__ import annotations

from pathlib import Path

import pytest

from calico_libnetwork.dataplane.mtu import Encapsulation, host_mtu, publish, published, workload_mtu
from calico_libnetwork.dataplane.rtnetlink import LinkInfo


def link(name: str, mtu: int, *, up: bool = True) -> LinkInfo:
    return LinkInfo(1, name, up=up, running=up, mac="", mtu=mtu, kind="", group=0, master=0, peer=0)


@pytest.mark.parametrize(
    ("links", "expected"),
    [
        ([link("eth0", 1500), link("enp3s0", 9000)], 1500),
        ([link("eth0", 1400, up=False), link("ens3", 9000)], 9000),
        ([link("docker0", 1200), link("cali1", 1300), link("lo", 65536)], 1460),
        ([], 1460),
    ],
    ids=["smallest", "down", "no uplink", "nothing"],
)
def test_host_mtu_is_the_smallest_of_its_uplinks(links: list[LinkInfo], expected: int) -> None:
    assert host_mtu(links) == expected


@pytest.mark.parametrize(
    ("encapsulations", "expected"),
    [([], 1500), (["ipip"], 1480), (["ipip", "vxlan"], 1450), (["vxlan", "vxlan-v6"], 1430)],
)
def test_largest_encapsulation_counts(encapsulations: list[Encapsulation], expected: int) -> None:
    assert workload_mtu(1500, encapsulations) == expected


def test_what_felix_published_is_read_and_nonsense_is_not(tmp_path: Path) -> None:
    path = tmp_path / "mtu"
    assert published(path) is None
    for text, expected in (("1450\n", 1450), ("0", None), ("large", None)):
        path.write_text(text, encoding="ascii")
        assert published(path) == expected


def test_published_file_is_replaced_only_when_it_differs(tmp_path: Path) -> None:
    path = tmp_path / "calico" / "mtu"
    publish(1450, path)
    inode = path.stat().st_ino
    publish(1450, path)
    assert path.stat().st_ino == inode
    publish(1400, path)
    assert path.read_text(encoding="ascii") == "1400"
    assert [path] == list(path.parent.iterdir())
