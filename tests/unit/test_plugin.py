"""The front over real unix sockets: raw bytes in, raw bytes out."""

from __future__ import annotations

import asyncio
import json
import socket
import stat
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from calico_libnetwork.docker import messages, plugin
from calico_libnetwork.docker.plugin import Drivers, Plugin
from calico_libnetwork.docker.settings import DockerSettings, Scope
from calico_libnetwork.docker.sockets import PluginSockets
from calico_libnetwork.errors import AlreadyExists, Refused

ID = "a" * 64
ADDRESS_SPACES = (
    b'{"LocalDefaultAddressSpace":"CalicoLocalAddressSpace","GlobalDefaultAddressSpace":"CalicoGlobalAddressSpace"}'
)


class FixedScope:
    async def scope(self, *, host_header: str) -> Scope:
        return "global"


class EchoDriver:
    """Every call is remembered; ``error`` is what it raises."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, messages.Message]] = []
        self.error: Exception | None = None
        self.called = asyncio.Event()
        self.gate = asyncio.Event()
        self.gate.set()

    async def _take(self, name: str, request: messages.Message) -> None:
        self.calls.append((name, request))
        self.called.set()
        await self.gate.wait()
        if self.error is not None:
            raise self.error

    async def create_network(self, request: messages.CreateNetwork) -> None:
        await self._take("create_network", request)

    async def delete_network(self, request: messages.NetworkRequest) -> None:
        await self._take("delete_network", request)

    async def create_endpoint(self, request: messages.CreateEndpoint) -> messages.CreatedEndpoint:
        await self._take("create_endpoint", request)
        return messages.CreatedEndpoint(interface=messages.EndpointInterface(mac_address="02:00:00:00:00:01"))

    async def delete_endpoint(self, request: messages.EndpointRequest) -> None:
        await self._take("delete_endpoint", request)

    async def join(self, request: messages.Join) -> messages.Joined:
        await self._take("join", request)
        return messages.Joined(interface_name=messages.InterfaceName(src_name="tempx", dst_prefix="cali"))

    async def leave(self, request: messages.EndpointRequest) -> None:
        await self._take("leave", request)

    async def program_external_connectivity(self, request: messages.Connectivity) -> None:
        await self._take("program_external_connectivity", request)

    async def revoke_external_connectivity(self, request: messages.EndpointRequest) -> None:
        await self._take("revoke_external_connectivity", request)

    async def request_pool(self, request: messages.RequestPool) -> messages.RequestedPool:
        await self._take("request_pool", request)
        return messages.RequestedPool(pool_id="CalicoPoolIPv4", pool="0.0.0.0/0", data={})

    async def request_address(self, request: messages.RequestAddress) -> messages.RequestedAddress:
        await self._take("request_address", request)
        return messages.RequestedAddress(address="10.0.0.1/32")

    async def release_address(self, request: messages.ReleaseAddress) -> None:
        await self._take("release_address", request)


@asynccontextmanager
async def listening(directory: Path, driver: EchoDriver | None = None, **settings: Any) -> AsyncIterator[Plugin]:
    serving = Plugin(DockerSettings(node="n", plugin_directory=directory, **settings), scope=FixedScope())
    await serving.start()
    if driver is not None:
        serving.attach(Drivers(driver, driver))
    try:
        yield serving
    finally:
        await serving.stop()


async def raw(address: Path, request: bytes) -> tuple[int, dict[str, str], bytes]:
    """Status, headers in lower case and body of one request after which the server may close."""
    reader, writer = await asyncio.open_unix_connection(address)
    try:
        writer.write(request)
        return await read_response(reader)
    finally:
        writer.close()
        await writer.wait_closed()


async def read_response(reader: asyncio.StreamReader) -> tuple[int, dict[str, str], bytes]:
    head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in head[1:] if line)}
    return int(head[0].split()[1]), headers, await reader.readexactly(int(headers["content-length"]))


async def post(address: Path, path: str, body: bytes, host: str = "") -> tuple[int, Any]:
    request = f"POST {path} HTTP/1.1\r\nHost: {host}\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body
    status, _, answer = await raw(address, request)
    return status, json.loads(answer)


def leave_stale_socket(directory: Path) -> None:
    directory.mkdir()
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(directory / "calico.sock"))


def names_in(directory: Path) -> list[str]:
    return [path.name for path in directory.iterdir()]


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "plugins"


@pytest.mark.parametrize("name", ["calico.sock", "calico-ipam.sock"])
@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/NetworkDriver.GetCapabilities", b'{"Scope":"global"}'),
        ("/IpamDriver.GetCapabilities", b'{"RequiresMACAddress":false}'),
        ("/Plugin.Activate", b'{"Implements":["NetworkDriver","IpamDriver"]}'),
        ("/IpamDriver.GetDefaultAddressSpaces", ADDRESS_SPACES),
    ],
)
async def test_both_sockets_answer_plain_http_1_0_before_there_is_a_datastore(
    directory: Path, name: str, path: str, body: bytes
) -> None:
    async with listening(directory):
        status, headers, answer = await raw(directory / name, f"GET {path} HTTP/1.0\r\n\r\n".encode())
    assert (status, answer) == (200, body)
    assert headers["content-type"] == "application/vnd.docker.plugins.v1.1+json"


@pytest.mark.parametrize(
    "request_head",
    [
        b"\r\n\r\nPOST /NetworkDriver.Leave HTTP/1.1\r\nHost: x\r\n",
        b"POST /NetworkDriver.Leave HTTP/1.1\r\nHost:\r\n",
        b"POST /NetworkDriver.Leave HTTP/1.1\r\nHost: plugin.moby.localhost\r\nContent-Type: text/html\r\n",
        b"POST /NetworkDriver.Leave HTTP/1.1\r\nHost: x\r\nContent-Type: multipart/form-data\r\n",
    ],
)
async def test_blank_lines_any_host_and_any_content_type_are_accepted(directory: Path, request_head: bytes) -> None:
    body = json.dumps({"NetworkID": ID, "EndpointID": ID}).encode()
    async with listening(directory, EchoDriver()):
        request = request_head + f"Content-Length: {len(body)}\r\n\r\n".encode() + body
        status, _, answer = await raw(directory / "calico.sock", request)
    assert (status, answer) == (200, b"{}")


async def test_sockets_are_never_open_to_others(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    modes = []
    bind = PluginSockets._bind

    def watched(self: Any, path: Path) -> None:
        bind(self, path)
        modes.append(stat.S_IMODE(path.stat().st_mode))

    monkeypatch.setattr(PluginSockets, "_bind", watched)
    async with listening(directory):
        modes += [stat.S_IMODE((directory / name).stat().st_mode) for name in ("calico.sock", "calico-ipam.sock")]
    assert len(modes) == 4
    assert all(mode & ~0o660 == 0 for mode in modes)


async def test_second_instance_refuses_to_start_and_the_first_serves_on(directory: Path) -> None:
    async with listening(directory, EchoDriver()):
        with pytest.raises(AlreadyExists, match="stop it first"):
            async with listening(directory):
                pass
        status, _ = await post(directory / "calico.sock", "/Plugin.Activate", b"")
        assert status == 200


async def test_stale_socket_of_a_killed_instance_is_replaced(directory: Path) -> None:
    leave_stale_socket(directory)
    async with listening(directory):
        assert (await post(directory / "calico.sock", "/Plugin.Activate", b""))[0] == 200


async def test_clean_stop_leaves_no_socket(directory: Path) -> None:
    async with listening(directory):
        pass
    assert names_in(directory) == []


async def test_stop_answers_the_call_under_way(directory: Path) -> None:
    driver = EchoDriver()
    driver.gate.clear()
    async with listening(directory, driver) as serving:
        body = json.dumps({"NetworkID": ID, "EndpointID": ID}).encode()
        call = asyncio.create_task(post(directory / "calico.sock", "/NetworkDriver.Leave", body))
        await driver.called.wait()
        stopping = asyncio.create_task(serving.stop())
        await asyncio.sleep(0.01)
        driver.gate.set()
        assert await call == (200, {})
        await stopping


async def test_many_calls_travel_over_one_connection(directory: Path) -> None:
    async with listening(directory, EchoDriver()):
        reader, writer = await asyncio.open_unix_connection(directory / "calico.sock")
        for _ in range(20):
            writer.write(b"POST /NetworkDriver.EndpointOperInfo HTTP/1.1\r\nHost: x\r\nContent-Length: 34\r\n\r\n")
            writer.write(b'{"NetworkID":"n","EndpointID":"e"}')
            status, headers, body = await read_response(reader)
            assert (status, body) == (200, b'{"Value":{}}')
            assert headers.get("connection", "keep-alive") == "keep-alive"
        writer.close()
        await writer.wait_closed()


@pytest.mark.parametrize("body", [b"", b"\n", b"null", b"[]", b"{", b'"x"', b"\xff\xfe", b'{"NetworkID":7}', b"{}"])
async def test_malformed_body_is_an_error_with_a_sentence(directory: Path, body: bytes) -> None:
    driver = EchoDriver()
    async with listening(directory, driver):
        status, answer = await post(directory / "calico.sock", "/NetworkDriver.CreateNetwork", body)
    assert status == 400
    assert answer["Err"].startswith("NetworkDriver.CreateNetwork")
    assert driver.calls == []


@pytest.mark.parametrize("path", sorted(path for path, row in plugin.ROWS.items() if row.request is not None))
@pytest.mark.parametrize("body", [b"", b"[1]", b'{"NetworkID":1,"PoolID":[],"Options":3,"DiscoveryType":"x"}'])
async def test_every_call_that_has_a_body_checks_it(directory: Path, path: str, body: bytes) -> None:
    driver = EchoDriver()
    async with listening(directory, driver):
        status, answer = await post(directory / "calico.sock", path, body)
    assert (status, driver.calls) == (400, [])
    assert answer["Err"].startswith(path[1:])


async def test_empty_body_names_its_cause(directory: Path) -> None:
    async with listening(directory, EchoDriver()):
        _, answer = await post(directory / "calico.sock", "/IpamDriver.RequestAddress", b"")
    assert "came without a body" in answer["Err"]


async def test_unknown_method_is_404(directory: Path) -> None:
    async with listening(directory, EchoDriver()):
        status, answer = await post(directory / "calico.sock", "/NetworkDriver.Nonsense", b"{}")
    assert (status, answer) == (404, {"Err": "calico-libnetwork has no method NetworkDriver.Nonsense"})


@pytest.mark.parametrize("garbage", [b"{" * (1 << 20), b"\x00" * (1 << 20), b"[" * (1 << 20), b"9" * (5 << 20)])
async def test_a_megabyte_of_garbage_is_survived(directory: Path, garbage: bytes) -> None:
    async with listening(directory, EchoDriver()):
        status, answer = await post(directory / "calico.sock", "/NetworkDriver.Join", garbage)
        assert status in {400, 413}
        assert answer["Err"]
        assert (await post(directory / "calico.sock", "/Plugin.Activate", b""))[0] == 200


async def test_what_is_no_http_is_survived(directory: Path) -> None:
    async with listening(directory, EchoDriver()):
        reader, writer = await asyncio.open_unix_connection(directory / "calico.sock")
        writer.write(b"\x16\x03\x01" * 1000 + b"\r\n\r\n")
        assert b"400" in await reader.readline()
        writer.close()
        assert (await post(directory / "calico.sock", "/Plugin.Activate", b""))[0] == 200


async def test_our_errors_are_their_sentence(directory: Path) -> None:
    driver = EchoDriver()
    driver.error = Refused("Arbitrary options are not supported")
    async with listening(directory, driver):
        status, answer = await post(directory / "calico.sock", "/IpamDriver.RequestPool", b'{"PoolID":"x"}')
    assert (status, answer) == (500, {"Err": "Arbitrary options are not supported"})


async def test_an_unexpected_error_is_logged_with_its_trace_and_answered(directory: Path) -> None:
    driver = EchoDriver()
    driver.error = KeyError("boom")
    with capture_logs() as logs:
        async with listening(directory, driver):
            status, answer = await post(directory / "calico.sock", "/IpamDriver.RequestPool", b"{}")
    assert status == 500
    assert "KeyError('boom')" in answer["Err"]
    assert [entry for entry in logs if entry.get("exc_info")]


async def test_a_call_that_hangs_is_given_up(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plugin, "CALL_DEADLINE", 0.05)
    driver = EchoDriver()
    driver.gate.clear()
    async with listening(directory, driver):
        status, answer = await post(directory / "calico.sock", "/IpamDriver.RequestPool", b"{}")
    assert status == 500
    assert "IpamDriver.RequestPool took longer than" in answer["Err"]


async def test_without_a_datastore_a_call_waits_for_it_and_no_longer_than_its_deadline(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with listening(directory) as serving:
        call = asyncio.create_task(post(directory / "calico.sock", "/IpamDriver.RequestPool", b"{}"))
        await asyncio.sleep(0.02)
        driver = EchoDriver()
        serving.attach(Drivers(driver, driver))
        assert (await call)[0] == 200
    monkeypatch.setattr(plugin, "ATTACH_DEADLINE", 0.05)
    async with listening(directory):
        status, answer = await post(directory / "calico.sock", "/IpamDriver.RequestPool", b"{}")
    assert status == 500
    assert "has not been opened yet" in answer["Err"]


async def test_one_log_line_per_call_with_duration_ids_and_result(directory: Path) -> None:
    driver = EchoDriver()
    body = json.dumps({"NetworkID": ID, "EndpointID": "b" * 64}).encode()
    with capture_logs() as logs:
        async with listening(directory, driver):
            await post(directory / "calico.sock", "/NetworkDriver.Leave", body)
            driver.error = Refused("no")
            await post(directory / "calico.sock", "/NetworkDriver.Leave", body)
    assert [(e["method"], e["network"], e["endpoint"], e["result"], e["log_level"]) for e in logs] == [
        ("NetworkDriver.Leave", "a" * 12, "b" * 12, "ok", "info"),
        ("NetworkDriver.Leave", "a" * 12, "b" * 12, "no", "warning"),
    ]
    assert all(entry["ms"] >= 0 for entry in logs)


async def test_debug_adds_the_bodies(directory: Path) -> None:
    with capture_logs() as logs:
        async with listening(directory, EchoDriver(), log_bodies=True):
            await post(directory / "calico.sock", "/IpamDriver.RequestPool", b'{"Pool":""}\n')
    assert {"request": '{"Pool":""}', "answer": '{"PoolID":"CalicoPoolIPv4","Pool":"0.0.0.0/0","Data":{}}'}.items() <= (
        logs[-1].items()
    )


async def test_every_documented_call_has_a_row() -> None:
    network = (
        "GetCapabilities GwAllocCheck AllocateNetwork FreeNetwork CreateNetwork DeleteNetwork CreateEndpoint"
        " EndpointOperInfo DeleteEndpoint Join Leave ProgramExternalConnectivity RevokeExternalConnectivity"
        " DiscoverNew DiscoverDelete"
    )
    ipam = "GetCapabilities GetDefaultAddressSpaces RequestPool ReleasePool RequestAddress ReleaseAddress"
    expected = {f"/NetworkDriver.{name}" for name in network.split()} | {f"/IpamDriver.{name}" for name in ipam.split()}
    assert set(plugin.ROWS) == expected | {"/Plugin.Activate"}
