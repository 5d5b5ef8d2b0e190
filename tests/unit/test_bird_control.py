"""BIRD's control protocol: replies as BIRD 2 and 3 send them, over a real socket."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from calico_libnetwork.errors import DataplaneError
from calico_libnetwork.routing import bird_control
from calico_libnetwork.routing.bird_control import BirdControl

STATUS = """\
1000-BIRD 2.0.12
1011-Router ID is 10.0.0.1
 Hostname is vm
 Current server time is 2026-11-24 09:26:09.280
 Last reboot on 2026-11-24 09:26:07.683
 Last reconfiguration on 2026-11-24 09:26:07.683
0024-Graceful restart recovery in progress
   Waiting for 3 channels to recover
   Wait timer is 238.402/240
0013 Daemon is up and running
"""
PROTOCOLS = """\
2002-Name       Proto      Table      State  Since         Info
1002-device1    Device     ---        up     09:26:07.683
1006-
1002-Global_10_0_0_9_port_1790 BGP        ---        down   09:26:07.684  Error: No listening socket
1006-  BGP state:          Down
     Neighbor address: 10.0.0.9
1002-Mesh_10_0_0_2 BGP        ---        up     2026-11-23    Established
1006-  BGP state:          Established
   Channel ipv4
     Routes:         2 imported, 1 filtered, 3 exported, 2 preferred
   Channel ipv6
     Routes:         1 imported, 0 exported, 1 preferred
"""
PROTOCOLS += "0000 \n"


@asynccontextmanager
async def bird(
    path: Path, answer: Callable[[str], str], greeting: str = "0001 BIRD 2.0.12 ready.\n"
) -> AsyncIterator[None]:
    ended = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(greeting.encode())
        while line := await reader.readline():
            writer.write(answer(line.decode().strip()).encode())
        writer.close()
        ended.set()

    server = await asyncio.start_unix_server(serve, path)
    async with server:
        yield
        await ended.wait()


async def test_status_and_sessions(tmp_path: Path) -> None:
    answers = {"show status": STATUS, "show protocols all": PROTOCOLS}
    async with bird(tmp_path / "ctl", answers.__getitem__), BirdControl(tmp_path / "ctl") as control:
        status = await control.status()
    assert (status.version, status.router_id, status.recovering) == ("2.0.12", "10.0.0.1", True)
    assert status.started == "2026-11-24 09:26:07.683"
    assert [protocol.name for protocol in status.protocols] == ["device1", "Global_10_0_0_9_port_1790", "Mesh_10_0_0_2"]
    down, up = status.sessions
    assert (down.established, down.info, down.imported) == (False, "Error: No listening socket", None)
    assert (up.established, up.since, up.imported, up.exported) == (True, "2026-11-23", 3, 3)


async def test_an_error_reply_is_raised_with_its_text(tmp_path: Path) -> None:
    reply = "0002-Reading configuration from /x\n8002 /x:1:6 syntax error\n"
    async with bird(tmp_path / "ctl", lambda _: reply), BirdControl(tmp_path / "ctl") as control:
        with pytest.raises(DataplaneError, match="/x:1:6 syntax error"):
            await control.ask("configure check")


async def test_nobody_listens(tmp_path: Path) -> None:
    with pytest.raises(DataplaneError, match="BIRD does not answer on"):
        async with BirdControl(tmp_path / "ctl"):
            pass


async def test_a_bird_that_hangs_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bird_control, "REPLY_SECONDS", 0.05)
    async with bird(tmp_path / "ctl", lambda _: ""), BirdControl(tmp_path / "ctl") as control:
        with pytest.raises(DataplaneError, match="too late"):
            await control.ask("show status")
    async with bird(tmp_path / "ctl2", lambda _: "", greeting=""):
        with pytest.raises(DataplaneError, match="no greeting"):
            async with BirdControl(tmp_path / "ctl2"):
                pass
