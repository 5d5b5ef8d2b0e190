"""The container in a network namespace, over a stand-in for /proc."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from calico_libnetwork.docker.namespaces import container_in

CONTAINER = "c" * 64


def process(processes: Path, number: int, namespace: Path, cgroup: str) -> None:
    (processes / str(number) / "ns").mkdir(parents=True)
    os.link(namespace, processes / str(number) / "ns/net")
    (processes / str(number) / "cgroup").write_text(cgroup)


@pytest.fixture
def sandbox(tmp_path: Path) -> Path:
    path = tmp_path / "c575657a5fd2"
    path.touch()
    return path


@pytest.mark.parametrize(
    "cgroup",
    [
        f"0::/docker/{CONTAINER}\n",
        f"0::/system.slice/docker-{CONTAINER}.scope\n",
        f"12:cpu:/docker/{CONTAINER}\n1:name=systemd:/docker/{CONTAINER}\n0::/x\n",
        f"0::/parent/docker/{CONTAINER}\n",
    ],
)
def test_the_control_group_of_a_process_inside_names_the_container(tmp_path: Path, sandbox: Path, cgroup: str) -> None:
    other = tmp_path / "other"
    other.touch()
    processes = tmp_path / "proc"
    process(processes, 7, other, f"0::/docker/{'d' * 64}\n")
    process(processes, 30, sandbox, "0::/init.scope\n")
    process(processes, 9, sandbox, cgroup)
    (processes / "self").mkdir()
    (processes / "12").mkdir()
    assert container_in(sandbox, processes=processes) == CONTAINER


def test_nobody_inside_or_no_namespace_is_nobody(tmp_path: Path, sandbox: Path) -> None:
    processes = tmp_path / "proc"
    processes.mkdir()
    assert container_in(sandbox, processes=processes) is None
    assert container_in(tmp_path / "missing", processes=processes) is None
    assert container_in(sandbox) is None
