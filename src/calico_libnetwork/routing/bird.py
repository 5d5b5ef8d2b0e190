"""BIRD as a supervised child with files and a control socket of its own.

It is stopped as if for a graceful restart: kernel routes and the peers' view of us outlive it, so neither an upgrade
nor a crash of this process or of BIRD interrupts traffic. A BIRD left over from a process that was killed is ended
the same way before a new one starts.

``bird.conf`` exists once a BIRD has run here since boot. Only then is the next one started in recovery (``-R``):
recovery holds new routes back until every peer has been heard, which on a fresh start would wait for dead peers.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import select
import signal
import socket
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import structlog

from calico_libnetwork.dataplane import rtnetlink
from calico_libnetwork.dataplane.kernel import Kernel
from calico_libnetwork.dataplane.netlink import Socket as NetlinkSocket
from calico_libnetwork.errors import DataplaneError
from calico_libnetwork.routing.bgp_settings import BGP_PORT
from calico_libnetwork.routing.bird_control import BirdControl, BirdStatus
from calico_libnetwork.routing.bird_rivals import foreign_bird, port_conflict

STOP_SECONDS = 5.0
START_SECONDS = 5.0
CHECK_SECONDS = 10.0
_CRASH_LOOP_SECONDS = 1.0
_PROTOCOL_BIRD = 12
_NO_SOCKET = "No listening socket"
_LEVELS = {"<WARN>": "warning", "<ERR>": "error", "<FATAL>": "error", "<BUG>": "error", "<INFO>": "info"}

log = structlog.get_logger()


class Bird:
    """Use as a context. ``want`` what is to run, and ``run`` keeps it so; ``command`` is what runs BIRD.

    ``restarts`` counts how often it died by itself. ``problem`` is "" or one sentence for the user.
    """

    def __init__(
        self,
        directory: Path,
        kernel: Kernel,
        *,
        command: Sequence[str] = ("bird",),
        namespace: Path = Path("/proc/self/ns/net"),
    ) -> None:
        self._kernel = kernel
        self._command = tuple(command)
        self._namespace = namespace
        self._directory = directory
        self._configuration = directory / "bird.conf"
        self._candidate = directory / "bird.conf.new"
        self._socket = directory / "bird.ctl"
        self._pid_file = directory / "bird.pid"
        self._text: str | None = ""  # neither None nor any configuration: what runs is not known yet
        self._process: asyncio.subprocess.Process | None = None
        self._started = asyncio.Event()
        self._supervision: asyncio.Task[None] | None = None
        self._turn = asyncio.Lock()
        self._wanted: str | None = ""
        self._port = BGP_PORT
        self._wake = asyncio.Event()
        self.restarts = 0
        self.problem = ""

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process is not None and self._process.returncode is None else None

    async def __aenter__(self) -> Self:
        self._directory.mkdir(mode=0o755, parents=True, exist_ok=True)
        await self._end_leftover()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.leave()

    async def leave(self) -> None:
        """Ends BIRD as if for a restart: its routes stay, here and with the peers."""
        async with self._turn:
            await self._stop("graceful restart")

    def want(self, text: str | None, *, port: int = BGP_PORT) -> None:
        """``text``: the configuration, None for no BIRD. ``port``: where it listens."""
        if (text, port) != (self._wanted, self._port):
            self._wanted, self._port = text, port
            self._wake.set()

    async def run(self) -> None:
        """For ever: what is wanted, within the moment it is; and a look at the running BIRD every so often.

        Nothing happens before the first ``want``: what an earlier process has left carries traffic.
        """
        if self._wanted == "":
            await self._wake.wait()
        while True:
            self._wake.clear()
            before, self.problem = self.problem, await self._attempt()
            if self.problem and self.problem != before:
                log.error("BIRD", problem=self.problem)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(CHECK_SECONDS):
                    await self._wake.wait()

    async def _attempt(self) -> str:
        try:
            await self.configure(self._wanted)
            await self.check(self._port)
        except DataplaneError as error:
            return str(error)
        return self.problem

    async def configure(self, text: str | None) -> None:
        """Makes ``text`` the running configuration, if it is another; None takes all BIRD's routes back.

        Raises ``DataplaneError`` when BIRD refuses it; what ran before goes on.
        """
        async with self._turn:
            if text == self._text:
                return
            if text is None:
                await self._withdraw()
            elif self._supervision is None:
                await self._start(text, recover=self._configuration.exists())
            else:
                await self._reconfigure(text)
            self._text = text

    async def status(self) -> BirdStatus | None:
        """None while no BIRD is up. Raises ``DataplaneError`` when it does not answer."""
        if not self._started.is_set():
            return None
        async with BirdControl(self._socket) as control:
            return await control.status()

    async def check(self, port: int = BGP_PORT) -> None:
        """Finds out whether BIRD could not listen, names who is in the way, and tries again once nobody is."""
        status = await self.status()
        if status is None and self._supervision is not None:
            self.problem = "BIRD has ended and is being started again; its log says why"
            return
        if status is None or self.pid is None or not any(_NO_SOCKET in session.info for session in status.sessions):
            self.problem = ""
            return
        pid = self.pid
        self.problem = await asyncio.to_thread(lambda: port_conflict(port, own_pid=pid) or "")
        if not self.problem:
            async with self._turn, BirdControl(self._socket) as control:
                await control.ask("configure")

    async def _start(self, text: str, *, recover: bool) -> None:
        other = await asyncio.to_thread(foreign_bird, self._namespace)
        if other is not None:
            raise DataplaneError(
                f"another BIRD (pid {other}) runs on this host, and two of them delete each other's routes;"
                " if it is the distribution's: systemctl disable --now bird"
            )
        await asyncio.to_thread(_write, self._candidate, text)
        await self._verify()
        self._candidate.replace(self._configuration)
        self._supervision = asyncio.create_task(self._supervise(recover=recover), name="BIRD")
        try:
            async with asyncio.timeout(START_SECONDS):
                await self._started.wait()
        except TimeoutError:
            await self._stop("down")
            raise DataplaneError(f"BIRD has not started within {START_SECONDS:.0f} s; its log says why") from None

    async def _verify(self) -> None:
        try:
            process = await asyncio.create_subprocess_exec(
                *self._command,
                *("-p", "-c", str(self._candidate)),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.STDOUT,
            )
        except OSError as error:
            raise DataplaneError(f"{self._command[0]} cannot be run ({error.strerror}); install bird2") from error
        output, _ = await process.communicate()
        if process.returncode:
            raise DataplaneError(f"BIRD refuses its configuration: {output.decode(errors='replace').strip()}")

    async def _reconfigure(self, text: str) -> None:
        await asyncio.to_thread(_write, self._candidate, text)
        async with BirdControl(self._socket) as control:
            await control.ask(f'configure check "{self._candidate}"')
            self._candidate.replace(self._configuration)
            await control.ask("configure")

    async def _withdraw(self) -> None:
        """Also the routes that a BIRD of an earlier process has left."""
        await self._stop("down")
        if self._configuration.exists() and await asyncio.to_thread(foreign_bird, self._namespace) is None:
            await self._kernel.run(remove_routes)
        self._configuration.unlink(missing_ok=True)

    async def _supervise(self, *, recover: bool) -> None:
        while True:
            born = asyncio.get_running_loop().time()
            code = await self._run_once(recover=recover)
            recover = True
            self.restarts += 1
            log.warning("BIRD ended and is started again", code=code, restarts=self.restarts)
            if asyncio.get_running_loop().time() - born < _CRASH_LOOP_SECONDS:
                await asyncio.sleep(_CRASH_LOOP_SECONDS)  # one that cannot live must not take the processor with it

    async def _run_once(self, *, recover: bool) -> int:
        self._process = process = await asyncio.create_subprocess_exec(
            *self._command,
            "-f",
            *(("-R",) if recover else ()),
            *("-c", str(self._configuration), "-s", str(self._socket), "-P", str(self._pid_file)),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
            start_new_session=True,  # an interrupt typed at a terminal is meant for this process alone
        )
        if process.stderr is not None:
            async for line in process.stderr:
                self._take_log_line(line.decode(errors="replace").rstrip())
        self._started.clear()
        return await process.wait()

    def _take_log_line(self, line: str) -> None:
        level = next((name for tag, name in _LEVELS.items() if tag in line), "debug")
        getattr(log, level)("BIRD", line=line)
        if line.endswith("<INFO> Started"):
            self._started.set()

    async def _stop(self, farewell: str) -> None:
        """Ends the child with a command it may take as it likes, then without asking."""
        supervision, self._supervision = self._supervision, None
        if supervision is None:
            return
        supervision.cancel()
        await asyncio.gather(supervision, return_exceptions=True)
        self._started.clear()
        if self.pid is not None:
            with contextlib.suppress(DataplaneError, TimeoutError):
                async with asyncio.timeout(STOP_SECONDS), BirdControl(self._socket) as control:
                    await control.ask(farewell)
                    await control.wait_closed()
        await self._reap()

    async def _reap(self) -> None:
        if self._process is None:
            return
        try:
            async with asyncio.timeout(STOP_SECONDS):
                await self._process.communicate()
        except TimeoutError:
            self._process.kill()
            await self._process.communicate()

    async def _end_leftover(self) -> None:
        pid = _running_bird(self._pid_file)
        with contextlib.suppress(DataplaneError, TimeoutError):
            async with asyncio.timeout(STOP_SECONDS), BirdControl(self._socket) as control:
                await control.ask("graceful restart")
                await control.wait_closed()
        if pid is not None and not await asyncio.to_thread(_ended, pid):
            os.kill(pid, signal.SIGKILL)
            await asyncio.to_thread(_ended, pid)
        self._socket.unlink(missing_ok=True)


def remove_routes(kernel: NetlinkSocket) -> None:
    """Every route of BIRD's in the main table, where no BIRD runs any more."""
    infos = [
        rtnetlink.parse_route(message)
        for family in (socket.AF_INET, socket.AF_INET6)
        for message in kernel.dump(*rtnetlink.list_routes(family))
    ]
    kernel.exchange(
        [rtnetlink.delete_route(info) for info in infos if info is not None and info.protocol == _PROTOCOL_BIRD]
    )


def _write(path: Path, text: str) -> None:
    """Readable by root alone, for it holds passwords; on disk before anything is told of it."""
    path.unlink(missing_ok=True)
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def _ended(pid: int) -> bool:
    """Waits, within limits, for the end of a process that need not be ours."""
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        return bool(select.select([descriptor], [], [], STOP_SECONDS)[0])
    finally:
        os.close(descriptor)


def _running_bird(pid_file: Path) -> int | None:
    try:
        pid = int(pid_file.read_text())
        name = Path(f"/proc/{pid}/comm").read_text().strip()
    except (OSError, ValueError):
        return None
    return pid if name == "bird" else None
