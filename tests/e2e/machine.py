"""A machine in miniature: a network, mounts, process ids and a host name of its own, on the real kernel.

Its processes are those below the one that holds the namespaces: that one gone, by ``close()`` or because the test run
was killed, the kernel ends all others and takes the interfaces along. ``/etc`` and ``/var/lib`` are copy-on-write,
``/run`` is empty and ``/sys`` shows this network, so what runs inside has the usual paths, nothing of the machine's own
is touched, and no Calico that the machine itself may have is seen. Left to remove are a directory and, after
containers, empty cgroups.
"""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

CGROUPS = Path("/sys/fs/cgroup")
_PR_SET_PDEATHSIG = 1

# $1 directory, $2 host name, then the command that holds the namespaces
_SETUP = """
set -e
directory=$1 name=$2; shift 2
hostname "$name"
mount -t proc proc /proc
mkdir "$directory/cgroup" && mount --rbind /sys/fs/cgroup "$directory/cgroup"
mount -t sysfs sysfs /sys && mount --rbind "$directory/cgroup" /sys/fs/cgroup
for path in etc var/lib; do
    upper=$directory/$path work=$directory/work/$path
    mkdir -p "$upper" "$work"
    mount -t overlay overlay -o "lowerdir=/$path,upperdir=$upper,workdir=$work" "/$path"
done
rm -rf /etc/calico /etc/calico-libnetwork /var/lib/calico /var/lib/calico-libnetwork
mount -t tmpfs tmpfs /run
mkdir /run/lock
rm -f /etc/resolv.conf && echo 'nameserver 127.0.0.1' >/etc/resolv.conf
ip link set lo up
echo ready
exec "$@"
"""


class CommandFailed(Exception):
    """A command inside ended with an error; the message is what it wrote to standard error."""

    def __init__(self, command: Sequence[str], result: subprocess.CompletedProcess[str]) -> None:
        self.error = result.stderr.strip()
        self.output = result.stdout
        self.status = result.returncode
        super().__init__(f"{' '.join(command)} ended with {result.returncode}: {self.error or result.stdout.strip()}")


def wait_for(
    what: str, condition: Callable[[], object], *, seconds: float = 20, found: Callable[[], object] = str
) -> None:
    """Returns as soon as ``condition`` holds; fails naming ``what``, and what was ``found`` instead, otherwise."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"not after {seconds:g} s: {what} {found()}")
        time.sleep(0.01)


@dataclass(repr=False)
class Machine:
    name: str
    directory: Path
    holder: Sequence[str] = ("sleep", "infinity")
    path: str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
    _unshare: subprocess.Popen[str] = field(init=False)
    pid: int = field(init=False)
    _processes: list[Process] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.directory.mkdir(parents=True)
        unshare = ["unshare", "--mount", "--uts", "--net", "--pid", "--propagation", "private", "--fork"]
        setup = ["--kill-child", "--", "sh", "-c", _SETUP, "sh", str(self.directory), self.name, *self.holder]
        self._unshare = subprocess.Popen(
            [*unshare, *setup], stdout=subprocess.PIPE, text=True, preexec_fn=_end_with_parent, start_new_session=True
        )
        assert self._unshare.stdout is not None
        if self._unshare.stdout.readline() != "ready\n":
            raise RuntimeError(f"machine {self.name} could not be set up; is this root?")
        self.pid = child_of(self._unshare.pid)

    def close(self) -> None:
        self._unshare.kill()
        self._unshare.wait()
        assert self._unshare.stdout is not None
        self._unshare.stdout.close()
        for process in self._processes:
            process.entered.wait(10)

    @property
    def root(self) -> Path:
        """The file system as this machine sees it."""
        return Path(f"/proc/{self.pid}/root")

    @property
    def environment(self) -> dict[str, str]:
        return {"PATH": self.path, "HOME": str(self.directory), "LANG": "C.UTF-8"}

    def inside(self, *command: str) -> list[str]:
        return ["nsenter", "-t", str(self.pid), "-m", "-u", "-n", "-p", "--", *command]

    def try_run(self, *command: str, seconds: float = 60, text: str = "") -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.inside(*command),
            input=text,
            capture_output=True,
            text=True,
            timeout=seconds,
            env=self.environment,
            check=False,
        )

    def run(self, *command: str, seconds: float = 60, text: str = "") -> str:
        result = self.try_run(*command, seconds=seconds, text=text)
        if result.returncode != 0:
            raise CommandFailed(command, result)
        return result.stdout.strip()

    def start(self, *command: str, log: Path, environment: Mapping[str, str] | None = None) -> Process:
        """A background process whose output is appended to ``log``."""
        with log.open("ab") as output:
            entered = subprocess.Popen(
                self.inside(*command),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**self.environment, **(environment or {})},
            )
        process = Process(entered, log)
        self._processes.append(process)
        return process

    def connect(self, other: Machine, interface: str, other_interface: str) -> None:
        """A cable between the two: a veth pair, both ends up."""
        self.run("ip", "link", "add", interface, "type", "veth", "peer", "name", "far-end")
        entered = f"/proc/{other.pid}/ns/net"
        subprocess.run(
            ["nsenter", f"--net=/proc/{self.pid}/ns/net", "ip", "link", "set", "far-end", "netns", entered], check=True
        )
        other.run("ip", "link", "set", "far-end", "name", other_interface, "up")
        self.run("ip", "link", "set", interface, "up")

    def interfaces(self, prefix: str = "") -> set[str]:
        lines = self.run("ip", "-brief", "link").splitlines()
        names = {line.split()[0].split("@")[0] for line in lines}
        return {name for name in names if name.startswith(prefix)}


@dataclass
class Process:
    entered: subprocess.Popen[bytes]
    log: Path

    @property
    def running(self) -> bool:
        return self.entered.poll() is None

    @property
    def pid(self) -> int:
        """The process itself; nsenter, which waits for it, stays outside of its process ids."""
        wait_for("nsenter to start its command", lambda: not self.running or _children(self.entered.pid))
        return child_of(self.entered.pid)

    def send(self, number: signal.Signals) -> None:
        if self.running:
            os.kill(self.pid, number)

    def stop(self, number: signal.Signals = signal.SIGTERM, *, seconds: float = 30) -> int:
        """Sends the signal and waits for the end; returns the exit status (128 + signal as a shell counts)."""
        self.send(number)
        return self.entered.wait(seconds)


def ask(path: Path, target: str, *, method: str = "POST", body: str = "", seconds: float = 2) -> str:
    """The whole HTTP answer of a unix socket; empty if nobody answers."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(seconds)
        try:
            connection.connect(str(path))
            connection.sendall(
                f"{method} {target} HTTP/1.0\r\nHost: lab\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode()
            )
            return b"".join(_chunks(connection)).decode()
        except OSError:
            return ""


def _chunks(connection: socket.socket) -> Iterator[bytes]:
    while chunk := connection.recv(65536):
        yield chunk


def remove_cgroups(name: str) -> None:
    """The empty groups below ``name`` that containers left, in every hierarchy."""
    for hierarchy in [CGROUPS, *CGROUPS.glob("*/")]:
        top = hierarchy / name
        if top.is_dir():
            for directory, _, _ in os.walk(top, topdown=False):
                Path(directory).rmdir()


def child_of(pid: int) -> int:
    children = _children(pid)
    if len(children) != 1:
        raise ProcessLookupError(f"process {pid} has {len(children)} children instead of one")
    return children[0]


def _children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def _end_with_parent() -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
