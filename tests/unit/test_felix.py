"""Recognising Calico's own agent, and waiting for its word."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from calico_libnetwork.dataplane.felix import FelixEndpoints, find_felix, status_file
from calico_libnetwork.model.kinds import ResourceKey
from calico_libnetwork.model.names import endpoint_interface

CALICO = Path(__file__).parents[1] / "data" / "calico"
ENDPOINT = "8f3a" + "0" * 60
KEY = ResourceKey("WorkloadEndpoint", f"docker--1-libnetwork-libnetwork-{ENDPOINT}", "libnetwork")


def process(proc: Path, pid: str, *words: str, namespace: str = "net:[1]") -> None:
    directory = proc / pid
    (directory / "ns").mkdir(parents=True)
    (directory / "cmdline").write_bytes(b"".join(word.encode() + b"\0" for word in words))
    (directory / "ns/net").symlink_to(namespace)


@pytest.mark.parametrize(
    "words", [("/usr/bin/calico-felix",), ("calico-node", "-felix"), ("calico", "component", "felix")]
)
def test_felix_is_found_by_its_process(tmp_path: Path, words: tuple[str, ...]) -> None:
    process(tmp_path, "self", "python3")
    process(tmp_path, "17", "calico-node", "-confd")
    process(tmp_path, "42", *words)
    assert find_felix(tmp_path) == 42


def test_felix_of_another_network_namespace_is_not_ours(tmp_path: Path) -> None:
    process(tmp_path, "self", "python3")
    process(tmp_path, "42", "calico-felix", namespace="net:[2]")
    assert find_felix(tmp_path) is None


@pytest.mark.parametrize("words", [("vi", "calico-felix"), ("calico-node", "-bird"), ("",)])
def test_others_are_no_felix(tmp_path: Path, words: tuple[str, ...]) -> None:
    process(tmp_path, "self", "python3")
    process(tmp_path, "42", *words)
    assert find_felix(tmp_path) is None


def test_the_name_of_the_status_file_is_felixs(tmp_path: Path) -> None:
    assert status_file(KEY, tmp_path).name == f"libnetwork libnetwork%2Flibnetwork {ENDPOINT}"


async def test_a_file_that_felix_wrote_is_found_under_its_endpoints_name(tmp_path: Path) -> None:
    recorded = json.loads((CALICO / "calico-node.jsonl").read_text().splitlines()[-1])
    (tmp_path / recorded["file"]).write_text(recorded["content"])
    endpoint = recorded["file"].rpartition(" ")[2]
    assert json.loads(recorded["content"])["ifaceName"] == endpoint_interface(endpoint)
    key = ResourceKey("WorkloadEndpoint", f"host1-libnetwork-libnetwork-{endpoint}", "libnetwork")
    assert await FelixEndpoints(tmp_path).wait(key, 0.1)


async def test_a_file_that_is_there_is_not_waited_for(tmp_path: Path) -> None:
    status_file(KEY, tmp_path).touch()
    assert await FelixEndpoints(tmp_path).wait(KEY, 0.1)


async def test_the_file_is_noticed_when_it_comes(tmp_path: Path) -> None:
    waiting = asyncio.create_task(FelixEndpoints(tmp_path).wait(KEY, 10))
    await asyncio.sleep(0)
    (tmp_path / "another").touch()
    await asyncio.sleep(0)
    status_file(KEY, tmp_path).touch()
    assert await waiting


def test_files_of_a_felix_that_ended_are_not_believed(tmp_path: Path) -> None:
    theirs = tmp_path / "k8s default%2Fpod eth0"
    theirs.touch()
    status_file(KEY, tmp_path).touch()
    FelixEndpoints(tmp_path).disbelieve()
    assert list(tmp_path.iterdir()) == [theirs]
    FelixEndpoints(tmp_path / "absent").disbelieve()


async def test_waiting_for_the_file_is_bounded(tmp_path: Path) -> None:
    assert not await FelixEndpoints(tmp_path).wait(KEY, 0.01)
    assert not await FelixEndpoints(tmp_path / "absent").wait(KEY, 10)
