"""What stands before the application: whose names it answers to, how much and how long it listens.

A server on loopback is reached by every page that the machine's browser shows: one whose name was
made to point at 127.0.0.1 sends its own name as Host (DNS rebinding), and is refused by it. What a
client sends is bounded in bytes and in time, and so is how long it may take to read.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, Final

import msgspec

from coordinator.http._views import Problem

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

# The largest body that a write takes is an alias or a reason.
BODY_BYTES_MAX: Final = 16_384
TARGET_BYTES_MAX: Final = 2_048
# What comes in one piece passes uvicorn's own bound. nginx takes 8 KB a header, four of them.
HEADER_BYTES_MAX: Final = 16_384
# A body of that size takes no time; who is slower is broken, or wants to be in the way.
BODY_S_MAX: Final = 10.0
# For each 64 KB of an answer: 2 KB a second, a bad cellular link.
SEND_S_MAX: Final = 30.0
# A browser tab, a few scripts and Prometheus; more would take the round's loop its processor.
REQUESTS_PER_S_MAX: Final = 50.0
REQUESTS_AT_ONCE_MAX: Final = 100.0


class BodyTooLargeError(Exception):
    """A body passes `BODY_BYTES_MAX`. A `TimeoutError` says that it passes its time."""


class Bucket:
    """How many requests may be served: so many a second, and a burst of some more.

    Args:
        per_s: requests a second, in the long run.
        at_once: how many may have been saved up.
        steady: seconds that nobody can set.
    """

    def __init__(
        self,
        per_s: float = REQUESTS_PER_S_MAX,
        at_once: float = REQUESTS_AT_ONCE_MAX,
        *,
        steady: Callable[[], float] = time.monotonic,
    ) -> None:
        self._per_s = per_s
        self._at_once = at_once
        self._steady = steady
        self._left = at_once
        self._at_s = steady()

    def take(self) -> bool:
        """Whether there is one left; then it is used up."""
        now_s = self._steady()
        self._left = min(self._left + (now_s - self._at_s) * self._per_s, self._at_once)
        self._at_s = now_s
        if self._left < 1.0:
            return False
        self._left -= 1.0
        return True


class Guard:
    """An ASGI application around another.

    Args:
        app: what is guarded.
        hosts: names that a request's Host may have, without port; None for any.
        bucket: how many requests are served, from all clients together.
        body_s_max: how long a client may take for its body.
        send_s_max: how long it may take to read each piece of an answer.
    """

    def __init__(
        self,
        app: App,
        *,
        hosts: frozenset[str] | None,
        bucket: Bucket | None = None,
        body_s_max: float = BODY_S_MAX,
        send_s_max: float = SEND_S_MAX,
    ) -> None:
        self._app = app
        self._hosts = hosts
        self._bucket = bucket or Bucket()
        self._body_s_max = body_s_max
        self._send_s_max = send_s_max

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = {bytes(key): bytes(value) for key, value in scope["headers"]}
        refusal = self._why_not(scope, headers)
        if refusal is not None:
            await _refuse(send, *refusal)
            return
        taken, whole = 0, False

        async def send_in_time(message: Message) -> None:
            # Half an answer cannot be taken back: the error makes the server close the connection.
            await asyncio.wait_for(send(message), self._send_s_max)

        async def receive_some() -> Message:
            nonlocal taken, whole
            if whole:
                return await receive()
            message = await asyncio.wait_for(receive(), self._body_s_max)
            taken += len(message.get("body", b""))
            whole = not message.get("more_body", False)
            if taken > BODY_BYTES_MAX:
                raise BodyTooLargeError
            return message

        await self._app(scope, receive_some, send_in_time)

    def _why_not(self, scope: Scope, headers: dict[bytes, bytes]) -> tuple[int, str, str] | None:
        if not self._bucket.take():
            return 429, "too_many_requests", f"at most {REQUESTS_PER_S_MAX:g} a second are served"
        host = headers.get(b"host")
        if self._hosts is not None and host is not None and _name_of(host) not in self._hosts:
            return 421, "misdirected_request", "this host name is not served here"
        if sum(len(key) + len(value) for key, value in headers.items()) > HEADER_BYTES_MAX:
            return 431, "too_large", f"headers have at most {HEADER_BYTES_MAX} bytes"
        length = headers.get(b"content-length", b"0")
        if not length.isdigit() or int(length[:20]) > BODY_BYTES_MAX:
            return 413, "too_large", f"a body has at most {BODY_BYTES_MAX} bytes"
        if scope["method"] != "POST" and (length != b"0" or b"transfer-encoding" in headers):
            return 400, "bad_request", f"{scope['method']} takes no body"
        if len(scope["raw_path"]) + len(scope["query_string"]) > TARGET_BYTES_MAX:
            return 414, "too_large", f"a path has at most {TARGET_BYTES_MAX} bytes"
        return None


def _name_of(host: bytes) -> str:
    """A Host header without its port."""
    text = host.decode("latin-1").strip().lower()
    name, colon, port = text.rpartition(":")
    return name if colon and port.isdecimal() else text


async def _refuse(send: Send, status: int, word: str, detail: str) -> None:
    body = msgspec.json.encode(Problem(word, detail))
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
        # What else comes on this connection is not wanted.
        (b"connection", b"close"),
    ]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
