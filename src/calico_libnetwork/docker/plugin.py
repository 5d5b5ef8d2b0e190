"""HTTP on two unix sockets: the wire as a table, one row per call of Docker's plugin protocol.

One function decodes, calls, maps errors and encodes. The sockets answer as soon as the process lives; calls that need
the datastore wait, bounded, for the drivers, which are attached when they are there. An error is HTTP 500 with
``{"Err": sentence}``, the one form that every Docker shows as it is. A connection is never closed under a request
and never for idleness: Docker would repeat the request without its body.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Protocol

import msgspec
import structlog
from aiohttp import web

from calico_libnetwork.docker import messages
from calico_libnetwork.docker.settings import DockerSettings, Scope
from calico_libnetwork.docker.sockets import PluginSockets
from calico_libnetwork.errors import CalicoError, DatastoreUnavailable

DRIVERS = ("calico", "calico-ipam")
_CAPABILITIES = "/NetworkDriver.GetCapabilities"
CONTENT_TYPE = "application/vnd.docker.plugins.v1.1+json"

CALL_DEADLINE = 20.0
"""Seconds; Docker itself would wait for ever, a managed plugin is cut off after 30."""
ATTACH_DEADLINE = 8.0
_BODY_LIMIT = 4 << 20
_FOR_EVER = 10.0 * 365 * 86400
_SHUTDOWN = 10.0

_NOTHING = messages.Empty()

_log = structlog.get_logger(__name__)


class NetworkCalls(Protocol):
    async def create_network(self, request: messages.CreateNetwork) -> None: ...
    async def delete_network(self, request: messages.NetworkRequest) -> None: ...
    async def create_endpoint(self, request: messages.CreateEndpoint) -> messages.CreatedEndpoint: ...
    async def delete_endpoint(self, request: messages.EndpointRequest) -> None: ...
    async def join(self, request: messages.Join) -> messages.Joined: ...
    async def leave(self, request: messages.EndpointRequest) -> None: ...
    async def program_external_connectivity(self, request: messages.Connectivity) -> None: ...
    async def revoke_external_connectivity(self, request: messages.EndpointRequest) -> None: ...


class IpamCalls(Protocol):
    async def request_pool(self, request: messages.RequestPool) -> messages.RequestedPool: ...
    async def request_address(self, request: messages.RequestAddress) -> messages.RequestedAddress: ...
    async def release_address(self, request: messages.ReleaseAddress) -> None: ...


class ScopeSource(Protocol):
    async def scope(self, *, host_header: str) -> Scope:
        """Must answer within a second whatever dockerd does; ``host_header`` is that of its request."""
        ...


@dataclass(frozen=True, slots=True)
class Drivers:
    network: NetworkCalls
    ipam: IpamCalls


Method = Callable[[Drivers, Any], Awaitable[messages.Message | None]]


@dataclass(frozen=True, slots=True)
class Row:
    """``request`` is the body's type, None for a call that has no body.

    With ``method`` the drivers answer; without it the answer is always ``answer``, and needs no datastore. So it is for
    a call that is not ``patient`` as long as there are no drivers: what it is about begins or ends with another call.
    """

    path: str
    request: type[messages.Message] | None = None
    method: Method | None = None
    answer: messages.Message = _NOTHING
    patient: bool = True


_SPACES = messages.AddressSpaces(
    local_default_address_space=messages.LOCAL_ADDRESS_SPACE,
    global_default_address_space=messages.GLOBAL_ADDRESS_SPACE,
)
_NETWORK, _ENDPOINT = messages.NetworkRequest, messages.EndpointRequest

_ROWS = (
    Row("/Plugin.Activate", answer=messages.Implements(implements=("NetworkDriver", "IpamDriver"))),
    Row(_CAPABILITIES),
    Row(
        "/NetworkDriver.GwAllocCheck",
        messages.AllocationCheck,
        answer=messages.SkippedGateways(skip_ipv4=True, skip_ipv6=True),
    ),
    Row("/NetworkDriver.AllocateNetwork", _NETWORK, answer=messages.AllocatedNetwork(options={})),
    Row("/NetworkDriver.FreeNetwork", _NETWORK),
    Row("/NetworkDriver.CreateNetwork", messages.CreateNetwork, lambda to, body: to.network.create_network(body)),
    Row("/NetworkDriver.DeleteNetwork", _NETWORK, lambda to, body: to.network.delete_network(body)),
    Row("/NetworkDriver.CreateEndpoint", messages.CreateEndpoint, lambda to, body: to.network.create_endpoint(body)),
    Row("/NetworkDriver.DeleteEndpoint", _ENDPOINT, lambda to, body: to.network.delete_endpoint(body)),
    Row("/NetworkDriver.EndpointOperInfo", _ENDPOINT, answer=messages.OperationalInfo(value={})),
    Row("/NetworkDriver.Join", messages.Join, lambda to, body: to.network.join(body)),
    Row("/NetworkDriver.Leave", _ENDPOINT, lambda to, body: to.network.leave(body)),
    Row(
        "/NetworkDriver.ProgramExternalConnectivity",
        messages.Connectivity,
        lambda to, body: to.network.program_external_connectivity(body),
        patient=False,
    ),
    Row(
        "/NetworkDriver.RevokeExternalConnectivity",
        _ENDPOINT,
        lambda to, body: to.network.revoke_external_connectivity(body),
        patient=False,
    ),
    Row("/NetworkDriver.DiscoverNew", messages.Discovery),
    Row("/NetworkDriver.DiscoverDelete", messages.Discovery),
    Row("/IpamDriver.GetCapabilities", answer=messages.IpamCapabilities()),
    Row("/IpamDriver.GetDefaultAddressSpaces", answer=_SPACES),
    Row("/IpamDriver.RequestPool", messages.RequestPool, lambda to, body: to.ipam.request_pool(body)),
    Row("/IpamDriver.ReleasePool", messages.PoolRequest),
    Row("/IpamDriver.RequestAddress", messages.RequestAddress, lambda to, body: to.ipam.request_address(body)),
    Row("/IpamDriver.ReleaseAddress", messages.ReleaseAddress, lambda to, body: to.ipam.release_address(body)),
)
ROWS = {row.path: row for row in _ROWS}

_encode = msgspec.json.Encoder().encode
_decoders = {row.path: msgspec.json.Decoder(row.request) for row in _ROWS if row.request is not None}


class _Call(msgspec.Struct, frozen=True):
    """A call that has been answered; ``result`` is for the log."""

    path: str
    body: bytes
    answer: bytes
    status: int
    result: str
    seconds: float


class BadRequest(CalicoError):
    """The body is not what this call takes."""


class Plugin:
    """Listens between ``start`` and ``stop``; ``attach`` gives it the drivers.

    ``on_call`` is told of every call: method, status, seconds.
    """

    def __init__(self, settings: DockerSettings, *, scope: ScopeSource) -> None:
        self._settings = settings
        self._scope = scope
        self._drivers: asyncio.Future[Drivers] = asyncio.get_running_loop().create_future()
        self._obstacle = "its datastore has not been opened yet"
        self._sockets = ExitStack()
        self._runner: web.AppRunner | None = None
        self.on_call: Callable[[str, int, float], None] = _uncounted

    async def start(self) -> None:
        """Raises ``AlreadyExists`` when another instance listens, ``ConfigError`` if the directory is not usable."""
        application = web.Application(client_max_size=_BODY_LIMIT)
        application.router.add_route("*", "/{path:.*}", self._answer)
        self._runner = web.AppRunner(
            application, access_log=None, keepalive_timeout=_FOR_EVER, shutdown_timeout=_SHUTDOWN
        )
        await self._runner.setup()
        bound = self._sockets.enter_context(PluginSockets(self._settings.plugin_directory, DRIVERS))
        for listener in bound.sockets:
            await web.SockSite(self._runner, listener).start()

    def attach(self, drivers: Drivers) -> None:
        """A second time replaces the first."""
        if self._drivers.done():
            self._drivers = asyncio.get_running_loop().create_future()
        self._drivers.set_result(drivers)

    def explain(self, obstacle: str) -> None:
        """Why there are no drivers yet, for those whose calls wait for them."""
        self._obstacle = obstacle

    async def stop(self) -> None:
        """Answers the calls under way, then the sockets are gone."""
        if self._runner is not None:
            await self._runner.cleanup()
        self._sockets.close()

    async def _answer(self, request: web.Request) -> web.Response:
        started = time.perf_counter()
        body = b""
        try:
            body = await request.read()
            answer, status, result = await self._perform(request.path, body, request.headers.get("Host", ""))
        except web.HTTPRequestEntityTooLarge:
            status, result = 413, f"the request's body has more than {_BODY_LIMIT} bytes"
            answer = _failure(result)
        call = _Call(request.path, body, answer, status, result, time.perf_counter() - started)
        asyncio.get_running_loop().call_soon(self._report, call)  # Docker has its answer before the log has its line
        return web.Response(body=answer, status=status, headers={"Content-Type": CONTENT_TYPE})

    def _report(self, call: _Call) -> None:
        _log_call(call)
        if call.path in ROWS:
            self.on_call(call.path[1:], call.status, call.seconds)
        if self._settings.log_bodies:
            request, answer = _text(call.body), _text(call.answer)
            _log.debug("docker call bodies", method=call.path[1:], request=request, answer=answer)

    async def _perform(self, path: str, body: bytes, host: str) -> tuple[bytes, int, str]:
        """The answer's body and status, and the result for the log."""
        row = ROWS.get(path)
        if row is None:
            sentence = f"calico-libnetwork has no method {path[1:] or '/'}"
            return _failure(sentence), 404, sentence
        try:
            async with asyncio.timeout(CALL_DEADLINE):
                answer = await self._call(row, body, host)
        except BadRequest as error:
            return _failure(str(error)), 400, str(error)
        except CalicoError as error:
            return _failure(str(error)), 500, str(error)
        except TimeoutError:
            sentence = f"{path[1:]} took longer than {CALL_DEADLINE:.0f} s and was given up; try again"
            return _failure(sentence), 500, sentence
        except Exception as error:  # noqa: BLE001 - the process serves every other container on
            _log.exception("docker call failed unexpectedly", method=path[1:])
            sentence = f"calico-libnetwork failed unexpectedly in {path[1:]} ({error!r}); see its log"
            return _failure(sentence), 500, sentence
        return _encode(answer or _NOTHING), 200, "ok"

    async def _call(self, row: Row, body: bytes, host: str) -> messages.Message | None:
        if row.path == _CAPABILITIES:
            return messages.NetworkCapabilities(scope=await self._scope.scope(host_header=host))
        request = None if row.request is None else _decode(row.path, body)
        if row.method is None or not (row.patient or self._drivers.done()):
            return row.answer
        return await row.method(await self._ready_drivers(), request)

    async def _ready_drivers(self) -> Drivers:
        if self._drivers.done():
            return self._drivers.result()
        try:
            async with asyncio.timeout(ATTACH_DEADLINE):
                return await asyncio.shield(self._drivers)
        except TimeoutError:
            raise DatastoreUnavailable(
                f"calico-libnetwork is starting and cannot serve yet: {self._obstacle}; try again later"
            ) from None


def _uncounted(_method: str, _status: int, _seconds: float) -> None:
    pass


def _decode(path: str, body: bytes) -> messages.Message:
    if not body.strip():
        raise BadRequest(
            f"{path[1:]} came without a body, as Docker repeats a call whose connection was lost; try the command again"
        )
    try:
        request: messages.Message = _decoders[path].decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise BadRequest(f"{path[1:]}: the request's body is not understood: {error}") from error
    return request


def _failure(sentence: str) -> bytes:
    return _encode({"Err": sentence})


_ID_LENGTH = 12


class _Ids(msgspec.Struct):
    """What a log line names of a request."""

    network: str = msgspec.field(name="NetworkID", default="")
    endpoint: str = msgspec.field(name="EndpointID", default="")
    pool: str = msgspec.field(name="PoolID", default="")
    address: str = msgspec.field(name="Address", default="")


_ids = msgspec.json.Decoder(_Ids)


def _log_call(call: _Call) -> None:
    """The one line of a call."""
    try:
        ids = msgspec.structs.asdict(_ids.decode(call.body)) if call.body else {}
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        ids = {}
    shown = {name: text[:_ID_LENGTH] if name in {"network", "endpoint"} else text for name, text in ids.items() if text}
    log = _log.info if call.status == 200 else _log.warning
    log("docker call", method=call.path[1:], **shown, ms=round(call.seconds * 1e3, 2), result=call.result)


def _text(body: bytes) -> str:
    return body.decode(errors="replace").strip()
