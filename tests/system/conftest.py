"""Every test of this directory runs in a network namespace of its own, without a name and gone with its process."""

from __future__ import annotations

import asyncio
import ctypes
import os
import subprocess
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field

import pytest

from calico_libnetwork.dataplane.kernel import Kernel
from calico_libnetwork.dataplane.nft import Nft

_CLONE_NEWNET = 0x40000000
_libc = ctypes.CDLL(None, use_errno=True)


def _check(result: int) -> None:
    if result != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


def _current() -> int:
    return os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)


def enter(descriptor: int) -> None:
    """Puts the calling thread, and so the threads and processes it starts, into a network namespace."""
    _check(_libc.setns(descriptor, _CLONE_NEWNET))


def _make() -> int:
    """A new namespace that lives as long as the descriptor."""
    made: list[int] = []

    def unshare() -> None:
        _check(_libc.unshare(_CLONE_NEWNET))
        made.append(_current())

    thread = threading.Thread(target=unshare)
    thread.start()
    thread.join()
    return made[0]


@dataclass
class Namespace:
    descriptor: int
    _stack: ExitStack = field(default_factory=ExitStack)

    @property
    def path(self) -> str:
        """For nsenter and friends, as long as this process lives."""
        return f"/proc/{os.getpid()}/fd/{self.descriptor}"

    def run(self, *command: str, stdin: str = "", check: bool = True) -> str:
        """A command's standard output; its complaint becomes the test's failure."""
        done = subprocess.run(
            ["nsenter", f"--net={self.path}", *command], input=stdin, capture_output=True, text=True, check=False
        )
        if check and done.returncode != 0:
            raise AssertionError(f"{' '.join(command)}: {done.returncode}: {done.stdout}{done.stderr}")
        return done.stdout

    def succeeds(self, *command: str) -> bool:
        command = ("nsenter", f"--net={self.path}", *command)
        return subprocess.run(command, capture_output=True, check=False).returncode == 0

    def start(self, *command: str) -> subprocess.Popen[str]:
        """A process that ends with the test."""
        process = subprocess.Popen(
            ["nsenter", f"--net={self.path}", *command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        self._stack.callback(_end, process)
        return process

    def close(self) -> None:
        self._stack.close()
        os.close(self.descriptor)


def _end(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.wait()
    if process.stdout is not None:
        process.stdout.close()


@pytest.fixture(autouse=True)
def namespace() -> Iterator[Namespace]:
    """The host of the test: the test's thread is in it, so is everything it starts."""
    outside = _current()
    inside = Namespace(_make())
    enter(inside.descriptor)
    try:
        assert not os.path.sameopenfile(outside, inside.descriptor)
        inside.run("ip", "link", "set", "lo", "up")
        yield inside
    finally:
        enter(outside)
        os.close(outside)
        inside.close()


@dataclass
class Workloads:
    """Containers of the test: namespaces into which a veth's end is moved as Docker does it."""

    host: Namespace
    made: list[Namespace] = field(default_factory=list)

    def attach(self, peer: str, *, mac: str = "", addresses: tuple[str, ...] = (), gateway_v6: str = "") -> Namespace:
        """The peer becomes ``cali0`` with the routes that the Join answer asks for."""
        workload = Namespace(_make())
        self.made.append(workload)
        self.host.run("ip", "link", "set", peer, "netns", workload.path)
        workload.run("ip", "link", "set", "lo", "up")
        workload.run("ip", "link", "set", peer, "name", "cali0", *(("address", mac) if mac else ()))
        for address in addresses:
            nodad = ("nodad",) if ":" in address else ()
            workload.run("ip", "addr", "add", address, "dev", "cali0", *nodad)
        workload.run("ip", "link", "set", "cali0", "up")
        if any(":" not in address for address in addresses):
            workload.run("ip", "route", "add", "169.254.1.1", "dev", "cali0")
            workload.run("ip", "route", "add", "default", "via", "169.254.1.1", "dev", "cali0")
        if gateway_v6:
            workload.run("ip", "-6", "route", "add", gateway_v6, "dev", "cali0")
            workload.run("ip", "-6", "route", "add", "default", "via", gateway_v6, "dev", "cali0")
        return workload

    def namespace(self) -> Namespace:
        made = Namespace(_make())
        self.made.append(made)
        made.run("ip", "link", "set", "lo", "up")
        return made


@pytest.fixture
def workloads(namespace: Namespace) -> Iterator[Workloads]:
    created = Workloads(namespace)
    yield created
    for workload in created.made:
        workload.close()


@pytest.fixture
async def kernel(namespace: Namespace) -> AsyncIterator[Kernel]:
    async with Kernel() as opened:
        yield opened


@pytest.fixture
async def nft(namespace: Namespace) -> AsyncIterator[Nft]:
    async with Nft() as opened:
        yield opened


async def eventually(true: Callable[[], object], *, seconds: float = 5) -> None:
    """Waits for the kernel's or another program's doing; the test fails when it does not come."""
    async with asyncio.timeout(seconds):
        while not true():  # noqa: ASYNC110 - nothing announces it
            await asyncio.sleep(0.005)
