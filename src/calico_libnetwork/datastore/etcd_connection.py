"""gRPC to etcd's members: channels, deadlines, failover, TLS, users; what comes back is a message or one of our errors.

One channel per endpoint, until ``renew``. A request goes to the endpoint in use and moves on to the next one when that
does not answer; each is asked once, and the whole ends within a limit. A request that must not be carried out twice
moves on only if it certainly never left. A token that etcd no longer knows (it restarted, say) is renewed on the error,
once.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast
from urllib.parse import urlsplit

import grpc
import grpc.aio
import structlog

from calico_libnetwork.datastore import etcd_pb2 as pb
from calico_libnetwork.errors import Compacted, ConfigError, DatastoreError, DatastoreUnavailable

_OPTIONS = [
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.initial_reconnect_backoff_ms", 200),
    ("grpc.max_reconnect_backoff_ms", 1_000),
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    ("grpc.enable_http_proxy", 0),
    ("grpc.service_config_disable_resolution", 1),
    ("grpc.use_local_subchannel_pool", 1),
]
_UNANSWERED = {
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.CANCELLED,
    grpc.StatusCode.UNKNOWN,
    grpc.StatusCode.INTERNAL,
}
_NEVER_SENT = "failed to connect to all addresses"
# what gRPC calls an attempt to connect that it has ended because its time was up, by how far it had come
_TOO_SLOW = re.compile(
    r"tcp handshaker shutdown|connection attempt timed out before receiving SETTINGS frame"
    r"|Handshake read failed \(Endpoint closing\)|Failed to connect to remote host: connect\(\) timed out"
)
_STALE_TOKEN = ("invalid auth token", "user name is empty", "revision in header is old", "auth store is old")
_WITH_LEADER = ("hasleader", "true")  # a member cut off from the others ends its streams instead of falling silent

_log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class EtcdSettings:
    """``endpoints`` are http:// or https:// URLs; files are PEM; "" where not used."""

    endpoints: tuple[str, ...]
    ca_cert_file: str = ""
    cert_file: str = ""
    key_file: str = ""
    username: str = ""
    password: str = field(default="", repr=False)


@dataclass(frozen=True, slots=True)
class Timing:
    """Seconds. ``connect`` is below ``deadline``, so that a request that never left is known to be one."""

    connect: float = 2.0  # for one attempt to connect
    deadline: float = 3.0  # for one endpoint to answer a request
    limit: float = 6.0  # after which a request has failed, whatever the number of endpoints
    progress: float = 10.0  # between two questions whether a watch is alive; twice as long without a word, it is not


class Endpoint:
    """One channel, and the methods this project calls over it. The channel needs a running event loop."""

    def __init__(self, url: str, credentials: grpc.ChannelCredentials, *, connect: float) -> None:
        parts = urlsplit(url)
        # gRPC's name for the time that one attempt to connect may take
        options = [*_OPTIONS, ("grpc.min_reconnect_backoff_ms", int(connect * 1000))]
        if parts.scheme == "https":
            self.channel = grpc.aio.secure_channel(parts.netloc, credentials, options=options)
        else:
            self.channel = grpc.aio.insecure_channel(parts.netloc, options=options)
        self.txn = self._unary("KV/Txn", pb.TxnRequest, pb.TxnResponse)
        self.compact = self._unary("KV/Compact", pb.CompactionRequest, pb.CompactionResponse)
        self.authenticate = self._unary("Auth/Authenticate", pb.AuthenticateRequest, pb.AuthenticateResponse)
        self.watch = self.channel.stream_stream(
            "/etcdserverpb.Watch/Watch",
            request_serializer=pb.WatchRequest.SerializeToString,
            response_deserializer=pb.WatchResponse.FromString,
        )

    def _unary(self, name: str, request: type[Any], response: type[Any]) -> Any:
        return self.channel.unary_unary(
            f"/etcdserverpb.{name}",
            request_serializer=request.SerializeToString,
            response_deserializer=response.FromString,
        )


class Connection:
    """Raises ``ConfigError`` if a certificate file cannot be read."""

    def __init__(self, settings: EtcdSettings, timing: Timing) -> None:
        self._settings = settings
        self._timing = timing
        self._credentials = _credentials(settings)
        self._endpoints = self._channels()
        self._closing: set[asyncio.Task[None]] = set()
        self._current = 0
        self._token: str | None = None  # None: none asked for yet; "": etcd wants none
        self._renewal = asyncio.Lock()
        self._cluster_id = 0
        self._streams: set[WatchStream] = set()
        self._closed = False

    @property
    def description(self) -> str:
        return f"etcd ({', '.join(self._settings.endpoints)})"

    async def request(
        self, method: Callable[[Endpoint], Any], message: Any, *, repeatable: bool = True
    ) -> tuple[Any, bool]:
        """Returns the answer, and whether an endpoint asked before may have carried the request out as well."""
        end = asyncio.get_running_loop().time() + self._timing.limit
        perhaps_done = False
        failures: list[grpc.aio.AioRpcError] = []
        for _ in self._endpoints:
            left = end - asyncio.get_running_loop().time()
            if left <= 0:
                break
            endpoint = self._endpoints[self._current]
            try:
                answer = await self._ask(endpoint, method, message, min(left, self._timing.deadline))
            except grpc.aio.AioRpcError as error:
                failures.append(error)
                if error.code() not in _UNANSWERED:
                    break
                self._leave(endpoint)
                perhaps_done = perhaps_done or _NEVER_SENT not in (error.details() or "")
                if perhaps_done and not repeatable:
                    break
            else:
                self.observe(answer.header)
                return answer, perhaps_done
        raise translated(failures[-1], self.description) from failures[-1]

    @asynccontextmanager
    async def watch(self) -> AsyncIterator[WatchStream]:
        self._require_open()
        endpoint = self._endpoints[self._current]
        stream = WatchStream(endpoint.watch(metadata=_metadata(self._token)), self.description)
        self._streams.add(stream)
        ticker = asyncio.create_task(stream.ask_for_progress(self._timing.progress))
        try:
            yield stream
        except DatastoreUnavailable:
            self._leave(endpoint)
            raise
        finally:
            self._streams.discard(stream)
            stream.cancel()
            ticker.cancel()
            await asyncio.gather(ticker, return_exceptions=True)

    def renew(self) -> None:
        """New connections in the place of all there are; what was asked over the old ones is unanswered."""
        left, self._endpoints = self._endpoints, self._channels()
        for endpoint in left:
            closing = asyncio.create_task(endpoint.channel.close())
            self._closing.add(closing)
            closing.add_done_callback(self._closing.discard)

    async def close(self) -> None:
        self._closed = True
        await asyncio.gather(*self._closing, *(endpoint.channel.close() for endpoint in self._endpoints))

    def observe(self, header: pb.ResponseHeader) -> None:
        """Ends every watch if the answer comes from another cluster than the one before."""
        if self._cluster_id not in (0, header.cluster_id):
            _log.warning("etcd's cluster id changed: it was restored or replaced", datastore=self.description)
            for stream in self._streams:
                stream.cancel()
        self._cluster_id = header.cluster_id

    async def _ask(self, endpoint: Endpoint, method: Callable[[Endpoint], Any], message: Any, seconds: float) -> Any:
        self._require_open()
        token = self._token
        if self._settings.username and token is None:
            token = await self._renewed_token(endpoint, token)
        with _closing_is_no_cancellation(self.description):
            try:
                return await method(endpoint)(message, timeout=seconds, metadata=_metadata(token))
            except grpc.aio.AioRpcError as error:
                if not self._settings.username or not any(text in (error.details() or "") for text in _STALE_TOKEN):
                    raise
            token = await self._renewed_token(endpoint, token)
            return await method(endpoint)(message, timeout=seconds, metadata=_metadata(token))

    async def _renewed_token(self, endpoint: Endpoint, stale: str | None) -> str | None:
        """One request for all that wait. Raises ``DatastoreError`` if etcd refuses the user."""
        async with self._renewal:
            if self._token != stale:
                return self._token
            user = pb.AuthenticateRequest(name=self._settings.username, password=self._settings.password)
            try:
                answer = await endpoint.authenticate(user, timeout=self._timing.deadline, metadata=_metadata(None))
                self._token = answer.token
            except grpc.aio.AioRpcError as error:
                if "authentication is not enabled" not in (error.details() or ""):
                    raise
                self._token = ""
            return self._token

    def _channels(self) -> list[Endpoint]:
        return [Endpoint(url, self._credentials, connect=self._timing.connect) for url in self._settings.endpoints]

    def _leave(self, endpoint: Endpoint) -> None:
        """The next request goes to another endpoint, unless one is in use already."""
        if self._endpoints[self._current] is endpoint:
            self._current = (self._current + 1) % len(self._endpoints)

    def _require_open(self) -> None:
        if self._closed:
            raise DatastoreUnavailable(f"the datastore {self.description} is closed")


class WatchStream:
    """One stream of watch requests and answers. What ends it is raised as one of our errors."""

    def __init__(self, call: Any, description: str) -> None:
        self._call = call
        self._description = description

    async def send(self, message: pb.WatchRequest) -> None:
        """On a stream that has ended it does nothing: ``receive`` tells."""
        with _closing_is_no_cancellation(self._description):
            try:
                await self._call.write(message)
            except (asyncio.InvalidStateError, grpc.aio.AioRpcError):
                return

    async def receive(self, seconds: float) -> pb.WatchResponse:
        try:
            async with asyncio.timeout(seconds):
                with _closing_is_no_cancellation(self._description):
                    response = await self._call.read()
        except TimeoutError:
            raise DatastoreUnavailable(f"{self._description} has said nothing for {seconds:g} seconds") from None
        except grpc.aio.AioRpcError as error:
            raise translated(error, self._description) from error
        if response is grpc.aio.EOF:
            raise DatastoreUnavailable(f"{self._description} has ended the watch")
        return cast(pb.WatchResponse, response)

    async def ask_for_progress(self, period: float) -> None:
        while True:
            await asyncio.sleep(period)
            await self.send(pb.WatchRequest(progress_request=pb.WatchProgressRequest()))

    def cancel(self) -> None:
        self._call.cancel()


def translated(error: grpc.aio.AioRpcError, description: str) -> DatastoreError:
    """What a failed call means to a user."""
    details = error.details() or ""
    if error.code() in _UNANSWERED:
        last = details.rpartition("last error: ")[2]
        last = _TOO_SLOW.sub("no connection in time", last)
        reason = last.removeprefix("UNKNOWN: ").removeprefix("UNAVAILABLE: ").removesuffix(": OK") or error.code().name
        return DatastoreUnavailable(f"{description} does not answer: {reason}")
    if "has been compacted" in details:
        return Compacted(f"{description} has forgotten this revision")
    if "future revision" in details:
        return DatastoreError(f"{description}: this revision is not reached yet")
    if "authentication failed" in details:
        return DatastoreError(
            f"{description} refuses the user name or the password; check ETCD_USERNAME, ETCD_PASSWORD"
        )
    if error.code() is grpc.StatusCode.PERMISSION_DENIED:
        return DatastoreError(f"{description} permits this user too little; grant it readwrite on the prefix /calico")
    if "space exceeded" in details:
        return DatastoreError(f"{description} is full; compact and defragment it, then disarm its alarm")
    return DatastoreError(f"{description} refused a request: {details or error.code().name}")


@contextmanager
def _closing_is_no_cancellation(description: str) -> Iterator[None]:
    """grpc cancels whoever waits for a call that we end ourselves; their task was not cancelled."""
    try:
        yield
    except asyncio.CancelledError:
        task = asyncio.current_task()
        if task is None or task.cancelling():
            raise
        raise DatastoreUnavailable(f"the connection to {description} was closed") from None


def _metadata(token: str | None) -> tuple[tuple[str, str], ...]:
    return (_WITH_LEADER, ("token", token)) if token else (_WITH_LEADER,)


def _credentials(settings: EtcdSettings) -> grpc.ChannelCredentials:
    """Raises ``ConfigError``."""
    if bool(settings.cert_file) != bool(settings.key_file):
        raise ConfigError("ETCD_CERT_FILE and ETCD_KEY_FILE go together; set both or neither")
    pem = [_pem(path) for path in (settings.ca_cert_file, settings.key_file, settings.cert_file)]
    return grpc.ssl_channel_credentials(*pem)


def _pem(path: str) -> bytes | None:
    try:
        return Path(path).read_bytes() if path else None
    except OSError as error:
        raise ConfigError(f"the certificate file {path} cannot be read: {error.strerror}") from error
