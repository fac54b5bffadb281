"""What every call passes first: who calls, how much that caller has already, and what its errors become."""

from __future__ import annotations

import functools
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any
from urllib.parse import unquote

import grpc
import grpc.aio
from google.protobuf.message import DecodeError
from grpc_health.v1 import health

from ..errors import EngineError, MimicMotionError
from .observers import Observer
from .status import Busy, Unauthorized, UploadError, abort
from .tokens import Caller, Tokens, serve_for

Context = Any  # grpc.aio.ServicerContext; the generated stubs mix it with the synchronous one
HEALTH = f"/{health.SERVICE_NAME}/"
FREE = (f"{HEALTH}Check", "/mimicmotion.v1.AnimationService/CancelAnimation")
"""Methods outside all limits: they are short, and what they are for must work on a server that is full."""
MALFORMED = object()
"""In the place of a request that is no message."""


class Gate(grpc.aio.ServerInterceptor):
    """Checks the token, bounds calls in all and of each caller, and turns what a method raises into a status."""

    def __init__(
        self,
        max_calls: int,
        client_calls: int,
        tokens: Tokens | None,
        logger: Any,
        observer: Observer,
    ) -> None:
        self._max_calls = max_calls
        self._client_calls = client_calls
        self._tokens = tokens
        self._logger = logger
        self._observer = observer
        self._calls: Counter[str] = Counter()  # by caller
        self._health: Counter[str] = (
            Counter()
        )  # those of health, which need no token: they take nobody's place

    async def intercept_service(
        self, continuation: Callable[[Any], Awaitable[Any]], details: grpc.HandlerCallDetails
    ) -> Any:
        handler = await continuation(details)
        if handler is None:  # no such method
            return None
        make, method = _kind(handler)
        guarded = functools.partial(self._serve, method, details)
        return make(_coroutine(guarded), _lenient(handler.request_deserializer), handler.response_serializer)

    async def _serve(self, method: Any, details: Any, request: Any, context: Context) -> Any:
        """One call, from its caller's name to its status."""
        began, name = time.monotonic(), details.method.rpartition("/")[2]
        sent = dict(details.invocation_metadata or ())
        peer = unquote(context.peer())
        who = Caller(_host(peer), peer, traceparent=str(sent.get("traceparent", "")))
        try:
            who = self._identify(details.method, str(sent.get("authorization", "")), who)
            with self._place(details.method, who):
                serve_for(who)
                return await _answer(method, request, context)
        except MimicMotionError as error:
            self._observer.call_failed(name, who, error)
            await abort(context, error)
        except (grpc.aio.AbortError, grpc.aio.UsageError):
            raise
        except Exception as error:
            if context.cancelled():  # the caller left while a message was being read or written
                raise
            self._logger.exception("unexpected", method=name, client=who.name, peer=who.peer)
            fault = EngineError(
                f"The server failed: {type(error).__name__}.", remedy="Its log has the details."
            )
            await abort(context, fault)
        finally:
            self._observer.call_ended(name, _code(context), time.monotonic() - began)

    def _identify(self, method: str, given: str, who: Caller) -> Caller:
        """The caller by its token; raises `Unauthorized`. Health is for everybody."""
        if self._tokens is None or method.startswith(HEALTH):
            return who
        scheme, _, presented = given.partition(" ")
        token = self._tokens.find(presented.strip()) if scheme.lower() == "bearer" else None
        if token is None:
            raise Unauthorized(
                "The token is not known here." if given else "This server wants a token.",
                remedy="Send `authorization: Bearer TOKEN` with a token that its owner gave you.",
            )
        scope = None if token.admin else token.name
        return replace(who, name=token.name, scope=scope, key_scope=token.name, priority=token.priority)

    @contextmanager
    def _place(self, method: str, who: Caller) -> Iterator[None]:
        """Holds one of the places for calls; raises `Busy`."""
        if method in FREE:
            yield
            return
        open_calls = self._health if method.startswith(HEALTH) else self._calls
        if open_calls[who.name] >= self._client_calls:
            raise Busy(f"{self._client_calls} calls of yours are being served already.")
        if open_calls.total() >= self._max_calls:
            raise Busy(f"{self._max_calls} calls are being served already.")
        open_calls[who.name] += 1
        try:
            yield
        finally:
            open_calls[who.name] -= 1
            if not open_calls[who.name]:
                del open_calls[who.name]


async def _answer(method: Any, request: Any, context: Context) -> Any:
    """Run a method of any of the four kinds; its responses are written here if it yields them."""
    if request is MALFORMED:
        raise _unreadable()
    result = method(_readable(request) if hasattr(request, "__aiter__") else request, context)
    if not hasattr(result, "__aiter__"):
        return await result
    async for response in result:
        await context.write(response)
    return None


async def _readable(requests: Any) -> Any:
    async for request in requests:
        if request is MALFORMED:
            raise _unreadable()
        yield request


async def read_message(context: Context) -> Any:
    """The next message of a call that streams its requests; raises `UploadError` if it is none."""
    request = await context.read()
    if request is MALFORMED:
        raise _unreadable()
    return request


def _unreadable() -> UploadError:
    return UploadError(
        "A request is no message of the schema.", remedy="Generate the client from the schema."
    )


def _lenient(deserialize: Any) -> Any:
    def read(data: bytes) -> Any:
        try:
            return deserialize(data)
        except DecodeError:  # gRPC would log it with its stack and answer UNKNOWN
            return MALFORMED

    return read


def _kind(handler: Any) -> tuple[Any, Any]:
    """(what makes a handler of the same kind, the method)."""
    name = "_".join(
        "stream" if many else "unary" for many in (handler.request_streaming, handler.response_streaming)
    )
    return getattr(grpc, f"{name}_rpc_method_handler"), getattr(handler, name)


def _coroutine(call: Any) -> Any:
    """gRPC asks whether a method is a coroutine function, which a partial is not."""

    async def method(request: Any, context: Context) -> Any:
        return await call(request, context)

    return method


def _host(peer: str) -> str:
    """`127.0.0.1` of `ipv4:127.0.0.1:5000`, `[::1]` of `ipv6:[::1]:5000`, `unix:` of a socket."""
    if peer.startswith("unix"):
        return "unix:"
    return peer.partition(":")[2].rpartition(":")[0] or peer


def _code(context: Context) -> str:
    """The status of a call that ended."""
    if context.cancelled():
        return "CANCELLED"
    code = context.code()
    if isinstance(code, grpc.StatusCode):
        return code.name
    return next((known.name for known in grpc.StatusCode if known.value[0] == code), "OK")
