"""Changing nftables: elements by messages of our own, other small changes through libnftables in this process, whole
programs and listings in a child.

One thread owns the library's context; the interpreter is free while the library or the kernel works. Programs of
thousands of lines leave tens of megabytes behind wherever they are parsed, hence the child for those. Without the
library, the child does everything, some 10 ms slower.

Every commit has a generation number in the kernel. Remembering which were ours lets ``NftMonitor`` tell other
people's changes from our own.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import struct
import subprocess
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Any, ParamSpec, Self, TypeVar

import msgspec

from calico_libnetwork.dataplane.netlink import NETFILTER_PROTOCOL, NFT_SUBSYSTEM, Request, Socket, attributes
from calico_libnetwork.dataplane.nft_elements import ElementMessage
from calico_libnetwork.errors import DataplaneError, KernelRefused

MESSAGE_NEW_GENERATION = NFT_SUBSYSTEM | 15
GENERATION_ID = 1
_MESSAGE_GET_GENERATION = NFT_SUBSYSTEM | 16
_GENERIC_HEADER = struct.pack("=BBH", 0, 0, 0)

P = ParamSpec("P")
T = TypeVar("T")

# one transaction: nft's text, or elements alone
Program = str | Sequence[ElementMessage]

_LIBRARY = "libnftables.so.1"
_CHILD_FROM_BYTES = 32768
_REMEMBERED_GENERATIONS = 1024


class Nft:
    """Use as a context; commands run one at a time, in order, in the namespace of the thread that entered it."""

    def __init__(self) -> None:
        self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="nft")
        self._socket: Socket | None = None
        self._library: _Library | None = None
        self._own_generations: dict[int, None] = {}
        self.running = 0
        self.on_idle: list[Callable[[], None]] = []

    async def __aenter__(self) -> Self:
        await self._in_thread(self._open)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._in_thread(self._close)
        self._executor.shutdown(wait=True)

    def is_own(self, generation: int) -> bool:
        return generation in self._own_generations

    async def run(self, *programs: Program) -> None:
        """One transaction each, in order; raises DataplaneError with the complaint about the first refused one.

        That one has changed nothing, and those behind it are not tried.
        """
        self.running += 1
        try:
            await self._in_thread(self._commit_all, programs)
        finally:
            self.running -= 1
            for callback in self.on_idle:
                callback()

    async def list(self, *selection: str) -> list[dict[str, Any]] | None:
        """``nft -j list …``: the objects; None when there is no such thing."""
        return await self._in_thread(_list, selection)

    async def generation(self) -> int:
        return await self._in_thread(self._generation)

    async def _in_thread(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._executor, lambda: function(*args, **kwargs))

    def _open(self) -> None:
        self._socket = Socket(NETFILTER_PROTOCOL)

    def _close(self) -> None:
        if self._library is not None:
            self._library.close()
        if self._socket is not None:
            self._socket.close()

    def _commit_all(self, programs: tuple[Program, ...]) -> None:
        for program in programs:
            self._commit(program)

    def _commit(self, program: Program) -> None:
        before = self._generation()
        if isinstance(program, str):
            self._commit_text(program)
        else:
            self._commit_elements(program)
        after = self._generation()
        if after == before + 1:
            self._own_generations[after] = None
            if len(self._own_generations) > _REMEMBERED_GENERATIONS:
                del self._own_generations[next(iter(self._own_generations))]

    def _commit_text(self, program: str) -> None:
        library = self._load_library() if len(program) < _CHILD_FROM_BYTES else None
        complaint = _run_child(program) if library is None else library.run(program)
        if complaint is not None:
            raise DataplaneError(f"nft refused a change: {complaint}")

    def _commit_elements(self, messages: Sequence[ElementMessage]) -> None:
        try:
            refusals = self._opened.transact([message.request for message in messages])
        except KernelRefused as error:
            raise DataplaneError(f"the kernel refused elements: {error}") from error
        for position, refusal in refusals.items():
            raise DataplaneError(f"the kernel refused {messages[position].describe(refusal.offset)}: {refusal}")

    @property
    def _opened(self) -> Socket:
        if self._socket is None:
            raise RuntimeError("nft is used outside its context")
        return self._socket

    def _generation(self) -> int:
        message = self._opened.ask(Request(_MESSAGE_GET_GENERATION, _GENERIC_HEADER))
        return int.from_bytes(attributes(message.body, 4)[GENERATION_ID], "big")

    def _load_library(self) -> _Library | None:
        if self._library is None:
            try:
                self._library = _Library()
            except OSError:
                return None
        return self._library


class _Library:
    """libnftables, of which seven functions are needed; not to be shared between threads."""

    def __init__(self) -> None:
        self._functions = library = ctypes.CDLL(_LIBRARY)
        library.nft_ctx_new.restype = ctypes.c_void_p
        library.nft_ctx_new.argtypes = [ctypes.c_uint32]
        library.nft_run_cmd_from_buffer.argtypes = [ctypes.c_void_p, ctypes.c_char_p]
        library.nft_ctx_get_error_buffer.restype = ctypes.c_char_p
        for name in ("nft_ctx_free", "nft_ctx_buffer_output", "nft_ctx_buffer_error", "nft_ctx_get_error_buffer"):
            getattr(library, name).argtypes = [ctypes.c_void_p]
        self._context = library.nft_ctx_new(0)
        if not self._context:
            raise OSError("libnftables gives no context")
        library.nft_ctx_buffer_output(self._context)
        library.nft_ctx_buffer_error(self._context)

    def run(self, program: str) -> str | None:
        """The complaint, None on success."""
        if self._functions.nft_run_cmd_from_buffer(self._context, program.encode()) == 0:
            return None
        return _brief((self._functions.nft_ctx_get_error_buffer(self._context) or b"").decode(errors="replace"))

    def close(self) -> None:
        self._functions.nft_ctx_free(self._context)


def _run_child(program: str) -> str | None:
    done = _nft(("-f", "-"), program)
    return None if done.returncode == 0 else _brief(done.stderr)


def _list(selection: tuple[str, ...]) -> list[dict[str, Any]] | None:
    done = _nft(("-j", "-n", "list", *selection), "")
    if done.returncode != 0:
        if "No such file or directory" in done.stderr:
            return None
        raise DataplaneError(f"nft list {' '.join(selection)} failed: {_brief(done.stderr)}")
    objects: list[dict[str, Any]] = msgspec.json.decode(done.stdout)["nftables"]
    return objects


def _nft(arguments: tuple[str, ...], stdin: str) -> subprocess.CompletedProcess[str]:
    environment = {"LC_ALL": "C", "PATH": os.environ.get("PATH", os.defpath) + ":/usr/sbin:/sbin"}
    try:
        return subprocess.run(
            ["nft", *arguments], input=stdin, capture_output=True, text=True, check=False, env=environment
        )
    except FileNotFoundError as error:
        raise DataplaneError("the nft command is missing; install the package nftables") from error


def _brief(complaint: str) -> str:
    """The first complaint; nft repeats the program's lines below it."""
    lines = [line.strip() for line in complaint.splitlines() if "rror" in line]
    return lines[0] if lines else complaint.strip() or "no reason given"
