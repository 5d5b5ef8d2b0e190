"""Hosts with real Docker daemons, joined by a fabric, and the plugin running on each as its users run it.

Every host is a ``Machine``: ``docker`` and ``calico-libnetwork`` in it use their usual paths and sockets. The fabric
is the router that all hosts have as their default gateway; it knows no route to any container, so what reaches it
from one and gets an answer has been translated to its host's address. A lab is one directory under /var/tmp; those of
runs that were killed are removed when the next lab opens.
"""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import re
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Mapping
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from calico_libnetwork.cli.session import open_datastore
from calico_libnetwork.config import Config
from tests.e2e.machine import Machine, Process, ask, remove_cgroups, wait_for
from tests.etcd_server import EtcdServer

REPOSITORY = Path(__file__).parents[2]
CACHE = Path(os.environ.get("CALICO_LAB_CACHE", "/var/cache/calico-libnetwork"))
COMMAND = REPOSITORY / ".venv/bin/calico-libnetwork"
PREFIX = "calico-libnetwork-lab."
DIRECTORY = Path("/var/tmp")
IMAGE = "busybox"
OUTSIDE = "203.0.113.1"
OUTSIDE6 = "2001:db8:113::1"
RESOURCES = "/calico/resources/v3/projectcalico.org"
SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


@dataclass(frozen=True)
class Docker:
    """One release; ``tree`` has its programs where Debian's packages put them, or in ``bin``."""

    tree: Path
    version: str

    @property
    def path(self) -> str:
        tree = self.tree
        return f"{tree / 'bin'}:{CACHE / 'bin'}:{tree / 'usr/sbin'}:{tree / 'usr/bin'}:{SYSTEM_PATH}"

    @property
    def release(self) -> tuple[int, ...]:
        return tuple(int(part) for part in self.version.split("."))

    def __str__(self) -> str:
        return f"docker-{self.version}"


def dockers() -> list[Docker]:
    """Those unpacked, and the one that a developer has laid beside them; the oldest first."""
    trees = [file.parent for file in CACHE.glob("*/version")]
    if further := os.environ.get("CALICO_LAB_DOCKER"):
        trees.append(Path(further))
    found = [Docker(tree, (tree / "version").read_text().strip()) for tree in trees]
    return sorted(found, key=lambda docker: docker.release)


class Lab(AbstractContextManager["Lab"]):
    def __init__(self) -> None:
        _remove_abandoned()
        self._stack = ExitStack()
        self.directory = Path(tempfile.mkdtemp(prefix=PREFIX, dir=DIRECTORY))
        self._lock = (self.directory / "lock").open("w")
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        self._stack.callback(_remove, self.directory)
        self.fabric = self._machine("fabric")
        self.fabric.run("sh", "-ec", _FABRIC)
        self.hosts: list[Host] = []
        self._made = 0

    def __exit__(self, *_: object) -> None:
        self._stack.close()
        self._lock.close()

    def host(self, docker: Docker) -> Host:
        """A further host with its daemon running; the plugin is not started."""
        self._made += 1
        number = self._made
        machine = self._machine(f"host{number}", docker.path)
        self.fabric.connect(machine, f"host{number}", "eth0")
        self.fabric.run("ip", "link", "set", f"host{number}", "master", "fabric")
        machine.run("sh", "-ec", _HOST, "sh", str(10 + number))
        host = Host(docker, machine, self.fabric)
        self.hosts.append(host)
        host.dockerd.start()
        host.import_image(self._image())
        return host

    def remove(self, host: Host) -> None:
        self.hosts.remove(host)
        host.machine.close()

    def _machine(self, name: str, path: str = SYSTEM_PATH) -> Machine:
        init = str(CACHE / "bin/docker-init")
        machine = Machine(name, self.directory / name, holder=(init, "-s", "--", "sleep", "infinity"), path=path)
        self._stack.callback(machine.close)
        return machine

    def _image(self) -> Path:
        """busybox as the archive that ``docker import`` takes."""
        archive = self.directory / "busybox.tar"
        if not archive.exists():
            tree = self.directory / "image"
            for name in ("bin", "etc", "tmp", "proc", "sys", "dev"):
                (tree / name).mkdir(parents=True)
            shutil.copy("/bin/busybox", tree / "bin/busybox")
            subprocess.run([tree / "bin/busybox", "--install", "-s", tree / "bin"], check=True)
            for link in (tree / "bin").iterdir():
                if link.is_symlink():
                    link.unlink()
                    link.symlink_to("busybox")
            subprocess.run(["tar", "-C", tree, "-cf", archive, "."], check=True)
        return archive


# with an address of its own: a bridge without takes that of a port, and another one when the port's host goes
_FABRIC = f"""
ip link add fabric address 0e:00:00:00:00:01 type bridge
ip link set fabric up
ip address add 172.30.0.1/24 dev fabric
ip address add fd00:30::1/64 dev fabric nodad
ip address add {OUTSIDE}/32 dev lo
ip address add {OUTSIDE6}/128 dev lo
"""

_HOST = """
ip address add 172.30.0.$1/24 dev eth0
ip address add fd00:30::$1/64 dev eth0 nodad
ip route add default via 172.30.0.1
ip -6 route add default via fd00:30::1
"""


@dataclass(repr=False)
class Host:
    docker_release: Docker
    machine: Machine
    fabric: Machine
    etcd: EtcdServer | None = None
    """Where its plugin keeps everything, if not in the embedded datastore."""
    dockerd: Dockerd = field(init=False)
    plugin: Plugin = field(init=False)

    def __post_init__(self) -> None:
        self.dockerd = Dockerd(self.machine)
        self.plugin = Plugin(self.machine)

    def __repr__(self) -> str:
        return f"<{self.name} with {self.docker_release}>"

    @property
    def name(self) -> str:
        return self.machine.name

    @property
    def logs(self) -> list[Path]:
        return [self.plugin.log, self.dockerd.log]

    @property
    def address(self) -> str:
        lines = json.loads(self.machine.run("ip", "-json", "-4", "address", "show", "dev", "eth0"))
        return str(lines[0]["addr_info"][0]["local"])

    def import_image(self, archive: Path) -> None:
        self.docker("import", "--change", 'CMD ["sh"]', str(archive), IMAGE)

    def docker(self, *arguments: str, seconds: float = 60) -> str:
        return self.machine.run("docker", *arguments, seconds=seconds)

    def docker_refuses(self, *arguments: str) -> str:
        """What docker said; fails if it did as it was told."""
        result = self.machine.try_run("docker", *arguments)
        if result.returncode == 0:
            raise AssertionError(f"docker {' '.join(arguments)} was to be refused")
        return result.stderr.strip()

    def network(self, name: str, *options: str) -> str:
        return self.docker("network", "create", "--driver", "calico", "--ipam-driver", "calico-ipam", *options, name)

    def workload(self, name: str, network: str, *options: str) -> str:
        """A container that does nothing; returns its id."""
        return self.docker("run", "--net", network, "--name", name, *options, "-tid", IMAGE)

    def execute(self, container: str, *command: str, seconds: float = 60) -> str:
        return self.docker("exec", container, *command, seconds=seconds)

    def pings(self, container: str, target: str, *options: str) -> bool:
        """Whether one ping is answered within a second."""
        command = ("docker", "exec", container, "ping", *options, "-c", "1", "-W", "1", target)
        return self.machine.try_run(*command).returncode == 0

    def inspect(self, name: str, template: str) -> str:
        return self.docker("inspect", "--format", template, name)

    def endpoint(self, container: str, network: str) -> Mapping[str, str]:
        """Docker's view of one attachment: EndpointID, IPAddress, GlobalIPv6Address, MacAddress, ..."""
        answer = json.loads(self.inspect(container, "{{json .NetworkSettings.Networks}}"))
        return dict(answer[network])

    def ipv4(self, container: str, network: str) -> str:
        return self.endpoint(container, network)["IPAddress"]

    def ipv6(self, container: str, network: str) -> str:
        return self.endpoint(container, network)["GlobalIPv6Address"]

    def calico(self, *arguments: str, text: str = "") -> str:
        """The product's own command line, beside the running plugin and set up like it."""
        return self.machine.run(*self.command(*arguments), text=text)

    def command(self, *arguments: str) -> list[str]:
        """What runs it in the machine."""
        environment = (f"{name}={value}" for name, value in self.plugin.environment.items())
        return ["env", *environment, str(COMMAND), *arguments]

    def calico_result(self, *arguments: str, text: str = "") -> subprocess.CompletedProcess[str]:
        """The same where it may well fail."""
        return self.machine.try_run(*self.command(*arguments), text=text)

    def stored(self, prefix: str) -> list[str]:
        """The datastore's keys below ``prefix``, read beside the running plugin or from the file of a stopped one."""
        if self.etcd is not None:
            return self.etcd.keys(prefix)
        config = Config(
            datastore_type="embedded",
            state_directory=self.machine.directory / "var/lib/calico-libnetwork",
            run_directory=self.machine.root / "run/calico-libnetwork",
        )
        return asyncio.run(_keys(config, prefix))

    def endpoints(self) -> set[str]:
        """The names of all workload endpoints."""
        return {_last(key) for key in self.stored(f"{RESOURCES}/workloadendpoints/")}

    def traces(self) -> list[str]:
        """Every sign of a container or a network that kernel and datastore show."""
        kernel = "ip -o link; ip route; ip -6 route; ip neighbour; nft list ruleset"
        lines = self.machine.run("sh", "-c", kernel).splitlines()
        found = [line.strip() for line in lines if re.search(r"\bcali([0-9a-f]{11}|-)", line)]
        found += self.stored(f"{RESOURCES}/workloadendpoints/")
        found += self.stored("/calico/ipam/v2/handle/")
        profiles = self.stored(f"{RESOURCES}/profiles/")
        return found + [key for key in profiles if _last(key) != "projectcalico-default-allow"]

    def clear(self) -> None:
        """Removes every container and network that a test made."""
        containers = self.docker("ps", "--all", "--quiet").split()
        if containers:
            self.docker("rm", "--force", *containers, seconds=300)
        networks = self.docker("network", "ls", "--quiet", "--filter", "type=custom").split()
        if networks:
            self.docker("network", "rm", *networks, seconds=300)


@dataclass(repr=False)
class Dockerd:
    machine: Machine
    _process: Process | None = None

    @property
    def log(self) -> Path:
        return self.machine.directory / "dockerd.log"

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.running

    def start(self, *options: str) -> None:
        directory = self.machine.directory
        configuration = directory / "daemon.json"
        configuration.write_text("{}")
        fixed = ["--data-root", str(directory / "docker"), "--config-file", str(configuration)]
        groups = f"/{cgroup_name(directory)}/docker"
        self._end_containerd()
        self._process = self.machine.start("dockerd", *fixed, "--cgroup-parent", groups, *options, log=self.log)
        self.wait_until_ready()

    def wait_until_ready(self, *, seconds: float = 60) -> None:
        wait_for("dockerd to answer", self._ready, seconds=seconds)

    def stop(self, number: signal.Signals = signal.SIGTERM) -> None:
        assert self._process is not None
        self._process.stop(number, seconds=60)

    def _end_containerd(self) -> None:
        """That of a killed predecessor, which keeps 20.10 from starting; containers do not need it."""
        file = self.machine.root / "run/docker/containerd/containerd.pid"
        if file.exists():
            self.machine.try_run("sh", "-c", 'kill "$0"; while kill -0 "$0"; do sleep 0.05; done', file.read_text())

    def _ready(self) -> bool:
        assert self._process is not None
        if not self._process.running:
            raise RuntimeError(f"dockerd ended:\n{tail(self.log)}")
        return "200 OK" in ask(self.machine.root / "run/docker.sock", "/_ping", method="GET")


@dataclass(repr=False)
class Plugin:
    """``calico-libnetwork run``; started with an environment it keeps over ``restart()``."""

    machine: Machine
    environment: dict[str, str] = field(default_factory=dict)
    _process: Process | None = None

    @property
    def log(self) -> Path:
        return self.machine.directory / "plugin.log"

    @property
    def sockets(self) -> list[Path]:
        directory = self.machine.root / "run/docker/plugins"
        return [directory / "calico.sock", directory / "calico-ipam.sock"]

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.running

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def start(self, **environment: str) -> None:
        if environment:
            self.environment = environment
        self.launch()
        wait_for("the plugin to answer on its sockets", self.ready)

    def launch(self) -> None:
        self._process = self.machine.start(str(COMMAND), "run", log=self.log, environment=self.environment)

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        assert self._process is not None
        return self._process.stop(number)

    def restart(self, number: signal.Signals = signal.SIGTERM) -> None:
        self.stop(number)
        self.start()

    def ready(self) -> bool:
        """Whether Docker and the command line both get answers; raises if the process has ended."""
        if not self.running:
            raise RuntimeError(f"the plugin ended:\n{tail(self.log)}")
        return self.answers() and (self.machine.root / "run/calico-libnetwork/control.sock").exists()

    def answers(self) -> bool:
        return all("NetworkDriver" in ask(path, "/Plugin.Activate") for path in self.sockets)


async def _keys(config: Config, prefix: str) -> list[str]:
    datastore = await open_datastore(config)
    try:
        return [item.key for item in (await datastore.list([prefix])).items]
    finally:
        await datastore.close()


def _last(key: str) -> str:
    return key.rsplit("/", 1)[1]


def tail(log: Path, *, start: int = 0, lines: int = 60) -> str:
    if not log.exists():
        return "(no log)"
    with log.open("rb") as file:
        file.seek(start)
        return "\n".join(file.read().decode(errors="replace").splitlines()[-lines:])


def cgroup_name(directory: Path) -> str:
    return f"{directory.parent.name}-{directory.name}"


def _remove_abandoned() -> None:
    """Labs whose run is dead: the kernel dropped its lock with it."""
    for directory in DIRECTORY.glob(f"{PREFIX}*"):
        try:
            with (directory / "lock").open() as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                _remove(directory)
        except (BlockingIOError, FileNotFoundError):
            continue


def _remove(directory: Path) -> None:
    for machine in directory.iterdir():
        if machine.is_dir():
            remove_cgroups(cgroup_name(machine))
    shutil.rmtree(directory)
