"""Random operations and random damage on hosts that share an etcd.

Each host has threads that do what users do, and the caller's damages what there is; all draw from one seed.
What an operation answers does not matter while others kill what it needs.
"""

from __future__ import annotations

import random
import signal
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from tests.e2e.lab import IMAGE, RESOURCES, Host
from tests.etcd_server import EtcdServer

NETWORKS = ("red", "green", "blue")
CONTAINERS = 6
"""At most so many at a time on a host."""
USERS = 2
"""At once on each host."""
_LIST = {
    "container": ("ps", "--all", "--format", "{{.Names}}"),
    "network": ("network", "ls", "--filter", "driver=calico", "--format", "{{.Name}}"),
}
POLICY = """
apiVersion: projectcalico.org/v3
kind: GlobalNetworkPolicy
metadata: {{name: about-{network}}}
spec:
  order: 10
  selector: has(network.projectcalico.org/{network})
  types: [Ingress, Egress]
  ingress: [{{action: {action}}}]
  egress: [{{action: Allow}}]
"""


@dataclass
class Chaos:
    hosts: Sequence[Host]
    etcd: EtcdServer
    seed: str
    counts: Counter[str] = field(default_factory=Counter)
    journal: list[str] = field(default_factory=list)
    lost: set[str] = field(default_factory=set)
    """Interfaces deleted by hand: their containers have no network until they are started again."""
    _started: float = field(default_factory=time.monotonic)
    _ending: threading.Event = field(default_factory=threading.Event)
    _errors: list[Exception] = field(default_factory=list)

    def run(self, seconds: float) -> None:
        users = [_User(host, number, self) for host in self.hosts for number in range(USERS)]
        threads = [threading.Thread(target=self._use, args=(user,)) for user in users]
        for thread in threads:
            thread.start()
        try:
            self._damage(seconds)
        finally:
            self._ending.set()
            for thread in threads:
                thread.join()
        if self._errors:
            raise self._errors[0]

    def note(self, what: str) -> None:
        self.journal.append(f"{time.monotonic() - self._started:7.2f} {what}")

    def chance(self, of: str) -> random.Random:
        return random.Random(f"{self.seed} {of}")

    def _use(self, user: _User) -> None:
        try:
            while not self._ending.is_set():
                user.step()
        except Exception as error:  # noqa: BLE001 - the test's thread raises it
            self._errors.append(error)

    def _damage(self, seconds: float) -> None:
        chance = self.chance("damage")
        deeds: list[Callable[[Host], None]] = [
            self._kill_plugin, self._kill_plugin, self._kill_daemon, self._kill_both, self._pause_etcd, self._kill_etcd,
            self._forget, self._flush, self._cut,
        ]  # fmt: skip
        end = time.monotonic() + seconds
        while time.monotonic() < end and not self._ending.is_set():
            time.sleep(chance.uniform(0.2, 3))
            host, deed = chance.choice(self.hosts), chance.choice(deeds)
            name = deed.__name__.strip("_").replace("_", " ")
            self.note(f"{host.name}: {name} ...")
            deed(host)
            self.note(f"{host.name}: {name}")
            self.counts[name] += 1

    def _kill_plugin(self, host: Host) -> None:
        host.plugin.restart(signal.SIGKILL)

    def _kill_daemon(self, host: Host) -> None:
        host.dockerd.stop(signal.SIGKILL)
        host.dockerd.start()

    def _kill_both(self, host: Host) -> None:
        host.plugin.stop(signal.SIGKILL)
        host.dockerd.stop(signal.SIGKILL)
        host.plugin.start()
        host.dockerd.start()

    def _pause_etcd(self, _: Host) -> None:
        with self.etcd.paused():
            time.sleep(self.chance(f"pause {len(self.journal)}").choice([1, 3, 8]))

    def _kill_etcd(self, _: Host) -> None:
        self.etcd.stop(kill=True)
        time.sleep(1)
        self.etcd.start()

    def _forget(self, _: Host) -> None:
        """As somebody does who deletes the wrong thing by hand."""
        keys = self.etcd.keys(f"{RESOURCES}/workloadendpoints/")
        if keys:
            self.etcd.control("del", keys[0])

    def _flush(self, host: Host) -> None:
        host.machine.try_run("nft", "flush", "table", "inet", "calico-libnetwork")

    def _cut(self, host: Host) -> None:
        interfaces = sorted(name for name in host.machine.interfaces("cali") if "-" not in name)
        if interfaces:
            self.note(f"cutting {interfaces[0]}")
            self.lost.add(interfaces[0])
            host.machine.try_run("ip", "link", "delete", interfaces[0])


@dataclass
class _User:
    host: Host
    number: int
    chaos: Chaos
    made: int = 0
    chance: random.Random = field(init=False)

    def __post_init__(self) -> None:
        self.chance = self.chaos.chance(f"{self.host.name} {self.number}")

    def step(self) -> None:
        steps: dict[Callable[[], Sequence[str]], int] = {
            self._run: 8, self._remove: 3, self._other("stop", "--time", "0"): 2, self._other("kill"): 2,
            self._other("start"): 2, self._other("restart", "--time", "0"): 2, self._connect: 3, self._disconnect: 2,
            self._create_network: 2, self._remove_network: 1, self._policy: 1,
        }  # fmt: skip
        command = self.chance.choices([*steps], [*steps.values()])[0]()
        if not command:
            return
        try:
            done = self.host.machine.try_run(*command, seconds=90)
            outcome = "" if done.returncode == 0 else f"-> {done.stderr.strip()[-160:]}"
        except subprocess.TimeoutExpired:
            outcome = "-> no answer"
        self.chaos.note(f"{self.host.name}: {' '.join(command)} {outcome}")
        self.chaos.counts[command[1] if command[0] == "docker" else "policy"] += 1

    def _names(self, what: str) -> list[str]:
        return sorted(self.host.machine.try_run("docker", *_LIST[what]).stdout.split())

    def _any(self, what: str) -> str:
        names = self._names(what)
        return self.chance.choice(names) if names else ""

    def _run(self) -> Sequence[str]:
        network = self._any("network")
        if not network or len(self._names("container")) >= CONTAINERS:
            return ()
        self.made += 1
        options = self.chance.choice([(), ("--restart", "always")])
        name = f"{self.host.name}-{self.number}-{self.made}"
        return ("docker", "run", "--net", network, "--name", name, *options, "-tid", IMAGE)

    def _remove(self) -> Sequence[str]:
        name = self._any("container")
        return ("docker", "rm", "--force", name) if name else ()

    def _other(self, *command: str) -> Callable[[], Sequence[str]]:
        def step() -> Sequence[str]:
            name = self._any("container")
            return ("docker", *command, name) if name else ()

        return step

    def _connect(self) -> Sequence[str]:
        network, name = self._any("network"), self._any("container")
        return ("docker", "network", "connect", network, name) if network and name else ()

    def _disconnect(self) -> Sequence[str]:
        network, name = self._any("network"), self._any("container")
        return ("docker", "network", "disconnect", network, name) if network and name else ()

    def _create_network(self) -> Sequence[str]:
        kind = ("--driver", "calico", "--ipam-driver", "calico-ipam", *self.chance.choice([(), ("--ipv6",)]))
        name = self.chance.choice(NETWORKS)
        return () if name in self._names("network") else ("docker", "network", "create", *kind, name)

    def _remove_network(self) -> Sequence[str]:
        network = self._any("network")
        return ("docker", "network", "rm", network) if network else ()

    def _policy(self) -> Sequence[str]:
        network, action = self.chance.choice(NETWORKS), self.chance.choice(["Allow", "Deny"])
        file = self.host.machine.directory / f"policy{self.number}.yaml"
        file.write_text(POLICY.format(network=network, action=action))
        return self.host.command(self.chance.choice(["apply", "delete"]), "-f", str(file))
